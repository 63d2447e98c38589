"""Peaks and means of CAM planes: what scales and centres a CAM before it is rounded to float16.

    peak, mean = cam.abs().amax(dim=(2, 3)), cam.mean(dim=(2, 3))

One launch where a plane is small, two where it is shared by several programs. NaN in a plane makes its peak NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import triton
import triton.language as tl

from ssa_fast.kernels.launch import launch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1024
PART = 16 * BLOCK  # pixels per program
MAX_PARTS = 64


class Moments(NamedTuple):
    """``max|cam|`` of each plane, and its mean where that is needed; ``(B, K)`` float32."""

    peak: Tensor
    mean: Tensor | None

    def part(self, images: slice) -> Moments:
        """Return those of some of the images."""
        return Moments(self.peak[images], None if self.mean is None else self.mean[images])


@triton.jit
def reduce_peak(absolute):
    """Return the largest of ``absolute``, NaN if it contains NaN."""
    has_nan = tl.max((absolute != absolute).to(tl.int32), axis=0) > 0
    largest = tl.max(tl.where(absolute != absolute, 0.0, absolute), axis=0)
    return tl.where(has_nan, float("nan"), largest)


@triton.jit(do_not_specialize=["pixels", "flags"])
def plane_kernel(
    cam_ptr, peak_ptr, mean_ptr, signed_ptr, pixels, flags, scale, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """One program finds the peak of one part of one plane, and its sum times ``scale``; programs are (plane, part).

    Together they set the ``flags`` numbers at ``signed_ptr`` to 0, if it is given.
    """
    pid = tl.program_id(0)
    pid_plane, pid_part = pid // PARTS, pid % PARTS
    cam_ptr += pid_plane.to(tl.int64) * pixels
    peak = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    # peak, total = cam[plane, part].abs().amax(), cam[plane, part].sum()
    part = tl.cdiv(pixels, PARTS)
    end = tl.minimum((pid_part + 1) * part, pixels)
    for start in range(pid_part * part, end, BLOCK):
        offs_l = start + tl.arange(0, BLOCK)
        p = tl.load(cam_ptr + offs_l, mask=offs_l < end, other=0.0)  # [BLOCK]
        # A NaN enters and stays, since no comparison with it is true.
        peak = tl.where((tl.abs(p) > peak) | (p != p), tl.abs(p), peak)
        total += p * scale  # of large numbers the sum could overflow
    tl.store(peak_ptr + pid, reduce_peak(peak))
    if mean_ptr is not None:
        tl.store(mean_ptr + pid, tl.sum(total, axis=0))
    if signed_ptr is not None:
        for flag in range(pid, flags, tl.num_programs(0)):
            tl.store(signed_ptr + flag, 0)


@triton.jit
def parts_kernel(part_peak_ptr, part_mean_ptr, peak_ptr, mean_ptr, PARTS: tl.constexpr):
    """One program combines the parts of one plane."""
    pid = tl.program_id(0)
    offs = pid * PARTS + tl.arange(0, PARTS)
    tl.store(peak_ptr + pid, reduce_peak(tl.load(part_peak_ptr + offs)))
    if mean_ptr is not None:
        tl.store(mean_ptr + pid, tl.sum(tl.load(part_mean_ptr + offs), axis=0))


def find_moments(cam: Tensor, *, mean: bool, signed: Tensor | None = None) -> Moments:
    """Return ``max|cam|`` and, if asked for, the mean of each plane of a CAM.

    Args:
        cam: ``(B, K, h, w)`` float32, contiguous.
        mean: Whether means are wanted.
        signed: ``(S, B)`` int32, contiguous; set to 0 on the way, since a launch of its own would cost as much.
    """
    B, K, h, w = cam.shape
    parts = min(MAX_PARTS, triton.next_power_of_2(triton.cdiv(h * w, PART)))
    peaks, means = cam.new_empty((B, K)), cam.new_empty((B, K)) if mean else None
    part_peaks = peaks if parts == 1 else cam.new_empty((B, K, parts))
    part_means = means if parts == 1 or not mean else cam.new_empty((B, K, parts))
    launch(
        plane_kernel,
        (B * K * parts,),
        cam_ptr=cam,
        peak_ptr=part_peaks,
        mean_ptr=part_means,
        signed_ptr=signed,
        pixels=h * w,
        flags=0 if signed is None else signed.numel(),
        scale=1.0 / (h * w),
        PARTS=parts,
        BLOCK=BLOCK,
        num_warps=4,
    )
    if parts > 1:
        launch(
            parts_kernel,
            (B * K,),
            part_peak_ptr=part_peaks,
            part_mean_ptr=part_means,
            peak_ptr=peaks,
            mean_ptr=means,
            PARTS=parts,
            num_warps=1,
        )
    return Moments(peaks, means)
