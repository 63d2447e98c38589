"""Second-order method: linear time for non-negative features and φ(c) = c².

A squared cosine is bilinear in the features' outer products, so the sum over source pixels can again be taken first:

    Σ_i v_ri (x_iᵀ x_j)² = x_jᵀ M_r x_j,        M_r = Σ_i v_ri x_i x_iᵀ
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.ops.numerics import split_off_mean

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.ops.features import UnitFeatures


def propagate(v: Tensor, features: UnitFeatures) -> Tensor:
    """Return ``Σ_i v_ri (x_iᵀ x_j)²`` for ``v`` ``(B, R, L)``, in ``O(L·C²·R)`` and ``R·C²`` numbers; ``(B, R, L)``."""
    (B, R, _), C = v.shape, features.C
    moments = v.new_zeros((R, B, C, C))
    for lo, hi in features.tiles():
        x = features.unit(lo, hi)
        for r in range(R):
            moments[r].baddbmm_(x * v[:, r : r + 1, lo:hi], x.mT)
    coefficients = split_off_mean(moments)[..., 0]  # [R − 1, B, 1]
    out = torch.empty_like(v)
    for lo, hi in features.tiles():
        x = features.unit(lo, hi)
        for r in range(R):
            out[:, r, lo:hi] = torch.bmm(moments[r], x).mul_(x).sum(dim=1)
    out[:, :-1].addcmul_(coefficients.movedim(0, 1), out[:, -1:])
    return out
