"""Targets: callables from one image's output to a scalar, whose gradient makes a Grad-CAM seed.

As in torch-cam and pytorch-grad-cam, a target gets the model's own output for one image, without the batch axis: the
logits (num_classes,), a segmentation head's (C, H, W), an embedding (D,), or a dict or object of such tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ssa_fast.models.class_spec import ClassSelection, select_rows
from ssa_fast.models.layout import map_tensors

Target: TypeAlias = Callable[[Any], Tensor]
Targets: TypeAlias = "Target | Sequence[Target] | Sequence[Sequence[Target]] | Mapping[str, Target]"


@dataclass(frozen=True, eq=False)
class TargetRows:
    """The targets of B images, up to K each.

    Attributes:
        rows: One list of targets per image.
        names: A name per position, K in all.
        selection: The positions (B, K) 0 to K - 1 as classes, images with fewer targets padded.
    """

    rows: list[list[Target]]
    names: tuple[str, ...]
    selection: ClassSelection


def read_targets(targets: Targets, images: int) -> TargetRows:
    """Read one target for every image, a dict of them by name for every image, or one or a list of them per image.

    Raises:
        TypeError: Something else than callables.
        ValueError: Another number of images, or no target.
    """
    names: list[str] = []
    if callable(targets):
        rows: list[list[Any]] = [[targets]] * images
    elif isinstance(targets, Mapping):
        names, rows = [str(name) for name in targets], [list(targets.values())] * images
    elif isinstance(targets, list | tuple):
        rows = [list(each) if isinstance(each, list | tuple) else [each] for each in targets]
        if images == 1 and len(rows) > 1 and all(map(callable, targets)):
            rows = [list(targets)]
    else:
        raise TypeError(f"targets: expected callables from an image's output to a scalar, got {type(targets).__name__}")
    wrong = next((each for row in rows for each in row if not callable(each)), None)
    if wrong is not None:
        raise TypeError(f"targets: expected callables from an image's output to a scalar, got {wrong!r:.80}")
    if len(rows) != images:
        raise ValueError(
            f"targets: expected one per image, {images}, got {len(rows)}; pass a dict by name for several maps of "
            "every image"
        )
    width = max(map(len, rows))
    if not width:
        raise ValueError("targets: expected at least one, got none; pass a callable from an image's output to a scalar")
    selection = select_rows([range(len(row)) for row in rows], width)
    return TargetRows(rows, tuple(names or [f"target {k}" for k in range(width)]), selection)


def target_values(targets: TargetRows, output: Any, flipped: bool) -> list[Tensor]:
    """Return the targets' values, K tensors (B,) with their graph; 0 where an image has fewer targets.

    Maps (B, C, H, W) in the output of flipped images are flipped back, as a target may hold a mask.

    Raises:
        ValueError: A target fails, or returns something else than a scalar; or the images are flipped and the output is
            neither maps nor vectors.
    """
    images, width = targets.selection.index.shape
    upright = map_tensors(_flip_back, output) if flipped else output
    columns: list[list[Tensor]] = [[] for _ in range(width)]
    for b, row in enumerate(targets.rows):
        own = _of_image(upright, b, images)
        found = [_value(target, own, targets.names[k]) for k, target in enumerate(row)]
        for k, column in enumerate(columns):
            column.append(found[k] if k < len(found) else torch.zeros(()))
    device = next(value.device for column in columns for value in column if value.requires_grad or value.ndim == 0)
    return [torch.stack([value.to(device, non_blocking=True) for value in column]) for column in columns]


def _of_image(output: Any, b: int, images: int) -> Any:
    """Return the output for image ``b``: its item in a list of dicts (detectors), else its rows of all tensors."""
    if isinstance(output, list) and len(output) == images and all(isinstance(each, Mapping) for each in output):
        return output[b]
    return map_tensors(lambda tensor: tensor[b] if tensor.ndim and len(tensor) == images else tensor, output)


def _flip_back(tensor: Tensor) -> Tensor:
    if tensor.ndim in (1, 2):
        return tensor
    if tensor.ndim != 4:
        raise ValueError(
            f"targets: expected an output of maps (B, C, H, W) or vectors for flip=True, got {tuple(tensor.shape)}, "
            "which cannot be flipped back; leave flip out"
        )
    return tensor.flip(-1)


def _value(target: Target, output: Any, name: str) -> Tensor:
    """Return a target's value for one image as a tensor without axes."""
    try:
        value = target(output)
    except Exception as error:
        shape = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ValueError(
            f"targets: {name!r} failed ({type(error).__name__}: {error}) on the model's output for one image, {shape}; "
            "it gets that output without the batch axis, at each of the scales"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"targets: expected a scalar tensor per image, {name!r} gave {got}; take [index] or .sum()")
    return value.reshape(()) if value.dtype == torch.float64 else value.reshape(()).float()
