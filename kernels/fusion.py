"""The stages' polished CAMs made one: min–max rescaled, resized and fused, every map read once for it, the result
written once.

    fuse(maps, …)  ≡  ssa_fast.ops.fusion.fuse_stages, without the rescaled and the resized maps in memory

Two launches for up to four stages: one finds each map's extrema, one does the rest. Without rescaling the second alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from ssa_fast.kernels import primitives
from ssa_fast.kernels.primitives import TINY, resized_cam

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SLOTS = 4
BLOCK = 1024
PART = 16 * BLOCK  # pixels of a map that one program looks through for its extrema
PARTS = 32  # at most so many programs share a map
# What float32 sums leave of a constant map, relative to its largest number; as in ssa_fast.ops.fusion.minmax.
ROUNDING = tl.constexpr(32 * 2.0**-23)


@triton.jit
def extrema(low, high):
    """Smallest of ``low`` and largest of ``high``; NaN if there is one in either. The order does not matter."""
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
    """One program finds the extrema of one part of one plane of one map: (stage, plane, part), part fastest.

    Writes them to ``extrema_ptr`` (2, stages, planes, PARTS); ±inf where the part is empty.
    """
    program = tl.program_id(0).to(tl.int64)
    stage = program // PARTS // planes
    plane = program // PARTS % planes
    map_ptr, pixels = map0_ptr, pixels0
    if stage == 1:
        map_ptr, pixels = map1_ptr, pixels1
    if stage == 2:
        map_ptr, pixels = map2_ptr, pixels2
    if stage == 3:
        map_ptr, pixels = map3_ptr, pixels3
    low = tl.full([BLOCK], float("inf"), tl.float32)
    high = tl.full([BLOCK], -float("inf"), tl.float32)
    part = tl.cdiv(pixels, PARTS)
    begin = (program % PARTS).to(tl.int32) * part
    end = tl.minimum(begin + part, pixels)
    for start in range(begin, end, BLOCK):
        l = start + tl.arange(0, BLOCK)
        p = tl.load(map_ptr + plane * pixels + l, mask=l < end, other=0.0)  # [BLOCK]
        # NaN gets into low, and stays: it is neither smaller nor larger than anything.
        low = tl.where((l < end) & ((p < low) | (p != p)), p, low)
        high = tl.where((l < end) & (p > high), p, high)
    smallest, largest = extrema(low, high)
    tl.store(extrema_ptr + program, smallest)
    tl.store(extrema_ptr + tl.num_programs(0).to(tl.int64) + program, largest)


@triton.jit
def offset_and_span(extrema_ptr, stage, stages, planes, plane, PARTS: tl.constexpr):
    """``(low, span)`` of a plane: ``(p − low)/span`` is in [0, 1]. A constant one has the span ∞, which makes it 0."""
    at = extrema_ptr + (plane + stage * planes) * PARTS + tl.arange(0, PARTS)
    low, high = extrema(tl.load(at), tl.load(at + stages * planes * PARTS))
    span = high - low
    constant = (
        span <= tl.maximum(tl.abs(low), tl.abs(high)) * ROUNDING
    )  # the constant last: Triton 3.8 interprets no other way
    return low, tl.where(constant, float("inf"), span)


@triton.jit
def power(p, exponent):
    """``p^exponent`` as torch.pow has it (float32, exponent ≥ 0): p^0 = 1 for every p, NaN for roots of finite p < 0.

    The logarithm's whole part is multiplied without rounding: float32 would lose what a large p^exponent needs of it.
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
def combined(fused, p, FUSE: tl.constexpr):
    """One more stage joined to what others gave."""
    if FUSE == "max":
        return tl.where((fused >= p) | (fused != fused), fused, p)  # NaN in either stays
    if FUSE == "product":
        return fused * p
    return fused + p


