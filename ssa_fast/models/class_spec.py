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

    Indices are checked on the host and copied from there without waiting for the device; only those in a tensor on the
    device have to be fetched first.

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
    values = _as_array(classes)
    if values.size == 0:
        raise ValueError('classes: expected at least one class, got none; pass class indices, "predicted" or "topN"')
    if values.dtype.kind not in "iu":
        raise TypeError(f"classes: expected integers, got {values.dtype}; pass class indices")
    if values.ndim not in (1, 2) or (values.ndim == 2 and len(values) != images):
        raise ValueError(
            f"classes: expected (K,) or (B, K) indices with B = {images} images, got {values.shape}; "
            "pass one list for all images or one per image"
        )
    wrong = values[(values < 0) | (values >= num_classes)]
    if wrong.size:
        raise ValueError(
            f"classes: expected indices in 0..{num_classes - 1}, the model's outputs, got {wrong[0]}; correct it"
        )
    index = np.broadcast_to(values, (images, values.shape[-1])).astype(np.int64)
    return torch.from_numpy(index).to(logits.device, non_blocking=True)


def parse_count(text: str, num_classes: int) -> int:
    """Parse the number of classes of an image from "predicted" or "topN", N at most ``num_classes``."""
    match = re.fullmatch(r"top(\d+)", "top1" if text == "predicted" else text)
    if match is None:
        raise ValueError(f'classes: expected "predicted", "topN" such as "top5", or class indices, got {text!r}')
    count = int(match[1])
    if not 1 <= count <= num_classes:
        raise ValueError(f"classes: expected top1 to top{num_classes} for this model, got {text!r}; ask for fewer")
    return count


def _as_array(classes: Sequence[int] | Sequence[Sequence[int]] | Tensor | np.ndarray) -> np.ndarray:
    """Return the classes as an array, before anything about them is checked."""
    if isinstance(classes, Tensor):
        classes = np.asarray(classes.tolist())
    if isinstance(classes, np.ndarray):
        return classes
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
        return np.asarray(classes)
    except (TypeError, ValueError) as error:
        raise TypeError(f"classes: expected integers, got {classes!r}; pass class indices") from error
