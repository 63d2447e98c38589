"""Prototypes: the linear-time way for non-negative features and φ(c) = c.

With no negative cosine the ReLU never acts, so the sum over source pixels can be taken before a target is met:

    Σ_i v_ri x_iᵀ x_j = (G x)_rj,        G = v xᵀ

Row r of ``G`` is the mean feature weighted by CAM r, the class *prototype*. Two passes over the features with ``R·C``
numbers between them; no pixel meets another pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.paths.products import grouped_bmm

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.paths.pixels import Pixels

GROUP = 32  # channels summed in one go
ROWS = 64  # rows of v at a time, so that the groups' partial sums take no more room than two tiles of features


def propagate(v: Tensor, pixels: Pixels, sums: bool = False) -> Tensor:
    """``Σ_i v_ri x_iᵀ x_j`` for ``v`` ``(B, R, L)`` and non-negative features, in ``O(L·C·R)``; ``(B, R, L)``."""
    v = pixels.with_ones(v) if sums else v
    inverse_norms = pixels.inverse_norms
    prototypes = v.new_zeros((v.shape[0], v.shape[1], pixels.C))
    for lo, hi in pixels.tiles():
        # The norms go into v and into the result, which have R rows, not into the features, which have C.
        prototypes.baddbmm_(v[:, :, lo:hi] * inverse_norms[:, :, lo:hi], pixels.raw(lo, hi).mT)
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    for lo, hi in pixels.tiles():
        tile = pixels.raw(lo, hi)
        for r in range(0, v.shape[1], ROWS):
            applied = grouped_bmm(prototypes[:, r : r + ROWS], tile, GROUP)
            torch.mul(applied, inverse_norms[:, :, lo:hi], out=out[:, r : r + ROWS, lo:hi])
    return out
