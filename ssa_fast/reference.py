"""The definition of the result: one stage polished as the mathematics is written, with the L×L affinity in memory.

Every method is tested against this one in float64. It is differentiable, takes any floating dtype, and imports torch
alone. Symbols: B images, K CAM classes, C channels, L pixels; i a source pixel, j a target pixel.

    x_i    = f_i / (‖f_i‖₂ + norm_eps)
    a_ij   = φ(x_iᵀ x_j)
    out_kj = Σ_i cam_ki a_ij / (Σ_i a_ij + sum_eps)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.affinity import Affinity


def polish_stage(cam: Tensor, features: Tensor, affinity: Affinity) -> Tensor:
    """Polish a CAM along one stage's semantic structure.

    Args:
        cam: ``(B, K, L)``, floating.
        features: ``(B, C, L)``, of the same dtype.
        affinity: φ, its parameters, both eps and the number of steps.

    Returns:
        ``(B, K, L)`` in the inputs' dtype.
    """
    x = unit_features(features, affinity)
    a = phi(x.mT @ x, affinity)  # [B, L, L]
    divisor = denominator(a.sum(dim=1, keepdim=True), affinity)  # [B, 1, L]
    for _ in range(affinity.steps):
        cam = cam @ a / divisor
    return cam


def unit_features(features: Tensor, affinity: Affinity) -> Tensor:
    """Return the ``(B, C, L)`` features, centred if asked, divided by their norm plus ``norm_eps``.

    Features and eps are divided by powers of two, which is exact, so that no sum or square leaves the dtype's range.
    """
    eps: Tensor | float = affinity.norm_eps
    if affinity.center:
        scale = power_of_two(features.detach().abs().amax(dim=(1, 2), keepdim=True))  # [B, 1, 1]
        features, eps = features / scale, eps / scale
        features = features - features.mean(dim=2, keepdim=True)
    scale = power_of_two(features.detach().abs().amax(dim=1, keepdim=True))  # [B, 1, L]
    features, eps = features / scale, eps / scale
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / positive(norm + eps)


def power_of_two(number: Tensor) -> Tensor:
    """Return the largest power of two that is at most ``number`` and has a normal reciprocal; 1 for 0, NaN and Inf."""
    tiny = torch.finfo(number.dtype).tiny
    mantissa, _ = torch.frexp(number)  # in [1/2, 1)
    return (number / (2.0 * mantissa)).nan_to_num(nan=1.0).clamp(tiny, 1.0 / tiny)


def phi(cosine: Tensor, affinity: Affinity) -> Tensor:
    """Return φ of a tensor of cosines."""
    if affinity.temperature is not None:
        return torch.exp((cosine - 1.0) / affinity.temperature)
    if affinity.phi == "shifted":
        base = (cosine + affinity.shift) / (1.0 + affinity.shift)
        return base**affinity.power if affinity.power in (1.0, 2.0) else base.clamp_min(0.0) ** affinity.power
    cosine = cosine.clamp_min(0.0)
    if affinity.threshold > 0.0:
        cosine = cosine.masked_fill(cosine < affinity.threshold, 0.0)
    return cosine**affinity.power


def denominator(total: Tensor, affinity: Affinity) -> Tensor:
    """Return ``Σ_i a_ij + sum_eps``, kept off 0 unless φ is shifted, whose sums may have either sign below shift 1."""
    divisor = total + affinity.sum_eps
    return divisor if affinity.any_sign else positive(divisor)


def positive(divisor: Tensor) -> Tensor:
    """Keep a sum of non-negative numbers off zero, so that a zero feature gives 0 instead of 0/0 when eps is 0."""
    return divisor.clamp_min(torch.finfo(divisor.dtype).tiny)
