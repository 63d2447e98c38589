"""Polish one stage by prototypes: time linear in the pixels, exact for f ≥ 0 and φ = relu.

    G   = [1; cam]·inv_norm fᵀ               (K+1)×C CAM-weighted sums of features: one read of f (pass A)
    out = (G x)[1:] / ((G x)[0] + sum_eps)   a second read of f (pass B)

The row of ones puts the denominator into the same product as the numerators, so it rounds as they do.

Operands are float16. A feature is divided by a power of two near its norm, which is exact; weights, G and float32
features are split into two halves. The constants below keep the low halves out of float16's subnormal numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from ssa_fast.kernels import primitives
from ssa_fast.kernels.primitives import floor_power_of_two, load_resized_cam, pixel_offsets, safe_divide, split_fp16

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.kernels.config import Apply, Gather

FEATURE_SCALE = tl.constexpr(2.0**8)  # scaled features have a norm < 2⁹
PROTOTYPE_SCALE = tl.constexpr(2.0**14)  # entries of the halves of G are < 2¹⁵
LONGEST_SUM = 1024  # pixels per program: matrix units truncate, and longer sums lose more bits
SLAB_BYTES = 16 << 20


@triton.jit
def feature_scale(norm, norm_eps, DTYPE: tl.constexpr):
    """Return ``(p, 1/p)``, p the power of two that divides features and multiplies their weights.

    p is near the geometric mean of ‖f‖ and ‖f‖ + eps, so neither factor is tiny if eps exceeds ‖f‖ by far. p is 0 for
    a zero feature, and so is its weight. For float16 features 1/p fits float16.
    """
    middle = tl.sqrt(norm * (norm + norm_eps))
    if DTYPE == tl.float16:  # noqa: SIM300
        p, p_inverse = floor_power_of_two(tl.minimum(tl.maximum(middle, 2.0**-15), 2.0**14))
        return tl.where(norm == 0.0, 0.0, p), p_inverse
    return floor_power_of_two(middle * (1.0 / FEATURE_SCALE))


@triton.jit
def gather_kernel(
    cam_ptr,
    peak_ptr,
    features_ptr,
    slabs_ptr,
    bounds_ptr,
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
    RESIZE: tl.constexpr,
    FIRST: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_L: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Pass A: one program sums BLOCK_C channels of ROWS rows of G over every ``slabs``-th tile.

    The sums go to its slab, with each row's sum of |v|‖x‖. FIRST: row 0 is ones; norms over all PARTS blocks of
    channels are stored for the passes that follow, and a feature that is not ≥ 0 sets ``signed_ptr``, if given.
    """
    # Weights are < 2¹⁵ with it: p/‖f‖ is at most 2⁹ for float16 features, 2⁻⁸ for others.
    WEIGHT_SCALE: tl.constexpr = 2.0**5 if features_ptr.dtype.element_ty == tl.float16 else 2.0**22
    rows = K + FIRST
    chunks = tl.cdiv(rows, ROWS)
    pid_part = tl.program_id(0) % PARTS
    pid_chunk = tl.program_id(0) // PARTS % chunks
    pid_slab = tl.program_id(0) // (PARTS * chunks)
    pid_b = tl.program_id(1).to(tl.int64)
    offs_n = pid_chunk * ROWS + tl.arange(0, ROWS)
    offs_k = offs_n - FIRST
    mask_k = (offs_k >= 0) & (offs_k < K)
    _, peak_inverse = floor_power_of_two(tl.load(peak_ptr + pid_b * K + offs_k, mask=mask_k, other=0.0))  # [ROWS]
    offs_c = pid_part * BLOCK_C + tl.arange(0, BLOCK_C)
    features_ptr += pid_b * stride_fb
    norms_ptr += pid_b * L
    # Of the programs of a tile, which compute the same norms, one stores them: for the others this mask is empty.
    num_stored = tl.where(pid_part + pid_chunk == 0, L, 0)

    acc = tl.zeros([BLOCK_C, ROWS], dtype=tl.float32)
    bound = tl.zeros([ROWS], dtype=tl.float32)
    not_positive = tl.zeros([BLOCK_L], dtype=tl.int32)
    # acc = (f / p) @ (v * p / (norm(f) + norm_eps)).T and bound = v.abs() @ norm(x), with v = [1; cam]
    for tile in tl.range(pid_slab, tl.cdiv(L, BLOCK_L), slabs):
        offs_l = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        mask_l = offs_l < L
        pixel_ptrs = (features_ptr + pixel_offsets(offs_l, W, stride_fh, stride_fw, FLAT))[None, :]
        ptrs = pixel_ptrs + offs_c.to(tl.int64)[:, None] * stride_fc
        f = tl.load(ptrs, mask=(offs_c < C)[:, None] & mask_l[None, :], other=0.0)  # [BLOCK_C, BLOCK_L]
        if FIRST:
            squares = tl.sum(f.to(tl.float32) * f.to(tl.float32), axis=0)
            for other in tl.static_range(1, PARTS):
                offs_rest = (pid_part + other) % PARTS * BLOCK_C + tl.arange(0, BLOCK_C)
                ptrs = pixel_ptrs + offs_rest.to(tl.int64)[:, None] * stride_fc
                g = tl.load(ptrs, mask=(offs_rest < C)[:, None] & mask_l[None, :], other=0.0)  # [BLOCK_C, BLOCK_L]
                squares += tl.sum(g.to(tl.float32) * g.to(tl.float32), axis=0)
            norm = tl.sqrt_rn(squares)
            tl.store(norms_ptr + offs_l, norm, mask=offs_l < num_stored)
            if signed_ptr is not None:
                not_positive |= tl.max(tl.where(f.to(tl.float32) >= 0, 0, 1), axis=0)
        else:
            norm = tl.load(norms_ptr + offs_l, mask=mask_l, other=0.0)
        p, p_inverse = feature_scale(norm, norm_eps, features_ptr.dtype.element_ty)

        mask_v = mask_l[:, None] & mask_k[None, :]
        plane = (pid_b * K + offs_k)[None, :]
        v = load_resized_cam(
            cam_ptr, plane, offs_l[:, None], mask_v, h, w, W, scale_h, shift_h, scale_w, shift_w, RESIZE
        )  # [BLOCK_L, ROWS]
        v *= peak_inverse[None, :]
        if FIRST:
            v = tl.where((offs_n == 0)[None, :], 1.0, v)
        bound += tl.sum(tl.abs(v) * safe_divide(norm, norm, norm_eps)[:, None], axis=0)
        v_high, v_low = split_fp16(v * (safe_divide(p, norm, norm_eps) * WEIGHT_SCALE)[:, None])
        x = f if f.dtype == tl.float16 else f.to(tl.float32)  # float16 needs half the registers
        x *= p_inverse.to(x.dtype)[None, :]
        x_high, x_low = split_fp16(x)
        acc = tl.dot(x_high, v_high, acc)
        acc = tl.dot(x_high, v_low, acc)
        if features_ptr.dtype.element_ty == tl.float32:
            acc = tl.dot(x_low, v_high, acc)
            acc = tl.dot(x_low, v_low, acc)

    first_row = (pid_slab * tl.num_programs(1) + pid_b) * rows
    offs = (first_row + offs_n)[None, :] * C + offs_c[:, None]
    tl.store(slabs_ptr + offs, acc * (1.0 / WEIGHT_SCALE), mask=(offs_n < rows)[None, :] & (offs_c < C)[:, None])
    tl.store(bounds_ptr + first_row + offs_n, bound, mask=offs_n < tl.where(pid_part == 0, rows, 0))
    if FIRST and signed_ptr is not None:
        tl.store(signed_ptr + pid_b + not_positive * 0, 1, mask=not_positive != 0)


