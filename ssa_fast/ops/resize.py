"""Resize and rescale maps of images ``(B, K, h, w)`` and of volumes ``(B, K, d, h, w)``."""

from __future__ import annotations

import functools
from math import isfinite
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


PRODUCT_SIDE = 48  # pixels up to which two products with interpolation weights take less time than interpolation


def resize(maps: Tensor, size: Sequence[int], align_corners: bool = True) -> Tensor:
    """Return the maps resized to ``(B, K, *size)``, bilinearly or trilinearly; unchanged if they have that size.

    On a CPU small maps are enlarged by ``rowsᵀ maps columns``; where NaN or Inf is among them, which would spread over
    a whole map, they are interpolated.
    """
    old, size = maps.shape[2:], tuple(size)
    if old == size:
        return maps
    if len(size) == 3:
        return F.interpolate(maps, size=size, mode="trilinear", align_corners=align_corners)
    (h, w), (H, W) = old, size
    if h <= H and w <= W and max(h, w) <= PRODUCT_SIDE and _takes_products(maps) and isfinite(maps.sum().item()):
        rows, columns = (weights(*sides, align_corners, maps.dtype) for sides in ((h, H), (w, W)))
        return rows.mT @ (maps @ columns)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


def _takes_products(maps: Tensor) -> bool:
    return maps.is_cpu and maps.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()


@functools.lru_cache(maxsize=256)
def weights(old: int, new: int, align_corners: bool, dtype: torch.dtype) -> Tensor:
    """Return ``[old, new]``: the share of every old pixel of a line in every new one, as PyTorch interpolates."""
    with torch.inference_mode(False), torch.no_grad():
        line = torch.eye(old, dtype=dtype)[None]
        return F.interpolate(line, size=new, mode="linear", align_corners=align_corners)[0]


def minmax(maps: Tensor) -> Tensor:
    """Return ``(maps − min) / (max − min)`` per image and class; a constant map becomes 0, one with NaN all NaN.

    Maps of rank 5 are volumes, those of any other have two axes of pixels.

    Constant means constant up to the rounding of float32 sums, which rescaling would otherwise magnify to a whole map.
    """
    # Not aminmax, whose derivative PyTorch 2.6 lacks: the reference backend is differentiable to the end.
    pixels = (-3, -2, -1) if maps.ndim == 5 else (-2, -1)
    return rescale(maps, maps.amin(dim=pixels, keepdim=True), maps.amax(dim=pixels, keepdim=True))


def rescale(maps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return ``(maps − low) / (high − low)``; the extremes ``(…, 1, 1)`` may be those of larger maps."""
    span = high - low
    rounding = 32 * torch.finfo(torch.float32).eps * torch.maximum(low.abs(), high.abs())
    # Divided by infinity, a constant map is 0, one with NaN stays NaN, and every gradient is finite.
    return (maps - low).div_(span.masked_fill(span <= rounding, float("inf")))
