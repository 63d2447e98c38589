"""Polish one stage by prototypes: time linear in the pixels, exact for φ = relu and f ≥ 0, and φ = shifted and any f.

    G   = [1; cam]·inv_norm fᵀ               (K+1)×C CAM-weighted sums of features: one read of f (pass A)
    out = (G x)[1:] / ((G x)[0] + sum_eps)   a second read of f (pass B)

The row of ones puts the denominator into the same product as the numerators, so it rounds as they do.

φ = (c + s)/(1 + s) adds a constant to each row, ``G x + s·S`` with S = Σ_i [1; cam]. As these nearly cancel against the
CAM's spread, its rows enter minus a number m near their mean, ``out = m·a + (G x + s·S)[1:] / …``, a = Σ/(Σ + sum_eps).

Operands are float16. A feature is divided by a power of two near its norm, which is exact; weights, G and float32 or
centered features are split into two halves. Scales keep the low halves out of float16's subnormal numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from ssa_fast.kernels import primitives
from ssa_fast.kernels.gather import (
    FEATURE_SCALE,
    add_products,
    load_peak_and_center,
    rows_per_program,
    sum_prototypes,
)
from ssa_fast.kernels.launch import call, launch
from ssa_fast.kernels.moments import Moments, find_moments
from ssa_fast.kernels.norms import SIZES, is_aligned, load_features, pixels_per_tile, unpack_norm
from ssa_fast.kernels.primitives import aligned_sizes, floor_power_of_two, pixel_offsets, safe_divide

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.kernels.config import Apply, Gather

SHORT = 16  # pixels of a tile whose loads along them are no vectors, so that small stages compile one variant


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["stride_fc"])
def apply_kernel(
    halves_ptr,
    scale_ptr,
    total_ptr,
    peak_ptr,
    cam_mean_ptr,
    features_ptr,
    mean_ptr,
    norms_ptr,
    signed_ptr,
    denominators_ptr,
    out_ptr,
    K,
    C,
    L,
    norm_eps,
    sum_eps,
    shift,
    W,
    stride_fb,
    stride_fc,
    stride_fh,
    stride_fw,
    FLAT: tl.constexpr,
    ALIGNED: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Pass B: one program writes ROWS − FIRST classes of BLOCK_L pixels: G x + s·S over its row of ones.

    S is ``total_ptr``, if given. The program exits early if the image is signed. FIRST: row 0 is the row of ones, whose
    sum is stored for later steps.

    Programs run through the pixels in reverse order, since the last ones that pass A read are still in the cache.
    """
    pid_b = (tl.num_programs(1) - 1 - tl.program_id(1)).to(tl.int64)
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + pid_b) != 0:
            return
    L, stride_fc = aligned_sizes(L, stride_fc, ALIGNED)
    DTYPE: tl.constexpr = features_ptr.dtype.element_ty if mean_ptr is None else tl.float32
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
    eps = norm_eps
    if features_ptr.dtype.element_ty != tl.float16:
        norm, norm_scale = unpack_norm(norm)
        # With p ≥ 2⁻⁷⁷ norm_scale/p is a normal number; subnormal features times it are large enough for halves.
        p, p_inverse = floor_power_of_two(tl.maximum(norm * (1.0 / FEATURE_SCALE), 2.0**-77))
        p_inverse *= norm_scale
        eps = norm_eps * norm_scale

    pixel_ptrs = features_ptr + pid_b * stride_fb + pixel_offsets(offs_l, W, stride_fh, stride_fw, FLAT)
    if mean_ptr is not None:
        mean_ptr += pid_b * C
    high_ptrs = halves_ptr + (pid_b * rows + offs_n) * C
    low_ptrs = high_ptrs + tl.num_programs(1).to(tl.int64) * rows * C
    acc = tl.zeros([BLOCK_L, ROWS], dtype=tl.float32)
    # acc = f.T @ G.T
    for start in tl.range(0, C, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        ptrs = pixel_ptrs[:, None] + (offs_c.to(tl.int64) * stride_fc)[None, :]
        mask_f = mask_l[:, None] & (offs_c < C)[None, :]
        f = load_features(ptrs, mask_f, mean_ptr, offs_c[None, :], C)  # [BLOCK_L, BLOCK_C]
        high = tl.load(high_ptrs[None, :] + offs_c[:, None], mask=(offs_c < C)[:, None], other=0.0)  # [BLOCK_C, ROWS]
        low = tl.load(low_ptrs[None, :] + offs_c[:, None], mask=(offs_c < C)[:, None], other=0.0)
        x = f if f.dtype == tl.float16 else f.to(tl.float32) * p_inverse[:, None]
        acc = add_products(acc, x, high, low, DTYPE)

    # float16 features enter the product unscaled
    inverse = safe_divide(1.0 if DTYPE == tl.float16 else p, norm, eps)  # noqa: SIM300
    acc = acc * scale[None, :] * inverse[:, None]
    if total_ptr is not None:
        acc += shift * tl.load(total_ptr + pid_b * rows + offs_n)[None, :]
    if FIRST:
        denominator = tl.sum(tl.where((offs_row == 0)[None, :], acc, 0.0), axis=1)
        if denominators_ptr is not None:
            num_stored = tl.where(pid_chunk == 0, L, 0)  # all chunks compute the denominator, one stores it
            tl.store(denominators_ptr + pid_b * L + offs_l, denominator, mask=offs_l < num_stored)
    else:
        denominator = tl.load(denominators_ptr + pid_b * L + offs_l, mask=mask_l, other=0.0)
    peak, _, center = load_peak_and_center(peak_ptr, cam_mean_ptr, pid_b * K, offs_k, mask_k)
    if cam_mean_ptr is None:
        polished = safe_divide(acc, denominator[:, None], sum_eps) * peak[None, :]
    else:  # the sum may be negative if shift < 1
        divisor = denominator + sum_eps
        share = tl.div_rn(denominator, divisor)
        polished = (acc / divisor[:, None] + center[None, :] * share[:, None]) * peak[None, :]
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
    moments: Moments | None = None,
) -> None:
    """Polish a CAM in ``O(K·C)`` memory, reading f twice per step, once to center it, once for norms if C has parts.

    Args:
        cam: ``(B, K, h, w)`` float32, contiguous.
        features: ``(B, C, H, W)`` float16, bfloat16 or float32, any strides, read in place.
        affinity: φ = shifted, or φ = relu without threshold and centering for non-negative features; of power 1.
        align_corners: How the CAM is resized to ``(H, W)``, as in ``F.interpolate``.
        out: ``(B, K, H·W)`` float32, contiguous; overwritten.
        gather, apply: Tiles of the passes A and B.
        num_sms: Multiprocessors of the GPU; pass A launches one or two programs for each.
        signed: ``(B,)`` int32 zeros; set to 1 for images with a feature not ≥ 0 (or NaN), whose ``out`` is not written.
        moments: Of the CAM, if they are known.
    """
    B, C, H, W = features.shape
    K, L = cam.shape[1], H * W
    shifted = affinity.phi == "shifted"
    mean = call(torch.mean, features, dim=(2, 3), dtype=torch.float32) if affinity.center else None
    norms = cam.new_empty((B, L))
    denominators = cam.new_empty((B, L)) if affinity.steps > 1 else None
    read = dict(features_ptr=features, mean_ptr=mean, norms_ptr=norms, signed_ptr=signed, K=K, C=C, L=L)
    read |= dict(norm_eps=float(affinity.norm_eps), **primitives.layout_arguments(features))
    divide = dict(shift=None, sum_eps=float(affinity.sum_eps))
    if shifted:  # times 1 + s, by which φ is not divided
        divide = dict(shift=float(affinity.shift), sum_eps=float(affinity.sum_eps * (1.0 + affinity.shift)))
    for step in range(affinity.steps):
        source = out.view(B, K, H, W) if step else cam
        if step == 0 or shifted:  # which may leave the CAM's range, so that the first peaks would not serve
            known = moments if step == 0 and moments else find_moments(source, mean=shifted)
            read["peak_ptr"], read["cam_mean_ptr"] = known.peak, known.mean if shifted else None
        resize = primitives.resize_arguments(source, H, W, align_corners)
        prototypes = sum_prototypes(source, read, resize, step == 0, gather, num_sms)
        apply_prototypes(prototypes, read | divide, denominators, out, step == 0, apply)


def apply_prototypes(
    prototypes: dict[str, Tensor],
    read: dict[str, Any],
    denominators: Tensor | None,
    out: Tensor,
    first: bool,
    config: Apply,
) -> None:
    """Run pass B: write ``out`` ``(B, K, L)`` from G, its scale and the rows' sums."""
    B, K, L = out.shape
    rows = rows_per_program(K + first, config.rows)
    block_l = pixels_per_tile(config.block_l, read)
    grid = (triton.cdiv(K, rows - first) * triton.cdiv(L, block_l), B)
    tiles = dict(ALIGNED=is_aligned(read) and block_l > SHORT, BLOCK_L=block_l, BLOCK_C=config.block_c, ROWS=rows)
    tiles |= dict(num_warps=config.num_warps, num_stages=config.num_stages)
    launch(apply_kernel, grid, **prototypes, **read, denominators_ptr=denominators, out_ptr=out, FIRST=first, **tiles)
