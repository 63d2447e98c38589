"""Compute each pair of pixels once: tiles of the upper triangle serve both i → j and j → i.

Pixels form groups of ``chunk`` blocks of BLOCK. One program takes a pair of groups (g, q), g ≤ q: for each band of
BANDS blocks of g, all blocks of q. It writes its sums to slots of its own, [BLOCK, ROWS] float32: ``chunk`` for the
blocks of q, then ``chunk`` for those of g, which ``sum_kernel`` adds in a fixed order: no atomics, so results are
bitwise repeatable. A region is groups [g0, g1) × [q0, q1): equal ranges, of which the pairs g ≤ q count, or q0 ≥ g1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

from ssa_fast.kernels.launch import launch
from ssa_fast.kernels.products import (
    add_cosines,
    add_weighted,
    apply_phi,
    compiler_options,
    load_halves,
    write_polished,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.kernels.config import Symmetric
    from ssa_fast.kernels.prepare import Operands

SUMS = 512  # per program of sum_kernel: pixels times rows


@triton.jit
def unrank_pair(number, g0, g1, q0, q1):
    """Return the groups (g, q) of a region's ``number``-th pair.

    In a triangle of n groups the pairs (a, a + d mod n) are numbered from the largest distance d on: those of a group
    with itself, d = 0, are half the work and come last, where they fill the gaps that the others leave.
    """
    n = g1 - g0
    ordinal = n * (n + 1) // 2 - 1 - number
    a = ordinal % n
    b = (a + ordinal // n) % n
    is_triangle = g0 == q0
    g = tl.where(is_triangle, tl.minimum(a, b), number // (q1 - q0))
    q = tl.where(is_triangle, tl.maximum(a, b), number % (q1 - q0))
    return g0 + g, q0 + q


@triton.jit
def rank_pair(g, q, g0, g1, q0, q1):
    """Return the number of a region's pair (g, q): the inverse of ``unrank_pair``."""
    n = g1 - g0
    distance = q - g
    ordinal = tl.where(2 * distance <= n, distance * n + g - g0, (n - distance) * n + q - q0)
    return tl.where(g0 == q0, n * (n + 1) // 2 - 1 - ordinal, (g - g0) * (q1 - q0) + q - q0)


@triton.jit(do_not_specialize=["chunks", "chunk", "layer0", "g0", "g1", "q0", "q1"])
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
    chunk,
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
):
    """One program applies the affinity of two groups of pixels in both directions; HELD: one tile has all channels."""
    pid_layer = layer0 + tl.program_id(1)
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + pid_layer // chunks) == 0:
            return
    SPLIT: tl.constexpr = HIGH and PHI != "exp"
    SIZE: tl.constexpr = BANDS * BLOCK
    TILE: tl.constexpr = BLOCK * ROWS  # of v, and of a slot
    pid_pair = tl.program_id(0)
    g, q = unrank_pair(pid_pair, g0, g1, q0, q1)
    i_start, j_start = g * chunk, q * chunk
    i_end, j_end = tl.minimum(i_start + chunk, L_PAD // BLOCK), tl.minimum(j_start + chunk, L_PAD // BLOCK)
    offs_i = tl.arange(0, SIZE)[:, None]
    offs_j = tl.arange(0, BLOCK)[:, None]
    offs_c = tl.arange(0, BLOCK_C)[None, :]
    offs_row = tl.arange(0, ROWS)[None, :]
    x_tile = C_PAD.to(tl.int64) * BLOCK  # of unit features
    x_at = (pid_layer // chunks).to(tl.int64) * L_PAD * C_PAD
    unit_ptr += x_at
    unit_low_ptr += x_at
    v_at = pid_layer.to(tl.int64) * L_PAD * ROWS
    v_ptr += v_at
    v_low_ptr += v_at
    slot_ptr += (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + pid_pair) * (2 * chunk * TILE)
    # affinity = phi(x_i @ x_j.T); acc_i += affinity @ v_j; slot_j += affinity.T @ v_i
    for band in range(i_start, i_end, BANDS):
        i_at = band * x_tile
        v_i, v_i_low = load_halves(v_ptr + band * TILE, v_low_ptr + band * TILE, offs_i * ROWS + offs_row, SPLIT)
        if HELD:  # x_i is [SIZE, BLOCK_C], x_j [BLOCK, BLOCK_C]
            x_i, x_i_low = load_halves(unit_ptr + i_at, unit_low_ptr + i_at, offs_i * C_PAD + offs_c, HIGH)
        acc_i = tl.zeros((SIZE, ROWS), tl.float32)
        for block in range(tl.maximum(band, j_start), j_end):
            j_at = block * x_tile
            v_j, v_j_low = load_halves(v_ptr + block * TILE, v_low_ptr + block * TILE, offs_j * ROWS + offs_row, SPLIT)
            slot_j = slot_ptr + (block - j_start) * TILE + (offs_j * ROWS + offs_row)
            cosine = tl.zeros((SIZE, BLOCK), tl.float32)
            if HELD:
                x_j, x_j_low = load_halves(unit_ptr + j_at, unit_low_ptr + j_at, offs_j * C_PAD + offs_c, HIGH)
                cosine = add_cosines(cosine, x_i, x_i_low, x_j, x_j_low, HIGH)
            else:
                for c in range(0, C_PAD, BLOCK_C):
                    i_c, j_c = i_at + c, j_at + c
                    x_i, x_i_low = load_halves(unit_ptr + i_c, unit_low_ptr + i_c, offs_i * C_PAD + offs_c, HIGH)
                    x_j, x_j_low = load_halves(unit_ptr + j_c, unit_low_ptr + j_c, offs_j * C_PAD + offs_c, HIGH)
                    cosine = add_cosines(cosine, x_i, x_i_low, x_j, x_j_low, HIGH)
            affinity = apply_phi(cosine, phi_arg, threshold, cosine_scale, PHI, POWER, HAS_THRESHOLD, RESCALE)
            acc_i = add_weighted(acc_i, affinity, v_j, v_j_low, HIGH, PRECISION, False)
            acc_j = tl.zeros((BLOCK, ROWS), tl.float32)
            acc_j = add_weighted(acc_j, affinity, v_i, v_i_low, HIGH, PRECISION, True)
            # Within the band each pair occurs twice, as (i, j) and (j, i), and acc_i has both.
            acc_j += tl.load(slot_j, mask=band > i_start, other=0.0)
            tl.store(slot_j, acc_j, mask=block >= band + BANDS)
        tl.store(slot_ptr + (chunk + band - i_start) * TILE + (offs_i * ROWS + offs_row), acc_i)
        tl.debug_barrier()  # other threads may load what this one has stored


@triton.jit(do_not_specialize=["K", "L", "chunks", "chunk", "layer0", "group0", "pairs", "g0", "g1", "q0", "q1"])
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
    chunk,
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
    BANDS: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """One program sums the slots of BLOCK_L pixels of a region in a fixed order.

    Pixels are counted from group ``group0`` on. ADD: start from the sums of earlier regions in ``total_ptr``. FINAL:
    last region, so divide the sums and store them.
    """
    pid_layer = layer0 + tl.program_id(1)
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + pid_layer // chunks) == 0:
            return
    size = chunk * BLOCK  # pixels of a group
    first = group0 * size + tl.program_id(0) * BLOCK_L
    group = first // size
    offs_slot = tl.arange(0, BLOCK_L)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    slot_ptr += (tl.program_id(1).to(tl.int64) * pairs * 2 * size + first % size) * ROWS
    acc = tl.zeros((BLOCK_L, ROWS), tl.float32)
    if ADD:
        acc = tl.load(total_ptr + first.to(tl.int64) * ROWS + offs_slot)  # [BLOCK_L, ROWS]

    # acc += slots where the pixels are columns of a pair (j), then where they are rows (i)
    is_column = (group >= q0) & (group < q1)
    own = (first % size >= BANDS * BLOCK).to(tl.int32)  # the first band of a group has no earlier one to be a column of
    for g in range(g0, tl.where(is_column, tl.minimum(g1, group + own), g0)):
        number = rank_pair(g, group, g0, g1, q0, q1)
        acc += tl.load(slot_ptr + number.to(tl.int64) * (2 * size * ROWS) + offs_slot)
    is_row = (group >= g0) & (group < g1)
    start = tl.maximum(group, q0)
    for q in range(start, tl.where(is_row, q1, start)):
        number = rank_pair(group, q, g0, g1, q0, q1)
        acc += tl.load(slot_ptr + (2 * number.to(tl.int64) + 1) * (size * ROWS) + offs_slot)

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
    chunk = config.balanced_chunk(L_pad, layers)
    groups = triton.cdiv(L_pad, chunk * config.block)
    per_pair = 2 * chunk * config.block * rows
    max_pairs = max(1, workspace // (4 * per_pair))
    parts = split_regions(groups, max_pairs)
    pairs = max(part.pairs for part in parts)
    together = min(layers, max_pairs // pairs) if len(parts) == 1 else 1
    slots = out.new_empty(together * pairs * per_pair)
    totals = out.new_empty((L_pad, rows)) if len(parts) > 1 else slots
    for layer0 in range(0, layers, together):
        for part in parts:
            launch = dict(
                signed_ptr=signed,
                slot_ptr=slots,
                L_PAD=L_pad,
                chunks=operands.chunks,
                chunk=chunk,
                layer0=layer0,
                ROWS=rows,
                BLOCK=config.block,
                BANDS=config.bands,
                **part._asdict(),
            )
            count = min(together, layers - layer0)
            _launch_pairs(operands, config, count, part, products | launch)
            _launch_sums(operands, out, count, part, totals, groups, writing | launch)


def _launch_pairs(operands: Operands, config: Symmetric, layers: int, part: Region, arguments: dict[str, Any]) -> None:
    launch(
        symmetric_kernel,
        (part.pairs, layers),
        unit_ptr=operands.unit,
        unit_low_ptr=operands.unit_low,
        v_ptr=operands.v,
        v_low_ptr=operands.v_low,
        C_PAD=operands.C_pad,
        HELD=config.block_c >= operands.C_pad,
        BLOCK_C=min(config.block_c, operands.C_pad),
        **compiler_options(config.num_warps, config.num_stages),
        **arguments,
    )


def _launch_sums(
    operands: Operands, out: Tensor, layers: int, part: Region, totals: Tensor, groups: int, arguments: dict[str, Any]
) -> None:
    """Sum a region's slots for its rows and, if different, its columns; the last columns finish the rows.

    Regions come row by row, so a group's first one is its triangle if it is in the first row, else the first row's
    square with its columns.
    """
    size, block_l = arguments["chunk"] * arguments["BLOCK"], min(SUMS // arguments["ROWS"], arguments["BLOCK"])
    # Of the rows: their first group, their last, whether sums of earlier regions exist, whether this is the last one.
    targets = [(part.g0, part.g1, part.g0 > 0 or part.q0 > 0, part.q1 == groups)]
    if part.q0 != part.g0:
        targets.append((part.q0, part.q1, part.g0 > 0, False))
    for start, end, add, final in targets:
        pixels = min(end * size, operands.L_pad) - start * size
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
            ADD=add,
            FINAL=final,
            BLOCK_L=block_l,
            num_warps=4,
            **arguments,
        )
