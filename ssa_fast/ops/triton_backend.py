"""Launch the Triton kernels: look up their tiles, allocate outputs, import Triton on first use.

Nothing here waits for the device, so that calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

import torch

from ssa_fast.ops import gpu_info, tile_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.validation import FusionOptions

MAX_GRID_Y = 65_535  # programs along a grid's second axis, which counts images and chunks of classes


def polish_stage(
    cam: Tensor,
    features: Tensor,
    affinity: Affinity,
    *,
    method: str,
    fallback: str | None,
    precision: str,
    align_corners: bool,
) -> Tensor:
    """Polish one stage with the kernels of ``method``; ``ssa_fast.ops.dispatch`` has made sure that they can.

    Args:
        cam: ``(B, K, h, w)``, floating, of any size: it is resized to the stage as it is read.
        features: ``(B, C, H, W)``, float16, bfloat16 or float32, any strides.
        affinity: φ, its parameters, both eps and the number of steps.
        method: ``"prototypes"``, ``"tiled"`` or ``"resident"``.
        fallback: The method of images with a feature that is not ≥ 0, where ``method`` is ``"prototypes"`` and the sign
            is not known: it is determined on the device, and the unneeded kernels exit early.
        precision: ``"default"`` or ``"high"``, of the quadratic methods' matrix products.
        align_corners: Of the bilinear resizing of the CAM.

    Returns:
        ``(B, K, H, W)`` float32.
    """
    (B, K, _, _), (_, C, H, W) = cam.shape, features.shape
    max_batch = max(1, MAX_GRID_Y // -(-K // 15))  # 15: classes of the shortest chunk that a program takes
    if max_batch < B:
        polish_part = functools.partial(
            polish_stage,
            affinity=affinity,
            method=method,
            fallback=fallback,
            precision=precision,
            align_corners=align_corners,
        )
        return torch.cat(
            [polish_part(*part) for part in zip(cam.split(max_batch), features.split(max_batch), strict=True)]
        )
    cam = cam.float().contiguous()
    out = cam.new_empty((B, K, H * W))
    signed = cam.new_zeros(B, dtype=torch.int32) if fallback else None
    gpu, no_gpu = gpu_info.query(features.device)
    assert gpu is not None, no_gpu
    dtype = str(features.dtype).removeprefix("torch.")
    tiles = functools.partial(
        tile_tables.config,
        gpu=gpu,
        C=C,
        L=H * W,
        K=K,
        dtype=dtype,
        precision=precision,
        phi=affinity.phi,
        center=affinity.center,
    )
    with torch.cuda.device_of(features):
        for each in filter(None, (method, fallback)):
            kernels = importlib.import_module(f"ssa_fast.kernels.{each}")
            launch = functools.partial(
                kernels.polish, cam, features, affinity=affinity, align_corners=align_corners, out=out
            )
            if each == "prototypes":
                launch(gather=tiles("gather"), apply=tiles("apply"), num_sms=gpu.num_sms, signed=signed)
            elif each == "tiled":
                launch(precision=precision, config=tiles("tiled"), prepare=tiles("prepare"), signed=signed)
            else:
                launch(precision=precision, config=tiles("resident"))
    return out.view(B, K, H, W)


def fuse(maps: Sequence[Tensor], options: FusionOptions, size: tuple[int, int]) -> Tensor:
    """Rescale, resize and fuse float32 maps ``(B, K, H_s, W_s)`` into ``(B, K, *size)``; see ``fusion.fuse``."""
    kernels = importlib.import_module("ssa_fast.kernels.fusion")
    B, K, _, _ = maps[0].shape
    out = maps[0].new_empty((B, K, *size))
    with torch.cuda.device_of(out):
        kernels.fuse(
            [stage.contiguous() for stage in maps],
            weights=list(options.weights),
            fuse=options.fuse,
            rescale=options.rescale,
            align_corners=options.align_corners,
            out=out,
        )
    return out
