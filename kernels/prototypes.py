"""Prototypes: one stage polished in time linear in its pixels, exact for f ≥ 0 under φ = relu.

    G   = [1; cam]·inv_norm fᵀ             the CAM-weighted mean features, (K+1)×C numbers: one read of f (pass A)
    out = (G x)[1:] / ((G x)[0] + sum_eps)   a second read of f (pass B)

The row of ones makes the denominator ride in the same product as the numerators and round like them.

Operands are float16 whatever the features are. A feature is divided by a power of two near its norm, which is exact and
fits; weights and G are split in a high and a low half, and so are float32 features. The constants below keep the low
halves out of float16's subnormal numbers, where they would lose their bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from ssa_fast.kernels.primitives import halves, layout, pixel_offsets, power_of_two, quotient, resized_cam, resizing

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.kernels.config import Apply, Gather

FEATURE_SCALE = tl.constexpr(2.0**8)  # scaled features have a norm < 2⁹
PROTOTYPE_SCALE = tl.constexpr(2.0**14)  # entries of the halves of G are < 2¹⁵
LONGEST_SUM = 1024  # pixels: matrix units cut off what a longer chain of float32 sums would round
SLAB_BYTES = 16 << 20


@triton.jit
def scaling(norm, norm_eps, DTYPE: tl.constexpr):
    """``(p, 1/p)``, p a power of two: features of type DTYPE are divided by p, and their weights multiplied by it.

    It lies halfway between ‖f‖ and ‖f‖ + eps: neither factor is tiny where eps is much larger than ‖f‖. p is 0 for a
    zero feature, whose weight is 0 then. For float16 features 1/p is itself a float16.
    """
    middle = tl.sqrt(norm * (norm + norm_eps))
    if DTYPE == tl.float16:  # noqa: SIM300
        p, p_inverse = power_of_two(tl.minimum(tl.maximum(middle, 2.0**-15), 2.0**14))
        return tl.where(norm == 0.0, 0.0, p), p_inverse
    return power_of_two(middle * (1.0 / FEATURE_SCALE))


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
    """Pass A. One program sums BLOCK_C channels of ROWS rows of one image's G over every ``slabs``-th tile of pixels.

    It stores them in its slab, with each row's sum of |v|‖x‖. FIRST: row 0 is the ones; norms, of all PARTS blocks of
    channels, are computed and stored, and a feature that is not ≥ 0 sets ``signed_ptr``, if given. Else norms are read.
    Programs of one tile run side by side, and so do those of neighbouring ones: they read the same stretch of memory.
    """
    # Weights are < 2¹⁵ with it: p/‖f‖ is at most 2⁹ for float16 features, 2⁻⁸ for others.
    WEIGHT_SCALE: tl.constexpr = 2.0**5 if features_ptr.dtype.element_ty == tl.float16 else 2.0**22
    rows = K + FIRST
    chunks = tl.cdiv(rows, ROWS)
    part = tl.program_id(0) % PARTS
    chunk = tl.program_id(0) // PARTS % chunks
    slab = tl.program_id(0) // (PARTS * chunks)
    b = tl.program_id(1).to(tl.int64)
    n = chunk * ROWS + tl.arange(0, ROWS)
    k = n - FIRST
    is_class = (k >= 0) & (k < K)
    _, peak_inverse = power_of_two(tl.load(peak_ptr + b * K + k, mask=is_class, other=0.0))  # [ROWS]
    c = part * BLOCK_C + tl.arange(0, BLOCK_C)
    features_ptr += b * stride_fb
    norms_ptr += b * L
    stored = tl.where(part + chunk == 0, L, 0)  # norms that this program stores

    prototypes = tl.zeros([BLOCK_C, ROWS], dtype=tl.float32)
    bound = tl.zeros([ROWS], dtype=tl.float32)
    not_positive = tl.zeros([BLOCK_L], dtype=tl.int32)
    for tile in tl.range(slab, tl.cdiv(L, BLOCK_L), slabs):
        l = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        inside = l < L
        at_pixel = (features_ptr + pixel_offsets(l, W, stride_fh, stride_fw, FLAT))[None, :]
        at = at_pixel + c.to(tl.int64)[:, None] * stride_fc
        f = tl.load(at, mask=(c < C)[:, None] & inside[None, :], other=0.0)  # [BLOCK_C, BLOCK_L]
        if FIRST:
            squares = tl.sum(f.to(tl.float32) * f.to(tl.float32), axis=0)
            for other in tl.static_range(1, PARTS):
                rest = (part + other) % PARTS * BLOCK_C + tl.arange(0, BLOCK_C)
                at = at_pixel + rest.to(tl.int64)[:, None] * stride_fc
                g = tl.load(at, mask=(rest < C)[:, None] & inside[None, :], other=0.0)  # [BLOCK_C, BLOCK_L]
                squares += tl.sum(g.to(tl.float32) * g.to(tl.float32), axis=0)
            norm = tl.sqrt_rn(squares)
            tl.store(norms_ptr + l, norm, mask=l < stored)
            if signed_ptr is not None:
                not_positive |= tl.max(tl.where(f.to(tl.float32) >= 0, 0, 1), axis=0)
        else:
            norm = tl.load(norms_ptr + l, mask=inside, other=0.0)
        p, p_inverse = scaling(norm, norm_eps, features_ptr.dtype.element_ty)

        read = inside[:, None] & is_class[None, :]
        v = resized_cam(
            cam_ptr, (b * K + k)[None, :], l[:, None], read, h, w, W, scale_h, shift_h, scale_w, shift_w, RESIZE
        )  # [BLOCK_L, ROWS]
        v *= peak_inverse[None, :]
        if FIRST:
            v = tl.where((n == 0)[None, :], 1.0, v)
        bound += tl.sum(tl.abs(v) * quotient(norm, norm, norm_eps)[:, None], axis=0)
        v_high, v_low = halves(v * (quotient(p, norm, norm_eps) * WEIGHT_SCALE)[:, None])
        x = f if f.dtype == tl.float16 else f.to(tl.float32)  # in float16 it takes half the registers
        x *= p_inverse.to(x.dtype)[None, :]
        x_high, x_low = halves(x)
        prototypes = tl.dot(x_high, v_high, prototypes)
        prototypes = tl.dot(x_high, v_low, prototypes)
        if features_ptr.dtype.element_ty == tl.float32:
            prototypes = tl.dot(x_low, v_high, prototypes)
            prototypes = tl.dot(x_low, v_low, prototypes)

    first_row = (slab * tl.num_programs(1) + b) * rows
    at = (first_row + n)[None, :] * C + c[:, None]
    tl.store(slabs_ptr + at, prototypes * (1.0 / WEIGHT_SCALE), mask=(n < rows)[None, :] & (c < C)[:, None])
    tl.store(bounds_ptr + first_row + n, bound, mask=n < tl.where(part == 0, rows, 0))
    if FIRST and signed_ptr is not None:
        tl.store(signed_ptr + b + not_positive * 0, 1, mask=not_positive != 0)


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
    """One program adds BLOCK_C channels of one row of one image's G over the slabs, in an order that never changes.

    It writes them as two float16 halves, divided by a power of two near the row's sum of |weights|, which no entry
    passes by more than the features' scale, and stores what the product with the halves is to be multiplied by.
    """
    row = tl.program_id(0)
    rows = tl.num_programs(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    bound = tl.zeros([BLOCK_S], dtype=tl.float32)
    for start in tl.range(0, slabs, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        at = s.to(tl.int64) * rows + row
        mask = (s < slabs)[:, None] & (c < C)[None, :]
        total += tl.load(slabs_ptr + at[:, None] * C + c[None, :], mask=mask, other=0.0)  # [BLOCK_S, BLOCK_C]
        bound += tl.load(bounds_ptr + at, mask=s < slabs, other=0.0)
    p, p_inverse = power_of_two(tl.sum(bound, axis=0) * (1.0 / PROTOTYPE_SCALE))
    high, low = halves(tl.sum(total, axis=0) * p_inverse)
    at = row.to(tl.int64) * C + c
    tl.store(halves_ptr + at, high, mask=c < C)
    tl.store(halves_ptr + rows.to(tl.int64) * C + at, low, mask=c < C)
    tl.store(scale_ptr + row, p)


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
    """Pass B. One program writes ROWS − FIRST classes of BLOCK_L pixels of one image: G x, divided by the row of ones.

    It leaves at once where the image is signed. FIRST: row 0 of every program is the row of ones, and its product is
    stored in ``denominators_ptr``, if given; else that is loaded. Programs go through the images and their pixels
    backwards: what pass A read last is still in the cache.
    """
    b = (tl.num_programs(1) - 1 - tl.program_id(1)).to(tl.int64)
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + b) != 0:
            return
    rows = K + FIRST
    chunks = tl.cdiv(K, ROWS - FIRST)
    chunk = tl.program_id(0) % chunks
    row = tl.arange(0, ROWS)
    k = chunk * (ROWS - FIRST) + row - FIRST
    is_class = (row >= FIRST) & (k < K)
    n = tl.where(is_class, k + FIRST, 0)
    scale = tl.load(scale_ptr + b * rows + n)  # [ROWS]
    l = (tl.cdiv(L, BLOCK_L) - 1 - tl.program_id(0) // chunks) * BLOCK_L + tl.arange(0, BLOCK_L)
    inside = l < L
    norm = tl.load(norms_ptr + b * L + l, mask=inside, other=0.0)  # [BLOCK_L]
    p, p_inverse = power_of_two(norm * (1.0 / FEATURE_SCALE))

    at_pixel = features_ptr + b * stride_fb + pixel_offsets(l, W, stride_fh, stride_fw, FLAT)
    at_high = halves_ptr + (b * rows + n) * C
    at_low = at_high + tl.num_programs(1).to(tl.int64) * rows * C
    product = tl.zeros([BLOCK_L, ROWS], dtype=tl.float32)
    for start in tl.range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        at = at_pixel[:, None] + (c.to(tl.int64) * stride_fc)[None, :]
        f = tl.load(at, mask=inside[:, None] & (c < C)[None, :], other=0.0)  # [BLOCK_L, BLOCK_C]
        high = tl.load(at_high[None, :] + c[:, None], mask=(c < C)[:, None], other=0.0)  # [BLOCK_C, ROWS]
        low = tl.load(at_low[None, :] + c[:, None], mask=(c < C)[:, None], other=0.0)
        if features_ptr.dtype.element_ty == tl.float16:
            product = tl.dot(f, high, product)
            product = tl.dot(f, low, product)
        else:
            x = f.to(tl.float32) * p_inverse[:, None]
            x_high, x_low = halves(x)
            product = tl.dot(x_high, high, product)
            product = tl.dot(x_high, low, product)
            if features_ptr.dtype.element_ty == tl.float32:
                product = tl.dot(x_low, high, product)
                product = tl.dot(x_low, low, product)

    # float16 features go into the product as they are, others scaled.
    if features_ptr.dtype.element_ty == tl.float16:
        inverse = quotient(1.0, norm, norm_eps)
    else:
        inverse = quotient(p, norm, norm_eps)
    product = product * scale[None, :] * inverse[:, None]
    if FIRST:
        denominator = tl.sum(tl.where((row == 0)[None, :], product, 0.0), axis=1)
        if denominators_ptr is not None:
            tl.store(denominators_ptr + b * L + l, denominator, mask=l < tl.where(chunk == 0, L, 0))
    else:
        denominator = tl.load(denominators_ptr + b * L + l, mask=inside, other=0.0)
    peak, _ = power_of_two(tl.load(peak_ptr + b * K + k, mask=is_class, other=0.0))
    polished = quotient(product, denominator[:, None], sum_eps) * peak[None, :]
    tl.store(out_ptr + (b * K + k)[None, :] * L + l[:, None], polished, mask=inside[:, None] & is_class[None, :])


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
    """Polish along non-negative features, in ``2·steps`` reads of them and ``O(K·C)`` memory.

    Args:
        cam: ``(B, K, h, w)`` float32, contiguous.
        features: ``(B, C, H, W)`` float16, bfloat16 or float32, any strides, read in place.
        affinity: its eps and number of steps; φ must be relu, power 1, no threshold and no centring.
        align_corners: how the CAM is resized to ``(H, W)``.
        out: ``(B, K, H·W)`` float32, contiguous; written.
        gather: tiles of pass A.
        apply: tiles of pass B.
        num_sms: multinum_sms of the GPU; pass A starts about twice as many programs.
        signed: ``(B,)`` int32 zeros; set to 1 for an image with a feature that is not ≥ 0 (NaN is not); its ``out`` is
            then left as it is.
    """
    B, C, H, W = features.shape
    K, L = cam.shape[1], H * W
    peak = torch.linalg.vector_norm(cam, ord=float("inf"), dim=(2, 3))
    norms = cam.new_empty((B, L))
    denominators = cam.new_empty((B, L)) if affinity.steps > 1 else None
    read = dict(peak_ptr=peak, features_ptr=features, norms_ptr=norms, signed_ptr=signed, K=K, C=C, L=L)
    read |= dict(norm_eps=float(affinity.norm_eps), **layout(features))
    for step in range(affinity.steps):
        source = out.view(B, K, H, W) if step else cam
        prototypes = _prototypes(source, read, resizing(source, H, W, align_corners), step == 0, gather, num_sms)
        rows = _rows(K + (step == 0), apply.rows)
        grid = (triton.cdiv(K, rows - (step == 0)) * triton.cdiv(L, apply.block_l), B)
        tiles = dict(FIRST=step == 0, BLOCK_L=apply.block_l, BLOCK_C=apply.block_c, ROWS=rows)
        tiles |= dict(num_warps=apply.num_warps, num_stages=apply.num_stages)
        apply_kernel[grid](
            **prototypes, **read, denominators_ptr=denominators, out_ptr=out, sum_eps=float(affinity.sum_eps), **tiles
        )


def _prototypes(
    source: Tensor, read: dict[str, Any], resize: dict[str, Any], first: bool, config: Gather, num_sms: int
) -> dict[str, Tensor]:
    """G of a CAM as two float16 halves ``(B, K + first, C)`` and their scale ``(B, K + first)``: pass A and its sum."""
    C, L = read["C"], read["L"]
    B, K = source.shape[:2]
    n = K + first
    rows = _rows(n, config.rows)
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
    high_and_low = source.new_empty((2, B, n, C), dtype=torch.float16)
    result = dict(halves_ptr=high_and_low, scale_ptr=source.new_empty((B, n)))
    tiles = dict(BLOCK_S=min(64, triton.next_power_of_2(slabs)), BLOCK_C=64)
    finish_kernel[(B * n, triton.cdiv(C, 64))](**partial, **result, C=C, slabs=slabs, **tiles, num_warps=4)
    return result


def _rows(n: int, most: int) -> int:
    """Rows that one program holds, of ``n``: a power of two that the matrix unit takes."""
    return min(most, max(16, triton.next_power_of_2(n)))
