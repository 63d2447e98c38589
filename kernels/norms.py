"""Read features for prototypes: their loads, and their norms in a pass of their own if a tile lacks channels."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ssa_fast.kernels.launch import launch
from ssa_fast.kernels.primitives import aligned_sizes, pixel_offsets

# Sizes that do not change the code: each would multiply the compiled variants by up to three.
SIZES = ("K", "L", "W", "h", "w", "slabs", "stride_fh")


@triton.jit
def load_features(ptrs, mask, mean_ptr, offs_c, C):
    """Load a tile of features: raw, or float32 minus the mean of channels ``offs_c``; masked elements are 0."""
    f = tl.load(ptrs, mask=mask, other=0.0)
    if mean_ptr is not None:
        f = tl.where(mask, f.to(tl.float32) - tl.load(mean_ptr + offs_c, mask=offs_c < C, other=0.0), 0.0)
    return f


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
