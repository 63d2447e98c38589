"""Resize and rescale maps ``(B, K, h, w)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


def resize(maps: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    """Return the maps resized bilinearly to ``(B, K, *size)``; unchanged if they have that size."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


def minmax(maps: Tensor) -> Tensor:
    """Return ``(maps − min) / (max − min)`` per image and class; a constant map becomes 0, one with NaN all NaN.

    Constant means constant up to the rounding of float32 sums, which rescaling would otherwise magnify to a whole map.
    """
    # Not aminmax, whose derivative PyTorch 2.6 lacks: the reference backend is differentiable to the end.
    return rescale(maps, maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True))


def rescale(maps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return ``(maps − low) / (high − low)``; the extremes ``(…, 1, 1)`` may be those of larger maps."""
    span = high - low
    rounding = 32 * torch.finfo(torch.float32).eps * torch.maximum(low.abs(), high.abs())
    # Divided by infinity, a constant map is 0, one with NaN stays NaN, and every gradient is finite.
    return (maps - low) / span.masked_fill(span <= rounding, float("inf"))
