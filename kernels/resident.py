"""Polish a small stage in one launch per step, without workspace or unit features in memory.

    polish(cam, features, …)  ≡  reference.polish_stage, without the L×L affinity and the L×C unit features

Intended for features that fit the L2 cache (about 1 MB per image), since each block of target pixels reads all of them
again. The cosine is the product of raw features times both inverse norms, so features are not rounded: products of
float16 and bfloat16 operands are exact in the float32 accumulator; float32 and centered features use TF32.

Squares are summed in float32. Blocks of pixels with a sum near the ends of float32's range, which float16 cannot reach,
are multiplied again, scaled by powers of two. If both eps are positive, a norm below 1e-19 counts as 0.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from triton.runtime import driver

from ssa_fast.kernels import primitives
from ssa_fast.kernels.launch import call, launch
from ssa_fast.kernels.norms import LARGEST, SMALLEST, scale_for_squares
from ssa_fast.kernels.primitives import TINY, divide_sums, load_resized_cam, phi, pixel_offsets, round_to_tf32
from ssa_fast.kernels.products import compiler_options

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.kernels.config import Resident


@triton.jit
def load_channels(base, mean_base, offset, mask, offs_c, C, stride_fc, HAS_MEAN: tl.constexpr):
    """Load channels of pixels, broadcast against each other: raw, or float32 minus the mean."""
    f = tl.load(base + (offs_c.to(offset.dtype) * stride_fc + offset), mask=mask & (offs_c < C), other=0.0)
    if HAS_MEAN:
        f = f.to(tl.float32) - tl.load(mean_base + offs_c, mask=offs_c < C, other=0.0)
    return f


@triton.jit
def inverse_norm(squares, norm_eps):
    """Return ``1/(‖f‖ + norm_eps)``; 0 for a zero feature, NaN if the sum of squares overflowed."""
    inverse = 1.0 / (tl.sqrt(squares) + norm_eps)
    inverse = tl.where(squares < TINY, 0.0, inverse)
    return tl.where(squares == float("inf"), float("nan"), inverse)


@triton.jit
def multiply_again(
    products,
    squares_j,
    squares_i,
    mask_j,
    mask_i,
    base,
    mean_base,
    pixels_j,
    pixels_i,
    C,
    stride_fc,
    least_squares,
    BLOCK_C: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return products and sums of squares of features times scales, and the scales, which are 1 in the usual case.

    A pixel's scale is another power of two where its squares, or their sum, may have left float32's range.
    """
    out_j = (squares_j > LARGEST * LARGEST) | ((squares_j < least_squares) & mask_j)
    out_i = (squares_i > LARGEST * LARGEST) | ((squares_i < least_squares) & mask_i)
    again = tl.max(tl.where(out_j, 1.0, 0.0)) + tl.max(tl.where(out_i, 1.0, 0.0)) > 0.0
    scale_j = tl.where(again, scale_for_squares(tl.sqrt(squares_j)), 1.0)
    scale_i = tl.where(again, scale_for_squares(tl.sqrt(squares_i)), 1.0)
    products = tl.where(again, 0.0, products)
    squares_j, squares_i = tl.where(again, 0.0, squares_j), tl.where(again, 0.0, squares_i)
    for start_c in tl.range(0, tl.where(again, C, 0), BLOCK_C, num_stages=1):
        offs_c = start_c + tl.arange(0, BLOCK_C)
        c_j, c_i = offs_c[None, :], offs_c[:, None]
        f_j = load_channels(base, mean_base, pixels_j[:, None], mask_j[:, None], c_j, C, stride_fc, HAS_MEAN)
        f_i = load_channels(base, mean_base, pixels_i[None, :], mask_i[None, :], c_i, C, stride_fc, HAS_MEAN)
        scaled_j, scaled_i = f_j.to(tl.float32) * scale_j[:, None], f_i.to(tl.float32) * scale_i[None, :]
        squares_j += tl.sum(scaled_j * scaled_j, axis=1)
        squares_i += tl.sum(scaled_i * scaled_i, axis=0)
        if PRECISION == "tf32" and f_i.dtype == tl.float32:
            scaled_j, scaled_i = round_to_tf32(scaled_j), round_to_tf32(scaled_i)
        products = tl.dot(scaled_j.to(f_j.dtype), scaled_i.to(f_i.dtype), products, input_precision=PRECISION)
    return products, squares_j, squares_i, scale_j, scale_i


