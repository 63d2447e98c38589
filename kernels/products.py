"""Parts of the quadratic kernels: the product for cosines, φ, the product with v, and the division.

Operands are float16, scaled by powers of two into the middle of its range. "High" precision splits each operand into
two halves and omits the product of the two low ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from ssa_fast.kernels.primitives import divide_sums, phi, phi_arguments, split_fp16

if TYPE_CHECKING:
    from ssa_fast.affinity import Affinity

SCALE_BITS = 7  # unit features times 2⁷: products (up to 2¹⁴) fit float16, and low halves are normal numbers


@triton.jit
def load_halves(ptr, low_ptr, offs, HIGH: tl.constexpr):
    """Load a tile and its low half; without HIGH, return the tile twice."""
    high = tl.load(ptr + offs)
    low = high
    if HIGH:
        low = tl.load(low_ptr + offs)
    return high, low


@triton.jit
def add_cosines(acc, a, a_low, b, b_low, HIGH: tl.constexpr):
    """Return ``acc + a bᵀ`` for unit features ``a`` [BLOCK_A, BLOCK_C] and ``b`` [BLOCK_B, BLOCK_C]."""
    if HIGH:
        acc = tl.dot(a_low, tl.trans(b), acc)
        acc = tl.dot(a, tl.trans(b_low), acc)
    return tl.dot(a, tl.trans(b), acc)


@triton.jit
def apply_phi(
    cosine,
    phi_arg,
    threshold,
    cosine_scale,
    PHI: tl.constexpr,
    POWER: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr,
    RESCALE: tl.constexpr,
):
    """Return φ (float32) of products of scaled unit features, scaled as ``scale_arguments`` defines."""
    if RESCALE:
        cosine *= cosine_scale
    affinity = phi(cosine, phi_arg, threshold, PHI, POWER, HAS_THRESHOLD)
    if RESCALE and PHI != "exp":
        affinity *= 1.0 / cosine_scale
    return affinity


@triton.jit
def add_weighted(acc, affinity, v, v_low, HIGH: tl.constexpr, PRECISION: tl.constexpr, TRANSPOSE: tl.constexpr):
    """Return ``acc + affinity v``, or with TRANSPOSE ``acc + affinityᵀ v``; operands have the dtype of v."""
    if TRANSPOSE:
        # dot(trans(a), v) compiles to wgmma on sm_90, dot(trans(v), a) does not.
        affinity = tl.trans(affinity)
    if v.dtype == tl.float32:
        acc = tl.dot(affinity, v, acc, input_precision=PRECISION)
    elif HIGH:
        high, low = split_fp16(affinity)
        # Accumulate separately: matrix units truncate small terms added to a large accumulator.
        small = tl.dot(low, v)
        small = tl.dot(high, v_low, small)
        acc += tl.dot(high, v, small)
    else:
        acc = tl.dot(affinity.to(tl.float16), v, acc)
    return acc


@triton.jit
def write_polished(
    acc,
    offs_l,
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
    SHIFTED: tl.constexpr,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Divide sums [BLOCK_L, ROWS] by the denominator and store them; FIRST: row 0 is the denominator."""
    b, chunk = layer // chunks, layer % chunks
    offs_row = tl.arange(0, ROWS)[None, :]
    acc = acc * result_scale
    denominator_ptrs = denominator_ptr + layer.to(tl.int64) * L_PAD + offs_l
    if FIRST:
        denominator = tl.sum(tl.where(offs_row == 0, acc, 0.0), axis=1)
        tl.store(denominator_ptrs, denominator)
    else:
        denominator = tl.load(denominator_ptrs)
    offs_k = chunk * (ROWS - 1) + offs_row - 1
    plane = b.to(tl.int64) * K + offs_k
    mask = (offs_row > 0) & (offs_k < K)
    peak = tl.load(peak_ptr + plane, mask=mask, other=0.0)
    polished = divide_sums(acc, denominator[:, None], sum_eps, SHIFTED) * peak
    tl.store(out_ptr + plane * L + offs_l[:, None], polished, mask=mask & (offs_l < L)[:, None])


def compiler_options(num_warps: int, num_stages: int) -> dict[str, int]:
    """Return compiler options that forbid spilled registers wherever a thread can have more of them.

    For the sake of a second program on a multiprocessor NVIDIA's assembler otherwise limits a kernel to 128 or 168
    registers and spills a few. AMD's compiler does not know the option.
    """
    options = dict(num_warps=num_warps, num_stages=num_stages)
    return options if torch.version.hip else options | dict(maxnreg=min(255, 2048 // num_warps))


def scale_arguments(affinity: Affinity, precision: str) -> tuple[float, float, dict[str, Any]]:
    """Return the scales of unit features and sums (powers of two), and the arguments of both products.

    For a small integer power the scale is chosen so that φ of the scaled product fits float16 directly. Otherwise
    (RESCALE) the product is scaled back before φ, and φ is scaled up after it (not "exp", whose v is float32).
    """
    arguments = phi_arguments(affinity)
    rescale = precision == "high" or arguments["POWER"] == 0 or affinity.phi != "relu"
    bits = SCALE_BITS if rescale else SCALE_BITS // arguments["POWER"]
    up = 4.0**bits
    if not rescale:
        arguments["threshold"] *= up
    arguments.update(
        cosine_scale=1.0 / up,
        RESCALE=rescale,
        HIGH=precision == "high",
        PRECISION="ieee" if torch.version.hip else "tf32" if precision == "default" else "tf32x3",  # gfx950 has no TF32
    )
    result_scale = 1.0 if affinity.phi == "exp" else 1.0 / up if rescale else up**-affinity.power
    return 2.0**bits, result_scale, arguments
