"""Dense method: all pairs' affinities at once, for stages so small that one batched product beats every loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.ops.numerics import divide_by_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.ops.features import UnitFeatures


def propagate(cam: Tensor, features: UnitFeatures) -> Tensor:
    """Return ``cam`` ``(B, K, L)`` polished once, through the ``(B, L, L)`` affinity; any φ."""
    a = features.all_affinities
    return divide_by_sum(torch.bmm(cam, a), a.sum(dim=1, keepdim=True), features.affinity)
