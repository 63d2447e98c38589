"""Prototypes method: linear time for non-negative features and φ(c) = c.

No cosine is negative, so the ReLU never acts and the sum over source pixels can be taken first:

    Σ_i v_ri x_iᵀ x_j = (G x)_rj,        G = v xᵀ

Row r of ``G`` is the mean feature weighted by CAM r, the class *prototype*. Two passes over the features with ``R·C``
numbers between them; no pair of pixels is ever formed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.ops.numerics import split_off_mean

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.ops.features import UnitFeatures


def propagate(v: Tensor, features: UnitFeatures) -> Tensor:
    """Return ``Σ_i v_ri x_iᵀ x_j`` for ``v`` ``(B, R, L)`` and features ≥ 0, in ``O(L·C·R)``; ``(B, R, L)``."""
    prototypes = v.new_zeros((v.shape[0], v.shape[1], features.C))
    for lo, hi in features.tiles():
        gather(v[:, :, lo:hi], features, lo, hi, prototypes)
    coefficients = split_off_mean(prototypes.movedim(1, 0)).movedim(0, 1)  # [B, R − 1, 1]
    out = torch.empty_like(v)
    for lo, hi in features.tiles():
        apply(prototypes, coefficients, features, lo, hi, out[:, :, lo:hi])
    return out


def gather(v: Tensor, features: UnitFeatures, lo: int, hi: int, prototypes: Tensor) -> None:
    """Add the part of pixels ``lo … hi − 1`` to ``prototypes`` ``[B, R, C]``; ``v`` is ``[B, R, hi − lo]``."""
    # The norms go into v and into the result, which have R rows, not into the features, which have C.
    prototypes.baddbmm_(v * features.inverse_norms(lo, hi), features.raw(lo, hi).mT)


def apply(prototypes: Tensor, coefficients: Tensor, features: UnitFeatures, lo: int, hi: int, out: Tensor) -> None:
    """Write ``Σ_i v_ri x_iᵀ x_j`` of pixels ``lo … hi − 1`` to ``out`` ``[B, R, hi − lo]``; see ``split_off_mean``."""
    applied = torch.bmm(prototypes, features.raw(lo, hi))
    applied[:, :-1].addcmul_(coefficients, applied[:, -1:])
    torch.mul(applied, features.inverse_norms(lo, hi), out=out)
