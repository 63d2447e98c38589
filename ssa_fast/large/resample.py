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
    def spans(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """``(y0, y1), (x0, x1)``."""
        return (self.y0, self.y1), (self.x0, self.x1)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def empty(self) -> bool:
        """True if it holds no pixel."""
        return min(self.shape) <= 0

    def inside(self, outer: Window) -> tuple[slice, slice]:
        """Return this window as slices of an array that holds ``outer``."""
        return slice(self.y0 - outer.y0, self.y1 - outer.y0), slice(self.x0 - outer.x0, self.x1 - outer.x0)

    def padded(self, margin: int, outer: Window) -> Window:
        """Return this window with ``margin`` pixels around it, as far as they lie in ``outer``."""
        return Window(
            max(outer.y0, self.y0 - margin),
            min(outer.y1, self.y1 + margin),
            max(outer.x0, self.x0 - margin),
            min(outer.x1, self.x1 + margin),
        )


def iter_windows(size: tuple[int, int], side: int) -> Iterator[Window]:
    """Yield windows of ``side``² pixels, smaller ones at the end, that cover ``size`` (H, W) row by row."""
    H, W = size
    for y in range(0, H, side):
        for x in range(0, W, side):
            yield Window(y, min(y + side, H), x, min(x + side, W))


def source_window(window: Window, source: tuple[int, int], target: tuple[int, int], align_corners: bool) -> Window:
    """Return the part of a map that ``window`` of the map resized from ``source`` to ``target`` reads."""
    bounds = []
    for span, length, resized in zip(window.spans, source, target, strict=True):
        first, last = _positions(span, length, resized, align_corners)[[0, -1]].tolist()
        bounds += [math.floor(first), math.ceil(last) + 1]
    return Window(*bounds)


def resample(
    part: Tensor, held: Window, source: tuple[int, int], window: Window, target: tuple[int, int], align_corners: bool
) -> Tensor:
    """Return ``window`` of a map that is bilinearly resized from size ``source`` to ``target``.

    ``part`` ``(K, h, w)`` is the window ``held`` of the whole map and must cover the ``source_window``. Two products
    with interpolation matrices, ``Y · part · X``, give ``(K, *window.shape)``.
    """
    needed = source_window(window, source, target, align_corners)
    if needed.y0 < held.y0 or needed.y1 > held.y1 or needed.x0 < held.x0 or needed.x1 > held.x1:
        raise ValueError(f"held: expected a window that covers {tuple(needed)} of the map, got {tuple(held)}")
    y, x = needed.inside(held)
    part = part[:, y, x]
    if source == target:
        return part
    axes = zip(window.spans, needed.spans, source, target, strict=True)
    rows, columns = (_matrix(*axis, align_corners).to(part) for axis in axes)
    return rows @ part @ columns.mT


def resize_margin(source: int, target: int, step: float, align_corners: bool) -> int:
    """Return how many source pixels beyond ``step`` · target index bilinear resizing reads, at most.

    The distance is linear in the index, hence largest at an end.
    """
    scale = (source - 1) / max(target - 1, 1) if align_corners else source / target
    start = 0.0 if align_corners else 0.5 * scale - 0.5
    end = start + (target - 1) * (scale - step)
    return math.ceil(max(abs(start), abs(end))) + 1  # and the second of the two pixels that are mixed


def _positions(span: tuple[int, int], source: int, target: int, align_corners: bool) -> Tensor:
    """Return the source coordinates of target pixels ``lo … hi − 1``, as in PyTorch's ``interpolate``."""
    pixels = torch.arange(*span, dtype=torch.float64)
    if align_corners:
        positions = pixels * ((source - 1) / max(target - 1, 1))
    else:
        positions = (pixels + 0.5) * (source / target) - 0.5
    return positions.clamp_(0, source - 1)


def _matrix(span: tuple[int, int], held: tuple[int, int], source: int, target: int, align_corners: bool) -> Tensor:
    """Return the weight of every pixel of ``held`` for every target pixel: 1 minus their distance, or 0."""
    distances = _positions(span, source, target, align_corners)[:, None] - torch.arange(*held)
    return (1 - distances.abs()).clamp_min_(0)
