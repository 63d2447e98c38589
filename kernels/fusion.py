"""Fuse the stages' polished CAMs: rescale, resize and combine them in one pass over the maps.

    fuse(maps, …)  ≡  ssa_fast.ops.fusion.fuse_stages, without the rescaled and the resized maps in memory

Two launches for up to four stages: the first finds each map's extrema, the second does the rest. Without rescaling the
second one suffices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from ssa_fast.kernels import primitives
from ssa_fast.kernels.launch import launch
from ssa_fast.kernels.primitives import TINY, load_resized_cam

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SLOTS = 4
BLOCK = 1024
PART = 16 * BLOCK  # pixels per program that searches a map for its extrema
PARTS = 32  # at most this many programs share a map
# Span of a constant map after float32 sums, relative to its largest number; as in ssa_fast.ops.fusion.minmax.
ROUNDING = tl.constexpr(32 * 2.0**-23)


@triton.jit
def reduce_extrema(low, high):
    """Return the smallest of ``low`` and the largest of ``high``; both NaN if either contains NaN."""
    has_nan = tl.max(((low != low) | (high != high)).to(tl.int32), axis=0) > 0
    smallest = tl.min(tl.where(low != low, float("inf"), low), axis=0)
    largest = tl.max(tl.where(high != high, -float("inf"), high), axis=0)
    return tl.where(has_nan, float("nan"), smallest), tl.where(has_nan, float("nan"), largest)


@triton.jit(do_not_specialize=["pixels0", "pixels1", "pixels2", "pixels3"])
def extrema_kernel(
    map0_ptr,
    map1_ptr,
    map2_ptr,
    map3_ptr,
    extrema_ptr,
    planes,
    pixels0,
    pixels1,
    pixels2,
    pixels3,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program finds the extrema of one part of one plane of one map.

    Programs are numbered (stage, plane, part), part fastest. Extrema go to ``extrema_ptr`` (2, stages, planes, PARTS);
    ±inf for an empty part.
    """
    pid = tl.program_id(0).to(tl.int64)
    pid_stage = pid // PARTS // planes
    pid_plane = pid // PARTS % planes
    map_ptr, pixels = map0_ptr, pixels0
    if pid_stage == 1:
        map_ptr, pixels = map1_ptr, pixels1
    if pid_stage == 2:
        map_ptr, pixels = map2_ptr, pixels2
    if pid_stage == 3:
        map_ptr, pixels = map3_ptr, pixels3
    low = tl.full([BLOCK], float("inf"), tl.float32)
    high = tl.full([BLOCK], -float("inf"), tl.float32)
    part = tl.cdiv(pixels, PARTS)
    # low, high = map[stage][plane].aminmax()
    begin = (pid % PARTS).to(tl.int32) * part
    end = tl.minimum(begin + part, pixels)
    for start in range(begin, end, BLOCK):
        offs_l = start + tl.arange(0, BLOCK)
        p = tl.load(map_ptr + pid_plane * pixels + offs_l, mask=offs_l < end, other=0.0)  # [BLOCK]
        # A NaN enters low and stays there, since no comparison with it is true.
        low = tl.where((offs_l < end) & ((p < low) | (p != p)), p, low)
        high = tl.where((offs_l < end) & (p > high), p, high)
    smallest, largest = reduce_extrema(low, high)
    tl.store(extrema_ptr + pid, smallest)
    tl.store(extrema_ptr + tl.num_programs(0).to(tl.int64) + pid, largest)


@triton.jit
def load_low_and_span(extrema_ptr, stage, stages, planes, plane, PARTS: tl.constexpr):
    """Return ``(low, span)`` of a plane, for ``(p − low)/span`` in [0, 1]; span is ∞ for a constant plane."""
    at = extrema_ptr + (plane + stage * planes) * PARTS + tl.arange(0, PARTS)
    low, high = reduce_extrema(tl.load(at), tl.load(at + stages * planes * PARTS))
    span = high - low
    # ROUNDING is the second factor because Triton 3.8's interpreter rejects it as the first.
    constant = span <= tl.maximum(tl.abs(low), tl.abs(high)) * ROUNDING
    return low, tl.where(constant, float("inf"), span)


