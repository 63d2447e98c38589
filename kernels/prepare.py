"""Prepare the operands of the quadratic kernels: unit features and v, padded.

With the padding their main loops need no mask. Features are read in place, in any dtype and strides: once if
``Prepare.block_c`` covers all channels, else twice (the second time from cache). The outputs are row-major and
zero-padded: unit features x ``(B, L_PAD, C_PAD)`` and v ``(B·chunks, L_PAD, ROWS)``. Row 0 of v is ones and the others
are classes, so the same product yields the sum of the affinities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from ssa_fast.kernels import primitives
from ssa_fast.kernels.launch import call, launch
from ssa_fast.kernels.primitives import (
    TINY,
    floor_power_of_two,
    load_resized_cam,
    pixel_offsets,
    round_to_tf32,
    split_fp16,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.kernels.config import Prepare

HUGE = tl.constexpr(8.507059173023462e37)  # 2¹²⁶, the largest power of two whose reciprocal is a normal number


@triton.jit
def load_centered(pixel_ptr, mean_ptr, offs_c, C, stride_fc, mask):
    """Load channels of pixels, float32 [BLOCK_L, BLOCK_C], minus the image's mean; masked elements are 0."""
    mask = mask & (offs_c < C)[None, :]
    f = tl.load(pixel_ptr + offs_c.to(tl.int64)[None, :] * stride_fc, mask=mask, other=0.0).to(tl.float32)
    if mean_ptr is not None:
        f = tl.where(mask, f - tl.load(mean_ptr + offs_c, mask=offs_c < C, other=0.0)[None, :], 0.0)
    return f


@triton.jit
def add_squares(f, squares, inverse, PLAIN: tl.constexpr):
    """Add a tile's squares to ``squares``, sums scaled by ``inverse``²; return both, updated.

    ``inverse``, a power of two per pixel, follows the largest feature so far, so no square leaves float32's range.
    PLAIN: it is 1, and the squares are added element by element.
    """
    if PLAIN:
        squares += f * f
    else:
        _, to_unit = floor_power_of_two(tl.minimum(tl.max(tl.abs(f), axis=1), HUGE))
        to_unit = tl.minimum(to_unit, inverse)
        shrink = to_unit / inverse
        scaled = f * to_unit[:, None]
        squares = squares * shrink * shrink + tl.sum(scaled * scaled, axis=1)
        inverse = to_unit
    return squares, inverse


@triton.jit
def store_unit(f, inverse, per_norm, unit_ptr, unit_low_ptr, offsets, mask, HIGH: tl.constexpr):
    """Store a tile of features times ``inverse`` and ``per_norm``, whose product may overflow."""
    high, low = split_fp16(f * inverse[:, None] * per_norm[:, None])
    tl.store(unit_ptr + offsets, high, mask=mask)
    if HIGH:
        tl.store(unit_low_ptr + offsets, low, mask=mask)


