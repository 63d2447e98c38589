"""Pass A of prototypes: the CAM-weighted sums of features G, as float16 halves; see ``prototypes`` for the mathematics.

Programs write partial sums to slabs, which are added in a fixed order: no atomics, so results are bitwise repeatable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from ssa_fast.kernels.launch import launch
from ssa_fast.kernels.norms import (
    SIZES,
    is_aligned,
    is_extreme,
    load_features,
    pack_norm,
    pixels_per_tile,
    scale_for_squares,
    unpack_norm,
    write_norms,
)
from ssa_fast.kernels.primitives import (
    aligned_sizes,
    floor_power_of_two,
    load_resized_cam,
    pixel_offsets,
    split_fp16,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.kernels.config import Gather

FEATURE_SCALE = tl.constexpr(2.0**8)  # scaled features have a norm < 2⁹
LEAST_NORM = tl.constexpr(2.0**-4)  # half precision features of these norms need no scale,
LARGEST_NORM = tl.constexpr(2.0**12)  # as both halves of their weights are normal numbers of float16
PROTOTYPE_SCALE = tl.constexpr(2.0**14)  # entries of the halves of G are < 2¹⁵
ROUNDER = tl.constexpr(1.5 * 2.0**15)  # adding and subtracting it rounds to multiples of 2⁻⁸
LONGEST_SUM = 1024  # pixels per program: matrix units truncate, and longer sums lose more bits
SLAB_BYTES = 16 << 20


@triton.jit
def scale_extreme(f, norm, mask, HELD: tl.constexpr):
    """Scale the pixels of a tile whose norm is stored with a minus sign; return them and the norms.

    HELD: the tile has all channels, and ``norm`` is of its squares as they are; where these may have left float32's
    range it is computed again.
    """
    if HELD:
        if is_extreme(norm, mask):
            scale = scale_for_squares(norm)
            squares = (f.to(tl.float32) * scale[None, :]) * (f.to(tl.float32) * scale[None, :])
            norm = pack_norm(tl.sqrt(tl.sum(squares, axis=0)), scale)
            _, scale = unpack_norm(norm)
            f = (f.to(tl.float32) * scale[None, :]).to(f.dtype)
    else:
        if tl.min(norm) < 0.0:
            _, scale = unpack_norm(norm)
            f = (f.to(tl.float32) * scale[None, :]).to(f.dtype)
    return f, norm


@triton.jit
def inverse_norm(norm, norm_eps):
    """Return ``1/(‖f‖ + eps)``, 0 for a zero feature; a reciprocal root is one instruction, a division many."""
    root = tl.rsqrt(norm + norm_eps)  # whose square stays in range, unlike that of the sum
    return tl.where(norm == 0.0, 0.0, root * root)


@triton.jit
def scale_features(f, norm, norm_eps, inverse, DTYPE: tl.constexpr):
    """Return ``(f/p, p·inverse)``, factors of unit features that fit float16; p is a power of two.

    Half precision features enter as they are, p = 1, unless a norm of the tile is out of the usual range. Otherwise p
    is near the geometric mean of ‖f‖ and ‖f‖ + eps, so neither factor is tiny if eps exceeds ‖f‖ by far.
    """
    # The mean of two numbers' bits is that of their logarithms, nearly, and leaves no range.
    middle = (norm.to(tl.int32, bitcast=True) >> 1) + ((norm + norm_eps).to(tl.int32, bitcast=True) >> 1)
    middle = middle.to(tl.float32, bitcast=True)
    if DTYPE == tl.float32:  # noqa: SIM300
        p, p_inverse = floor_power_of_two(middle * (1.0 / FEATURE_SCALE))
        x, weight = f.to(tl.float32) * p_inverse[None, :], inverse * p
    else:
        x, weight = f.to(tl.float16), inverse
        if tl.max(tl.maximum(norm + norm_eps, inverse * (LEAST_NORM * LARGEST_NORM))) > LARGEST_NORM:
            if DTYPE == tl.float16:  # noqa: SIM300
                p, p_inverse = floor_power_of_two(tl.minimum(tl.maximum(middle, 2.0**-24), 2.0**14))
                # 1/p may exceed float16's range, its factors do not.
                x = f * tl.minimum(p_inverse, 2.0**12).to(tl.float16)[None, :]
                x *= tl.maximum(p_inverse * 2.0**-12, 1.0).to(tl.float16)[None, :]
            else:
                p, p_inverse = floor_power_of_two(middle)
                x = (f.to(tl.float32) * p_inverse[None, :]).to(tl.float16)
            weight = inverse * p
    return x, weight


@triton.jit
def add_products(acc, x, high, low, DTYPE: tl.constexpr):
    """Return ``acc + x (high + low)``; DTYPE float32: x has two halves as well."""
    x_high, x_low = split_fp16(x)
    acc = tl.dot(x_high, high, acc)
    acc = tl.dot(x_high, low, acc)
    if DTYPE == tl.float32:  # noqa: SIM300
        acc = tl.dot(x_low, high, acc)
        acc = tl.dot(x_low, low, acc)
    return acc


@triton.jit
def load_peak_and_center(peak_ptr, cam_mean_ptr, first, offs_k, mask):
    """Return the powers of two below CAM rows' peaks, their inverses, and what is subtracted from the rows over them.

    That is a row's mean, rounded to a multiple of 2⁻⁸, or 0 without ``cam_mean_ptr``. Zeros of a CAM with few other
    pixels stay 0: a mean of 1/L would turn them into numbers too small for halves.
    """
    peak, peak_inverse = floor_power_of_two(tl.load(peak_ptr + first + offs_k, mask=mask, other=0.0))
    center = 0.0
    if cam_mean_ptr is not None:
        center = tl.load(cam_mean_ptr + first + offs_k, mask=mask, other=0.0) * peak_inverse + ROUNDER - ROUNDER
    return peak, peak_inverse, center


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["stride_fc"])
def gather_kernel(
    cam_ptr,
    peak_ptr,
    cam_mean_ptr,
    features_ptr,
    mean_ptr,
    slabs_ptr,
    bounds_ptr,
    totals_ptr,
    norms_ptr,
    signed_ptr,
    K,
    C,
    L,
    slabs,
    norm_eps,
    h,
    w,
    W,
    scale_h,
    shift_h,
    scale_w,
    shift_w,
    stride_fb,
    stride_fc,
    stride_fh,
    stride_fw,
    FLAT: tl.constexpr,
    ALIGNED: tl.constexpr,
    RESIZE: tl.constexpr,
    FIRST: tl.constexpr,
    HELD: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_L: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Pass A: one program sums BLOCK_C channels of ROWS rows of G over every ``slabs``-th tile.

    The sums go to its slab, with each row's sum of |v|‖x‖ and, for φ = shifted, of v. ``cam_mean_ptr`` and ``mean_ptr``
    are subtracted from CAM and features, if given. FIRST: row 0 is ones. HELD: a tile has all channels, so its norms
    are computed and stored, and a feature that is not ≥ 0 sets ``signed_ptr``, if given; else norms are read.
    """
    DTYPE: tl.constexpr = features_ptr.dtype.element_ty if mean_ptr is None else tl.float32
    ANY_NORM: tl.constexpr = features_ptr.dtype.element_ty != tl.float16  # squares may leave float32's range
    # Weights are < 2¹⁵ with it: inverse·p is at most 2⁻⁸ for float32, else 2⁴; v is < 2, < 4 minus a mean.
    UNCENTERED: tl.constexpr = 2.0**22 if DTYPE == tl.float32 else 2.0**10  # noqa: SIM300
    WEIGHT_SCALE: tl.constexpr = UNCENTERED if cam_mean_ptr is None else UNCENTERED / 2.0
    L, stride_fc = aligned_sizes(L, stride_fc, ALIGNED)
    rows, parts = K + FIRST, tl.cdiv(C, BLOCK_C)
    chunks = tl.cdiv(rows, ROWS)
    pid_part = tl.program_id(0) % parts
    pid_chunk = tl.program_id(0) // parts % chunks
    pid_slab = tl.program_id(0) // (parts * chunks)
    pid_b = tl.program_id(1).to(tl.int64)
    offs_n = pid_chunk * ROWS + tl.arange(0, ROWS)
    offs_k = offs_n - FIRST
    mask_k = (offs_k >= 0) & (offs_k < K)
    peak, peak_inverse, center = load_peak_and_center(peak_ptr, cam_mean_ptr, pid_b * K, offs_k, mask_k)  # [ROWS]
    plane = (pid_b * K + offs_k)[None, :]
    low = 0.0 if cam_mean_ptr is None else (center * peak)[None, :]
    offs_c = pid_part * BLOCK_C + tl.arange(0, BLOCK_C)
    features_ptr += pid_b * stride_fb
    if mean_ptr is not None:
        mean_ptr += pid_b * C
    norms_ptr += pid_b * L
    if not RESIZE:
        h, w = 1, L  # the compiler knows whether L is aligned
    num_stored = tl.where(pid_chunk == 0, L, 0)  # all chunks compute the same norms, one stores them
    acc = tl.zeros([BLOCK_C, ROWS], dtype=tl.float32)
    bound, total = tl.zeros([BLOCK_L, ROWS], dtype=tl.float32), tl.zeros([BLOCK_L, ROWS], dtype=tl.float32)
    lowest, norms = 0.0, tl.zeros([BLOCK_L], dtype=tl.float32)
    # acc = (f / p) @ (v * p / (norm(f) + norm_eps)).T and bound = v.abs() @ norm(x), with v = [1; cam]
    for tile in tl.range(pid_slab, tl.cdiv(L, BLOCK_L), slabs):
        offs_l = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        mask_l = offs_l < L
        ptrs = features_ptr + pixel_offsets(offs_l, W, stride_fh, stride_fw, FLAT)[None, :]
        ptrs += offs_c.to(tl.int64)[:, None] * stride_fc  # [BLOCK_C, BLOCK_L]
        f = load_features(ptrs, (offs_c < C)[:, None] & mask_l[None, :], mean_ptr, offs_c[:, None], C)
        if HELD:
            norm = tl.sqrt(tl.sum(f.to(tl.float32) * f.to(tl.float32), axis=0))
        else:
            norm = tl.load(norms_ptr + offs_l, mask=mask_l, other=0.0)
        if ANY_NORM:
            f, norm = scale_extreme(f, norm, mask_l, HELD)
        if HELD:
            tl.store(norms_ptr + offs_l, norm, mask=offs_l < num_stored)
            if signed_ptr is not None:
                lowest, norms = tl.minimum(lowest, tl.min(f.to(tl.float32))), norms + norm
        eps = norm_eps
        if ANY_NORM:
            norm, scale = unpack_norm(norm)
            eps = norm_eps * scale
        inverse = inverse_norm(norm, eps)
        x, weight = scale_features(f, norm, eps, inverse, DTYPE)

        mask_v = mask_l[:, None] & mask_k[None, :]
        v = load_resized_cam(
            cam_ptr, plane, offs_l[:, None], mask_v, h, w, W, scale_h, shift_h, scale_w, shift_w, RESIZE, low
        )  # [BLOCK_L, ROWS]
        v *= peak_inverse[None, :]
        if FIRST:
            v = tl.where((offs_n == 0)[None, :], 1.0, v)
        if totals_ptr is not None:
            total += tl.where(mask_l[:, None], v, 0.0)
        bound += tl.abs(v) * (norm * inverse)[:, None]
        v_high, v_low = split_fp16(v * (weight * WEIGHT_SCALE)[:, None])
        acc = add_products(acc, x, v_high, v_low, DTYPE)

    first_row = (pid_slab * tl.num_programs(1) + pid_b) * rows
    offs = (first_row + offs_n)[None, :] * C + offs_c[:, None]
    tl.store(slabs_ptr + offs, acc * (1.0 / WEIGHT_SCALE), mask=(offs_n < rows)[None, :] & (offs_c < C)[:, None])
    mask_n = offs_n < tl.where(pid_part == 0, rows, 0)
    tl.store(bounds_ptr + first_row + offs_n, tl.sum(bound, axis=0), mask=mask_n)
    if totals_ptr is not None:
        tl.store(totals_ptr + first_row + offs_n, tl.sum(total, axis=0), mask=mask_n)
    if HELD and signed_ptr is not None:
        norms = tl.where(lowest < 0.0, float("nan"), norms)  # a NaN is in the norms: the minimum drops it
        tl.store(signed_ptr + pid_b + tl.zeros([BLOCK_L], dtype=tl.int32), 1, mask=norms != norms)