@triton.jit(do_not_specialize=["K", "h", "w", "W", "blocks", "chunks", "stride_fh"])
def resident_kernel(
    cam_ptr,
    features_ptr,
    mean_ptr,
    out_ptr,
    K,
    C,
    L,
    h,
    w,
    W,
    blocks,
    chunks,
    scale_h,
    shift_h,
    scale_w,
    shift_w,
    phi_arg,
    threshold,
    norm_eps,
    sum_eps,
    least_squares,
    stride_fb,
    stride_fc,
    stride_fh,
    stride_fw,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    FLAT: tl.constexpr,
    RESIZE: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    PHI: tl.constexpr,
    POWER: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr,
    PRECISION: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """One program polishes BLOCK_J target pixels for ROWS − 1 classes from all pixels of an image.

    Column 0 of v is ones, so column 0 of the product is the denominator and rounds as the numerators do. Products of
    pixels whose sum of squares is less than ``least_squares`` are computed again.
    """
    pid = tl.program_id(0)
    pid_b = pid // (blocks * chunks)
    base = features_ptr + pid_b.to(tl.int64) * stride_fb
    mean_base = mean_ptr + pid_b.to(tl.int64) * C
    offs_row = tl.arange(0, ROWS)
    offs_k = pid // blocks % chunks * (ROWS - 1) + offs_row - 1
    mask_k = (offs_row > 0) & (offs_k < K)
    plane = pid_b.to(tl.int64) * K + offs_k

    offs_j = pid % blocks * BLOCK_J + tl.arange(0, BLOCK_J)
    mask_j = offs_j < L
    pixels_j = pixel_offsets(offs_j, W, stride_fh, stride_fw, FLAT).to(OFFSET)

    acc = tl.zeros([BLOCK_J, ROWS], tl.float32)
    # acc = phi(x.T @ x)[j] @ v, x = f / (norm(f) + norm_eps), v = [1; cam].T
    for start in range(0, L, BLOCK_I):
        offs_i = start + tl.arange(0, BLOCK_I)
        mask_i = offs_i < L
        mask_v = mask_i[:, None] & mask_k[None, :]
        v = load_resized_cam(
            cam_ptr, plane[None, :], offs_i[:, None], mask_v, h, w, W, scale_h, shift_h, scale_w, shift_w, RESIZE
        )
        # Padded sources need no mask on the affinity tile: their row of v is 0.
        v = tl.where((offs_row == 0)[None, :] & mask_i[:, None], 1.0, v)  # [BLOCK_I, ROWS]
        if PRECISION == "tf32":
            v = round_to_tf32(v)  # truncating v would bias the result; truncating the affinity cancels in the ratio
        pixels_i = pixel_offsets(offs_i, W, stride_fh, stride_fw, FLAT).to(OFFSET)
        squares_j = tl.zeros([BLOCK_J, BLOCK_C], tl.float32)
        squares_i = tl.zeros([BLOCK_C, BLOCK_I], tl.float32)
        cosine = tl.zeros([BLOCK_J, BLOCK_I], tl.float32)
        for start_c in range(0, C, BLOCK_C):
            offs_c = start_c + tl.arange(0, BLOCK_C)
            c_j, c_i = offs_c[None, :], offs_c[:, None]
            f_j = load_channels(base, mean_base, pixels_j[:, None], mask_j[:, None], c_j, C, stride_fc, HAS_MEAN)
            f_i = load_channels(base, mean_base, pixels_i[None, :], mask_i[None, :], c_i, C, stride_fc, HAS_MEAN)
            squares_j += f_j.to(tl.float32) * f_j.to(tl.float32)
            squares_i += f_i.to(tl.float32) * f_i.to(tl.float32)
            if PRECISION == "tf32" and f_i.dtype == tl.float32:
                f_j, f_i = round_to_tf32(f_j), round_to_tf32(f_i)
            cosine = tl.dot(f_j, f_i, cosine, input_precision=PRECISION)  # [BLOCK_J, BLOCK_C] · [BLOCK_C, BLOCK_I]
        sum_j, sum_i, eps_j, eps_i = tl.sum(squares_j, axis=1), tl.sum(squares_i, axis=0), norm_eps, norm_eps
        if features_ptr.dtype.element_ty != tl.float16:  # whose squares stay in float32's range
            cosine, sum_j, sum_i, scale_j, scale_i = multiply_again(
                cosine,
                sum_j,
                sum_i,
                mask_j,
                mask_i,
                base,
                mean_base,
                pixels_j,
                pixels_i,
                C,
                stride_fc,
                least_squares,
                BLOCK_C,
                HAS_MEAN,
                PRECISION,
            )
            eps_j, eps_i = norm_eps * scale_j, norm_eps * scale_i
        cosine = cosine * inverse_norm(sum_i, eps_i)[None, :] * inverse_norm(sum_j, eps_j)[:, None]
        affinity = phi(cosine, phi_arg, threshold, PHI, POWER, HAS_THRESHOLD)
        acc = tl.dot(affinity, v, acc, input_precision=PRECISION)

    denominator = tl.sum(tl.where((offs_row == 0)[None, :], acc, 0.0), axis=1)
    polished = divide_sums(acc, denominator[:, None], sum_eps, PHI == "shifted")
    offs_out = plane[None, :] * L + offs_j[:, None]  # [BLOCK_J, ROWS]
    tl.store(out_ptr + offs_out, polished, mask=mask_j[:, None] & mask_k[None, :])


def polish(
    cam: Tensor,
    features: Tensor,
    *,
    affinity: Affinity,
    align_corners: bool,
    precision: str,
    out: Tensor,
    config: Resident,
) -> None:
    """Polish a small stage in one launch per step, plus PyTorch's for the mean of centered features.

    Args:
        cam: ``(B, K, h, w)`` float32, contiguous; resized to the stage as it is loaded.
        features: ``(B, C, H, W)`` float16, bfloat16 or float32, any strides.
        affinity, align_corners: As in ``ssa_fast.polish``.
        precision: Of products of float32 operands: ``"default"`` TF32, ``"high"`` three products of TF32 halves.
        out: ``(B, K, H·W)`` float32, contiguous; overwritten.
        config: Tiles.
    """
    (B, K, _, _), (_, C, H, W) = cam.shape, features.shape
    blocks, chunks = triton.cdiv(H * W, config.block_j), triton.cdiv(K, config.rows - 1)
    mean = call(torch.mean, features, dim=(2, 3), dtype=torch.float32) if affinity.center else None
    buffers = [out, torch.empty_like(out)] if affinity.steps > 1 else [out]  # written in turn, out last
    for remaining in reversed(range(affinity.steps)):
        target = buffers[remaining % 2]
        launch(
            resident_kernel,
            (blocks * chunks * B,),
            cam_ptr=cam,
            features_ptr=features,
            mean_ptr=out if mean is None else mean,
            out_ptr=target,
            K=K,
            C=C,
            L=H * W,
            blocks=blocks,
            chunks=chunks,
            norm_eps=float(affinity.norm_eps),
            sum_eps=float(affinity.sum_eps),
            least_squares=0.0 if affinity.norm_eps and affinity.sum_eps else SMALLEST.value**2,
            **primitives.layout_arguments(features),
            **primitives.resize_arguments(cam, H, W, align_corners),
            **primitives.phi_arguments(affinity),
            HAS_MEAN=mean is not None,
            **_constants(features, config, precision),
        )
        cam = target.view(B, K, H, W)


def _constants(features: Tensor, config: Resident, precision: str) -> dict[str, Any]:
    return dict(
        OFFSET=offset_type(features),
        PRECISION=dot_precision(features.device, precision),
        BLOCK_I=config.block_i,
        BLOCK_J=config.block_j,
        BLOCK_C=config.block_c,
        ROWS=config.rows,
        **compiler_options(config.num_warps, config.num_stages),
    )


def offset_type(features: Tensor) -> tl.dtype:
    """Return the type of offsets within an image: int32, which needs fewer registers, where it suffices."""
    span = sum((size - 1) * stride for size, stride in zip(features.shape[1:], features.stride()[1:], strict=True))
    return tl.int32 if span < 2**31 else tl.int64


def dot_precision(device: torch.device, precision: str) -> str:
    """Return ``input_precision`` of products of float32 operands."""
    if device.type != "cpu" and _is_amd():
        return "ieee"  # AMD's matrix units multiply float32; few have TF32, and tf32x3 is not supported
    return "tf32" if precision == "default" else "tf32x3"


@functools.cache
def _is_amd() -> bool:
    """Return whether this process compiles kernels for AMD GPUs."""
    return driver.active.get_current_target().backend == "hip"
