"""Read features for prototypes: their loads, and their norms in a pass of their own if a tile lacks channels.

Squares of norms in [2⁻⁶⁰, 2⁶⁰] are far from float32's limits. Features of other norms are squared again, times a power
of two. In memory such a norm has a minus sign and is that of the features times 2⁻⁶⁴ (then it is > 2⁻⁴) or 2⁵⁰ (then it
is < 2⁻¹⁰), so that norms of all float32 features are normal numbers.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ssa_fast.kernels.launch import launch
from ssa_fast.kernels.primitives import aligned_sizes, pixel_offsets

# Sizes that do not change the code: each would multiply the compiled variants by up to three.
SIZES = ("K", "L", "W", "h", "w", "slabs", "stride_fh")
SMALLEST = tl.constexpr(2.0**-60)
LARGEST = tl.constexpr(2.0**60)


@triton.jit
def load_features(ptrs, mask, mean_ptr, offs_c, C):
    """Load a tile of features: raw, or float32 minus the mean of channels ``offs_c``; masked elements are 0."""
    f = tl.load(ptrs, mask=mask, other=0.0)
    if mean_ptr is not None:
        f = tl.where(mask, f.to(tl.float32) - tl.load(mean_ptr + offs_c, mask=offs_c < C, other=0.0), 0.0)
    return f


@triton.jit
def is_extreme(norm, mask):
    """Return whether any norm in ``mask`` may come from squares that left float32's range; a zero feature's does."""
    return tl.max(tl.where((norm > LARGEST) | ((norm < SMALLEST) & mask), 1.0, 0.0)) > 0.0


@triton.jit
def scale_for_squares(norm):
    """Return the power of two that features of such a norm, which may be ∞ or 0 by mistake, are squared with."""
    return tl.where(norm > LARGEST, 2.0**-100, tl.where(norm < SMALLEST, 2.0**100, 1.0))


@triton.jit
def pack_norm(norm, scale):
    """Return how to store the norm of features times ``scale``, which is from ``scale_for_squares``."""
    return tl.where(scale == 1.0, norm, norm * tl.where(scale < 1.0, -(2.0**36), -(2.0**-50)))


@triton.jit
def unpack_norm(packed):
    """Return ``(norm, scale)``: the norm, a normal number or 0, is that of the features times ``scale``."""
    scale = tl.where(packed < 0.0, tl.where(packed < -(2.0**-8), 2.0**-64, 2.0**50), 1.0)
    return tl.abs(packed), scale


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["stride_fc"])
def norms_kernel(
    features_ptr,
    mean_ptr,
    norms_ptr,
    signed_ptr,
    C,
    L,
    W,
    stride_fb,
    stride_fc,
    stride_fh,
    stride_fw,
    FLAT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program writes the norms of BLOCK_L pixels; a feature that is not ≥ 0 sets ``signed_ptr``, if given."""
    L, stride_fc = aligned_sizes(L, stride_fc, ALIGNED)
    pid_b = tl.program_id(1).to(tl.int64)
    offs_l = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    mask_l = offs_l < L
    features_ptr += pid_b * stride_fb
    if mean_ptr is not None:
        mean_ptr += pid_b * C
    pixel_ptrs = (features_ptr + pixel_offsets(offs_l, W, stride_fh, stride_fw, FLAT))[None, :]
    squares = tl.zeros([BLOCK_C, BLOCK_L], dtype=tl.float32)
    lowest = tl.zeros([BLOCK_C, BLOCK_L], dtype=tl.float32)
    # norm = f.square().sum(0).sqrt(), lowest = f.amin(0)
    for start in tl.range(0, C, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        ptrs = pixel_ptrs + offs_c.to(tl.int64)[:, None] * stride_fc  # [BLOCK_C, BLOCK_L]
        f = load_features(ptrs, (offs_c < C)[:, None] & mask_l[None, :], mean_ptr, offs_c[:, None], C).to(tl.float32)
        squares += f * f
        lowest = tl.minimum(lowest, f)
    norm = tl.sqrt(tl.sum(squares, axis=0))
    if features_ptr.dtype.element_ty != tl.float16:  # whose squares, centered or not, stay in float32's range
        scale, sums = scale_for_squares(norm), tl.zeros([BLOCK_L], dtype=tl.float32)
        # sums = (f * scale).square().sum(0), in the rare case
        for start in tl.range(0, tl.where(is_extreme(norm, mask_l), C, 0), BLOCK_C, num_stages=1):
            offs_c = start + tl.arange(0, BLOCK_C)
            ptrs = pixel_ptrs + offs_c.to(tl.int64)[:, None] * stride_fc  # [BLOCK_C, BLOCK_L]
            f = load_features(ptrs, (offs_c < C)[:, None] & mask_l[None, :], mean_ptr, offs_c[:, None], C)
            f = f.to(tl.float32) * scale[None, :]
            sums += tl.sum(f * f, axis=0)
        norm = pack_norm(tl.where(scale == 1.0, norm, tl.sqrt(sums)), scale)
    tl.store(norms_ptr + pid_b * L + offs_l, norm, mask=mask_l)
    if signed_ptr is not None:
        is_signed = (tl.min(lowest, axis=0) < 0.0) | (norm != norm)  # the minimum drops a NaN, the norm keeps it
        tl.store(signed_ptr + pid_b + offs_l * 0, 1, mask=is_signed)


def write_norms(read: dict[str, Any], B: int, num_sms: int) -> None:
    """Write the norms in a pass of their own: with C in parts, each part would read all features for them."""
    few = B * triton.cdiv(read["L"], 64) < num_sms
    tiles = dict(BLOCK_L=8, BLOCK_C=1024, num_warps=8) if few else dict(BLOCK_L=64, BLOCK_C=64, num_warps=4)
    launch(
        norms_kernel,
        (triton.cdiv(read["L"], tiles["BLOCK_L"]), B),
        **{name: value for name, value in read.items() if name in norms_kernel.arg_names},
        ALIGNED=is_aligned(read) and not few,
        **tiles,
    )


def is_aligned(read: dict[str, Any]) -> bool:
    """Return whether pixels of every channel start at a multiple of 16, so that loads along them are vectors."""
    sizes = (read["L"], read["stride_fc"], read["features_ptr"].data_ptr())
    return read["FLAT"] and read["stride_fw"] == 1 and all(size % 16 == 0 for size in sizes)


def pixels_per_tile(block_l: int, read: dict[str, Any]) -> int:
    """Return ``block_l``, or less of it where no loads are vectors: an address for each feature takes registers."""
    channels_last = read["stride_fc"] == 1
    if is_aligned(read) or (channels_last and all(size % 16 == 0 for size in (read["C"], read["stride_fw"]))):
        return block_l
    return max(16, block_l // (4 if channels_last else 2))
