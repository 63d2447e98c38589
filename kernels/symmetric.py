"""Each pair of pixels once: the upper triangle of the affinity matrix, every tile of which serves i → j and j → i.

Blocks of pixels form bands of BANDS blocks, and groups of CHUNK blocks. A pair of groups (g, q), g ≤ q, is served by
CHUNK // BANDS programs, one per band of g; each writes its sums into slots of its own, which ``sum_kernel`` adds in
fixed order: no atomics, the same bits every time. Slots of one program are [BLOCK, ROWS] float32: CHUNK for the blocks
of q, then BANDS for its own. Pairs of a region, groups [g0, g1) × [q0, q1) (the same, or q0 ≥ g1), are numbered without
a gap by folding: the r-th row of pairs and the r-th from the end share a line, and all lines are equally long.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

from ssa_fast.kernels.products import add_cosines, add_weighted, affinities, load_halves, write_polished

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.kernels.config import Symmetric
    from ssa_fast.kernels.prepare import Operands

BLOCK_L = 32  # pixels that a program of sum_kernel adds the slots of


@triton.jit
def pair_of(number, g0, g1, q0, q1):
    """The groups (g, q) of a region's ``number``-th pair."""
    line = 2 * q1 - tl.maximum(g0, q0) - tl.maximum(g1 - 1, q0)
    r, c = number // line, number % line
    count = q1 - tl.maximum(g0 + r, q0)
    upper = c < count
    g = tl.where(upper, g0 + r, g1 - 1 - r)
    return g, tl.maximum(g, q0) + tl.where(upper, c, c - count)


