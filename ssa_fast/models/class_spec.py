"""Resolve the classes that a caller asks for into a LongTensor (B, K)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Classes: TypeAlias = "str | Sequence[int] | Sequence[Sequence[int]] | Tensor | np.ndarray | None"


def resolve_classes(classes: Classes, logits: Tensor) -> Tensor:
    """Return the class indices (B, K), int64, on the logits' device.

    Args:
        classes: None or "predicted" (the most probable class of each image), "topN" such as "top5", class indices (K,)
            for all images, or (B, K): lists or an integer tensor or array.
        logits: (B, num_classes).

    Raises:
        TypeError: ``classes`` is neither a string nor integers.
        ValueError: An unknown string, an empty list, rows of unequal length, or an index out of range.
    """
    images, num_classes = logits.shape
    if classes is None or isinstance(classes, str):
        count = parse_count("predicted" if classes is None else classes, num_classes)
        return logits.topk(count, dim=1).indices
    index = _as_tensor(classes)
    if index.numel() == 0:
        raise ValueError('classes: expected at least one class, got none; pass class indices, "predicted" or "topN"')
    if index.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"classes: expected integers, got {index.dtype}; pass class indices")
    if index.ndim == 1:
        index = index.expand(images, -1)
    if index.ndim != 2 or len(index) != images:
        raise ValueError(
            f"classes: expected (K,) or (B, K) indices with B = {images} images, got {tuple(index.shape)}; "
            "pass one list for all images or one per image"
        )
    wrong = index[(index < 0) | (index >= num_classes)].tolist()
    if wrong:
        raise ValueError(
            f"classes: expected indices in 0..{num_classes - 1}, the model's outputs, got {wrong[0]}; correct it"
        )
    return index.to(logits.device, torch.int64, copy=True)


def parse_count(text: str, num_classes: int) -> int:
    """Parse the number of classes of an image from "predicted" or "topN", N at most ``num_classes``."""
    match = re.fullmatch(r"top(\d+)", "top1" if text == "predicted" else text)
    if match is None:
        raise ValueError(f'classes: expected "predicted", "topN" such as "top5", or class indices, got {text!r}')
    count = int(match[1])
    if not 1 <= count <= num_classes:
        raise ValueError(f"classes: expected top1 to top{num_classes} for this model, got {text!r}; ask for fewer")
    return count


def _as_tensor(classes: Sequence[int] | Sequence[Sequence[int]] | Tensor | np.ndarray) -> Tensor:
    if isinstance(classes, Tensor | np.ndarray):
        return torch.as_tensor(classes)
    if not isinstance(classes, Sequence):
        raise TypeError(
            f'classes: expected "predicted", "topN", or a list of class indices, got {classes!r}; '
            "write [index] for a single class"
        )
    lengths = {len(row) for row in classes if isinstance(row, Sequence)}
    if len(lengths) > 1:
        raise ValueError(
            f"classes: expected equally many classes for every image, got {sorted(lengths)}; "
            "run images with different numbers of classes separately"
        )
    try:
        return torch.as_tensor(np.asarray(classes))
    except (TypeError, ValueError) as error:
        raise TypeError(f"classes: expected integers, got {classes!r}; pass class indices") from error
