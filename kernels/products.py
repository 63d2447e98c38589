"""What the quadratic kernels are made of: the product that gives cosines, φ, the product with v, and the division.

Operands are float16 times powers of two that keep them in the middle of its range; "high" precision takes each operand
in two halves and leaves out the product of the two low ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from ssa_fast.kernels.primitives import halves, phi, phi_arguments, quotient

if TYPE_CHECKING:
    from ssa_fast.affinity import Affinity

SCALE_BITS = 7  # unit features times 2⁷: their products, up to 2¹⁴, are still float16, and their low halves normal


@triton.jit
def load_halves(ptr, low_ptr, offsets, HIGH: tl.constexpr):
    """A tile and its low half; without HIGH the tile twice."""
    high = tl.load(ptr + offsets)
    low = high
    if HIGH:
        low = tl.load(low_ptr + offsets)
    return high, low


@triton.jit
def add_cosines(dot, a, a_low, b, b_low, HIGH: tl.constexpr):
    """``dot + a bᵀ`` for rows of unit features, [BLOCK_A, BLOCK_C] and [BLOCK_B, BLOCK_C]."""
    if HIGH:
        dot = tl.dot(a_low, tl.trans(b), dot)
        dot = tl.dot(a, tl.trans(b_low), dot)
    return tl.dot(a, tl.trans(b), dot)


@triton.jit
def affinities(
    dot,
    phi_arg,
    threshold,
    cosine_scale,
    PHI: tl.constexpr,
    POWER: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr,
    RESCALE: tl.constexpr,
):
    """φ of products of scaled unit features, times what ``numerics`` says (float32)."""
    if RESCALE:
        dot *= cosine_scale
    affinity = phi(dot, phi_arg, threshold, PHI, POWER, HAS_THRESHOLD)
    if RESCALE and PHI != "exp":
        affinity *= 1.0 / cosine_scale
    return affinity


@triton.jit
def add_weighted(total, affinity, v, v_low, HIGH: tl.constexpr, PRECISION: tl.constexpr, TRANSPOSE: tl.constexpr):
    """``total + affinity v``, or ``affinityᵀ v``; in float32 operands where v comes in float32."""
    if TRANSPOSE:
        # The transposed tile comes first: as the second operand it would cost the matrix instruction of sm_90.
        affinity = tl.trans(affinity)
    if v.dtype == tl.float32:
        total = tl.dot(affinity, v, total, input_precision=PRECISION)
    elif HIGH:
        high, low = halves(affinity)
        # A sum of its own, for matrix units cut off what a long chain of sums would round.
        part = tl.dot(low, v)
        part = tl.dot(high, v_low, part)
        total += tl.dot(high, v, part)
    else:
        total = tl.dot(affinity.to(tl.float16), v, total)
    return total


@triton.jit
def write_polished(
    total,
    l,
    layer,
    peak_ptr,
    denominator_ptr,
    out_ptr,
    K,
    L,
    L_PAD,
    chunks,
    result_scale,
    sum_eps,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Sums [BLOCK_L, ROWS] of pixels ``l``, row 0 the denominator, to polished classes; kept on the FIRST step."""
    b, chunk = layer // chunks, layer % chunks
    row = tl.arange(0, ROWS)[None, :]
    total = total * result_scale
    kept = denominator_ptr + layer.to(tl.int64) * L_PAD + l
    if FIRST:
        denominator = tl.sum(tl.where(row == 0, total, 0.0), axis=1)
        tl.store(kept, denominator)
    else:
        denominator = tl.load(kept)
    k = chunk * (ROWS - 1) + row - 1
    plane = b.to(tl.int64) * K + k
    real = (row > 0) & (k < K)
    peak = tl.load(peak_ptr + plane, mask=real, other=0.0)
    polished = quotient(total, denominator[:, None], sum_eps) * peak
    tl.store(out_ptr + plane * L + l[:, None], polished, mask=real & (l < L)[:, None])


def numerics(affinity: Affinity, precision: str) -> tuple[float, float, dict[str, Any]]:
    """The power of two that unit features are multiplied by, the one that sums are, and the arguments of both products.

    A small whole power has its scale chosen so that φ of the scaled product fits float16 as it is. Otherwise (RESCALE)
    the product is scaled back before φ, and φ = relu(c)^power scaled up behind it.
    """
    arguments = phi_arguments(affinity)
    rescale = precision == "high" or arguments["POWER"] == 0 or affinity.phi == "exp"
    bits = SCALE_BITS if rescale else SCALE_BITS // arguments["POWER"]
    up = 4.0**bits
    if not rescale:
        arguments["threshold"] *= up
    arguments.update(
        cosine_scale=1.0 / up,
        RESCALE=rescale,
        HIGH=precision == "high",
        PRECISION="tf32" if precision == "default" else "ieee" if torch.version.hip else "tf32x3",
    )
    result_scale = 1.0 if affinity.phi == "exp" else 1.0 / up if rescale else up**-affinity.power
    return 2.0**bits, result_scale, arguments