@triton.jit
def number_of(g, q, g0, g1, q0, q1):
    """The number of a region's pair of groups (g, q): the inverse of ``pair_of``."""
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
    """One program: one band of BANDS blocks of pixels against one group of CHUNK blocks, none before it.

    HELD: one tile has all C.
    """
    layer = layer0 + tl.program_id(1)
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + layer // chunks) == 0:
            return
    unit = tl.program_id(0)
    g, q = pair_of(unit // (CHUNK // BANDS), g0, g1, q0, q1)
    band = g * CHUNK + unit % (CHUNK // BANDS) * BANDS
    last = tl.minimum((q + 1) * CHUNK, L_PAD // BLOCK)
    if band >= last:
        return
    SPLIT: tl.constexpr = HIGH and PHI != "exp"
    SIZE: tl.constexpr = BANDS * BLOCK
    i = tl.arange(0, SIZE)[:, None]
    j = tl.arange(0, BLOCK)[:, None]
    channel = tl.arange(0, BLOCK_C)[None, :]
    row = tl.arange(0, ROWS)[None, :]
    slot_ptr += (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + unit) * ((CHUNK + BANDS) * BLOCK * ROWS)
    i_at = ((layer // chunks).to(tl.int64) * L_PAD + band * BLOCK) * C_PAD
    v_at = (layer.to(tl.int64) * L_PAD + band * BLOCK) * ROWS
    v_i, v_i_low = load_halves(v_ptr + v_at, v_low_ptr + v_at, i * ROWS + row, SPLIT)  # [SIZE, ROWS]
    if HELD:
        x_i, x_i_low = load_halves(unit_ptr + i_at, unit_low_ptr + i_at, i * C_PAD + channel, HIGH)  # [SIZE, BLOCK_C]
    total_i = tl.zeros((SIZE, ROWS), tl.float32)
    for block in range(tl.maximum(q * CHUNK, band), last):
        j_at = ((layer // chunks).to(tl.int64) * L_PAD + block * BLOCK) * C_PAD
        v_at = (layer.to(tl.int64) * L_PAD + block * BLOCK) * ROWS
        v_j, v_j_low = load_halves(v_ptr + v_at, v_low_ptr + v_at, j * ROWS + row, SPLIT)  # [BLOCK, ROWS]
        dot = tl.zeros((SIZE, BLOCK), tl.float32)
        if HELD:
            x_j, x_j_low = load_halves(unit_ptr + j_at, unit_low_ptr + j_at, j * C_PAD + channel, HIGH)
            dot = add_cosines(dot, x_i, x_i_low, x_j, x_j_low, HIGH)
        else:
            for c in range(0, C_PAD, BLOCK_C):
                x_i, x_i_low = load_halves(unit_ptr + i_at + c, unit_low_ptr + i_at + c, i * C_PAD + channel, HIGH)
                x_j, x_j_low = load_halves(unit_ptr + j_at + c, unit_low_ptr + j_at + c, j * C_PAD + channel, HIGH)
                dot = add_cosines(dot, x_i, x_i_low, x_j, x_j_low, HIGH)
        affinity = affinities(dot, phi_arg, threshold, cosine_scale, PHI, POWER, HAS_THRESHOLD, RESCALE)
        total_i = add_weighted(total_i, affinity, v_j, v_j_low, HIGH, PRECISION, False)
        # Within the band each pair is met twice, as (i, j) and as (j, i): there sum_kernel leaves this slot out.
        total_j = tl.zeros((BLOCK, ROWS), tl.float32)
        total_j = add_weighted(total_j, affinity, v_i, v_i_low, HIGH, PRECISION, True)
        tl.store(slot_ptr + (block - q * CHUNK) * (BLOCK * ROWS) + (j * ROWS + row), total_j)
    tl.store(slot_ptr + CHUNK * BLOCK * ROWS + (i * ROWS + row), total_i)


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
    FIRST: tl.constexpr,
    ADD: tl.constexpr,
    FINAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BANDS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program: the slots of BLOCK_L pixels of a region, from group ``group0`` on, summed in fixed order.

    ADD: to ``total_ptr``, what earlier regions left. FINAL: no region follows, so the sums are divided and written.
    """
    layer = layer0 + tl.program_id(1)
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + layer // chunks) == 0:
            return
    UNITS: tl.constexpr = CHUNK // BANDS
    first = group0 * (CHUNK * BLOCK) + tl.program_id(0) * BLOCK_L
    group, local = first // (CHUNK * BLOCK), first // BLOCK % CHUNK
    offsets = tl.arange(0, BLOCK_L)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    slot_ptr += tl.program_id(1).to(tl.int64) * pairs * (UNITS * (CHUNK + BANDS) * BLOCK * ROWS) + first % BLOCK * ROWS
    total = tl.zeros((BLOCK_L, ROWS), tl.float32)
    if ADD:
        total = tl.load(total_ptr + first.to(tl.int64) * ROWS + offsets)  # [BLOCK_L, ROWS]

    is_column = (group >= q0) & (group < q1)
    for g in range(g0, tl.where(is_column, tl.minimum(g1, group + 1), g0)):
        number = number_of(g, group, g0, g1, q0, q1)
        for band in range(tl.where(g < group, UNITS, local // BANDS)):
            slot = (number * UNITS + band) * (CHUNK + BANDS) + local
            total += tl.load(slot_ptr + slot.to(tl.int64) * (BLOCK * ROWS) + offsets)
    is_row = (group >= g0) & (group < g1)
    start = tl.maximum(group, q0)
    for q in range(start, tl.where(is_row, q1, start)):
        number = number_of(group, q, g0, g1, q0, q1)
        slot = (number * UNITS + local // BANDS) * (CHUNK + BANDS) + CHUNK + local % BANDS
        total += tl.load(slot_ptr + slot.to(tl.int64) * (BLOCK * ROWS) + offsets)

    if FINAL:
        l = first + tl.arange(0, BLOCK_L)
        write_polished(
            total,
            l,
            layer,
            peak_ptr,
            denominator_ptr,
            out_ptr,
            K,
            L,
            L_PAD,
            chunks,
            result_scale,
            sum_eps,
            FIRST,
            ROWS,
        )
    else:
        tl.store(total_ptr + first.to(tl.int64) * ROWS + offsets, total)


class Region(NamedTuple):
    """Groups [g0, g1) against groups [q0, q1): the same ones, of which g ≤ q are taken, or later ones."""

    g0: int
    g1: int
    q0: int
    q1: int

    @property
    def pairs(self) -> int:
        height, width = self.g1 - self.g0, self.q1 - self.q0
        return height * (height + 1) // 2 if self.q0 == self.g0 else height * width


def regions(groups: int, most_pairs: int) -> list[Region]:
    """The upper triangle of pairs of groups, as one region or squares of at most ``most_pairs`` (≥ 1)."""
    side = groups if groups * (groups + 1) // 2 <= most_pairs else math.isqrt(most_pairs)
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
    """One application of the affinity to ``operands.v``, into ``out`` ``(B, K, L)``.

    As many layers (row chunks of images) share a launch as ``workspace`` has slots for. Where it has not enough for
    one, its regions follow one another, and their sums meet in a ``[L_PAD, ROWS]`` buffer.
    """
    layers, L_pad, rows = operands.v.shape
    groups = triton.cdiv(L_pad, config.chunk * config.block)
    per_pair = config.chunk // config.bands * (config.chunk + config.bands) * config.block * rows
    room = max(1, workspace // (4 * per_pair))
    parts = regions(groups, room)
    most = max(part.pairs for part in parts)
    together = min(layers, room // most) if len(parts) == 1 else 1
    slots = out.new_empty(together * most * per_pair)
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
    symmetric_kernel[(part.pairs * (config.chunk // config.bands), layers)](
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
    """Sum a region's slots for its rows and, if they are others, its columns; rows are complete at the last column."""
    group_pixels = config.chunk * config.block
    block_l = min(BLOCK_L, config.block)
    targets = [(part.g0, part.g1, part.q1 == groups)]
    if part.q0 != part.g0:
        targets.append((part.q0, part.q1, False))
    for start, end, final in targets:
        pixels = min(end * group_pixels, operands.L_pad) - start * group_pixels
        sum_kernel[(pixels // block_l, layers)](
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
