"""Windows of maps: which one an output window needs, and its bilinear resizing as part of the whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Window(NamedTuple):
    """Rows ``y0 … y1 − 1`` and columns ``x0 … x1 − 1`` of a map or picture."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.y1 <= self.y0 or self.x1 <= self.x0

    def inside(self, outer: Window) -> tuple[slice, slice]:
        """This window as slices of an array that holds ``outer``."""
        return (
            slice(self.y0 - outer.y0, self.y1 - outer.y0),
            slice(self.x0 - outer.x0, self.x1 - outer.x0),
        )


def needed(window: Window, source: tuple[int, int], target: tuple[int, int], align_corners: bool) -> Window:
    """The window of a map of size ``source`` from which ``window`` of it, resized to ``target``, is interpolated."""
    (y0, y1), (x0, x1) = (
        _span(lo, hi, s, t, align_corners)
        for (lo, hi), s, t in zip(((window.y0, window.y1), (window.x0, window.x1)), source, target, strict=True)
    )
    return Window(y0, y1, x0, x1)


def resample(
    piece: Tensor, held: Window, source: tuple[int, int], window: Window, target: tuple[int, int], align_corners: bool
) -> Tensor:
    """``window`` of what bilinear resizing of a whole map from ``source`` to ``target`` gives.

    ``piece`` ``(K, h, w)`` is the part ``held`` of the whole map, and must cover what is ``needed``. Two products with
    interpolation matrices, ``Y · piece · X``: ``(K, *window.shape)``.

    Raises:
        ValueError: ``held`` does not cover it.
    """
    part = needed(window, source, target, align_corners)
    if part.y0 < held.y0 or part.y1 > held.y1 or part.x0 < held.x0 or part.x1 > held.x1:
        raise ValueError(f"held: expected a window that covers {tuple(part)} of the map, got {tuple(held)}")
    y, x = part.inside(held)
    piece = piece[:, y, x]
    if source == target:
        return piece
    rows = _matrix(window.y0, window.y1, source[0], target[0], part.y0, part.y1, align_corners).to(piece)
    columns = _matrix(window.x0, window.x1, source[1], target[1], part.x0, part.x1, align_corners).to(piece)
    return rows @ piece @ columns.mT


def drift(source: int, target: int, step: float, align_corners: bool) -> int:
    """How many of a map's pixels bilinear resizing reaches beyond those ``step`` times the target's index, at most.

    The distance is linear in the index, hence largest at an end.
    """
    scale = (source - 1) / max(target - 1, 1) if align_corners else source / target
    start = 0.0 if align_corners else 0.5 * scale - 0.5
    end = start + (target - 1) * (scale - step)
    return math.ceil(max(abs(start), abs(end))) + 1  # and the second of the two pixels that are mixed


def _positions(lo: int, hi: int, source: int, target: int, align_corners: bool) -> Tensor:
    """Where the target's pixels ``lo … hi − 1`` lie among the source's, as PyTorch's ``interpolate`` has it."""
    pixels = torch.arange(lo, hi, dtype=torch.float64)
    if align_corners:
        return pixels * ((source - 1) / (target - 1) if target > 1 else 0.0)
    return ((pixels + 0.5) * (source / target) - 0.5).clamp_min_(0.0)


def _span(lo: int, hi: int, source: int, target: int, align_corners: bool) -> tuple[int, int]:
    if source == target:
        return lo, hi
    first, last = _positions(lo, hi, source, target, align_corners)[[0, -1]].tolist()
    return min(math.floor(first), source - 1), min(math.floor(last) + 2, source)


def _matrix(lo: int, hi: int, source: int, target: int, held_lo: int, held_hi: int, align_corners: bool) -> Tensor:
    """``[hi − lo, held_hi − held_lo]`` with the two weights of every target pixel."""
    if source == target:
        return torch.eye(held_hi - held_lo, dtype=torch.float64)[lo - held_lo : hi - held_lo]
    positions = _positions(lo, hi, source, target, align_corners)
    below = positions.floor().clamp_max_(source - 1)
    fraction = (positions - below).clamp_(0.0, 1.0)
    below_ = below.long()
    above = (below_ + 1).clamp_max_(source - 1)
    matrix = torch.zeros(hi - lo, held_hi - held_lo, dtype=torch.float64)
    line = torch.arange(hi - lo)
    matrix.index_put_((line, below_ - held_lo), 1 - fraction, accumulate=True)
    matrix.index_put_((line, above - held_lo), fraction, accumulate=True)
    return matrix
