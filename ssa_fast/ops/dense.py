"""Dense method: all pairs' affinities at once, for stages so small that one batched product beats every loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.ops.features import UnitFeatures


def propagate(v: Tensor, features: UnitFeatures) -> Tensor:
    """Return ``Σ_i v_ri a_ij`` for ``v`` ``(B, R, L)`` through the ``(B, L, L)`` affinity; ``(B, R, L)``; any φ."""
    a = features.all_affinities
    # A product with the row of ones would drift over its long sum of like numbers; PyTorch's own sum is pairwise.
    return torch.cat([torch.bmm(v[:, :-1], a), a.sum(dim=1, keepdim=True)], dim=1)
