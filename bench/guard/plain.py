"""The mathematics as it is written, in plain PyTorch and none of the package's code: what a result is held against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

BLOCK = 2048  # targets whose affinities to all sources are in memory at a time
EPS = 1e-5  # of the norm and of the sum, as in PCM


def polish(
    cam: Tensor,
    features: Tensor,
    dtype: torch.dtype,
    *,
    power: float = 1.0,
    center: bool = False,
    operands: torch.dtype | None = None,
    at: Tensor | None = None,
) -> Tensor:
    """One stage's polished CAM at the targets ``at``, or at all.

    Args:
        cam: ``(B, K, h, w)``, resized to the stage.
        features: ``(B, C, H, W)``.
        dtype: of the computation.
        power, center: of φ(c) = relu(c)^power and of the features.
        operands: what the products' operands are rounded to, where a device's matrix units take no ``dtype``.
        at: ``(n,)`` indices of pixels.

    Returns:
        ``(B, K, n)``.
    """

    def rounded(tensor: Tensor) -> Tensor:
        return tensor if operands is None else tensor.to(operands).to(dtype)

    cam = rounded(resize(cam.to(dtype), features.shape[2:]).flatten(2))  # [B, K, L]
    f = features.to(dtype).flatten(2)
    if center:
        f = f - f.mean(dim=2, keepdim=True)
    x = rounded(f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + EPS))  # [B, C, L]
    at = torch.arange(x.shape[2]) if at is None else at
    polished = []
    for targets in at.split(BLOCK):
        a = rounded((x.mT @ x[:, :, targets]).clamp_min_(0.0) ** power)  # [B, L, BLOCK]
        polished.append(cam @ a / (a.sum(dim=1, keepdim=True) + EPS))
    return torch.cat(polished, dim=2)


def fuse(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Mean of min–max rescaled maps ``(B, K, h, w)``, resized to ``(B, K, *size)``."""
    return torch.stack([resize(minmax(polished), size) for polished in maps]).mean(dim=0)


def minmax(maps: Tensor) -> Tensor:
    """``(maps − min) / (max − min)`` per image and class; a map that is zero everywhere stays so."""
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1.0)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)
