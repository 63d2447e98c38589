"""Polish one stage in plain PyTorch, by any method.

Each method's file has a function ``propagate(cam, features)``, which applies the affinity once to ``(B, K, L)``.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch

from ssa_fast.ops import dense, prototypes, second_order, tiled
from ssa_fast.ops.features import UnitFeatures
from ssa_fast.ops.numerics import no_autocast
from ssa_fast.ops.resize import resize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ssa_fast.affinity import Affinity

PROPAGATE: dict[str, Callable[..., Tensor]] = {
    "dense": dense.propagate,
    "prototypes": prototypes.propagate,
    "second_order": second_order.propagate,
    "tiled": tiled.propagate,
}


def polish_stage(
    cam: Tensor,
    features: Tensor,
    affinity: Affinity,
    *,
    method: str,
    dtype: torch.dtype,
    align_corners: bool,
    check_sign: bool = False,
) -> Tensor:
    """Return ``out_kj = Σ_i cam_ki a_ij / (Σ_i a_ij + sum_eps)``, applied ``steps`` times, by ``method``.

    Args:
        cam: ``(B, K, h, w)``, floating, of any size: it is resized to the stage. That of volumes has a depth, too.
        features: ``(B, C, H, W)`` or ``(B, C, D, H, W)``, floating, any strides.
        affinity: φ, its parameters, both eps and the number of steps.
        method: ``"dense"``, ``"prototypes"``, ``"second_order"`` or ``"tiled"``; ``ssa_fast.ops.dispatch`` has made
            sure that it is exact here.
        dtype: Of the computation and the result, float32 or float64.
        align_corners: Of the resizing of the CAM.
        check_sign: Whether "prototypes" or "second_order" still has to find out that all features are ≥ 0; each tile is
            read for it while it is in cache.

    Returns:
        ``(B, K, H, W)`` or ``(B, K, D, H, W)``.

    Raises:
        NegativeFeatureError: ``check_sign``, and a feature is not ≥ 0; if the first tile has one, little was computed.
    """
    (B, K, *small), (_, C, *size) = cam.shape, features.shape
    pixels = prod(small)
    with no_autocast(cam.device):
        unit_features = UnitFeatures(features, affinity, dtype, check_sign=check_sign)
        # Polishing is linear: many classes on few pixels are sums of the polished CAMs of these pixels.
        by_pixels = K * pixels < 2 * C * (K - pixels)
        rows = _one_hot(B, small, cam.device, dtype) if by_pixels else cam.to(dtype)
        rows = resize(rows, size, align_corners).flatten(2)
        for _ in range(affinity.steps):
            rows = PROPAGATE[method](rows, unit_features)
        polished = torch.bmm(cam.to(dtype).flatten(2), rows) if by_pixels else rows
        return polished.view(B, K, *size)


def _one_hot(B: int, size: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a CAM for each of L pixels that is 1 there and else 0, ``(B, L, *size)``."""
    pixels = prod(size)
    return torch.eye(pixels, dtype=dtype, device=device).view(1, pixels, *size).expand(B, pixels, *size)
