"""The options that turn CAMs into pseudo-masks and boxes, checked once when they are made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal

Components = Literal["largest", "all"]
Auto = Literal["auto"]
AUTO: Auto = "auto"


@dataclass(frozen=True)
class PostprocessOptions:
    """Options that turn CAMs into pseudo-masks and boxes, passed whole to ``masks`` and ``boxes``.

    Attributes:
        background: Background score in [0, 1], or "auto": each image's own, see ``estimate_background``; 0.25 where
            neither it nor ``alpha`` is given.
        alpha: Exponent > 0 of the background score ``(1 - max_k cam_k)^alpha`` of AffinityNet (Ahn & Kwak, CVPR 2018),
            instead of ``background``; the authors use 4 to 32. Larger means less background.
        ignore: A second, lower background (or higher ``alpha``): pixels that are foreground under it and background
            under the first become 255, as in IRN (Ahn et al., CVPR 2019). Where an image's own background is no higher
            than it, no pixel does.
        box_threshold: Share of each map's maximum, in [0, 1], that a box's region exceeds, or "auto": each map's own.
        components: "largest" connected region, or "all".

    Raises:
        TypeError: A number is of another type.
        ValueError: A value is out of range, or does not go with another one.
    """

    background: float | Auto | None = None
    alpha: float | None = None
    ignore: float | None = None
    box_threshold: float | Auto = 0.2
    components: Components = "largest"

    def __post_init__(self) -> None:
        _check_fraction("box_threshold", self.box_threshold)
        check_components(self.components)
        if self.alpha is None:
            _check_fraction("background", self.background_score)
            limit = 1.0 if self.background_score == AUTO else self.background_score
            if self.ignore is not None and not 0 <= self.ignore < limit:
                shown = "1" if self.background_score == AUTO else f"background = {limit}"
                raise ValueError(f"ignore: expected a number in [0, {shown}), got {self.ignore}; lower it")
            return
        if self.background is not None:
            raise ValueError(
                f"alpha: expected either background or alpha, got {self.background} and {self.alpha}; leave one out"
            )
        if not self.alpha > 0:
            raise ValueError(f"alpha: expected a number > 0, got {self.alpha}; the AffinityNet authors use 4 to 32")
        if self.ignore is not None and not self.ignore > self.alpha:
            raise ValueError(f"ignore: expected an exponent above alpha = {self.alpha}, got {self.ignore}; raise it")

    @property
    def background_score(self) -> float | Auto:
        """The background score, its default filled in."""
        return 0.25 if self.background is None else self.background

    def with_background(self, score: float | None) -> PostprocessOptions:
        """Return the options of an image whose own background score is ``score``; unchanged unless it is "auto"."""
        if self.alpha is not None or self.background_score != AUTO:
            return self
        unsure = self.ignore is not None and score is not None and self.ignore < score
        return replace(self, background=score, ignore=self.ignore if unsure else None)


def check_components(value: str) -> None:
    """Raise ValueError unless ``value`` is "largest" or "all"."""
    if value not in ("largest", "all"):
        raise ValueError(f'components: expected "largest" or "all", got {value!r}; choose one of them')


def _check_fraction(argument: str, value: object) -> None:
    if value == AUTO:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        got = repr(value) if isinstance(value, str) else type(value).__name__
        raise TypeError(f'{argument}: expected a number in [0, 1] or "auto", got {got}; pass a float')
    if not 0 <= float(value) <= 1:
        raise ValueError(f'{argument}: expected a number in [0, 1] or "auto", got {value}')
