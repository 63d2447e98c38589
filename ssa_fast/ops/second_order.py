"""Second-order method: linear time for φ(c) = ((c + s)/(1 + s))², any sign, or c² of features ≥ 0 (s = 0).

A squared cosine is bilinear in the features' outer products, so the sum over source pixels can again be taken first:

    Σ_i v_ri (x_iᵀ x_j + s)² = x_jᵀ (M_r x_j + 2s G_r) + s² Σ_i v_ri,    M_r = Σ_i v_ri x_i x_iᵀ,  G_r = Σ_i v_ri x_i

The rows of ``v`` enter minus their means, as in ``prototypes``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.ops.prototypes import row_means

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.ops.features import UnitFeatures


def propagate(v: Tensor, features: UnitFeatures) -> Tensor:
    """Return ``Σ_i v_ri φ(x_iᵀ x_j)`` for ``v`` ``(B, R, L)``, in ``O(L·C²·R)`` and ``R·C²`` numbers; ``(B, R, L)``."""
    (B, R, L), C = v.shape, features.C
    shift = features.affinity.shift if features.affinity.phi == "shifted" else 0.0
    mean = row_means(v)
    moments, doubled = v.new_zeros((R, B, C, C)), v.new_zeros((R, B, C, 1))  # M_r and 2s G_r
    for lo, hi in features.tiles():
        x = features.unit(lo, hi)
        for r in range(R):
            weighted = x * (v[:, r : r + 1, lo:hi] - mean[:, r : r + 1])
            moments[r].baddbmm_(weighted, x.mT)
            if shift:
                doubled[r].add_(weighted.sum(dim=2, keepdim=True), alpha=2.0 * shift)
    out = torch.empty_like(v)
    for lo, hi in features.tiles():
        x = features.unit(lo, hi)
        for r in range(R):
            out[:, r, lo:hi] = torch.baddbmm(doubled[r], moments[r], x).mul_(x).sum(dim=1)
    out[:, -1:] += shift**2 * L
    out[:, :-1].addcmul_(mean[:, :-1], out[:, -1:])
    return out.div_((1.0 + shift) ** 2)
