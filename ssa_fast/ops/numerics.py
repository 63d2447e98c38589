"""Sums of many numbers in float32, the division of two of them, and scales by which numbers stay in range."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor

    from ssa_fast.affinity import Affinity


LEAST_PIXELS = 256  # of a part: below, adding up the parts takes as long as they save


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast, which would take float32 out of the accumulation."""
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


def count_parts(tile: Tensor) -> int:
    """Return into how many parts to split the pixels of ``[B, C, n]`` before a product with few rows.

    One such product keeps a CPU's threads busy only in part; a batch of products, one for each thread, does so fully.
    """
    B, _, n = tile.shape
    if B > 1 or not tile.is_cpu:
        return 1
    most = min(torch.get_num_threads(), n // LEAST_PIXELS)
    return next((parts for parts in range(most, 1, -1) if n % parts == 0), 1)


def split_pixels(rows: Tensor, parts: int) -> Tensor:
    """View one image's ``[1, R, n]`` as ``[parts, R, n / parts]``."""
    _, R, n = rows.shape
    return rows.view(R, parts, n // parts).transpose(0, 1)


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


def divide_by_sum(numerator: Tensor, total: Tensor, affinity: Affinity, *, out: Tensor | None = None) -> Tensor:
    """Return ``numerator / (total + sum_eps)``, of ``Σ_i cam_ki a_ij`` ``(B, K, n)`` and ``Σ_i a_ij`` ``(B, 1, n)``.

    A sum of non-negative affinities is kept off 0, so that a zero feature gives 0 if the eps is 0.
    """
    denominator = total + affinity.sum_eps
    if not affinity.any_sign and affinity.sum_eps < (tiny := torch.finfo(denominator.dtype).tiny):
        denominator.clamp_min_(tiny)
    return torch.div(numerator, denominator, out=out)


def inverse_power_of_two(number: Tensor) -> Tensor:
    """Return 1/p of the largest power of two p ≤ ``number`` with a normal reciprocal; 1 for 0, NaN and Inf."""
    tiny = torch.finfo(number.dtype).tiny
    _, exponent = torch.frexp(number)  # number < 2**exponent
    inverse = torch.ldexp(torch.ones_like(number), 1 - exponent).clamp(tiny, 1.0 / tiny)
    return inverse.where((number > 0) & number.isfinite(), 1.0)
