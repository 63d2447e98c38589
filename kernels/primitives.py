"""Pieces that every kernel is written with: where a pixel lies, what φ is, how a CAM is read and a number split.

Nothing here drops a NaN: comparisons are written so that NaN takes the branch that keeps it.
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
def pixel_offsets(l, W, stride_fh, stride_fw, FLAT: tl.constexpr):
    """Offsets (int64) of pixels ``l`` within one channel; FLAT where rows follow each other without a gap."""
    if FLAT:
        return l.to(tl.int64) * stride_fw
    return (l // W).to(tl.int64) * stride_fh + (l % W).to(tl.int64) * stride_fw


@triton.jit
def source_coordinate(target, size, scale, shift):
    """Bilinear neighbours of target coordinates: lower, upper (int32) and the upper's weight, as PyTorch has it."""
    at = tl.maximum(target.to(tl.float32) * scale + shift, 0.0)
    low = tl.minimum(at.to(tl.int32), size - 1)
    return low, tl.minimum(low + 1, size - 1), at - low.to(tl.float32)


@triton.jit
def resized_cam(cam_ptr, plane, l, mask, h, w, W, scale_h, shift_h, scale_w, shift_w, RESIZE: tl.constexpr, low=0.0):
    """CAM planes at pixels ``l`` of a stage ``W`` wide, bilinear; broadcasts ``plane`` (int64, b·K + k) against ``l``.

    Without RESIZE the CAM has the stage's size and is read as it is. Masked elements are 0. ``low`` is subtracted from
    what is read, before it is rounded in the interpolation.
    """
    base = cam_ptr + plane * (h * w)
    if not RESIZE:
        return tl.load(base + l, mask=mask, other=low) - low
    y0, y1, dy = source_coordinate(l // W, h, scale_h, shift_h)
    x0, x1, dx = source_coordinate(l % W, w, scale_w, shift_w)
    top_left = tl.load(base + (y0 * w + x0), mask=mask, other=low) - low
    top_right = tl.load(base + (y0 * w + x1), mask=mask, other=low) - low
    bottom_left = tl.load(base + (y1 * w + x0), mask=mask, other=low) - low
    bottom_right = tl.load(base + (y1 * w + x1), mask=mask, other=low) - low
    # The lower neighbour's share is 1 − d, as in PyTorch: a constant CAM stays constant to the last bit but one.
    top = top_left * (1.0 - dx) + top_right * dx
    bottom = bottom_left * (1.0 - dx) + bottom_right * dx
    return top * (1.0 - dy) + bottom * dy


@triton.jit
def phi(cosine, phi_arg, threshold, PHI: tl.constexpr, POWER: tl.constexpr, HAS_THRESHOLD: tl.constexpr):
    """φ of a float32 tile of cosines. ``phi_arg`` is the power where POWER is 0, and log2(e)/temperature for "exp"."""
    if PHI == "exp":
        return tl.exp2((cosine - 1.0) * phi_arg)
    if HAS_THRESHOLD:
        cosine = tl.where(cosine < threshold, 0.0, cosine)
    cosine = tl.where(cosine < 0.0, 0.0, cosine)
    if POWER == 0:
        return tl.exp2(tl.log2(cosine) * phi_arg)
    result = cosine
    for _ in tl.static_range(1, POWER):
        result *= cosine
    return result


@triton.jit
def halves(x):
    """``x`` (float32) as two float16 whose sum has 22 bits of it."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def nearest_tf32(x):
    """``x`` (float32) rounded to the 10 bits of fraction that TF32 has: the matrix units would cut the others off."""
    rounded = ((x.to(tl.int32, bitcast=True) + 0x1000) & -8192).to(tl.float32, bitcast=True)
    return tl.where(x == x, rounded, x)


@triton.jit
def power_of_two(norm):
    """``(p, 1/p)`` with p the largest power of two ≤ norm (float32, ≥ 0); p is 0 where norm is 0 or subnormal.

    ``f·(1/p)`` is exact and has a norm in [1, 2): it fits float16 whatever the range of the features.
    """
    exponent = norm.to(tl.int32, bitcast=True) & 0x7F800000
    return exponent.to(tl.float32, bitcast=True), (0x7F000000 - exponent).to(tl.float32, bitcast=True)


@triton.jit
def quotient(numerator, denominator, sum_eps):
    """``numerator / (denominator + sum_eps)``, the divisor kept off zero: a zero feature gives 0, not 0/0."""
    divisor = denominator + sum_eps
    return numerator / tl.where(divisor < TINY, TINY, divisor)


def layout(features: Tensor) -> dict[str, Any]:
    """How ``(B, C, H, W)`` features lie in memory, as arguments of a kernel."""
    _, _, H, W = features.shape
    stride_fb, stride_fc, stride_fh, stride_fw = features.stride()
    flat = W == 1 or H == 1 or stride_fh == W * stride_fw
    if flat and W == 1:
        stride_fw = stride_fh  # pixels then follow each other by rows
    return dict(W=W, stride_fb=stride_fb, stride_fc=stride_fc, stride_fh=stride_fh, stride_fw=stride_fw, FLAT=flat)


def resizing(cam: Tensor, H: int, W: int, align_corners: bool) -> dict[str, Any]:
    """How a ``(B, K, h, w)`` CAM is resized to ``(H, W)``, as arguments of ``resized_cam``."""
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
    """φ and its parameters, as arguments of ``phi``."""
    power = int(affinity.power) if affinity.power in range(1, 9) else 0
    phi_arg = affinity.power if affinity.temperature is None else LOG2_E / affinity.temperature
    return dict(
        phi_arg=float(phi_arg),
        threshold=float(affinity.threshold),
        PHI=affinity.phi,
        POWER=power,
        HAS_THRESHOLD=affinity.threshold > 0,
    )
