"""What the quadratic kernels read: unit features and v, laid out so that their main loops need no mask.

Features are read in place, in any dtype and strides, once if ``Prepare.block_c`` holds all channels, else twice (the
second time from cache). What is written is row-major and padded with zeros: x ``(B, L_PAD, C_PAD)`` and
v ``(B·chunks, L_PAD, ROWS)``, whose row 0 is one and whose others are classes, so that the sum of affinities is one
more row of the same product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from ssa_fast.kernels.primitives import TINY, halves, layout, nearest_tf32, power_of_two, resized_cam
from ssa_fast.kernels.primitives import pixel_offsets as offsets_of_pixels

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.kernels.config import Prepare

HUGE = tl.constexpr(8.507059173023462e37)  # 2¹²⁶: the reciprocal of a larger power of two is not a normal number


@triton.jit
def centred(pixel_ptr, mean_ptr, c, C, stride_fc, real):
    """Channels ``c`` of pixels, float32 [BLOCK_L, BLOCK_C], less the image's mean; 0 where there is no feature."""
    real = real & (c < C)[None, :]
    f = tl.load(pixel_ptr + c.to(tl.int64)[None, :] * stride_fc, mask=real, other=0.0).to(tl.float32)
    if mean_ptr is not None:
        f = tl.where(real, f - tl.load(mean_ptr + c, mask=c < C, other=0.0)[None, :], 0.0)
    return f


@triton.jit
def add_squares(f, squares, inverse):
    """The sum of squares of pixels, times ``inverse``², with a tile's added; ``inverse`` a power of two per pixel.

    It follows the largest feature seen, so that no square leaves float32's range.
    """
    _, to_unit = power_of_two(tl.minimum(tl.max(tl.abs(f), axis=1), HUGE))
    to_unit = tl.minimum(to_unit, inverse)
    shrink = to_unit / inverse
    scaled = f * to_unit[:, None]
    return squares * shrink * shrink + tl.sum(scaled * scaled, axis=1), to_unit


@triton.jit
def store_unit(f, inverse, per_norm, unit_ptr, unit_low_ptr, offsets, inside, HIGH: tl.constexpr):
    """Write a tile of features times ``inverse`` and ``per_norm`` (one after the other: their product may overflow)."""
    high, low = halves(f * inverse[:, None] * per_norm[:, None])
    tl.store(unit_ptr + offsets, high, mask=inside)
    if HIGH:
        tl.store(unit_low_ptr + offsets, low, mask=inside)


