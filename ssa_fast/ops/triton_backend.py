"""Launch the Triton kernels: look up their tiles, allocate outputs, import Triton on first use.

Nothing here waits for the device, so that calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, NamedTuple

import torch

from ssa_fast.kernels.launch import call
from ssa_fast.ops import gpu_info, tile_tables
from ssa_fast.ops.resize import resize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.kernels.moments import Moments
    from ssa_fast.validation import FusionOptions

MAX_GRID_Y = 65_535  # programs along a grid's second axis, which counts images and chunks of classes


class Stage(NamedTuple):
    """One stage to polish; ``ssa_fast.ops.dispatch`` has made sure that the kernels can.

    Attributes:
        features: ``(B, C, H, W)``, float16, bfloat16 or float32, any strides; ``(B, C, D, H, W)`` of volumes.
        affinity: φ, its parameters, both eps and the number of steps.
        method: ``"prototypes"``, ``"tiled"`` or ``"resident"``.
        fallback: The method of images with a feature that is not ≥ 0, where ``method`` is ``"prototypes"`` and the sign
            is not known: it is determined on the device, and the unneeded kernels exit early.
        precision: ``"default"`` or ``"high"``, of the quadratic methods' matrix products.
        align_corners: Of the bilinear resizing of the CAM.
    """

    features: Tensor
    affinity: Affinity
    method: str
    fallback: str | None = None
    precision: str = "default"
    align_corners: bool = True


def polish_stages(cam: Tensor, stages: Sequence[Stage]) -> list[Tensor]:
    """Polish a CAM in each of several stages, which share what they need to know of it.

    Args:
        cam: ``(B, K, h, w)``, floating, of any size: it is resized to each stage as it is read.
        stages: The stages and how to polish them.

    Returns:
        ``(B, K, H, W)`` float32 for each stage.
    """
    if cam.dtype != torch.float32 or not cam.is_contiguous():
        cam = call(_to_float32, cam)
    fallbacks = [stage.fallback for stage in stages if stage.fallback]
    signed = cam.new_empty((len(fallbacks), len(cam)), dtype=torch.int32) if fallbacks else None
    flags = iter(() if signed is None else signed.unbind())
    outs = []
    with torch.cuda.device_of(cam):
        moments = None
        if any(stage.method != "resident" for stage in stages):
            kernels = importlib.import_module("ssa_fast.kernels.moments")
            shifted = any(stage.affinity.phi == "shifted" for stage in stages)
            moments = kernels.find_moments(cam, mean=shifted, signed=signed)
        for stage in stages:
            outs.append(_polish_stage(cam, stage, moments, next(flags) if stage.fallback else None))
    return outs


def polish_volumes(cam: Tensor, stages: Sequence[Stage]) -> list[Tensor]:
    """Polish a CAM ``(B, K, d, h, w)`` in stages ``(B, C, D, H, W)``; return ``(B, K, D, H, W)`` float32 for each.

    A pixel's place means nothing to a stage, so the kernels read volumes as images of ``D·H`` rows; the CAM, which they
    would resize in two dimensions, has the stage's size already.
    """
    outs = []
    with torch.cuda.device_of(cam):
        for stage in stages:
            size = stage.features.shape[2:]
            resized = call(_resize_as_rows, cam, size, stage.align_corners)
            (out,) = polish_stages(resized, [stage._replace(features=call(torch.flatten, stage.features, 2, 3))])
            outs.append(out.unflatten(2, size[:2]))
    return outs


def _resize_as_rows(cam: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Return a volume's CAM at ``size`` as that of an image of ``D·H`` rows, float32."""
    return resize(cam.float(), size, align_corners).flatten(2, 3).contiguous()


def _polish_stage(cam: Tensor, stage: Stage, moments: Moments | None, signed: Tensor | None) -> Tensor:
    """Polish one stage, in parts if the batch is longer than a grid."""
    (B, K, _, _), (_, _, H, W) = cam.shape, stage.features.shape
    out = cam.new_empty((B, K, H * W))
    max_batch = max(1, MAX_GRID_Y // -(-K // 15))  # 15: classes of the shortest chunk that a program takes
    if max_batch >= B:
        _launch(cam, stage, moments, signed, out)
    else:
        for first in range(0, B, max_batch):
            part = slice(first, first + max_batch)
            _launch(
                cam[part],
                stage._replace(features=stage.features[part]),
                moments and moments.part(part),
                None if signed is None else signed[part],
                out[part],
            )
    return out.view(B, K, H, W)


def _launch(cam: Tensor, stage: Stage, moments: Moments | None, signed: Tensor | None, out: Tensor) -> None:
    """Launch the kernels of a stage's method, and those of its fallback."""
    features, affinity, precision = stage.features, stage.affinity, stage.precision
    gpu, no_gpu = gpu_info.query(features.device)
    assert gpu is not None, no_gpu
    tiles = functools.partial(
        tile_tables.config,
        gpu=gpu,
        B=features.shape[0],
        C=features.shape[1],
        L=features.shape[2] * features.shape[3],
        K=cam.shape[1],
        dtype=str(features.dtype).removeprefix("torch."),
        precision=precision,
        phi=affinity.phi,
        center=affinity.center,
    )
    for method in filter(None, (stage.method, stage.fallback)):
        polish = functools.partial(
            importlib.import_module(f"ssa_fast.kernels.{method}").polish,
            cam,
            features,
            affinity=affinity,
            align_corners=stage.align_corners,
            out=out,
        )
        if method == "prototypes":
            polish(gather=tiles("gather"), apply=tiles("apply"), num_sms=gpu.num_sms, signed=signed, moments=moments)
        elif method == "tiled":
            polish(config=tiles("tiled"), prepare=tiles("prepare"), precision=precision, signed=signed, moments=moments)
        else:
            polish(precision=precision, config=tiles("resident"))


def _to_float32(cam: Tensor) -> Tensor:
    return cam.float().contiguous()


def fuse(maps: Sequence[Tensor], options: FusionOptions, size: Sequence[int]) -> Tensor:
    """Rescale, resize and fuse float32 maps ``(B, K, H_s, W_s)`` into ``(B, K, *size)``; see ``fusion.fuse``."""
    kernels = importlib.import_module("ssa_fast.kernels.fusion")
    B, K, _, _ = maps[0].shape
    out = maps[0].new_empty((B, K, *size))
    with torch.cuda.device_of(out):
        kernels.fuse(
            [
                stage if stage.is_contiguous() else call(torch.clone, stage, memory_format=torch.contiguous_format)
                for stage in maps
            ],
            weights=list(options.weights),
            fuse=options.fuse,
            rescale=options.rescale,
            align_corners=options.align_corners,
            out=out,
        )
    return out
