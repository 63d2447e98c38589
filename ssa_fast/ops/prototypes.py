"""Prototypes method: linear time for φ(c) = (c + s)/(1 + s), with features of any sign, or ≥ 0 under the ReLU (s = 0).

Where no ReLU acts, the sum over source pixels can be taken first:

    Σ_i v_ri (x_iᵀ x_j + s) = (G x)_rj + s Σ_i v_ri,        G = v xᵀ

Row r of ``G`` is the mean feature weighted by CAM r, the class *prototype*. Two passes over the features with ``R·C``
numbers between them; no pair of pixels is ever formed.

The rows of ``v`` enter minus their means, which take part as multiples of the row of ones: what is left is small, sums
to 0 (so that no constant belongs to it), and is rounded as little as the CAM's spread requires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.ops.features import UnitFeatures


def propagate(v: Tensor, features: UnitFeatures) -> Tensor:
    """Return ``Σ_i v_ri φ(x_iᵀ x_j)`` for ``v`` ``(B, R, L)``, in ``O(L·C·R)``; ``(B, R, L)``."""
    mean = row_means(v)
    sums = v.new_zeros((v.shape[0], v.shape[1], features.C))
    for lo, hi in features.tiles():
        gather(v[:, :, lo:hi], mean, features, lo, hi, sums)
    prototypes, constant = scale_by_shift(sums, features.L, features.affinity)
    out = torch.empty_like(v)
    for lo, hi in features.tiles():
        apply(prototypes, constant, mean, features, lo, hi, out[:, :, lo:hi])
    return out


def row_means(v: Tensor) -> Tensor:
    """Return the rows' means over the pixels, and 0 for the last row, which is ones: ``[B, R, L]`` → ``[B, R, 1]``."""
    mean = v.mean(dim=2, keepdim=True)
    mean[:, -1:] = 0.0
    return mean


def scale_by_shift(sums: Tensor, pixels: int, affinity: Affinity) -> tuple[Tensor, float]:
    """Return ``sums / (1 + s)`` and what φ adds to the row of ones at every pixel, ``s·L/(1 + s)``."""
    if affinity.phi != "shifted":
        return sums, 0.0
    return sums / (1.0 + affinity.shift), affinity.shift * pixels / (1.0 + affinity.shift)


def gather(v: Tensor, mean: Tensor, features: UnitFeatures, lo: int, hi: int, sums: Tensor) -> None:
    """Add ``Σ_i (v_ri − mean_r) x_i`` of pixels ``lo … hi − 1`` to ``sums`` ``[B, R, C]``, for their ``v``."""
    # The norms go into v and into the result, which have R rows, not into the features, which have C.
    sums.baddbmm_((v - mean) * features.inverse_norms(lo, hi), features.centered(lo, hi).mT)


def apply(
    prototypes: Tensor, constant: float, mean: Tensor, features: UnitFeatures, lo: int, hi: int, out: Tensor
) -> None:
    """Write ``Σ_i v_ri φ(x_iᵀ x_j)`` of pixels ``lo … hi − 1`` to ``out`` ``[B, R, hi − lo]``."""
    torch.mul(torch.bmm(prototypes, features.centered(lo, hi)), features.inverse_norms(lo, hi), out=out)
    out[:, -1:] += constant
    out[:, :-1].addcmul_(mean[:, :-1], out[:, -1:])
