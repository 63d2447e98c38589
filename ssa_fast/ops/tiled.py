"""Tiled method: any φ and any features, exactly, with one tile of the affinity in memory at a time.

The affinity is symmetric, so a tile above the diagonal is used twice, as it is and transposed: half the products of the
dense form. Tiles on the diagonal are computed whole and used once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.ops.numerics import divide_by_sum, grouped_bmm

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.ops.features import UnitFeatures

BLOCK_I = 4096  # sources held while the targets are streamed: 4096×256 float32 is 4 MB, two cores' own caches
BLOCK_J = 256  # divides BLOCK_I, so that no tile straddles its end; the work beyond half of L² is L·BLOCK_J/2


def propagate(cam: Tensor, features: UnitFeatures) -> Tensor:
    """Return ``cam`` ``(B, K, L)`` polished once, in about ``L²·(C + 2K)`` operations; any φ."""
    out, total = torch.zeros_like(cam), torch.zeros_like(cam[:, :1])
    for b, image in enumerate(features.images):
        _sum_image(cam[b], image, out[b], total[b, 0])
    return divide_by_sum(out, total, features.affinity, out=out)


def _sum_image(v: Tensor, features: UnitFeatures, out: Tensor, total: Tensor) -> None:
    """Add one image's ``Σ_i v_ki a_ij`` to ``out`` ``(K, L)`` and ``Σ_i a_ij`` to ``total`` ``(L,)``."""
    L = v.shape[1]
    for i0 in range(0, L, BLOCK_I):
        i1 = min(i0 + BLOCK_I, L)
        x_i = features.unit(i0, i1)[0].mT  # [BLOCK_I, C]
        if L > BLOCK_J:  # more than one tile: worth a copy in the order that the product reads
            x_i = x_i.contiguous()
        for j0 in range(i0, L, BLOCK_J):
            j1 = min(j0 + BLOCK_J, L)
            # Rows up to the end of the diagonal tile; only those above it are used a second time, transposed.
            rows, above = min(i1, j1) - i0, max(min(i1, j0) - i0, 0)
            x_j = features.unit(j0, j1)[0]  # [C, BLOCK_J]
            a = features.affinity.apply_(x_i[:rows] @ x_j)  # [BLOCK_I, BLOCK_J]
            out[:, j0:j1] += grouped_bmm(v[None, :, i0 : i0 + rows], a[None], BLOCK_J)[0]
            out[:, i0 : i0 + above].addmm_(v[:, j0:j1], a[:above].mT)
            # A product with a row of ones would drift over its long sum of like numbers; PyTorch's sum is pairwise.
            total[j0:j1] += a.sum(dim=0)
            total[i0 : i0 + above] += a[:above].sum(dim=1)