@triton.jit
def unit_kernel(
    features_ptr,
    mean_ptr,
    signed_ptr,
    unit_ptr,
    unit_low_ptr,
    C,
    L,
    L_PAD,
    C_PAD,
    W,
    norm_eps,
    unit_scale,
    stride_fb,
    stride_fc,
    stride_fh,
    stride_fw,
    FLAT: tl.constexpr,
    HIGH: tl.constexpr,
    HELD: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: the unit features, times ``unit_scale``, of BLOCK_L pixels of one image. HELD: a tile has all C."""
    b = tl.program_id(1)
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + b) == 0:
            return
    l = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    real = (l < L)[:, None]
    pixel_ptr = features_ptr + b.to(tl.int64) * stride_fb
    pixel_ptr += offsets_of_pixels(l, W, stride_fh, stride_fw, FLAT)[:, None]
    if mean_ptr is not None:
        mean_ptr += b.to(tl.int64) * C
    channel = tl.arange(0, BLOCK_C)

    squares = tl.zeros((BLOCK_L,), tl.float32)
    inverse = tl.full((BLOCK_L,), 1.7014118346046923e38, tl.float32)  # 2¹²⁷, the inverse of nothing seen yet
    if HELD:
        f = centred(pixel_ptr, mean_ptr, channel, C, stride_fc, real)  # [BLOCK_L, BLOCK_C]
        squares, inverse = add_squares(f, squares, inverse)
    else:
        for c in range(0, C, BLOCK_C):
            f = centred(pixel_ptr, mean_ptr, c + channel, C, stride_fc, real)  # [BLOCK_L, BLOCK_C]
            squares, inverse = add_squares(f, squares, inverse)
    divisor = tl.sqrt(squares) + norm_eps * inverse
    per_norm = tl.where(divisor < TINY, 0.0, unit_scale / divisor)

    offsets = (b.to(tl.int64) * L_PAD + l)[:, None] * C_PAD + channel[None, :]
    if HELD:
        inside = (channel < C_PAD)[None, :] & (l < L_PAD)[:, None]
        store_unit(f, inverse, per_norm, unit_ptr, unit_low_ptr, offsets, inside, HIGH)
    else:
        for c in range(0, C_PAD, BLOCK_C):
            f = centred(pixel_ptr, mean_ptr, c + channel, C, stride_fc, real)  # [BLOCK_L, BLOCK_C]
            inside = (c + channel < C_PAD)[None, :] & (l < L_PAD)[:, None]
            store_unit(f, inverse, per_norm, unit_ptr, unit_low_ptr, offsets + c, inside, HIGH)


@triton.jit
def rows_kernel(
    cam_ptr,
    peak_ptr,
    signed_ptr,
    v_ptr,
    v_low_ptr,
    K,
    L,
    L_PAD,
    chunks,
    h,
    w,
    W,
    scale_h,
    shift_h,
    scale_w,
    shift_w,
    RESIZE: tl.constexpr,
    HIGH: tl.constexpr,
    TF32: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """One program: v of BLOCK_L pixels for one row chunk of one image: ones, then classes divided by their peaks."""
    layer = tl.program_id(1)
    b, chunk = layer // chunks, layer % chunks
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + b) == 0:
            return
    l = (tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L))[:, None]
    row = tl.arange(0, ROWS)[None, :]
    k = chunk * (ROWS - 1) + row - 1
    plane = b.to(tl.int64) * K + k
    is_class = (row > 0) & (k < K)
    real = is_class & (l < L)
    cam = resized_cam(cam_ptr, plane, l, real, h, w, W, scale_h, shift_h, scale_w, shift_w, RESIZE)  # [BLOCK_L, ROWS]
    peak = tl.load(peak_ptr + plane, mask=is_class, other=1.0)
    v = tl.where((row == 0) & (l < L), 1.0, cam / tl.where(peak == 0.0, 1.0, peak))
    offsets = (layer.to(tl.int64) * L_PAD + l) * ROWS + row
    if TF32:
        v = nearest_tf32(v)
    high = v.to(v_ptr.dtype.element_ty)
    tl.store(v_ptr + offsets, high, mask=l < L_PAD)
    if HIGH:
        tl.store(v_low_ptr + offsets, (v - high.to(tl.float32)).to(tl.float16), mask=l < L_PAD)


@dataclass(frozen=True)
class Operands:
    """What the two products of a stage read, and how it is padded; the low halves are the high ones where unused."""

    unit: Tensor
    unit_low: Tensor
    v: Tensor
    v_low: Tensor
    peak: Tensor
    high: bool
    chunks: int
    rows: int
    L: int
    L_pad: int
    C_pad: int

    @classmethod
    def empty(
        cls, cam: Tensor, features: Tensor, *, rows: int, align_l: int, block_c: int, high: bool, wide: bool
    ) -> Operands:
        """Memory for ``ROWS = rows``, ``L_PAD`` a multiple of ``align_l``; ``wide``: v in float32."""
        B, K, _, _ = cam.shape
        _, C, H, W = features.shape
        chunks = triton.cdiv(K, rows - 1)
        L_pad = triton.cdiv(H * W, align_l) * align_l
        C_pad = padded_channels(C, block_c)
        unit = cam.new_empty((1 + high, B, L_pad, C_pad), dtype=torch.float16)
        split = high and not wide
        v = cam.new_empty((1 + split, B * chunks, L_pad, rows), dtype=torch.float32 if wide else torch.float16)
        peak = torch.linalg.vector_norm(cam, ord=float("inf"), dim=(2, 3))
        return cls(unit[0], unit[-1], v[0], v[-1], peak, high, chunks, rows, H * W, L_pad, C_pad)


def padded_channels(C: int, block_c: int) -> int:
    """Channels of the unit features: a power of two if one tile takes them all, else a multiple of it."""
    return max(16, triton.next_power_of_2(C)) if block_c >= C else triton.cdiv(C, block_c) * block_c


def write_units(
    features: Tensor, operands: Operands, affinity: Affinity, scale: float, config: Prepare, signed: Tensor | None
) -> None:
    """Unit features times ``scale``, into ``operands.unit``; images with ``signed == 0`` are left out."""
    B, C, _, _ = features.shape
    mean = features.mean(dim=(2, 3), dtype=torch.float32) if affinity.center else None
    unit_kernel[(triton.cdiv(operands.L_pad, config.block_l), B)](
        features_ptr=features,
        mean_ptr=mean,
        signed_ptr=signed,
        unit_ptr=operands.unit,
        unit_low_ptr=operands.unit_low,
        C=C,
        L=operands.L,
        L_PAD=operands.L_pad,
        C_PAD=operands.C_pad,
        norm_eps=float(affinity.norm_eps),
        unit_scale=scale,
        HIGH=operands.high,
        HELD=config.block_c >= operands.C_pad,
        BLOCK_L=config.block_l,
        BLOCK_C=config.block_c,
        num_warps=config.num_warps,
        **layout(features),
    )


def write_rows(cam: Tensor, operands: Operands, resize: dict[str, Any], config: Prepare, signed: Tensor | None) -> None:
    """v of ``cam`` ``(B, K, h, w)``, into ``operands.v``; images with ``signed == 0`` are left out."""
    layers = operands.v.shape[0]
    rows_kernel[(triton.cdiv(operands.L_pad, config.block_l), layers)](
        cam_ptr=cam,
        peak_ptr=operands.peak,
        signed_ptr=signed,
        v_ptr=operands.v,
        v_low_ptr=operands.v_low,
        K=cam.shape[1],
        L=operands.L,
        L_PAD=operands.L_pad,
        chunks=operands.chunks,
        HIGH=operands.high and operands.v.dtype == torch.float16,
        TF32=not operands.high and operands.v.dtype == torch.float32,
        ROWS=operands.rows,
        BLOCK_L=config.block_l,
        num_warps=config.num_warps,
        **resize,
    )