@triton.jit
def finish_kernel(
    slabs_ptr,
    bounds_ptr,
    halves_ptr,
    scale_ptr,
    C,
    slabs,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program sums BLOCK_C channels of one row of G over the slabs, in a fixed order.

    The sums are divided by a power of two near the row's sum of |weights|, which bounds the entries up to the
    features' scale, and stored as two float16 halves; ``scale_ptr`` receives that power of two.
    """
    pid_row = tl.program_id(0)
    rows = tl.num_programs(0)
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    bound = tl.zeros([BLOCK_S], dtype=tl.float32)
    # acc, bound = slabs.sum(0), bounds.sum(0)
    for start in tl.range(0, slabs, BLOCK_S):
        offs_s = start + tl.arange(0, BLOCK_S)
        at = offs_s.to(tl.int64) * rows + pid_row
        mask = (offs_s < slabs)[:, None] & (offs_c < C)[None, :]
        acc += tl.load(slabs_ptr + at[:, None] * C + offs_c[None, :], mask=mask, other=0.0)  # [BLOCK_S, BLOCK_C]
        bound += tl.load(bounds_ptr + at, mask=offs_s < slabs, other=0.0)
    p, p_inverse = floor_power_of_two(tl.sum(bound, axis=0) * (1.0 / PROTOTYPE_SCALE))
    high, low = split_fp16(tl.sum(acc, axis=0) * p_inverse)
    at = pid_row.to(tl.int64) * C + offs_c
    tl.store(halves_ptr + at, high, mask=offs_c < C)
    tl.store(halves_ptr + rows.to(tl.int64) * C + at, low, mask=offs_c < C)
    tl.store(scale_ptr + pid_row, p)


@triton.jit
def apply_kernel(
    halves_ptr,
    scale_ptr,
    peak_ptr,
    features_ptr,
    norms_ptr,
    signed_ptr,
    denominators_ptr,
    out_ptr,
    K,
    C,
    L,
    norm_eps,
    sum_eps,
    W,
    stride_fb,
    stride_fc,
    stride_fh,
    stride_fw,
    FLAT: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Pass B: one program writes ROWS − FIRST classes of BLOCK_L pixels: G x over its row of ones.

    It exits early if the image is signed. FIRST: row 0 is the row of ones, and its product is stored for later steps.
    Programs run through the pixels in reverse order, since the last ones that pass A read are still in the cache.
    """
    pid_b = (tl.num_programs(1) - 1 - tl.program_id(1)).to(tl.int64)
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + pid_b) != 0:
            return
    rows = K + FIRST
    chunks = tl.cdiv(K, ROWS - FIRST)
    pid_chunk = tl.program_id(0) % chunks
    offs_row = tl.arange(0, ROWS)
    offs_k = pid_chunk * (ROWS - FIRST) + offs_row - FIRST
    mask_k = (offs_row >= FIRST) & (offs_k < K)
    offs_n = tl.where(mask_k, offs_k + FIRST, 0)
    scale = tl.load(scale_ptr + pid_b * rows + offs_n)  # [ROWS]
    offs_l = (tl.cdiv(L, BLOCK_L) - 1 - tl.program_id(0) // chunks) * BLOCK_L + tl.arange(0, BLOCK_L)
    mask_l = offs_l < L
    norm = tl.load(norms_ptr + pid_b * L + offs_l, mask=mask_l, other=0.0)  # [BLOCK_L]
    p, p_inverse = floor_power_of_two(norm * (1.0 / FEATURE_SCALE))

    pixel_ptrs = features_ptr + pid_b * stride_fb + pixel_offsets(offs_l, W, stride_fh, stride_fw, FLAT)
    high_ptrs = halves_ptr + (pid_b * rows + offs_n) * C
    low_ptrs = high_ptrs + tl.num_programs(1).to(tl.int64) * rows * C
    acc = tl.zeros([BLOCK_L, ROWS], dtype=tl.float32)
    # acc = f.T @ G.T
    for start in tl.range(0, C, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        ptrs = pixel_ptrs[:, None] + (offs_c.to(tl.int64) * stride_fc)[None, :]
        f = tl.load(ptrs, mask=mask_l[:, None] & (offs_c < C)[None, :], other=0.0)  # [BLOCK_L, BLOCK_C]
        high = tl.load(high_ptrs[None, :] + offs_c[:, None], mask=(offs_c < C)[:, None], other=0.0)  # [BLOCK_C, ROWS]
        low = tl.load(low_ptrs[None, :] + offs_c[:, None], mask=(offs_c < C)[:, None], other=0.0)
        if features_ptr.dtype.element_ty == tl.float16:
            acc = tl.dot(f, high, acc)
            acc = tl.dot(f, low, acc)
        else:
            x = f.to(tl.float32) * p_inverse[:, None]
            x_high, x_low = split_fp16(x)
            acc = tl.dot(x_high, high, acc)
            acc = tl.dot(x_high, low, acc)
            if features_ptr.dtype.element_ty == tl.float32:
                acc = tl.dot(x_low, high, acc)
                acc = tl.dot(x_low, low, acc)

    if features_ptr.dtype.element_ty == tl.float16:
        inverse = safe_divide(1.0, norm, norm_eps)  # float16 features enter the product unscaled
    else:
        inverse = safe_divide(p, norm, norm_eps)
    acc = acc * scale[None, :] * inverse[:, None]
    if FIRST:
        denominator = tl.sum(tl.where((offs_row == 0)[None, :], acc, 0.0), axis=1)
        if denominators_ptr is not None:
            num_stored = tl.where(pid_chunk == 0, L, 0)  # all chunks compute the denominator, one stores it
            tl.store(denominators_ptr + pid_b * L + offs_l, denominator, mask=offs_l < num_stored)
    else:
        denominator = tl.load(denominators_ptr + pid_b * L + offs_l, mask=mask_l, other=0.0)
    peak, _ = floor_power_of_two(tl.load(peak_ptr + pid_b * K + offs_k, mask=mask_k, other=0.0))
    polished = safe_divide(acc, denominator[:, None], sum_eps) * peak[None, :]
    mask = mask_l[:, None] & mask_k[None, :]
    tl.store(out_ptr + (pid_b * K + offs_k)[None, :] * L + offs_l[:, None], polished, mask=mask)


def polish(
    cam: Tensor,
    features: Tensor,
    *,
    affinity: Affinity,
    align_corners: bool,
    out: Tensor,
    gather: Gather,
    apply: Apply,
    num_sms: int,
    signed: Tensor | None = None,
) -> None:
    """Polish a CAM along non-negative features, reading them ``2·steps`` times, in ``O(K·C)`` memory.

    Args:
        cam: ``(B, K, h, w)`` float32, contiguous.
        features: ``(B, C, H, W)`` float16, bfloat16 or float32, any strides, read in place.
        affinity: Both eps and the number of steps; φ must be relu, power 1, no threshold, not centered.
        align_corners: How the CAM is resized to ``(H, W)``, as in ``F.interpolate``.
        out: ``(B, K, H·W)`` float32, contiguous; overwritten.
        gather, apply: Tiles of the passes A and B.
        num_sms: Multiprocessors of the GPU; pass A launches about twice as many programs.
        signed: ``(B,)`` int32 zeros; set to 1 for images with a feature not ≥ 0 (or NaN), whose ``out`` is not written.
    """
    B, C, H, W = features.shape
    K, L = cam.shape[1], H * W
    peak = torch.linalg.vector_norm(cam, ord=float("inf"), dim=(2, 3))
    norms = cam.new_empty((B, L))
    denominators = cam.new_empty((B, L)) if affinity.steps > 1 else None
    read = dict(peak_ptr=peak, features_ptr=features, norms_ptr=norms, signed_ptr=signed, K=K, C=C, L=L)
    read |= dict(norm_eps=float(affinity.norm_eps), **primitives.layout_arguments(features))
    for step in range(affinity.steps):
        source = out.view(B, K, H, W) if step else cam
        resize = primitives.resize_arguments(source, H, W, align_corners)
        prototypes = _sum_prototypes(source, read, resize, step == 0, gather, num_sms)
        rows = _rows_per_program(K + (step == 0), apply.rows)
        grid = (triton.cdiv(K, rows - (step == 0)) * triton.cdiv(L, apply.block_l), B)
        tiles = dict(FIRST=step == 0, BLOCK_L=apply.block_l, BLOCK_C=apply.block_c, ROWS=rows)
        tiles |= dict(num_warps=apply.num_warps, num_stages=apply.num_stages)
        apply_kernel[grid](
            **prototypes, **read, denominators_ptr=denominators, out_ptr=out, sum_eps=float(affinity.sum_eps), **tiles
        )


def _sum_prototypes(
    source: Tensor, read: dict[str, Any], resize: dict[str, Any], first: bool, config: Gather, num_sms: int
) -> dict[str, Tensor]:
    """Run pass A; return G as two float16 halves ``(B, K + first, C)`` and their scale ``(B, K + first)``."""
    B, C, L, n = len(source), read["C"], read["L"], source.shape[1] + first
    rows = _rows_per_program(n, config.rows)
    chunks = triton.cdiv(n, rows)
    parts = triton.cdiv(C, block_c := min(config.block_c, max(16, triton.next_power_of_2(C))))
    programs = max(2 * num_sms // (B * chunks * parts), triton.cdiv(L, LONGEST_SUM))
    slabs = max(1, min(programs, triton.cdiv(L, config.block_l), SLAB_BYTES // (4 * B * n * C)))
    partial = dict(slabs_ptr=source.new_empty((slabs, B, n, C)), bounds_ptr=source.new_empty((slabs, B, n)))
    tiles = dict(PARTS=parts, BLOCK_C=block_c, BLOCK_L=config.block_l, ROWS=rows)
    tiles |= dict(num_warps=config.num_warps, num_stages=config.num_stages)
    gather_kernel[(slabs * chunks * parts, B)](
        cam_ptr=source, **read, **resize, **partial, slabs=slabs, FIRST=first, **tiles
    )
    result = dict(halves_ptr=source.new_empty((2, B, n, C), dtype=torch.float16), scale_ptr=source.new_empty((B, n)))
    tiles = dict(BLOCK_S=min(64, triton.next_power_of_2(slabs)), BLOCK_C=64)
    finish_kernel[(B * n, triton.cdiv(C, 64))](**partial, **result, C=C, slabs=slabs, **tiles, num_warps=4)
    return result


def _rows_per_program(n: int, limit: int) -> int:
    """Return the rows that one program holds, of ``n``: a power of two that matrix units support."""
    return min(limit, max(16, triton.next_power_of_2(n)))
