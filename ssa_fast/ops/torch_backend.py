"""Polish one stage in plain PyTorch, by any method.

Each method's file has a function ``propagate(cam, features)``, which applies the affinity once to ``(B, K, L)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssa_fast.ops import dense, prototypes, second_order, tiled
from ssa_fast.ops.features import UnitFeatures
from ssa_fast.ops.numerics import no_autocast
from ssa_fast.ops.resize import resize

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
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
        cam: ``(B, K, h, w)``, floating, of any size: it is resized to the stage.
        features: ``(B, C, H, W)``, floating, any strides.
        affinity: φ, its parameters, both eps and the number of steps.
        method: ``"dense"``, ``"prototypes"``, ``"second_order"`` or ``"tiled"``; ``ssa_fast.ops.dispatch`` has made
            sure that it is exact here.
        dtype: Of the computation and the result, float32 or float64.
        align_corners: Of the bilinear resizing of the CAM.
        check_sign: Whether "prototypes" or "second_order" still has to find out that all features are ≥ 0; each tile is
            read for it while it is in cache.

    Returns:
        ``(B, K, H, W)``.

    Raises:
        NegativeFeatureError: ``check_sign``, and a feature is not ≥ 0; if the first tile has one, little was computed.
    """
    H, W = features.shape[2:]
    with no_autocast(cam.device):
        unit_features = UnitFeatures(features, affinity, dtype, check_sign=check_sign)
        cam = resize(cam.to(dtype), (H, W), align_corners).flatten(2)
        for _ in range(affinity.steps):
            cam = PROPAGATE[method](cam, unit_features)
        return cam.view(*cam.shape[:2], H, W)
