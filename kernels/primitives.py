"""Functions shared by the kernels: pixel offsets, resized CAMs, φ, splitting and rounding numbers.

Every function propagates NaN: comparisons are written so that NaN takes the branch that keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.affinity import Affinity

TINY = tl.constexpr(1.1754943508222875e-38)  # float32's smallest normal number
LOG2_E = 1.4426950408889634


@triton.jit
def pixel_offsets(offs_l, W, stride_fh, stride_fw, FLAT: tl.constexpr):
    """Return int64 offsets of pixels within one channel; FLAT: rows are stored without gaps."""
    if FLAT:
        return offs_l.to(tl.int64) * stride_fw
    return (offs_l // W).to(tl.int64) * stride_fh + (offs_l % W).to(tl.int64) * stride_fw


@triton.jit
def aligned_sizes(L, stride_fc, ALIGNED: tl.constexpr):
    """Return both; ALIGNED: they are multiples of 16, and the compiler knows it, so that loads along L are vectors."""
    if ALIGNED:
        return L // 16 * 16, stride_fc // 16 * 16
    return L, stride_fc


@triton.jit
def source_coordinates(target, size, scale, shift):
    """Return both bilinear neighbors (int32) and the upper one's weight, as ``F.interpolate`` does."""
    at = tl.maximum(target.to(tl.float32) * scale + shift, 0.0)
    low = tl.minimum(at.to(tl.int32), size - 1)
    return low, tl.minimum(low + 1, size - 1), at - low.to(tl.float32)


