"""Small stages in one launch per step: no workspace, no unit features in memory, every affinity made where it is used.

    polish(cam, features, …)  ≡  reference.polish_stage, without the L×L affinity and without L×C unit features

Meant for stages whose features (about 1 MB per image) stay in the L2 cache, for each block of target pixels reads all
of them again. The cosine is the product of raw features times both inverse norms, so the features are never rounded:
float16 and bfloat16 operands are exact in the float32 accumulator, float32 ones and centred features are TF32.

Exact for features with a norm in [1e-18, 1e18] (float16 is always inside): squares are summed in float32. Beyond, a
larger norm gives NaN and a smaller one counts as the zero feature.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from triton.runtime import driver

from ssa_fast.kernels import primitives
from ssa_fast.kernels.primitives import TINY, nearest_tf32, phi, pixel_offsets, quotient, resized_cam

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.kernels.config import Resident


@triton.jit
def channels_of(base, mean_base, offset, inside, c, C, stride_fc, HAS_MEAN: tl.constexpr):
    """Channels ``c`` of the pixels at ``offset``, broadcast against each other: raw, or float32 minus the mean."""
    f = tl.load(base + (c.to(offset.dtype) * stride_fc + offset), mask=inside & (c < C), other=0.0)
    if HAS_MEAN:
        f = f.to(tl.float32) - tl.load(mean_base + c, mask=c < C, other=0.0)
    return f


@triton.jit
def inverse_norm(squares, norm_eps):
    """``1/(‖f‖ + norm_eps)``; 0 for a zero feature, NaN where the sum of squares overflowed."""
    inverse = 1.0 / (tl.sqrt(squares) + norm_eps)
    inverse = tl.where(squares < TINY, 0.0, inverse)
    return tl.where(squares == float("inf"), float("nan"), inverse)


@triton.jit
def sums_of_squares(
    base, mean_base, offset, inside, C, stride_fc, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, HAS_MEAN: tl.constexpr
):
    """Σ_c f² (float32, BLOCK) of the pixels at ``offset``."""
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        f = channels_of(base, mean_base, offset[None, :], inside[None, :], c[:, None], C, stride_fc, HAS_MEAN)
        f = f.to(tl.float32)  # [BLOCK_C, BLOCK]
        squares += tl.sum(f * f, axis=0)
    return squares


@triton.jit
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
    """One program polishes BLOCK_J target pixels of one image for ROWS − 1 classes, from all of its source pixels.

    Column 0 of v is ones, so column 0 of the product is the denominator and rounds as the numerators do.
    """
    program = tl.program_id(0)
    b = program // (blocks * chunks)
    base = features_ptr + b.to(tl.int64) * stride_fb
    mean_base = mean_ptr + b.to(tl.int64) * C
    row = tl.arange(0, ROWS)
    k = program // blocks % chunks * (ROWS - 1) + row - 1
    is_class = (row > 0) & (k < K)
    plane = b.to(tl.int64) * K + k

    j = program % blocks * BLOCK_J + tl.arange(0, BLOCK_J)
    offset_j = pixel_offsets(j, W, stride_fh, stride_fw, FLAT).to(OFFSET)
    squares_j = sums_of_squares(base, mean_base, offset_j, j < L, C, stride_fc, BLOCK_J, BLOCK_C, HAS_MEAN)
    inverse_j = inverse_norm(squares_j, norm_eps)

    polished = tl.zeros([BLOCK_J, ROWS], tl.float32)
    for start in range(0, L, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        inside = (i < L)[:, None] & is_class[None, :]
        v = resized_cam(
            cam_ptr, plane[None, :], i[:, None], inside, h, w, W, scale_h, shift_h, scale_w, shift_w, RESIZE
        )
        # Sources beyond the last have a cosine, of a zero feature, and a row of v that is all 0: no mask on the tile.
        v = tl.where((row == 0)[None, :] & (i < L)[:, None], 1.0, v)  # [BLOCK_I, ROWS]
        if PRECISION == "tf32":
            v = nearest_tf32(v)  # what is cut off the affinity cancels in the ratio, what is cut off v would not
        offset_i = pixel_offsets(i, W, stride_fh, stride_fw, FLAT).to(OFFSET)
        squares_i = tl.zeros([BLOCK_I], tl.float32)
        cosine = tl.zeros([BLOCK_J, BLOCK_I], tl.float32)
        for start_c in range(0, C, BLOCK_C):
            c = start_c + tl.arange(0, BLOCK_C)
            f_j = channels_of(base, mean_base, offset_j[:, None], (j < L)[:, None], c[None, :], C, stride_fc, HAS_MEAN)
            f_i = channels_of(base, mean_base, offset_i[None, :], (i < L)[None, :], c[:, None], C, stride_fc, HAS_MEAN)
            squares_i += tl.sum(f_i.to(tl.float32) * f_i.to(tl.float32), axis=0)
            if PRECISION == "tf32" and f_i.dtype == tl.float32:
                f_j, f_i = nearest_tf32(f_j), nearest_tf32(f_i)
            cosine = tl.dot(f_j, f_i, cosine, input_precision=PRECISION)  # [BLOCK_J, BLOCK_C] · [BLOCK_C, BLOCK_I]
        cosine = cosine * inverse_norm(squares_i, norm_eps)[None, :] * inverse_j[:, None]
        affinity = phi(cosine, phi_arg, threshold, PHI, POWER, HAS_THRESHOLD)
        polished = tl.dot(affinity, v, polished, input_precision=PRECISION)

    denominator = tl.sum(tl.where((row == 0)[None, :], polished, 0.0), axis=1)
    polished = quotient(polished, denominator[:, None], sum_eps)
    at = plane[None, :] * L + j[:, None]  # [BLOCK_J, ROWS]
    tl.store(out_ptr + at, polished, mask=(j < L)[:, None] & is_class[None, :])


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
    """Polish a small stage in one launch per step; centred features take PyTorch's launches for their mean before.

    Args:
        cam: ``(B, K, h, w)`` float32, contiguous; resized to the stage as it is read.
        features: ``(B, C, H, W)`` float16, bfloat16 or float32, any strides.
        precision: of the products of float32 operands: ``"default"`` TF32, ``"high"`` three products of TF32 halves.
        out: ``(B, K, H·W)`` float32, contiguous; overwritten.
        config: the tiles.
    """
    (B, K, _, _), (_, C, H, W) = cam.shape, features.shape
    blocks, chunks = triton.cdiv(H * W, config.block_j), triton.cdiv(K, config.rows - 1)
    mean = features.mean((2, 3), dtype=torch.float32) if affinity.center else None
    # The steps write to two buffers in turn, the last of them to out.
    buffers = [out, torch.empty_like(out)] if affinity.steps > 1 else [out]
    for left in reversed(range(affinity.steps)):
        target = buffers[left % 2]
        resident_kernel[(blocks * chunks * B,)](
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
            **primitives.layout(features),
            **primitives.resizing(cam, H, W, align_corners),
            **primitives.phi_arguments(affinity),
            HAS_MEAN=mean is not None,
            **_constants(features, config, precision),
        )
        cam = target.view(B, K, H, W)


def _constants(features: Tensor, config: Resident, precision: str) -> dict[str, Any]:
    return dict(
        OFFSET=offset_type(features),
        PRECISION=products_of_float32(features.device, precision),
        BLOCK_I=config.block_i,
        BLOCK_J=config.block_j,
        BLOCK_C=config.block_c,
        ROWS=config.rows,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def offset_type(features: Tensor) -> tl.dtype:
    """What holds an element's offset within its image: 32 bits, which spare the kernel registers, where they can."""
    span = sum((size - 1) * stride for size, stride in zip(features.shape[1:], features.stride()[1:], strict=True))
    return tl.int32 if span < 2**31 else tl.int64


def products_of_float32(device: torch.device, precision: str) -> str:
    """How the kernel is to multiply float32 operands."""
    if device.type != "cpu" and _is_amd():
        return "ieee"  # AMD's matrix units take float32 as it is; TF32 is on one generation, three products on none
    return "tf32" if precision == "default" else "tf32x3"


@functools.cache
def _is_amd() -> bool:
    """Whether the kernels of this process are compiled for AMD's GPUs."""
    return driver.active.get_current_target().backend == "hip"
