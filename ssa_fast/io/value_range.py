"""Which values become black and white, where samples have more than 8 bits: by declaration, or by a sample."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ssa_fast.io.samples import ImageError, hidden_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ssa_fast.io.samples import SampleFormat, Selection, ValueRange

Ranges: TypeAlias = "list[tuple[float, float]]"

WHOLE = 1 << 22  # images of at most so many pixels are examined whole
GRID, WINDOW = 16, 128  # of larger ones, GRID² windows of WINDOW² pixels, evenly spread
PERCENT = 2.0  # cut off at each end where a range is stretched, as GIS programs do
TOP = 99.9  # the percentile that is taken for the largest value: single hot or saturated pixels say nothing
FEW_BITS = 12  # of cameras and detectors whose values come in 16-bit integers


def sample_windows(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield the windows y0, y1, x0, x1 that are examined; they depend on the size only."""
    H, W = size
    if H * W <= WHOLE:
        yield 0, H, 0, W
        return
    starts = [[round(n * max(0, side - WINDOW) / (GRID - 1)) for n in range(GRID)] for side in size]
    for y, x in itertools.product(*(sorted(set(each)) for each in starts)):
        yield y, min(y + WINDOW, H), x, min(x + WINDOW, W)


def choose_ranges(
    form: SampleFormat, selection: Selection, wanted: ValueRange, examine: Callable[[], np.ndarray]
) -> tuple[Ranges, float, list[str]]:
    """Return (low, high) per colour, the value of opaque alpha, and notes on what was assumed.

    "auto" is, the first that applies: 8 bits as they are; the range or the bits that the file declares; 0 to 2ⁿ − 1 for
    integers ≥ 0 that use n ≤ 12 bits; all 16 bits if the highest one is in use; 0 to 1 for floats within it that pass
    0.25; otherwise the 2nd to 98th percentile, of all colours together for declared colours, else of each band.

    Args:
        form: What the image declares.
        selection: The samples that are read.
        wanted: "auto", (low, high), or a percentage.
        examine: Returns samples of the image, (n, samples); called where a choice depends on the values.
    """
    count = len(selection.colors)
    if wanted == "auto" and form.plain:
        return [(0.0, 255.0)] * count, 255.0, []
    if isinstance(wanted, tuple | list) and selection.alpha is None:
        return [(float(wanted[0]), float(wanted[1]))] * count, _full(form), []
    declared = form.limits or (None if form.bits is None or form.bits > FEW_BITS else (0.0, 2.0**form.bits - 1))
    if form.dtype.kind == "b":
        declared = (0.0, 1.0)
    if wanted == "auto" and declared is not None and selection.alpha is None:
        return [declared] * count, _full(form), []
    values = examine()
    opaque = _full(form) if selection.alpha is None else _opaque(form, values[:, count])
    shown = values[:, :count] if selection.alpha is None else values[values[:, count] > 0, :count]
    hidden = hidden_pixels(form, shown)
    shown = shown if hidden is None else shown[~hidden]
    if isinstance(wanted, tuple | list):
        return [(float(wanted[0]), float(wanted[1]))] * count, opaque, []
    if not shown.size:
        return [declared or (0.0, 1.0)] * count, opaque, []
    if not isinstance(wanted, str):
        return _percentiles(shown, form.declared_colors, float(wanted)), opaque, []
    if declared is not None:
        return [declared] * count, opaque, []
    common, note = _natural(form, shown)
    if common is not None:
        return [common] * count, opaque, [note] if note else []
    ranges = _percentiles(shown, form.declared_colors, PERCENT)
    return ranges, opaque, [_stretched(ranges, form.declared_colors)]


def _natural(form: SampleFormat, shown: np.ndarray) -> tuple[tuple[float, float] | None, str]:
    """Return the range that values seem to be made for, with a note if it is not all of their type; None: stretch."""
    low, top = float(shown.min()), float(np.percentile(shown, TOP, method="higher"))
    largest = float(shown.max())
    if shown.dtype.kind == "f":
        return ((0.0, 1.0), "") if low >= 0 and largest <= 1 and (top >= 0.25 or top == 0) else (None, "")
    bits = form.bits or 16
    if low < 0 or largest >= 2**bits:
        return None, ""
    used = int(top).bit_length()
    if used <= FEW_BITS:
        used = max(8, used)
        return (0.0, 2.0**used - 1), f"its values use {used} of {bits} bits: 0 to {2**used - 1} become 0 to 255."
    return ((0.0, 2.0**bits - 1), "") if used == bits else (None, "")


def _percentiles(shown: np.ndarray, joint: bool, percent: float) -> Ranges:
    groups = [shown.reshape(-1)] * shown.shape[1] if joint else list(shown.T)
    found = []
    for group in groups[:1] if joint else groups:
        low = float(np.percentile(group, percent, method="lower"))
        high = float(np.percentile(group, 100.0 - percent, method="higher"))
        if low == high:  # nearly all values are one: what differs from it is what there is to see
            low, high = float(group.min()), float(group.max())
        found.append((low, high if high > low else low + 1.0))
    return found * shown.shape[1] if joint else found


def _stretched(ranges: Ranges, joint: bool) -> str:
    spans = [f"{low:g} to {high:g}" for low, high in (ranges[:1] if joint else ranges)]
    return f"its values, {', '.join(spans)} ({PERCENT:g} % cut off at each end), are stretched to 0..255."


def _full(form: SampleFormat) -> float:
    return 1.0 if form.dtype.kind in "fb" else float(2**form.bits - 1 if form.bits else np.iinfo(form.dtype).max)


def _opaque(form: SampleFormat, alpha: np.ndarray) -> float:
    """Return the value of opaque alpha: often that of 8 or 12 bits in 16, as the colours beside it."""
    full, largest = _full(form), float(alpha.max(initial=0))
    if not np.isfinite(largest):
        raise ImageError("its alpha holds NaN or infinite values.")
    if form.dtype.kind == "f":
        return 255.0 if 1.0 < largest <= 255.0 else 1.0
    bits = int(largest).bit_length()
    return largest if 8 <= bits < 16 and largest == 2**bits - 1 else full
