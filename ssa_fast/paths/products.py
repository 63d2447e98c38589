"""Matrix products whose long float32 sums keep their last digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def grouped_bmm(a: Tensor, b: Tensor, group: int) -> Tensor:
    """``a @ b`` of ``[B, R, n]`` and ``[B, n, m]``, its sums over n taken in groups of ``group`` and then added.

    A plain float32 sum of many like-signed numbers drifts: with few rows, by ten times the rounding that the accuracy
    rule of the tests allows. Groups take no longer than one long sum.
    """
    n = a.shape[2]
    whole = n // group * group
    if whole <= group:
        return torch.bmm(a, b)
    groups = a[:, :, :whole].unflatten(2, (-1, group)).movedim(2, 1)  # [B, n/group, R, group]
    product = (groups @ b[:, :whole].unflatten(1, (-1, group))).sum(dim=1)  # [B, R, m]
    return product if whole == n else product.baddbmm_(a[:, :, whole:], b[:, whole:])
