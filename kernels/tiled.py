"""Polish one stage with any φ in quadratic time; affinities are computed by tiles, never stored.

``full_kernel`` computes every affinity: 2·L²·(C + ROWS) operations. ``symmetric`` computes each pair once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from ssa_fast.kernels import symmetric
from ssa_fast.kernels.config import Symmetric
from ssa_fast.kernels.launch import launch
from ssa_fast.kernels.moments import Moments, find_moments
from ssa_fast.kernels.prepare import Operands, write_rows, write_units
from ssa_fast.kernels.primitives import resize_arguments
from ssa_fast.kernels.products import (
    add_cosines,
    add_weighted,
    apply_phi,
    compiler_options,
    load_halves,
    scale_arguments,
    write_polished,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.kernels.config import Full, Prepare


@triton.jit(do_not_specialize=["K", "L", "chunks"])
def full_kernel(
    unit_ptr,
    unit_low_ptr,
    v_ptr,
    v_low_ptr,
    peak_ptr,
    signed_ptr,
    denominator_ptr,
    out_ptr,
    K,
    L,
    L_PAD,
    C_PAD,
    chunks,
    phi_arg,
    threshold,
    cosine_scale,
    result_scale,
    sum_eps,
    PHI: tl.constexpr,
    POWER: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr,
    RESCALE: tl.constexpr,
    HIGH: tl.constexpr,
    PRECISION: tl.constexpr,
    FIRST: tl.constexpr,
    HELD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program polishes BLOCK_J target pixels from all sources; HELD: one tile has all channels."""
    pid_layer = tl.program_id(1)
    if signed_ptr is not None:  # noqa: SIM102
        if tl.load(signed_ptr + pid_layer // chunks) == 0:
            return
    first = tl.program_id(0) * BLOCK_J
    offs_i = tl.arange(0, BLOCK_I)
    offs_j = tl.arange(0, BLOCK_J)
    offs_c = tl.arange(0, BLOCK_C)
    i_at = (pid_layer // chunks).to(tl.int64) * L_PAD * C_PAD
    j_at = i_at + first.to(tl.int64) * C_PAD
    j_offsets = offs_j[:, None] * C_PAD + offs_c[None, :]
    i_offsets = offs_i[:, None] * C_PAD + offs_c[None, :]
    v_at = pid_layer.to(tl.int64) * L_PAD * ROWS
    v_offsets = offs_i[:, None] * ROWS + tl.arange(0, ROWS)[None, :]

    if HELD:
        x_j, x_j_low = load_halves(unit_ptr + j_at, unit_low_ptr + j_at, j_offsets, HIGH)  # [BLOCK_J, BLOCK_C]
    acc = tl.zeros((BLOCK_J, ROWS), tl.float32)
    # acc = phi(x_j @ x.T) @ v
    for _ in range(0, L_PAD, BLOCK_I):
        v, v_low = load_halves(v_ptr + v_at, v_low_ptr + v_at, v_offsets, HIGH and PHI != "exp")  # [BLOCK_I, ROWS]
        cosine = tl.zeros((BLOCK_J, BLOCK_I), tl.float32)
        if HELD:
            x_i, x_i_low = load_halves(unit_ptr + i_at, unit_low_ptr + i_at, i_offsets, HIGH)  # [BLOCK_I, BLOCK_C]
            cosine = add_cosines(cosine, x_j, x_j_low, x_i, x_i_low, HIGH)
        else:
            for c in range(0, C_PAD, BLOCK_C):
                x_j, x_j_low = load_halves(unit_ptr + j_at + c, unit_low_ptr + j_at + c, j_offsets, HIGH)
                x_i, x_i_low = load_halves(unit_ptr + i_at + c, unit_low_ptr + i_at + c, i_offsets, HIGH)
                cosine = add_cosines(cosine, x_j, x_j_low, x_i, x_i_low, HIGH)
        affinity = apply_phi(cosine, phi_arg, threshold, cosine_scale, PHI, POWER, HAS_THRESHOLD, RESCALE)
        acc = add_weighted(acc, affinity, v, v_low, HIGH, PRECISION, False)
        i_at += BLOCK_I * C_PAD
        v_at += BLOCK_I * ROWS
    write_polished(
        acc,
        first + offs_j,
        pid_layer,
        peak_ptr,
        denominator_ptr,
        out_ptr,
        K,
        L,
        L_PAD,
        chunks,
        result_scale,
        sum_eps,
        PHI == "shifted",
        FIRST,
        ROWS,
    )


def polish(
    cam: Tensor,
    features: Tensor,
    *,
    affinity: Affinity,
    align_corners: bool,
    precision: str,
    out: Tensor,
    config: Full | Symmetric,
    prepare: Prepare,
    workspace: int = 256 << 20,
    signed: Tensor | None = None,
    moments: Moments | None = None,
) -> None:
    """Polish a CAM as ``reference.polish_stage`` does, without the L×L matrix.

    Args:
        cam: ``(B, K, h, w)`` float32, contiguous.
        features: ``(B, C, H, W)`` float16, bfloat16 or float32, any strides.
        affinity: φ, its parameters, both eps and the number of steps.
        align_corners: How the CAM is resized, as in ``F.interpolate``.
        precision: Operands as float16 (``"default"``) or as two float16 halves (``"high"``).
        out: ``(B, K, H·W)`` float32, contiguous; overwritten.
        config, prepare: Tiles of the full or the symmetric kernel, and of those that write the operands.
        workspace: Most bytes for the partial sums of the symmetric kernel.
        signed: ``(B,)`` int32; images where it is 0 are skipped, and their ``out`` is not written.
        moments: Of the CAM, if they are known.
    """
    (B, K, _, _), (_, _, H, W) = cam.shape, features.shape
    is_symmetric = isinstance(config, Symmetric)
    align_l = config.block * config.bands if is_symmetric else max(config.block_i, config.block_j)
    sizes = dict(rows=config.rows, align_l=align_l, block_c=config.block_c)
    sizes |= dict(high=precision == "high", wide=affinity.phi == "exp")
    operands = Operands.empty(cam, features, (moments or find_moments(cam, mean=False)).peak, **sizes)
    unit_scale, result_scale, products = scale_arguments(affinity, precision)
    write_units(features, operands, affinity, unit_scale, prepare, signed)
    denominators = cam.new_empty((B * operands.chunks, operands.L_pad))
    writing = dict(denominator_ptr=denominators, result_scale=result_scale, sum_eps=float(affinity.sum_eps))
    for step in range(affinity.steps):
        source = cam if step == 0 else out.view(B, K, H, W)
        write_rows(source, operands, dict(W=W) | resize_arguments(source, H, W, align_corners), prepare, signed)
        writing["FIRST"] = step == 0
        if is_symmetric:
            writing["SHIFTED"] = affinity.phi == "shifted"
            symmetric.apply(operands, out, config, products, writing, signed, workspace)
        else:
            _apply_full(operands, out, config, products | writing, signed)


def _apply_full(
    operands: Operands, out: Tensor, config: Full, arguments: dict[str, Any], signed: Tensor | None
) -> None:
    layers = operands.v.shape[0]
    launch(
        full_kernel,
        (operands.L_pad // config.block_j, layers),
        unit_ptr=operands.unit,
        unit_low_ptr=operands.unit_low,
        v_ptr=operands.v,
        v_low_ptr=operands.v_low,
        peak_ptr=operands.peak,
        signed_ptr=signed,
        out_ptr=out,
        K=out.shape[1],
        L=operands.L,
        L_PAD=operands.L_pad,
        C_PAD=operands.C_pad,
        chunks=operands.chunks,
        HELD=config.block_c >= operands.C_pad,
        ROWS=config.rows,
        BLOCK_I=config.block_i,
        BLOCK_J=config.block_j,
        BLOCK_C=min(config.block_c, operands.C_pad),
        **compiler_options(config.num_warps, config.num_stages),
        **arguments,
    )
