"""Compute each pair of pixels once: tiles of the upper triangle serve both i → j and j → i.

Blocks of pixels form bands of BANDS blocks and groups of CHUNK blocks. CHUNK // BANDS programs, one per band of g,
process a pair of groups (g, q), g ≤ q. Each writes its sums to its own slots, which ``sum_kernel`` adds in a fixed
order: no atomics, so results are bitwise repeatable. The slots of a program are [BLOCK, ROWS] float32: CHUNK for the
blocks of q, then BANDS for its own. The pairs of a region, groups [g0, g1) × [q0, q1) (equal ranges, or q0 ≥ g1), are
numbered without gaps by folding: the r-th row of pairs and the r-th from the end share a line of constant length.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

from ssa_fast.kernels.launch import launch
from ssa_fast.kernels.products import add_cosines, add_weighted, apply_phi, load_halves, write_polished

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.kernels.config import Symmetric
    from ssa_fast.kernels.prepare import Operands

BLOCK_L = 32  # pixels per program of sum_kernel


@triton.jit
def unrank_pair(number, g0, g1, q0, q1):
    """Return the groups (g, q) of a region's ``number``-th pair."""
    line = 2 * q1 - tl.maximum(g0, q0) - tl.maximum(g1 - 1, q0)
    r, c = number // line, number % line
    count = q1 - tl.maximum(g0 + r, q0)
    upper = c < count
    g = tl.where(upper, g0 + r, g1 - 1 - r)
    return g, tl.maximum(g, q0) + tl.where(upper, c, c - count)


@triton.jit
def rank_pair(g, q, g0, g1, q0, q1):
    """Return the number of a region's pair (g, q): the inverse of ``unrank_pair``."""
    line = 2 * q1 - tl.maximum(g0, q0) - tl.maximum(g1 - 1, q0)
    r = tl.minimum(g - g0, g1 - 1 - g)
    c = q - tl.maximum(g, q0)
    return r * line + c + tl.where(g - g0 > r, q1 - tl.maximum(g0 + r, q0), 0)


