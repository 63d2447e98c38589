"""Prototypes method: linear time for φ(c) = (c + s)/(1 + s), with features of any sign, or ≥ 0 under the ReLU (s = 0).

Where no ReLU acts, the sum over source pixels can be taken first:

    Σ_i v_ri (x_iᵀ x_j + s) = (G x)_rj + s Σ_i v_ri,        G = v xᵀ,  v = [cam; 1]

Row r of ``G`` is the mean feature weighted by CAM r, the class *prototype*. Two passes over the features with ``R·C``
numbers between them; no pair of pixels is ever formed.

Each CAM enters minus its mean, which is added to the result again. What is left is small and sums to 0, so that no
constant belongs to it, and it is rounded as little as the CAM's spread requires.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from ssa_fast.ops.numerics import count_parts, divide_by_sum, split_pixels

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.ops.features import UnitFeatures


def propagate(cam: Tensor, features: UnitFeatures) -> Tensor:
    """Return ``cam`` ``(B, K, L)`` polished once, in ``O(L·C·K)`` operations."""
    mean = cam.mean(dim=2, keepdim=True)
    tiles = list(features.tiles(rows=cam.shape[1] + 1))
    sums = functools.reduce(torch.Tensor.add_, (gather(cam, mean, features, lo, hi) for lo, hi in tiles))
    prototypes, constant = scale_by_shift(sums, features.L, features.affinity)
    out = torch.empty_like(cam)
    for lo, hi in reversed(tiles):  # the last are still in cache
        apply(prototypes, constant, mean, features, lo, hi, out[:, :, lo:hi])
    return out


def scale_by_shift(sums: Tensor, pixels: int, affinity: Affinity) -> tuple[Tensor, float]:
    """Return ``sums / (1 + s)``, and ``s·L / (1 + s)``, which φ adds to every pixel's sum of affinities."""
    if not affinity.any_sign:
        return sums, 0.0
    return sums / (1.0 + affinity.shift), affinity.shift * pixels / (1.0 + affinity.shift)


def gather(cam: Tensor, mean: Tensor, features: UnitFeatures, lo: int, hi: int) -> Tensor:
    """Return the sums over pixels ``lo … hi − 1`` of ``(cam − mean) xᵀ`` and of ``x``, ``[B, K + 1, C]``.

    ``cam`` ``[B, K, L]`` and its ``mean`` ``[B, K, 1]`` are those of all pixels.
    """
    # The norms go into the CAM and into the result, which have K rows, not into the features, which have C.
    inverse_norms = features.inverse_norms(lo, hi)
    weights = torch.cat([(cam[:, :, lo:hi] - mean).mul_(inverse_norms), inverse_norms], dim=1)
    tile = features.scaled(lo, hi)
    if (parts := count_parts(tile)) == 1:
        return torch.bmm(weights, tile.mT)
    return torch.bmm(split_pixels(weights, parts), split_pixels(tile, parts).mT).sum(dim=0, keepdim=True)


def apply(
    prototypes: Tensor, constant: float, mean: Tensor, features: UnitFeatures, lo: int, hi: int, out: Tensor
) -> None:
    """Write the polished CAM of pixels ``lo … hi − 1`` to ``out`` ``[B, K, hi − lo]``; see ``scale_by_shift``."""
    tile, inverse_norms = features.scaled(lo, hi), features.inverse_norms(lo, hi)
    if (parts := count_parts(tile)) > 1:
        prototypes = prototypes.expand(parts, -1, -1)
        tile, inverse_norms, out = (split_pixels(each, parts) for each in (tile, inverse_norms, out))
    sums = torch.bmm(prototypes, tile).mul_(inverse_norms)
    total = sums[:, -1:]
    if constant:
        total.add_(constant)
    divide_by_sum(sums[:, :-1].addcmul_(mean, total), total, features.affinity, out=out)
