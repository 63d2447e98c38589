"""Windows of maps, and bilinear resizing of a window as part of the whole map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


class Window(NamedTuple):
    """Rows ``y0 … y1 − 1`` and columns ``x0 … x1 − 1`` of a map or image."""

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
        """Return this window as slices of an array that holds ``outer``."""
        return (
            slice(self.y0 - outer.y0, self.y1 - outer.y0),
            slice(self.x0 - outer.x0, self.x1 - outer.x0),
        )


def iter_windows(size: tuple[int, int], side: int) -> Iterator[Window]:
    """Yield windows of ``side``² pixels, smaller ones at the end, that cover ``size`` (H, W) row by row."""
    H, W = size
    for y in range(0, H, side):
        for x in range(0, W, side):
            yield Window(y, min(y + side, H), x, min(x + side, W))


def source_window(window: Window, source: tuple[int, int], target: tuple[int, int], align_corners: bool) -> Window:
    """Return the part of a map that ``window`` of the map resized from ``source`` to ``target`` reads."""
    y0, y1 = _source_range(window.y0, window.y1, source[0], target[0], align_corners)
    x0, x1 = _source_range(window.x0, window.x1, source[1], target[1], align_corners)
    return Window(y0, y1, x0, x1)


def resample(
    part: Tensor, held: Window, source: tuple[int, int], window: Window, target: tuple[int, int], align_corners: bool
) -> Tensor:
    """Return ``window`` of a map that is bilinearly resized from size ``source`` to ``target``.

    ``part`` ``(K, h, w)`` is the window ``held`` of the whole map and must cover the ``source_window``. Two products
    with interpolation matrices, ``Y · part · X``, give ``(K, *window.shape)``.

    Raises:
        ValueError: ``held`` does not cover the ``source_window``.
    """
    needed = source_window(window, source, target, align_corners)
    if needed.y0 < held.y0 or needed.y1 > held.y1 or needed.x0 < held.x0 or needed.x1 > held.x1:
        raise ValueError(f"held: expected a window that covers {tuple(needed)} of the map, got {tuple(held)}")
    y, x = needed.inside(held)
    part = part[:, y, x]
    if source == target:
        return part
    rows = _matrix(window.y0, window.y1, source[0], target[0], needed.y0, needed.y1, align_corners).to(part)
    columns = _matrix(window.x0, window.x1, source[1], target[1], needed.x0, needed.x1, align_corners).to(part)
    return rows @ part @ columns.mT


def resize_margin(source: int, target: int, step: float, align_corners: bool) -> int:
    """Return how many source pixels beyond ``step`` · target index bilinear resizing reads, at most.

    The distance is linear in the index, hence largest at an end.
    """
    scale = (source - 1) / max(target - 1, 1) if align_corners else source / target
    start = 0.0 if align_corners else 0.5 * scale - 0.5
    end = start + (target - 1) * (scale - step)
    return math.ceil(max(abs(start), abs(end))) + 1  # and the second of the two pixels that are mixed


def _positions(lo: int, hi: int, source: int, target: int, align_corners: bool) -> Tensor:
    """Return the source coordinates of target pixels ``lo … hi − 1``, as in PyTorch's ``interpolate``."""
    pixels = torch.arange(lo, hi, dtype=torch.float64)
    if align_corners:
        return pixels * ((source - 1) / (target - 1) if target > 1 else 0.0)
    return ((pixels + 0.5) * (source / target) - 0.5).clamp_min_(0.0)


def _source_range(lo: int, hi: int, source: int, target: int, align_corners: bool) -> tuple[int, int]:
    if source == target:
        return lo, hi
    first, last = _positions(lo, hi, source, target, align_corners)[[0, -1]].tolist()
    return min(math.floor(first), source - 1), min(math.floor(last) + 2, source)


def _matrix(lo: int, hi: int, source: int, target: int, held_lo: int, held_hi: int, align_corners: bool) -> Tensor:
    """Return ``[hi − lo, held_hi − held_lo]`` with the two weights of every target pixel."""
    if source == target:
        return torch.eye(held_hi - held_lo, dtype=torch.float64)[lo - held_lo : hi - held_lo]
    positions = _positions(lo, hi, source, target, align_corners)
    lower = positions.floor().clamp_max_(source - 1)
    fraction = (positions - lower).clamp_(0.0, 1.0)
    lower_index = lower.long()
    upper_index = (lower_index + 1).clamp_max_(source - 1)
    matrix = torch.zeros(hi - lo, held_hi - held_lo, dtype=torch.float64)
    row = torch.arange(hi - lo)
    matrix.index_put_((row, lower_index - held_lo), 1 - fraction, accumulate=True)
    matrix.index_put_((row, upper_index - held_lo), fraction, accumulate=True)
    return matrix
