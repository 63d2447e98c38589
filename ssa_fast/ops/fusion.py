"""Fuse the stages' polished CAMs into one: rescale, resize, combine."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch

from ssa_fast.kernels.launch import call
from ssa_fast.ops import gpu_info, triton_backend
from ssa_fast.ops.cost_model import FusionProblem
from ssa_fast.ops.dispatch import plan_fusion
from ssa_fast.ops.resize import minmax, resize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from ssa_fast.ops.dispatch import Choice
    from ssa_fast.validation import FusionOptions

CHUNK = 1 << 20  # numbers of the fused map computed at once on a CPU


def fuse(maps: Mapping[str, Tensor], options: FusionOptions) -> Tensor:
    """Rescale, resize and fuse maps ``{stage: (B, K, H_s, W_s)}`` into one ``(B, K, H, W)``; see ``polish``.

    Maps of volumes have a depth before the height.
    """
    each = list(maps.values())
    size = fused_size([stage.shape[2:] for stage in each], options)
    if is_resize_only(options) and each[0].shape[2:] == size:
        return each[0]
    if torch.compiler.is_compiling():  # the compiler fuses what is written in PyTorch
        return _fuse_in_torch(each, options, size)
    if is_resize_only(options) or plan_fusion(fusion_problem(each, size, options), options.backend).backend == "torch":
        return call(_fuse_by_torch, each, options, size)
    return triton_backend.fuse(each, options, size)


def explain_fusion(maps: Sequence[Tensor], options: FusionOptions) -> Choice | None:
    """Return the choice that ``fuse`` makes for maps of these shapes, None if there is only a resizing."""
    if is_resize_only(options):
        return None
    size = fused_size([stage.shape[2:] for stage in maps], options)
    return plan_fusion(fusion_problem(maps, size, options), options.backend)


def is_resize_only(options: FusionOptions) -> bool:
    """Return whether fusion leaves a single stage's values alone."""
    return not options.rescale and options.weights == (1.0,)


def fused_size(sizes: Sequence[Sequence[int]], options: FusionOptions) -> tuple[int, ...]:
    """Return the size of the fused map: as asked for, else that of the stage with most pixels."""
    if options.size is not None:
        return options.size
    largest = tuple(sizes[0])
    for size in sizes[1:]:  # a loop, since torch.compile knows no max() by symbolic sizes
        if prod(largest) < prod(size):
            largest = tuple(size)
    return largest


def fusion_problem(maps: Sequence[Tensor], size: Sequence[int], options: FusionOptions) -> FusionProblem:
    """Return the numbers by which the dispatcher chooses the fusion's backend."""
    (B, K, *sides), device = maps[0].shape, maps[0].device
    unsuitable = ""
    if len(sides) == 3:
        unsuitable = "the fusion kernels resize in two dimensions, and these are volumes"
    elif any(stage.dtype != torch.float32 for stage in maps):
        unsuitable = "the fusion kernels take float32 maps"
    elif any(stage.requires_grad for stage in maps):
        unsuitable = "the fusion kernels are not differentiable"
    gpu, no_gpu = gpu_info.query(device)
    return FusionProblem(
        B,
        K,
        tuple(prod(stage.shape[2:]) for stage in maps),
        prod(size),
        options.rescale,
        itemsize=maps[0].dtype.itemsize,
        device=device.type,
        gpu=gpu,
        no_gpu=no_gpu,
        unsuitable=unsuitable,
    )


def _fuse_by_torch(maps: Sequence[Tensor], options: FusionOptions, size: Sequence[int]) -> Tensor:
    """Fuse maps in PyTorch; on a CPU a few classes at a time, so that what is between stays in its cache."""
    classes = max(1, CHUNK // (prod(size) * maps[0].shape[0]))
    if maps[0].is_cuda or classes >= maps[0].shape[1]:
        return _fuse_in_torch(maps, options, size)
    fused = maps[0].new_empty((*maps[0].shape[:2], *size))
    for first in range(0, fused.shape[1], classes):
        few = [stage[:, first : first + classes] for stage in maps]
        fused[:, first : first + classes] = _fuse_in_torch(few, options, size)
    return fused


def _fuse_in_torch(maps: Sequence[Tensor], options: FusionOptions, size: Sequence[int]) -> Tensor:
    if is_resize_only(options):
        return resize(maps[0], size, options.align_corners)
    fused: Tensor | None = None
    for number, (stage, weight) in enumerate(zip(maps, options.weights, strict=True)):
        polished = resize(minmax(stage) if options.rescale else stage, size, options.align_corners)
        if weight != 1.0:
            polished = polished**weight if options.fuse == "product" else polished * weight
        if fused is None:
            fused = polished
        elif options.fuse == "max":
            fused = torch.maximum(fused, polished)
        elif options.fuse == "product":
            fused = fused * polished
        else:  # the first may be a stage's own map
            fused = fused.add_(polished) if number > 1 else fused + polished
    assert fused is not None
    return fused / sum(options.weights) if options.fuse == "mean" else fused
