"""Dense: the affinity of all pairs at once, for stages so small that one batched product beats every loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.ops.features import Pixels


def propagate(v: Tensor, pixels: Pixels) -> Tensor:
    """``Σ_i v_ri a_ij`` for ``v`` ``(B, R, L)``, through the ``(B, L, L)`` affinity; ``(B, R, L)``. Any φ."""
    a = pixels.all_affinities
    # A product with the row of ones would let the long sum of like numbers drift: PyTorch's own sum cascades.
    return torch.cat([torch.bmm(v[:, :-1], a), a.sum(dim=1, keepdim=True)], dim=1)
