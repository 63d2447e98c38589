"""Tiled: any φ and any features, exactly, with no more of the affinity in memory than a tile.

The affinity is symmetric, so a tile above the diagonal serves twice, as it is and transposed: half the products of the
dense form. Tiles on the diagonal are computed whole and serve once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.ops.numerics import grouped_bmm

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.ops.features import Pixels

BLOCK_I = 4096  # sources held while the targets stream by: a tile of 4096×256 float32 is 4 MB, two cores' own caches
BLOCK_J = 256  # divides BLOCK_I, so that a tile never straddles its end; the work beyond half of L² is L·BLOCK_J/2


def propagate(v: Tensor, pixels: Pixels) -> Tensor:
    """``Σ_i v_ri φ(x_iᵀ x_j)`` for ``v`` ``(B, R, L)``, in about ``L²·(C + 2R)`` operations; ``(B, R, L)``."""
    out = torch.zeros_like(v)
    for b, image in enumerate(pixels.images):
        _propagate_image(v[b], image, out[b])
    return out


def _propagate_image(v: Tensor, pixels: Pixels, out: Tensor) -> None:
    """Add one image's ``Σ_i v_ri a_ij`` to ``out``, both ``(R, L)``."""
    L = v.shape[1]
    v, out, sums = v[:-1], out[:-1], out[-1]
    for i0 in range(0, L, BLOCK_I):
        i1 = min(i0 + BLOCK_I, L)
        x_i = pixels.unit(i0, i1)[0].mT  # [BLOCK_I, C]
        if L > BLOCK_J:  # more than one tile: worth a copy in the order that the product reads
            x_i = x_i.contiguous()
        for j0 in range(i0, L, BLOCK_J):
            j1 = min(j0 + BLOCK_J, L)
            rows, above = min(i1, j1) - i0, max(min(i1, j0) - i0, 0)
            # Rows up to the end of the diagonal tile; those above it are the only ones to be mirrored.
            x_j = pixels.unit(j0, j1)[0]  # [C, BLOCK_J]
            a = pixels.affinity.apply_(x_i[:rows] @ x_j)  # [BLOCK_I, BLOCK_J]
            out[:, j0:j1] += grouped_bmm(v[None, :, i0 : i0 + rows], a[None], BLOCK_J)[0]
            out[:, i0 : i0 + above].addmm_(v[:, j0:j1], a[:above].mT)
            # A product with a row of ones would let the long sum of like numbers drift: PyTorch's own sum cascades.
            sums[j0:j1] += a.sum(dim=0)
            sums[i0 : i0 + above] += a[:above].sum(dim=1)
