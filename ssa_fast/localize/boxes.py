"""Bounding boxes of class activation maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ssa_fast.localize.options import PostprocessOptions, with_overrides

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def boxes(cams: Tensor, options: PostprocessOptions | None = None, **overrides: Any) -> list[list[Tensor]]:
    """Return the boxes around the connected regions where a map exceeds ``box_threshold`` times its own maximum.

    The threshold is relative to each map's maximum and exceeded strictly, as in the WSOL evaluation of Choe et al.
    (CVPR 2020); regions are 8-connected, as OpenCV's contours are there. A map that holds NaN, or nothing above 0, has
    no box.

    Args:
        cams: (B, K, H, W), (K, H, W) or (H, W), floating.
        options: ``box_threshold`` and ``components``; the rest is for ``masks``.
        **overrides: Single fields of the options, for example ``box_threshold=0.3, components="all"``.

    Returns:
        Per image, per class: a float32 tensor (n, 4) of x1, y1, x2, y2 in pixels, x2 and y2 exclusive, on the CPU,
        largest region first; n is 0 without a region.

    Raises:
        TypeError: ``cams`` is not a floating-point tensor, or an option has another type.
        ValueError: ``cams`` has another rank, or an option is out of range.
    """
    maps = read_cams(cams)
    options = with_overrides(options, overrides)
    every = options.components == "all"
    return [[_boxes_of(plane, options.box_threshold, every) for plane in planes] for planes in maps.numpy()]


def box_scores(cams: Tensor, found: list[list[Tensor]]) -> list[list[Tensor]]:
    """The mean of the map inside each box: per image and class a float32 tensor (n,), for boxes from ``boxes``."""
    maps = read_cams(cams)
    return [
        [_scores_of(plane, corners) for plane, corners in zip(planes, image, strict=True)]
        for planes, image in zip(maps, found, strict=True)
    ]


def read_cams(cams: Tensor) -> Tensor:
    """CAMs as a float32 CPU tensor (B, K, H, W); raises TypeError or ValueError if they are something else."""
    if not isinstance(cams, Tensor) or not cams.is_floating_point():
        kind = cams.dtype if isinstance(cams, Tensor) else type(cams).__name__
        raise TypeError(
            f"cams: expected a floating-point tensor, got {kind}; convert with torch.as_tensor(...).float()"
        )
    if not 2 <= cams.ndim <= 4 or cams.numel() == 0:
        raise ValueError(
            f"cams: expected shape (B, K, H, W), (K, H, W) or (H, W), got {tuple(cams.shape)}; reshape them"
        )
    return cams.detach().float().cpu().reshape((1,) * (4 - cams.ndim) + tuple(cams.shape))


def _boxes_of(plane: np.ndarray, threshold: float, every: bool) -> Tensor:
    peak = plane.max()
    above = (plane > threshold * peak) & (peak > 0)
    labels, count = ndimage.label(above, structure=EIGHT_NEIGHBOURS)
    if count == 0:
        return torch.empty(0, 4)
    areas = np.bincount(labels.ravel())[1:]
    order = np.argsort(-areas, kind="stable")
    regions = ndimage.find_objects(labels)
    chosen = [regions[i] for i in (order if every else order[:1])]
    return torch.tensor([[x.start, y.start, x.stop, y.stop] for y, x in chosen], dtype=torch.float32)


def _scores_of(plane: Tensor, corners: Tensor) -> Tensor:
    return torch.tensor([float(plane[y1:y2, x1:x2].mean()) for x1, y1, x2, y2 in corners.int().tolist()])
