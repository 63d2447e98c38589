"""Prototypes: the linear-time way for non-negative features and φ(c) = c.

With no negative cosine the ReLU never acts, so the sum over source pixels can be taken before a target is met:

    Σ_i v_ri x_iᵀ x_j = (G x)_rj,        G = v xᵀ

Row r of ``G`` is the mean feature weighted by CAM r, the class *prototype*. Two passes over the features with ``R·C``
numbers between them; no pixel meets another pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.paths.products import set_apart

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.paths.pixels import Pixels


def propagate(v: Tensor, pixels: Pixels) -> Tensor:
    """``Σ_i v_ri x_iᵀ x_j`` for ``v`` ``(B, R, L)`` and non-negative features, in ``O(L·C·R)``; ``(B, R, L)``."""
    prototypes = v.new_zeros((v.shape[0], v.shape[1], pixels.C))
    for lo, hi in pixels.tiles():
        # The norms go into v and into the result, which have R rows, not into the features, which have C.
        weights = v[:, :, lo:hi] * pixels.inverse_norms(lo, hi)
        prototypes.baddbmm_(weights, pixels.raw(lo, hi).mT)
    share = set_apart(prototypes.movedim(1, 0)).movedim(0, 1)  # [B, R − 1, 1]
    out = torch.empty_like(v)
    for lo, hi in pixels.tiles():
        applied = torch.bmm(prototypes, pixels.raw(lo, hi))
        applied[:, :-1].addcmul_(share, applied[:, -1:])
        torch.mul(applied, pixels.inverse_norms(lo, hi), out=out[:, :, lo:hi])
    return out
