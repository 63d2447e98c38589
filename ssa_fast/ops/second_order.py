"""Second-order method: linear time for φ(c) = ((c + s)/(1 + s))², any sign, or c² of features ≥ 0 (s = 0).

A squared cosine is bilinear in the features' outer products, so the sum over source pixels can again be taken first:

    Σ_i v_ri (x_iᵀ x_j + s)² = x_jᵀ (M_r x_j + 2s G_r) + s² Σ_i v_ri,    M_r = Σ_i v_ri x_i x_iᵀ,  G_r = Σ_i v_ri x_i

with ``v = [cam; 1]``; each CAM enters minus its mean, as in ``prototypes``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.ops.numerics import divide_by_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.ops.features import UnitFeatures


def propagate(cam: Tensor, features: UnitFeatures) -> Tensor:
    """Return ``cam`` ``(B, K, L)`` polished once, in ``O(L·C²·K)`` operations and ``K·C²`` numbers."""
    (B, K, L), C = cam.shape, features.C
    shift = features.affinity.shift if features.affinity.any_sign else 0.0
    mean = cam.mean(dim=2, keepdim=True)
    moments, doubled = cam.new_zeros((K + 1, B, C, C)), cam.new_zeros((K + 1, B, C, 1))  # M_r and 2s G_r
    for lo, hi in features.tiles():
        x = features.unit(lo, hi)
        for r in range(K + 1):
            weighted = x * (cam[:, r : r + 1, lo:hi] - mean[:, r : r + 1]) if r < K else x
            moments[r].baddbmm_(weighted, x.mT)
            if shift:
                doubled[r].add_(weighted.sum(dim=2, keepdim=True), alpha=2.0 * shift)
    sums = cam.new_empty((B, K + 1, L))
    for lo, hi in features.tiles():
        x = features.unit(lo, hi)
        for r in range(K + 1):
            sums[:, r, lo:hi] = torch.baddbmm(doubled[r], moments[r], x).mul_(x).sum(dim=1)
    sums[:, K:] += shift**2 * L
    sums /= (1.0 + shift) ** 2
    total = sums[:, K:]
    return divide_by_sum(sums[:, :K].addcmul_(mean, total), total, features.affinity)
