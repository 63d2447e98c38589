"""From stored samples to 8-bit RGB: which bands, which range of values, and which band is alpha."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Color: TypeAlias = tuple[int, int, int]
ValueRange: TypeAlias = "str | float | tuple[float, float]"
Meaning: TypeAlias = Literal["grey", "white", "rgb", "cmyk", "bands", "channels"]

WHITE: Color = (255, 255, 255)


class ImageError(ValueError):
    """A file that cannot be read as an image; the message is one sentence that gives the reason."""


@dataclass(frozen=True)
class ReadOptions:
    """How stored samples are shown.

    Attributes:
        bands: One band (grey) or three (red, green, blue), counted from 1; None: as the image declares.
        range: The values that become 0 and 255: (low, high), the percentage of values to cut off at each end, or
            "auto" (see ``value_range.choose_ranges``).
        backdrop: RGB colour behind transparent parts.

    Raises:
        ValueError: ``bands`` or ``range`` is something else.
    """

    bands: tuple[int, ...] | None = None
    range: ValueRange = "auto"
    backdrop: Color = WHITE

    def __post_init__(self) -> None:
        bands, chosen = self.bands, self.range
        if bands is not None and (len(bands) not in (1, 3) or any(int(band) != band or band < 1 for band in bands)):
            raise ValueError(
                f"bands: expected one band (grey) or three (red, green, blue), counted from 1, got {bands!r}"
            )
        valid = chosen == "auto"
        if isinstance(chosen, tuple | list):
            valid = len(chosen) == 2 and all(map(math.isfinite, chosen)) and chosen[0] < chosen[1]
        elif not isinstance(chosen, str):
            valid = 0 <= chosen < 50
        if not valid:
            raise ValueError(
                'range: expected "auto", (low, high) with low < high, or the percentage from 0 to 50 that is cut off '
                f"at each end, got {chosen!r}"
            )

    @property
    def is_default(self) -> bool:
        """Whether neither bands nor range are chosen."""
        return self.bands is None and self.range == "auto"


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    """Return ``--bands`` in the form that ``ReadOptions`` takes."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"bands: expected numbers such as 3,2,1 or 4, counted from 1, got {text!r}") from None