@triton.jit(do_not_specialize=["layer0", "g0", "g1", "q0", "q1"])
def symmetric_kernel(
    unit_ptr,
    unit_low_ptr,
    v_ptr,
    v_low_ptr,
    signed_ptr,
    slot_ptr,
    L_PAD,
    C_PAD,
    chunks,
    layer0,
    g0,
    g1,
    q0,
    q1,
    phi_arg,
    threshold,
    cosine_scale,
    PHI: tl.constexpr,
    POWER: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr,
    RESCALE: tl.constexpr,
    HIGH: tl.constexpr,
    PRECISION: tl.constexpr,
    HELD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BANDS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program applies the affinity of BANDS blocks and a group of CHUNK blocks, in both directions.

    Blocks of the group before the band are skipped. HELD: one tile has all channels.
    """
    pid_layer = layer0 + tl.program_id(1)
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + pid_layer // chunks) == 0:
            return
    pid_unit = tl.program_id(0)
    g, q = unrank_pair(pid_unit // (CHUNK // BANDS), g0, g1, q0, q1)
    band = g * CHUNK + pid_unit % (CHUNK // BANDS) * BANDS
    last = tl.minimum((q + 1) * CHUNK, L_PAD // BLOCK)
    if band >= last:
        return
    SPLIT: tl.constexpr = HIGH and PHI != "exp"
    SIZE: tl.constexpr = BANDS * BLOCK
    offs_i = tl.arange(0, SIZE)[:, None]
    offs_j = tl.arange(0, BLOCK)[:, None]
    offs_c = tl.arange(0, BLOCK_C)[None, :]
    offs_row = tl.arange(0, ROWS)[None, :]
    slot_ptr += (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + pid_unit) * ((CHUNK + BANDS) * BLOCK * ROWS)
    i_at = ((pid_layer // chunks).to(tl.int64) * L_PAD + band * BLOCK) * C_PAD
    v_at = (pid_layer.to(tl.int64) * L_PAD + band * BLOCK) * ROWS
    v_i, v_i_low = load_halves(v_ptr + v_at, v_low_ptr + v_at, offs_i * ROWS + offs_row, SPLIT)  # [SIZE, ROWS]
    if HELD:  # x_i is [SIZE, BLOCK_C], x_j [BLOCK, BLOCK_C]
        x_i, x_i_low = load_halves(unit_ptr + i_at, unit_low_ptr + i_at, offs_i * C_PAD + offs_c, HIGH)
    acc_i = tl.zeros((SIZE, ROWS), tl.float32)
    # affinity = phi(x_i @ x_j.T); acc_i += affinity @ v_j; acc_j = affinity.T @ v_i
    for block in range(tl.maximum(q * CHUNK, band), last):
        j_at = ((pid_layer // chunks).to(tl.int64) * L_PAD + block * BLOCK) * C_PAD
        v_at = (pid_layer.to(tl.int64) * L_PAD + block * BLOCK) * ROWS
        v_j, v_j_low = load_halves(v_ptr + v_at, v_low_ptr + v_at, offs_j * ROWS + offs_row, SPLIT)  # [BLOCK, ROWS]
        cosine = tl.zeros((SIZE, BLOCK), tl.float32)
        if HELD:
            x_j, x_j_low = load_halves(unit_ptr + j_at, unit_low_ptr + j_at, offs_j * C_PAD + offs_c, HIGH)
            cosine = add_cosines(cosine, x_i, x_i_low, x_j, x_j_low, HIGH)
        else:
            for c in range(0, C_PAD, BLOCK_C):
                x_i, x_i_low = load_halves(unit_ptr + i_at + c, unit_low_ptr + i_at + c, offs_i * C_PAD + offs_c, HIGH)
                x_j, x_j_low = load_halves(unit_ptr + j_at + c, unit_low_ptr + j_at + c, offs_j * C_PAD + offs_c, HIGH)
                cosine = add_cosines(cosine, x_i, x_i_low, x_j, x_j_low, HIGH)
        affinity = apply_phi(cosine, phi_arg, threshold, cosine_scale, PHI, POWER, HAS_THRESHOLD, RESCALE)
        acc_i = add_weighted(acc_i, affinity, v_j, v_j_low, HIGH, PRECISION, False)
        # Within the band each pair occurs twice, as (i, j) and (j, i), so sum_kernel skips this slot there.
        acc_j = tl.zeros((BLOCK, ROWS), tl.float32)
        acc_j = add_weighted(acc_j, affinity, v_i, v_i_low, HIGH, PRECISION, True)
        tl.store(slot_ptr + (block - q * CHUNK) * (BLOCK * ROWS) + (offs_j * ROWS + offs_row), acc_j)
    tl.store(slot_ptr + CHUNK * BLOCK * ROWS + (offs_i * ROWS + offs_row), acc_i)


@triton.jit(do_not_specialize=["layer0", "group0", "pairs", "g0", "g1", "q0", "q1"])
def sum_kernel(
    slot_ptr,
    peak_ptr,
    signed_ptr,
    total_ptr,
    denominator_ptr,
    out_ptr,
    K,
    L,
    L_PAD,
    chunks,
    layer0,
    group0,
    pairs,
    g0,
    g1,
    q0,
    q1,
    result_scale,
    sum_eps,
    SHIFTED: tl.constexpr,
    FIRST: tl.constexpr,
    ADD: tl.constexpr,
    FINAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BANDS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program sums the slots of BLOCK_L pixels of a region in a fixed order.

    Pixels are counted from group ``group0`` on. ADD: start from the sums of earlier regions in ``total_ptr``. FINAL:
    last region, so divide the sums and store them.
    """
    pid_layer = layer0 + tl.program_id(1)
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + pid_layer // chunks) == 0:
            return
    UNITS: tl.constexpr = CHUNK // BANDS
    first = group0 * (CHUNK * BLOCK) + tl.program_id(0) * BLOCK_L
    group, local = first // (CHUNK * BLOCK), first // BLOCK % CHUNK
    offs_slot = tl.arange(0, BLOCK_L)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    slot_ptr += tl.program_id(1).to(tl.int64) * pairs * (UNITS * (CHUNK + BANDS) * BLOCK * ROWS) + first % BLOCK * ROWS
    acc = tl.zeros((BLOCK_L, ROWS), tl.float32)
    if ADD:
        acc = tl.load(total_ptr + first.to(tl.int64) * ROWS + offs_slot)  # [BLOCK_L, ROWS]

    # acc += slots where the pixels are columns of a pair (j), then where they are rows (i)
    is_column = (group >= q0) & (group < q1)
    for g in range(g0, tl.where(is_column, tl.minimum(g1, group + 1), g0)):
        number = rank_pair(g, group, g0, g1, q0, q1)
        for band in range(tl.where(g < group, UNITS, local // BANDS)):
            slot = (number * UNITS + band) * (CHUNK + BANDS) + local
            acc += tl.load(slot_ptr + slot.to(tl.int64) * (BLOCK * ROWS) + offs_slot)
    is_row = (group >= g0) & (group < g1)
    start = tl.maximum(group, q0)
    for q in range(start, tl.where(is_row, q1, start)):
        number = rank_pair(group, q, g0, g1, q0, q1)
        slot = (number * UNITS + local // BANDS) * (CHUNK + BANDS) + CHUNK + local % BANDS
        acc += tl.load(slot_ptr + slot.to(tl.int64) * (BLOCK * ROWS) + offs_slot)

    if FINAL:
        offs_l = first + tl.arange(0, BLOCK_L)
        write_polished(
            acc,
            offs_l,
            pid_layer,
            peak_ptr,
            denominator_ptr,
            out_ptr,
            K,
            L,
            L_PAD,
            chunks,
            result_scale,
            sum_eps,
            SHIFTED,
            FIRST,
            ROWS,
        )
    else:
        tl.store(total_ptr + first.to(tl.int64) * ROWS + offs_slot, acc)


class Region(NamedTuple):
    """Pairs of groups [g0, g1) and [q0, q1): equal ranges, of which the pairs g ≤ q count, or q0 ≥ g1."""

    g0: int
    g1: int
    q0: int
    q1: int

    @property
    def pairs(self) -> int:
        """Return the number of pairs."""
        height, width = self.g1 - self.g0, self.q1 - self.q0
        return height * (height + 1) // 2 if self.q0 == self.g0 else height * width


def split_regions(groups: int, max_pairs: int) -> list[Region]:
    """Split the pairs g ≤ q of groups into one region, or squares of at most ``max_pairs`` (≥ 1)."""
    side = groups if groups * (groups + 1) // 2 <= max_pairs else math.isqrt(max_pairs)
    starts = range(0, groups, side)
    return [Region(g, min(g + side, groups), q, min(q + side, groups)) for g in starts for q in starts if q >= g]


def apply(
    operands: Operands,
    out: Tensor,
    config: Symmetric,
    products: dict[str, Any],
    writing: dict[str, Any],
    signed: Tensor | None,
    workspace: int,
) -> None:
    """Apply the affinity to ``operands.v`` once, into ``out`` ``(B, K, L)``.

    As many layers (row chunks of images) share a launch as ``workspace`` bytes hold slots for. If they do not hold one
    layer, its regions are launched one by one, and their sums are accumulated in a ``[L_PAD, ROWS]`` buffer.
    """
    layers, L_pad, rows = operands.v.shape
    groups = triton.cdiv(L_pad, config.chunk * config.block)
    per_pair = config.chunk // config.bands * (config.chunk + config.bands) * config.block * rows
    max_pairs = max(1, workspace // (4 * per_pair))
    parts = split_regions(groups, max_pairs)
    pairs = max(part.pairs for part in parts)
    together = min(layers, max_pairs // pairs) if len(parts) == 1 else 1
    slots = out.new_empty(together * pairs * per_pair)
    totals = out.new_empty((L_pad, rows)) if len(parts) > 1 else slots
    for layer0 in range(0, layers, together):
        if len(parts) > 1:
            totals.zero_()
        for part in parts:
            launch = dict(
                signed_ptr=signed,
                slot_ptr=slots,
                L_PAD=L_pad,
                chunks=operands.chunks,
                layer0=layer0,
                ROWS=rows,
                BLOCK=config.block,
                BANDS=config.bands,
                CHUNK=config.chunk,
                **part._asdict(),
            )
            count = min(together, layers - layer0)
            _launch_pairs(operands, config, count, part, products | launch)
            _launch_sums(operands, out, config, count, part, totals, groups, writing | launch)


def _launch_pairs(operands: Operands, config: Symmetric, layers: int, part: Region, arguments: dict[str, Any]) -> None:
    launch(
        symmetric_kernel,
        (part.pairs * (config.chunk // config.bands), layers),
        unit_ptr=operands.unit,
        unit_low_ptr=operands.unit_low,
        v_ptr=operands.v,
        v_low_ptr=operands.v_low,
        C_PAD=operands.C_pad,
        HELD=config.block_c >= operands.C_pad,
        BLOCK_C=min(config.block_c, operands.C_pad),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **arguments,
    )


def _launch_sums(
    operands: Operands,
    out: Tensor,
    config: Symmetric,
    layers: int,
    part: Region,
    totals: Tensor,
    groups: int,
    arguments: dict[str, Any],
) -> None:
    """Sum a region's slots for its rows and, if different, its columns; the last columns finish the rows."""
    group_pixels = config.chunk * config.block
    block_l = min(BLOCK_L, config.block)
    targets = [(part.g0, part.g1, part.q1 == groups)]
    if part.q0 != part.g0:
        targets.append((part.q0, part.q1, False))
    for start, end, final in targets:
        pixels = min(end * group_pixels, operands.L_pad) - start * group_pixels
        launch(
            sum_kernel,
            (pixels // block_l, layers),
            peak_ptr=operands.peak,
            total_ptr=totals,
            out_ptr=out,
            K=out.shape[1],
            L=operands.L,
            group0=start,
            pairs=part.pairs,
            ADD=part != (0, groups, 0, groups),
            FINAL=final,
            BLOCK_L=block_l,
            num_warps=4,
            **arguments,
        )