@triton.jit(do_not_specialize=["W", "stride_fh"])
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
    PLAIN: tl.constexpr,
    HIGH: tl.constexpr,
    HELD: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program writes BLOCK_L unit features, times ``unit_scale``; HELD: one tile has all channels.

    PLAIN: squares are summed as they are, else scaled by a power of two per pixel.
    """
    pid_b = tl.program_id(1)
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + pid_b) == 0:
            return
    offs_l = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    mask_l = (offs_l < L)[:, None]
    pixel_ptr = features_ptr + pid_b.to(tl.int64) * stride_fb
    pixel_ptr += pixel_offsets(offs_l, W, stride_fh, stride_fw, FLAT)[:, None]
    if mean_ptr is not None:
        mean_ptr += pid_b.to(tl.int64) * C
    offs_c = tl.arange(0, BLOCK_C)

    # squares = (f * inverse).square().sum(dim=1), so norm(f) = sqrt(squares) / inverse
    squares = tl.zeros((BLOCK_L, BLOCK_C) if PLAIN else (BLOCK_L,), tl.float32)
    inverse = tl.full((BLOCK_L,), 1.0 if PLAIN else 1.7014118346046923e38, tl.float32)  # 2¹²⁷, neutral in the minimum
    if HELD:
        f = load_centered(pixel_ptr, mean_ptr, offs_c, C, stride_fc, mask_l)  # [BLOCK_L, BLOCK_C]
        squares, inverse = add_squares(f, squares, inverse, PLAIN)
    else:
        for c in range(0, C, BLOCK_C):
            f = load_centered(pixel_ptr, mean_ptr, c + offs_c, C, stride_fc, mask_l)  # [BLOCK_L, BLOCK_C]
            squares, inverse = add_squares(f, squares, inverse, PLAIN)
    if PLAIN:
        squares = tl.sum(squares, axis=1)
    divisor = tl.sqrt(squares) + norm_eps * inverse
    per_norm = tl.where(divisor < TINY, 0.0, unit_scale / divisor)

    offs_unit = (pid_b.to(tl.int64) * L_PAD + offs_l)[:, None] * C_PAD + offs_c[None, :]
    if HELD:
        mask = (offs_c < C_PAD)[None, :] & (offs_l < L_PAD)[:, None]
        store_unit(f, inverse, per_norm, unit_ptr, unit_low_ptr, offs_unit, mask, HIGH)
    else:
        for c in range(0, C_PAD, BLOCK_C):
            f = load_centered(pixel_ptr, mean_ptr, c + offs_c, C, stride_fc, mask_l)  # [BLOCK_L, BLOCK_C]
            mask = (c + offs_c < C_PAD)[None, :] & (offs_l < L_PAD)[:, None]
            store_unit(f, inverse, per_norm, unit_ptr, unit_low_ptr, offs_unit + c, mask, HIGH)


@triton.jit(do_not_specialize=["K", "L", "chunks", "h", "w", "W"])
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
    """One program writes a chunk of v for BLOCK_L pixels: ones, then classes divided by their peaks."""
    pid_layer = tl.program_id(1)
    b, chunk = pid_layer // chunks, pid_layer % chunks
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + b) == 0:
            return
    offs_l = (tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L))[:, None]
    offs_row = tl.arange(0, ROWS)[None, :]
    offs_k = chunk * (ROWS - 1) + offs_row - 1
    plane = b.to(tl.int64) * K + offs_k
    mask_k = (offs_row > 0) & (offs_k < K)
    mask = mask_k & (offs_l < L)
    cam = load_resized_cam(
        cam_ptr, plane, offs_l, mask, h, w, W, scale_h, shift_h, scale_w, shift_w, RESIZE
    )  # [BLOCK_L, ROWS]
    peak = tl.load(peak_ptr + plane, mask=mask_k, other=1.0)
    v = tl.where((offs_row == 0) & (offs_l < L), 1.0, cam / tl.where(peak == 0.0, 1.0, peak))
    offs_v = (pid_layer.to(tl.int64) * L_PAD + offs_l) * ROWS + offs_row
    if TF32:
        v = round_to_tf32(v)
    high = v.to(v_ptr.dtype.element_ty)
    tl.store(v_ptr + offs_v, high, mask=offs_l < L_PAD)
    if HIGH:
        tl.store(v_low_ptr + offs_v, (v - high.to(tl.float32)).to(tl.float16), mask=offs_l < L_PAD)


@dataclass(frozen=True)
class Operands:
    """Operands of the two products of a stage, and their padding; unused low halves alias the high ones."""

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
        cls,
        cam: Tensor,
        features: Tensor,
        peak: Tensor,
        *,
        rows: int,
        align_l: int,
        block_c: int,
        high: bool,
        wide: bool,
    ) -> Operands:
        """Allocate operands with ``rows`` rows, ``L_PAD`` a multiple of ``align_l``; ``wide``: v in float32."""
        B, K, _, _ = cam.shape
        _, C, H, W = features.shape
        chunks = triton.cdiv(K, rows - 1)
        L_pad = triton.cdiv(H * W, align_l) * align_l
        C_pad = padded_channels(C, block_c)
        unit = cam.new_empty((1 + high, B, L_pad, C_pad), dtype=torch.float16)
        split = high and not wide
        v = cam.new_empty((1 + split, B * chunks, L_pad, rows), dtype=torch.float32 if wide else torch.float16)
        return cls(unit[0], unit[-1], v[0], v[-1], peak, high, chunks, rows, H * W, L_pad, C_pad)


def padded_channels(C: int, block_c: int) -> int:
    """Return the padded channels: a power of two if one tile covers them, else a multiple of ``block_c``."""
    return max(16, triton.next_power_of_2(C)) if block_c >= C else triton.cdiv(C, block_c) * block_c


def write_units(
    features: Tensor, operands: Operands, affinity: Affinity, scale: float, config: Prepare, signed: Tensor | None
) -> None:
    """Write unit features times ``scale`` to ``operands.unit``; images with ``signed == 0`` are skipped."""
    B, C, _, _ = features.shape
    mean = call(torch.mean, features, dim=(2, 3), dtype=torch.float32) if affinity.center else None
    launch(
        unit_kernel,
        (triton.cdiv(operands.L_pad, config.block_l), B),
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
        PLAIN=features.dtype == torch.float16 and mean is None,  # no square leaves float32's range
        HIGH=operands.high,
        HELD=config.block_c >= operands.C_pad,
        BLOCK_L=config.block_l,
        BLOCK_C=min(config.block_c, triton.next_power_of_2(operands.C_pad)),
        num_warps=config.num_warps,
        **primitives.layout_arguments(features),
    )


def write_rows(cam: Tensor, operands: Operands, resize: dict[str, Any], config: Prepare, signed: Tensor | None) -> None:
    """Write v of ``cam`` ``(B, K, h, w)`` to ``operands.v``; images with ``signed == 0`` are skipped."""
    layers = operands.v.shape[0]
    launch(
        rows_kernel,
        (triton.cdiv(operands.L_pad, config.block_l), layers),
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