@triton.jit
def power(p, exponent):
    """Return ``p^exponent`` (float32, exponent ≥ 0) as torch.pow does.

    So p^0 = 1 for every p, and roots of finite p < 0 are NaN. The integer part of log2(p) is multiplied exactly:
    rounding it would cost a large p^exponent most of its bits.
    """
    exponent = tl.full(p.shape, exponent, tl.float32)
    magnitude = tl.abs(p)
    scaled = tl.where(magnitude < TINY, magnitude * 2.0**24, magnitude)  # a normal number
    bits = scaled.to(tl.int32, bitcast=True)
    whole = ((bits >> 23) - 127 - tl.where(magnitude < TINY, 24, 0)).to(tl.float32)
    mantissa = ((bits & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    short = (exponent.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)  # 12 bits: short·whole is exact
    integer = tl.floor(short * whole)
    rest = (short * whole - integer) + ((exponent - short) * whole + exponent * tl.log2(mantissa))
    result = tl.exp2(rest) * tl.exp2(integer)
    result = tl.where((magnitude == 0.0) | (magnitude == float("inf")), magnitude, result)
    is_integer = tl.floor(exponent) == exponent
    is_odd = is_integer & (tl.floor(exponent * 0.5) * 2.0 != exponent)
    negative = tl.where(is_integer | (magnitude == float("inf")), tl.where(is_odd, -result, result), float("nan"))
    result = tl.where(p < 0.0, negative, tl.where(p != p, p, result))
    return tl.where(exponent == 0.0, 1.0, result)


@triton.jit
def combine(acc, p, FUSE: tl.constexpr):
    """Combine one more stage with the stages before it."""
    if FUSE == "max":
        return tl.where((acc >= p) | (acc != acc), acc, p)  # NaN in either is kept
    if FUSE == "product":
        return acc * p
    return acc + p


SIZES = ["planes", "pixels", "W", "blocks", *(f"{side}{slot}" for side in "hw" for slot in range(SLOTS))]


@triton.jit(do_not_specialize=SIZES)  # they would multiply the compiled variants and change no code
def fuse_kernel(
    map0_ptr,
    map1_ptr,
    map2_ptr,
    map3_ptr,
    extrema_ptr,
    out_ptr,
    planes,
    pixels,
    W,
    blocks,
    total,
    weight0,
    weight1,
    weight2,
    weight3,
    h0,
    h1,
    h2,
    h3,
    w0,
    w1,
    w2,
    w3,
    scale_h0,
    scale_h1,
    scale_h2,
    scale_h3,
    shift_h0,
    shift_h1,
    shift_h2,
    shift_h3,
    scale_w0,
    scale_w1,
    scale_w2,
    scale_w3,
    shift_w0,
    shift_w1,
    shift_w2,
    shift_w3,
    STAGES: tl.constexpr,
    RESIZED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    RESCALE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    DIVIDE: tl.constexpr,
    FUSE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program writes BLOCK pixels of one plane of the fused CAM.

    Each map is resized, rescaled, weighted and combined with the others, and with ACCUMULATE they are combined with
    what ``out`` holds. RESIZED and WEIGHTED have one bit per stage.
    """
    pid = tl.program_id(0)
    pid_plane = (pid // blocks).to(tl.int64)
    offs_l = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    mask_l = offs_l < pixels
    out_ptr += pid_plane * pixels
    low, span = 0.0, 1.0
    if ACCUMULATE:
        acc = tl.load(out_ptr + offs_l, mask=mask_l, other=0.0)  # [BLOCK]
    # acc = combine over stages of weight * (interpolate(map) - low) / span
    for stage in tl.static_range(STAGES):
        if stage == 0:
            map_ptr, weight, h, w = map0_ptr, weight0, h0, w0
            scale_h, shift_h, scale_w, shift_w = scale_h0, shift_h0, scale_w0, shift_w0
        elif stage == 1:
            map_ptr, weight, h, w = map1_ptr, weight1, h1, w1
            scale_h, shift_h, scale_w, shift_w = scale_h1, shift_h1, scale_w1, shift_w1
        elif stage == 2:
            map_ptr, weight, h, w = map2_ptr, weight2, h2, w2
            scale_h, shift_h, scale_w, shift_w = scale_h2, shift_h2, scale_w2, shift_w2
        else:
            map_ptr, weight, h, w = map3_ptr, weight3, h3, w3
            scale_h, shift_h, scale_w, shift_w = scale_h3, shift_h3, scale_w3, shift_w3
        if RESCALE:
            low, span = load_low_and_span(extrema_ptr, stage, STAGES, planes, pid_plane, PARTS)
        p = load_resized_cam(
            map_ptr, pid_plane, offs_l, mask_l, h, w, W, scale_h, shift_h, scale_w, shift_w, RESIZED >> stage & 1, low
        )
        if RESCALE:
            p = tl.div_rn(p, span)
            p = tl.where(p > 1.0, 1.0, p)  # interpolating equal neighbors can round up
        if WEIGHTED >> stage & 1:
            p = power(p, weight) if FUSE == "product" else p * weight
        if ACCUMULATE or stage > 0:
            p = combine(acc, p, FUSE)
        acc = p
    if DIVIDE:
        acc /= total
    tl.store(out_ptr + offs_l, acc, mask=mask_l)


def fuse(
    maps: Sequence[Tensor],
    *,
    weights: Sequence[float],
    fuse: str,
    rescale: bool,
    align_corners: bool,
    out: Tensor,
) -> None:
    """Rescale, resize and fuse the stages' polished CAMs; see ``ssa_fast.ops.fusion.fuse_stages``.

    Args:
        maps: One ``(B, K, h, w)`` per stage, float32, contiguous.
        weights: One number ≥ 0 per stage.
        fuse: ``"mean"``, ``"sum"``, ``"max"`` or ``"product"``.
        rescale: Min–max rescale each map first, per image and class.
        align_corners: How maps are resized, as in ``F.interpolate``.
        out: ``(B, K, H, W)`` float32, contiguous; overwritten.
    """
    B, K, H, W = out.shape
    blocks = triton.cdiv(H * W, BLOCK)
    for first in range(0, len(maps), SLOTS):
        batch = maps[first : first + SLOTS]
        parts = min(triton.next_power_of_2(max(triton.cdiv(p[0, 0].numel(), PART) for p in batch)), PARTS)
        bounds = _find_extrema(batch, B * K, parts) if rescale else out
        launch(
            fuse_kernel,
            (blocks * B * K,),
            extrema_ptr=bounds,
            out_ptr=out,
            planes=B * K,
            pixels=H * W,
            W=W,
            blocks=blocks,
            total=float(sum(weights)),
            **_slot_arguments(batch, weights[first : first + SLOTS], H, W, align_corners),
            STAGES=len(batch),
            RESCALE=rescale,
            ACCUMULATE=first > 0,
            DIVIDE=fuse == "mean" and first + SLOTS >= len(maps),
            FUSE=fuse,
            PARTS=parts,
            BLOCK=BLOCK,
            num_warps=4,
        )


def _find_extrema(maps: Sequence[Tensor], planes: int, parts: int) -> Tensor:
    """Return the minima and maxima of each part of each plane of each map, ``(2, stages, planes, parts)``."""
    bounds = maps[0].new_empty((2, len(maps), planes, parts))
    slots = {}
    for slot in range(SLOTS):
        p = maps[min(slot, len(maps) - 1)]
        slots |= {f"map{slot}_ptr": p, f"pixels{slot}": p.shape[2] * p.shape[3]}
    launch(
        extrema_kernel,
        (len(maps) * planes * parts,),
        extrema_ptr=bounds,
        planes=planes,
        **slots,
        PARTS=parts,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return bounds


def _slot_arguments(
    maps: Sequence[Tensor], weights: Sequence[float], H: int, W: int, align_corners: bool
) -> dict[str, Any]:
    """Return the maps and their options as arguments of ``fuse_kernel``; unused slots repeat the last map."""
    slots: dict[str, Any] = dict(RESIZED=0, WEIGHTED=0)
    for slot in range(SLOTS):
        stage = min(slot, len(maps) - 1)
        resize_arguments = primitives.resize_arguments(maps[stage], H, W, align_corners)
        slots["RESIZED"] |= resize_arguments.pop("RESIZE") << slot
        slots["WEIGHTED"] |= (weights[stage] != 1) << slot
        resize_arguments |= dict(weight=float(weights[stage]))
        slots |= {f"map{slot}_ptr": maps[stage], **{f"{name}{slot}": value for name, value in resize_arguments.items()}}
    return slots
