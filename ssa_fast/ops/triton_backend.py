"""Where Triton's kernels are launched: the tiles are looked up, the outputs allocated, Triton imported.

Nothing here waits for the device, so a CUDA graph can capture it.
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

MOST_PROGRAMS = 65_535  # along a grid's second axis, where images and chunks of classes lie


def polish_stage(
    cam: Tensor,
    features: Tensor,
    affinity: Affinity,
    *,
    method: str,
    otherwise: str | None,
    precision: str,
    align_corners: bool,
) -> Tensor:
    """Polish one stage with the kernels of ``method``; ``ssa_fast.ops.dispatch`` has made sure that they can.

    Args:
        cam: ``(B, K, h, w)``, floating, of any size: it is resized to the stage as it is read.
        features: ``(B, C, H, W)``, float16, bfloat16 or float32, any strides.
        affinity: φ, its parameters, both eps and the number of steps.
        method: ``"prototypes"``, ``"tiled"`` or ``"resident"``.
        otherwise: the method of images with a feature that is not ≥ 0, where ``method`` is ``"prototypes"`` and nobody
            knows the sign: it is found on the device, and the kernels of the method not needed return at once.
        precision: ``"default"`` or ``"high"``, of the quadratic methods' matrix products.
        align_corners: of the bilinear resizing of the CAM.

    Returns:
        ``(B, K, H, W)`` float32.
    """
    (B, K, _, _), (_, C, H, W) = cam.shape, features.shape
    most = max(1, MOST_PROGRAMS // -(-K // 15))  # 15: classes of the shortest chunk that a program takes
    if most < B:
        part = functools.partial(
            polish_stage,
            affinity=affinity,
            method=method,
            otherwise=otherwise,
            precision=precision,
            align_corners=align_corners,
        )
        return torch.cat([part(*both) for both in zip(cam.split(most), features.split(most), strict=True)])
    cam = cam.float().contiguous()
    out = cam.new_empty((B, K, H * W))
    signed = cam.new_zeros(B, dtype=torch.int32) if otherwise else None
    gpu, why = gpu_info.query(features.device)
    assert gpu is not None, why
    dtype = str(features.dtype).removeprefix("torch.")
    tiles = functools.partial(
        tile_tables.config, gpu=gpu, C=C, L=H * W, K=K, dtype=dtype, precision=precision, phi=affinity.phi
    )
    with torch.cuda.device_of(features):
        for each in filter(None, (method, otherwise)):
            kernels = importlib.import_module(f"ssa_fast.kernels.{each}")
            launch = functools.partial(
                kernels.polish, cam, features, affinity=affinity, align_corners=align_corners, out=out
            )
            if each == "prototypes":
                launch(gather=tiles("gather"), apply=tiles("apply"), num_sms=gpu.processors, signed=signed)
            elif each == "tiled":
                launch(precision=precision, config=tiles("tiled"), prepare=tiles("prepare"), signed=signed)
            else:
                launch(precision=precision, config=tiles("resident"))
    return out.view(B, K, H, W)


def fuse_stages(
    maps: Sequence[Tensor],
    *,
    weights: Sequence[float],
    fuse: str,
    rescale: bool,
    size: tuple[int, int],
    align_corners: bool,
) -> Tensor:
    """Rescale, resize and fuse float32 maps ``(B, K, H_s, W_s)`` into ``(B, K, *size)``, as ``fusion.fuse_stages``."""
    kernels = importlib.import_module("ssa_fast.kernels.fusion")
    B, K, _, _ = maps[0].shape
    out = maps[0].new_empty((B, K, *size))
    contiguous = [polished.contiguous() for polished in maps]
    with torch.cuda.device_of(out):
        kernels.fuse(contiguous, weights=weights, fuse=fuse, rescale=rescale, align_corners=align_corners, out=out)
    return out
