"""Matrix products whose long float32 sums keep their last digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def grouped_bmm(a: Tensor, b: Tensor, group: int) -> Tensor:
    """Return ``a @ b`` of ``[B, R, n]`` and ``[B, n, m]``, summing over n in groups of ``group``.

    A plain float32 sum of many numbers of one sign drifts: with few rows, by ten times the rounding that the tests'
    accuracy rule allows. Groups take no longer than one long sum.
    """
    n = a.shape[2]
    whole = n // group * group
    if whole <= group:
        return torch.bmm(a, b)
    groups = a[:, :, :whole].unflatten(2, (-1, group)).movedim(2, 1)  # [B, n/group, R, group]
    product = (groups @ b[:, :whole].unflatten(1, (-1, group))).sum(dim=1)  # [B, R, m]
    return product if whole == n else product.baddbmm_(a[:, :, whole:], b[:, whole:])


def split_off_mean(sums: Tensor) -> Tensor:
    """Subtract from each ``sums[r]`` its multiple of the last row, in place, and return the coefficients.

    ``sums`` is ``(R, B, …)``: pixel sums weighted by CAM r, and in the last row unweighted. The rows are nearly
    parallel, so the remainder is small, and so is its rounding in a product with a pixel's feature. The rounding of the
    last row appears in both numerator and denominator of the polished CAM and cancels.

    Returns:
        Coefficients ``(R − 1, B, 1, …)``: row r was ``sums[r] + coefficients[r] · sums[-1]``.
    """
    dims = tuple(range(2, sums.ndim))
    total = sums[-1:].sum(dim=dims, keepdim=True).clamp_min_(torch.finfo(sums.dtype).tiny)  # 0 if every feature is 0
    coefficients = sums[:-1].sum(dim=dims, keepdim=True) / total
    sums[:-1].addcmul_(coefficients, sums[-1:], value=-1.0)
    return coefficients