def parse_range(text: str) -> ValueRange:
    """Return ``--range`` in the form that ``ReadOptions`` takes."""
    if text.strip() == "auto":
        return "auto"
    try:
        numbers = [float(part) for part in text.removesuffix("%").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ValueError(f"range: expected auto, LOW,HIGH such as 0,4095, or a percentage such as 2, got {text!r}")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


@dataclass(frozen=True)
class SampleFormat:
    """What an image says about its samples.

    Attributes:
        dtype: Their number type.
        count: Samples per pixel.
        meaning: "grey", "white" (grey, 0 is white), "rgb", "cmyk", "bands" (nothing declared: the first three are shown
            as RGB), or "channels" (of a microscope: more than one is RGB only if there are three).
        colors: Which samples are the colours of "rgb", from 0; None: the first three.
        alpha: Which sample is alpha, from 0; None: none.
        premultiplied: Whether colours are already multiplied by alpha.
        bits: Bits in use of an integer, if declared.
        limits: The values that stand for black and white, if declared.
        nodata: The value of pixels without data.
        notes: Sentences on how the samples were understood.
    """

    dtype: np.dtype
    count: int
    meaning: Meaning
    colors: tuple[int, ...] | None = None
    alpha: int | None = None
    premultiplied: bool = False
    bits: int | None = None
    limits: tuple[float, float] | None = None
    nodata: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype.kind not in "buif":
            raise ImageError(f"its samples are {self.dtype}: save it with whole or floating-point numbers.")

    @property
    def plain(self) -> bool:
        """Whether samples are 8 bits that stand for themselves."""
        return self.dtype == np.uint8 and self.bits in (None, 8) and self.limits is None

    @property
    def declared_colors(self) -> bool:
        """Whether the bands belong together as one picture, and so share one range."""
        return self.meaning in ("grey", "white", "rgb", "cmyk")


@dataclass(frozen=True)
class Selection:
    """The samples that are read: colours (1, 3, or 4 of CMYK), from 0, then alpha if there is one."""

    colors: tuple[int, ...]
    alpha: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> list[int]:
        """Return all of them."""
        return [*self.colors, *(() if self.alpha is None else (self.alpha,))]


def select(form: SampleFormat, bands: Sequence[int] | None) -> Selection:
    """Choose the samples to read: the ``bands`` asked for and nothing else, or what the image declares.

    Raises:
        ImageError: There are no such bands, or the image does not say which of its channels are colours.
    """
    if bands is not None:
        if form.meaning == "cmyk":
            raise ImageError("its colours are CMYK, of which no bands can be chosen: leave bands out.")
        if max(bands) > form.count:
            there = f"bands 1 to {form.count}" if form.count > 1 else "one band"
            raise ImageError(f"it has {there}, not {', '.join(map(str, bands))}: choose other bands.")
        return Selection(tuple(int(band) - 1 for band in bands))
    rest = [sample for sample in range(form.count) if sample != form.alpha]
    colors = _declared(form, rest)
    left = [str(sample + 1) for sample in rest if sample not in colors]
    notes = []
    if form.meaning in ("bands", "channels") and len(colors) == 3:
        what = "channels" if form.meaning == "channels" else "bands"
        notes.append(f"its {what} 1, 2 and 3 are read as red, green and blue, which it does not declare.")
    if left:
        verb, pronoun, plural = ("are", "them", "s") if len(left) > 1 else ("is", "it", "")
        notes.append(
            f"its band{plural} {', '.join(left)} {verb} not declared as alpha and left out; choose bands to read "
            f"{pronoun}."
        )
    return Selection(tuple(colors), form.alpha, tuple(notes))


def _declared(form: SampleFormat, rest: list[int]) -> list[int]:
    if form.meaning == "channels" and len(rest) not in (1, 3):
        raise ImageError(
            f"it has {len(rest)} channels and does not say which are red, green and blue: choose one or three with "
            "bands, e.g. --bands 1."
        )
    if form.meaning == "cmyk":
        return rest[:4]
    if form.colors is not None:
        return list(form.colors)
    return rest[:3] if len(rest) >= 3 and form.meaning not in ("grey", "white") else rest[:1]


@dataclass
class Conversion:
    """Convert windows of the selected samples (h, w, n) to uint8 RGB (h, w, 3).

    Attributes:
        form, selection, backdrop: What is read.
        ranges: (low, high) of each colour: the values that become 0 and 255.
        opaque: The value of alpha that is opaque.
        notes: Grows with what windows turned out to hold.
    """

    form: SampleFormat
    selection: Selection
    backdrop: Color
    ranges: list[tuple[float, float]]
    opaque: float
    notes: list[str]
    _tables: dict[tuple[float, float], np.ndarray] = field(default_factory=dict)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Return a window's RGB; raise ImageError if it holds NaN or infinity that is not declared as NoData."""
        count = len(self.selection.colors)
        hidden = hidden_pixels(self.form, samples[..., :count])
        if samples.dtype == np.uint8 and set(self.ranges) == {(0.0, 255.0)}:
            colors = samples[..., :count]
        else:
            colors = np.stack([self._scale(samples[..., n], *self.ranges[n]) for n in range(count)], axis=-1)
        if self.form.meaning == "white":
            colors = 255 - colors
        if self.form.meaning == "cmyk":
            rest = 255 - colors[..., 3:].astype(np.uint32)
            colors = (rest - (colors[..., :3] * rest + 127) // 255).astype(np.uint8)
        if self.selection.alpha is not None:
            alpha = self._scale(samples[..., count], 0.0, self.opaque)
            colors = self._composite(colors, alpha[..., None].astype(np.uint32))
        if colors.shape[2] == 1:
            colors = np.repeat(colors, 3, axis=2)
        if hidden is not None and hidden.any():
            colors[hidden] = self.backdrop
            self._note("its pixels without data are shown on rgb({}, {}, {}).".format(*self.backdrop))
        return np.require(colors, requirements=["C", "W"])

    def _composite(self, colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        if alpha.min(initial=255) == 255:
            return colors
        self._note("its transparent parts are shown on rgb({}, {}, {}).".format(*self.backdrop))
        behind = np.asarray(self.backdrop, dtype=np.uint32) * (255 - alpha)
        front = colors.astype(np.uint32) * (255 if self.form.premultiplied else alpha)
        return np.minimum((front + behind + 127) // 255, 255).astype(np.uint8)

    def _scale(self, values: np.ndarray, low: float, high: float) -> np.ndarray:
        """Return values as uint8, ``low`` as 0 and ``high`` as 255, what is beyond them cut off."""
        if values.dtype == np.uint8 and (low, high) == (0.0, 255.0):
            return values
        if values.dtype.kind in "ui" and values.dtype.itemsize == 2:
            table = self._tables.get((low, high))
            if table is None:
                every = np.arange(1 << 16, dtype=np.uint16).astype(values.dtype.newbyteorder("="))
                table = self._tables[low, high] = _to_uint8(every, low, high)
            return table[values.astype(np.uint16)]
        return _to_uint8(values, low, high)

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def _to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    real = (values.astype(np.float64) - low) * 255.0 / (high - low)
    return np.floor(np.nan_to_num(real, nan=0.0).clip(0.0, 255.0) + 0.5).astype(np.uint8)


def hidden_pixels(form: SampleFormat, colors: np.ndarray) -> np.ndarray | None:
    """Return where colours (…, n) hold no data; None: nowhere.

    8-bit samples are shown as they are, as black is a usual NoData of photographs that also have black pixels.

    Raises:
        ImageError: NaN or infinity is not declared as NoData.
    """
    nodata, kind = form.nodata, colors.dtype.kind
    if form.plain or (nodata is None and kind != "f"):
        return None
    hidden = np.zeros(colors.shape[:-1], dtype=bool)
    if nodata is not None and not math.isnan(nodata):
        value = colors.dtype.type(nodata) if kind == "f" else int(nodata)
        hidden = (colors == value).all(axis=-1)
    if kind != "f":
        return hidden
    odd = ~np.isfinite(colors)
    if nodata is not None and math.isnan(nodata):
        odd &= ~np.isnan(colors)
        hidden |= np.isnan(colors).any(axis=-1)
    if odd[~hidden].any():
        raise ImageError("it holds NaN or infinite values: declare them as its NoData, or replace them.")
    return hidden
