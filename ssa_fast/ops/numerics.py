"""How matrix products with long float32 sums keep their last digits."""

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


def split_off_mean(sums: Tensor) -> Tensor:
    """Take from every ``sums[r]`` its share of the last one, in place, and say how much that was.

    ``sums`` is ``(R, B, …)``: what was summed over all pixels with the weights of CAM r, and with none in the last. The
    two are much alike, so what remains is small; its rounding in a product with a pixel is, too, and that of the last
    one stands above and below polishing's fraction and cancels. Returns ``(R − 1, B, 1, …)``.
    """
    over = tuple(range(2, sums.ndim))
    size = sums[-1:].sum(dim=over, keepdim=True).clamp_min_(torch.finfo(sums.dtype).tiny)  # 0 if every feature is
    share = sums[:-1].sum(dim=over, keepdim=True) / size
    sums[:-1].addcmul_(share, sums[-1:], value=-1.0)
    return share