@triton.jit(do_not_specialize=["slabs"])
def finish_kernel(
    slabs_ptr,
    bounds_ptr,
    totals_ptr,
    halves_ptr,
    scale_ptr,
    total_ptr,
    C,
    slabs,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program sums BLOCK_C channels of one row of G over the slabs, in a fixed order.

    The sums are divided by a power of two near the row's sum of |weights|, which bounds the entries up to the
    features' scale, and stored as two float16 halves; ``scale_ptr`` receives that power of two, ``total_ptr`` the sum
    of the row's totals, if there are any.
    """
    pid_row = tl.program_id(0)
    rows = tl.num_programs(0)
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    bound = tl.zeros([BLOCK_S], dtype=tl.float32)
    total = tl.zeros([BLOCK_S], dtype=tl.float32)
    # acc, bound, total = slabs.sum(0), bounds.sum(0), totals.sum(0)
    for start in tl.range(0, slabs, BLOCK_S):
        offs_s = start + tl.arange(0, BLOCK_S)
        at = offs_s.to(tl.int64) * rows + pid_row
        mask = (offs_s < slabs)[:, None] & (offs_c < C)[None, :]
        acc += tl.load(slabs_ptr + at[:, None] * C + offs_c[None, :], mask=mask, other=0.0)  # [BLOCK_S, BLOCK_C]
        bound += tl.load(bounds_ptr + at, mask=offs_s < slabs, other=0.0)
        if totals_ptr is not None:
            total += tl.load(totals_ptr + at, mask=offs_s < slabs, other=0.0)
    p, p_inverse = floor_power_of_two(tl.sum(bound, axis=0) * (1.0 / PROTOTYPE_SCALE))
    high, low = split_fp16(tl.sum(acc, axis=0) * p_inverse)
    at = pid_row.to(tl.int64) * C + offs_c
    tl.store(halves_ptr + at, high, mask=offs_c < C)
    tl.store(halves_ptr + rows.to(tl.int64) * C + at, low, mask=offs_c < C)
    tl.store(scale_ptr + pid_row, p)
    if totals_ptr is not None:
        tl.store(total_ptr + pid_row, tl.sum(total, axis=0))


def sum_prototypes(
    source: Tensor, read: dict[str, Any], resize: dict[str, Any], first: bool, config: Gather, num_sms: int
) -> dict[str, Tensor]:
    """Run pass A; return G as two float16 halves ``(B, n, C)``, their scale and the rows' sums ``(B, n)``."""
    B, C, L, n = len(source), read["C"], read["L"], source.shape[1] + first
    rows = rows_per_program(n, config.rows)
    chunks = triton.cdiv(n, rows)
    parts = triton.cdiv(C, block_c := min(config.block_c, max(16, triton.next_power_of_2(C))))
    per_sm = 2 if block_c <= 128 else 1  # programs whose registers fit
    programs = max(per_sm * num_sms // (B * chunks * parts), triton.cdiv(L, LONGEST_SUM))
    block_l = pixels_per_tile(config.block_l, read)
    if read["features_ptr"].dtype == torch.bfloat16:  # whose conversion to float16 takes registers
        block_l = max(16, block_l // 2)
    slabs = max(1, min(programs, triton.cdiv(L, block_l), SLAB_BYTES // (4 * B * n * C)))
    partial = dict(slabs_ptr=source.new_empty((slabs, B, n, C)), bounds_ptr=source.new_empty((slabs, B, n)))
    result = dict(halves_ptr=source.new_empty((2, B, n, C), dtype=torch.float16), scale_ptr=source.new_empty((B, n)))
    shifted = read["cam_mean_ptr"] is not None
    partial["totals_ptr"] = source.new_empty((slabs, B, n)) if shifted else None
    result["total_ptr"] = source.new_empty((B, n)) if shifted else None
    if first and parts > 1:
        write_norms(read, B, num_sms)
    tiles = dict(ALIGNED=is_aligned(read), HELD=first and parts == 1, BLOCK_C=block_c, BLOCK_L=block_l)
    tiles |= dict(ROWS=rows, num_warps=config.num_warps, num_stages=config.num_stages)
    grid = (slabs * chunks * parts, B)
    launch(gather_kernel, grid, cam_ptr=source, **read, **resize, **partial, slabs=slabs, FIRST=first, **tiles)
    few = B * n * triton.cdiv(C, 64) <= 8 * num_sms
    tiles = dict(BLOCK_S=16 if slabs <= 16 else 32, BLOCK_C=64 if few or slabs > 16 else 256)
    grid = (B * n, triton.cdiv(C, tiles["BLOCK_C"]))
    launch(finish_kernel, grid, **partial, **result, C=C, slabs=slabs, **tiles, num_warps=4)
    return result


def rows_per_program(n: int, limit: int) -> int:
    """Return the rows that one program holds, of ``n``: a power of two that matrix units support."""
    return min(limit, max(16, triton.next_power_of_2(n)))