@triton.jit
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
    """One program makes BLOCK pixels of one plane of the result from all maps: each is read there once, by bilinear
    interpolation, rescaled, weighted and joined to the others, and with ACCUMULATE to what ``out`` holds.

    RESIZED and WEIGHTED have a bit for each stage.
    """
    program = tl.program_id(0)
    plane = (program // blocks).to(tl.int64)
    l = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = l < pixels
    out_ptr += plane * pixels
    low, span = 0.0, 1.0
    if ACCUMULATE:
        fused = tl.load(out_ptr + l, mask=inside, other=0.0)  # [BLOCK]
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
            low, span = offset_and_span(extrema_ptr, stage, STAGES, planes, plane, PARTS)
        p = resized_cam(
            map_ptr, plane, l, inside, h, w, W, scale_h, shift_h, scale_w, shift_w, RESIZED >> stage & 1, low
        )
        if RESCALE:
            p = tl.div_rn(p, span)
            p = tl.where(p > 1.0, 1.0, p)  # an interpolation of equal neighbours can round up
        if WEIGHTED >> stage & 1:
            p = power(p, weight) if FUSE == "product" else p * weight
        if ACCUMULATE or stage > 0:
            p = combined(fused, p, FUSE)
        fused = p
    if DIVIDE:
        fused /= total
    tl.store(out_ptr + l, fused, mask=inside)


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
        maps: a ``(B, K, h, w)`` per stage, float32, contiguous.
        weights: a number ≥ 0 per stage.
        fuse: ``"mean"``, ``"sum"``, ``"max"`` or ``"product"``.
        rescale: min–max rescale each map first, per image and class.
        align_corners: of the bilinear resizing.
        out: ``(B, K, H, W)`` float32, contiguous; overwritten.
    """
    B, K, H, W = out.shape
    blocks = triton.cdiv(H * W, BLOCK)
    for first in range(0, len(maps), SLOTS):
        some = maps[first : first + SLOTS]
        parts = min(triton.next_power_of_2(max(triton.cdiv(p[0, 0].numel(), PART) for p in some)), PARTS)
        bounds = _extrema(some, B * K, parts) if rescale else out
        fuse_kernel[(blocks * B * K,)](
            extrema_ptr=bounds,
            out_ptr=out,
            planes=B * K,
            pixels=H * W,
            W=W,
            blocks=blocks,
            total=float(sum(weights)),
            **_slots(some, weights[first : first + SLOTS], H, W, align_corners),
            STAGES=len(some),
            RESCALE=rescale,
            ACCUMULATE=first > 0,
            DIVIDE=fuse == "mean" and first + SLOTS >= len(maps),
            FUSE=fuse,
            PARTS=parts,
            BLOCK=BLOCK,
            num_warps=4,
        )


def _extrema(maps: Sequence[Tensor], planes: int, parts: int) -> Tensor:
    """``(2, stages, planes, parts)``: minima and maxima of the parts of each map's planes."""
    bounds = maps[0].new_empty((2, len(maps), planes, parts))
    slots = {}
    for slot in range(SLOTS):
        p = maps[min(slot, len(maps) - 1)]
        slots |= {f"map{slot}_ptr": p, f"pixels{slot}": p.shape[2] * p.shape[3]}
    extrema_kernel[(len(maps) * planes * parts,)](
        extrema_ptr=bounds, planes=planes, **slots, PARTS=parts, BLOCK=BLOCK, num_warps=4
    )
    return bounds


def _slots(maps: Sequence[Tensor], weights: Sequence[float], H: int, W: int, align_corners: bool) -> dict[str, Any]:
    """The maps, their weights and how they are resized, as arguments of ``fuse_kernel``; spare slots hold the last."""
    slots: dict[str, Any] = dict(RESIZED=0, WEIGHTED=0)
    for slot in range(SLOTS):
        stage = min(slot, len(maps) - 1)
        resizing = primitives.resizing(maps[stage], H, W, align_corners)
        slots["RESIZED"] |= resizing.pop("RESIZE") << slot
        slots["WEIGHTED"] |= (weights[stage] != 1) << slot
        resizing |= dict(weight=float(weights[stage]))
        slots |= {f"map{slot}_ptr": maps[stage], **{f"{name}{slot}": value for name, value in resizing.items()}}
    return slots
