"""Prototypes: the linear-time way for non-negative features and φ(c) = c.

With no negative cosine the ReLU never acts, so the sum over source pixels can be taken before a target is met:

    Σ_i v_ri x_iᵀ x_j = (G x)_rj,        G = v xᵀ

Row r of ``G`` is the mean feature weighted by CAM r, the class *prototype*. Two passes over the features with ``R·C``
numbers between them; no pixel meets another pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.ops.numerics import split_off_mean

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.ops.features import Pixels


def propagate(v: Tensor, pixels: Pixels) -> Tensor:
    """``Σ_i v_ri x_iᵀ x_j`` for ``v`` ``(B, R, L)`` and non-negative features, in ``O(L·C·R)``; ``(B, R, L)``."""
    prototypes = v.new_zeros((v.shape[0], v.shape[1], pixels.C))
    for lo, hi in pixels.tiles():
        gather(v[:, :, lo:hi], pixels, lo, hi, prototypes)
    share = split_off_mean(prototypes.movedim(1, 0)).movedim(0, 1)  # [B, R − 1, 1]
    out = torch.empty_like(v)
    for lo, hi in pixels.tiles():
        apply(prototypes, share, pixels, lo, hi, out[:, :, lo:hi])
    return out


def gather(v: Tensor, pixels: Pixels, lo: int, hi: int, prototypes: Tensor) -> None:
    """Add to ``prototypes`` ``[B, R, C]`` what pixels ``lo … hi − 1`` give, ``v`` being ``[B, R, hi − lo]``."""
    # The norms go into v and into the result, which have R rows, not into the features, which have C.
    prototypes.baddbmm_(v * pixels.inverse_norms(lo, hi), pixels.raw(lo, hi).mT)


def apply(prototypes: Tensor, share: Tensor, pixels: Pixels, lo: int, hi: int, out: Tensor) -> None:
    """Write ``Σ_i v_ri x_iᵀ x_j`` of pixels ``lo … hi − 1`` to ``out`` ``[B, R, hi − lo]``; see ``split_off_mean``."""
    applied = torch.bmm(prototypes, pixels.raw(lo, hi))
    applied[:, :-1].addcmul_(share, applied[:, -1:])
    torch.mul(applied, pixels.inverse_norms(lo, hi), out=out)