@triton.jit
def load_resized_cam(
    cam_ptr, plane, offs_l, mask, h, w, W, scale_h, shift_h, scale_w, shift_w, RESIZE: tl.constexpr, low=0.0
):
    """Load CAM planes at pixels of a stage ``W`` wide, minus ``low``, interpolated bilinearly.

    Broadcasts ``plane`` (int64, b·K + k) against ``offs_l``. Without RESIZE the CAM has the stage's size. Masked
    elements are 0. ``low`` is subtracted before interpolating, so that the interpolation rounds smaller numbers.
    """
    base = cam_ptr + plane * (h * w)
    if not RESIZE:
        return tl.load(base + offs_l, mask=mask, other=low) - low
    y0, y1, dy = source_coordinates(offs_l // W, h, scale_h, shift_h)
    x0, x1, dx = source_coordinates(offs_l % W, w, scale_w, shift_w)
    top_left = tl.load(base + (y0 * w + x0), mask=mask, other=low) - low
    top_right = tl.load(base + (y0 * w + x1), mask=mask, other=low) - low
    bottom_left = tl.load(base + (y1 * w + x0), mask=mask, other=low) - low
    bottom_right = tl.load(base + (y1 * w + x1), mask=mask, other=low) - low
    # The lower neighbor's weight is 1 − d, as in PyTorch: a constant CAM stays constant up to one rounding.
    top = top_left * (1.0 - dx) + top_right * dx
    bottom = bottom_left * (1.0 - dx) + bottom_right * dx
    return top * (1.0 - dy) + bottom * dy


@triton.jit
def phi(cosine, phi_arg, threshold, PHI: tl.constexpr, POWER: tl.constexpr, HAS_THRESHOLD: tl.constexpr):
    """Return φ of a float32 tile.

    ``phi_arg``: the power if POWER is 0, log2(e)/temperature for "exp". ``threshold``: the shift for "shifted".
    """
    if PHI == "exp":
        return tl.exp2((cosine - 1.0) * phi_arg)
    if PHI == "shifted":
        cosine = (cosine + threshold) * (1.0 / (1.0 + threshold))
    if HAS_THRESHOLD:
        cosine = tl.where(cosine < threshold, 0.0, cosine)
    if PHI != "shifted" or (POWER != 1 and POWER != 2):  # where only rounding makes it negative
        cosine = tl.maximum(cosine, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if POWER == 0:
        return tl.exp2(tl.log2(cosine) * phi_arg)
    result = cosine
    for _ in tl.static_range(1, POWER):
        result *= cosine
    return result


@triton.jit
def split_fp16(x):
    """Split ``x`` (float32) into two float16 numbers whose sum keeps 22 bits of it."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def round_to_tf32(x):
    """Round ``x`` (float32) to TF32's 10 fraction bits; the matrix units would truncate it."""
    rounded = ((x.to(tl.int32, bitcast=True) + 0x1000) & -8192).to(tl.float32, bitcast=True)
    return tl.where(x == x, rounded, x)


@triton.jit
def floor_power_of_two(norm):
    """Return ``(p, 1/p)``, p the largest power of two ≤ norm (float32, ≥ 0).

    p is 0 if norm is 0 or subnormal. ``f·(1/p)`` is exact and has a norm in [1, 2), so it fits float16 for any range of
    features.
    """
    exponent = norm.to(tl.int32, bitcast=True) & 0x7F800000
    inverse = tl.maximum(0x7F000000 - exponent, 0x00400000)  # 2⁻¹²⁷, which is subnormal, for p = 2¹²⁷
    return exponent.to(tl.float32, bitcast=True), inverse.to(tl.float32, bitcast=True)


@triton.jit
def safe_divide(numerator, denominator, eps):
    """Return ``numerator / max(denominator + eps, TINY)``, so that a zero feature gives 0, not NaN."""
    divisor = denominator + eps
    return numerator / tl.where(divisor < TINY, TINY, divisor)


@triton.jit
def divide_sums(numerator, denominator, eps, SHIFTED: tl.constexpr):
    """Return a quotient of sums of affinities; the shifted form's can be negative and are not kept off zero."""
    if SHIFTED:
        return numerator / (denominator + eps)
    return safe_divide(numerator, denominator, eps)


def layout_arguments(features: Tensor) -> dict[str, Any]:
    """Return the memory layout of ``(B, C, H, W)`` features as kernel arguments."""
    _, _, H, W = features.shape
    stride_fb, stride_fc, stride_fh, stride_fw = features.stride()
    flat = W == 1 or H == 1 or stride_fh == W * stride_fw
    if flat and W == 1:
        stride_fw = stride_fh  # consecutive pixels are consecutive rows
    return dict(W=W, stride_fb=stride_fb, stride_fc=stride_fc, stride_fh=stride_fh, stride_fw=stride_fw, FLAT=flat)


def resize_arguments(cam: Tensor, H: int, W: int, align_corners: bool) -> dict[str, Any]:
    """Return the resizing of a ``(B, K, h, w)`` CAM to ``(H, W)`` as arguments of ``load_resized_cam``."""
    h, w = cam.shape[2:]
    scale_h, shift_h = _scale_and_shift(h, H, align_corners)
    scale_w, shift_w = _scale_and_shift(w, W, align_corners)
    return dict(h=h, w=w, scale_h=scale_h, shift_h=shift_h, scale_w=scale_w, shift_w=shift_w, RESIZE=(h, w) != (H, W))


def _scale_and_shift(size: int, target: int, align_corners: bool) -> tuple[float, float]:
    if align_corners:
        return ((size - 1) / (target - 1) if target > 1 else 0.0), 0.0
    scale = size / target
    return scale, 0.5 * scale - 0.5


def phi_arguments(affinity: Affinity) -> dict[str, Any]:
    """Return φ and its parameters as arguments of ``phi``."""
    power = int(affinity.power) if affinity.power in range(1, 9) else 0
    phi_arg = affinity.power if affinity.temperature is None else LOG2_E / affinity.temperature
    return dict(
        phi_arg=float(phi_arg),
        threshold=float(affinity.shift if affinity.phi == "shifted" else affinity.threshold),
        PHI=affinity.phi,
        POWER=power,
        HAS_THRESHOLD=affinity.threshold > 0,
    )
