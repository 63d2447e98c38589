"""Bounding boxes of connected regions, and of class activation maps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssa_fast.localize.options import AUTO, Components, PostprocessOptions, check_components
from ssa_fast.localize.read import read_cams
from ssa_fast.localize.threshold import BOX_POWER, self_weighted_mean

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def boxes(cams: Tensor, options: PostprocessOptions | None = None, **overrides: Any) -> list[list[Tensor]]:
    """Return the boxes around connected regions above ``box_threshold`` times each map's maximum.

    The threshold is exceeded strictly and regions are 8-connected, as in the WSOL evaluation of Choe et al. (CVPR
    2020). With "auto" each map has its own, ``Σ p^1.75 / Σ p^0.75``: the rule of ``estimate_background`` with a lower
    power, as boxes take in an object's faint ends. A map that holds NaN, or nothing above 0, has no box.

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
    options = replace(options or PostprocessOptions(), **overrides)

    return [
        [torch.from_numpy(component_boxes(foreground(plane, options), options.components)).float() for plane in image]
        for image in maps.numpy()
    ]


def foreground(plane: NDArray[np.float32], options: PostprocessOptions) -> NDArray[np.bool_]:
    """Return where a map (H, W) exceeds ``box_threshold``: nowhere if it holds NaN, or nothing above 0."""
    peak, share = plane.max(), options.box_threshold
    if not peak > 0:
        return np.zeros(plane.shape, bool)
    level = self_weighted_mean(torch.from_numpy(plane), BOX_POWER).numpy() if share == AUTO else share * peak
    return plane > np.float32(level)


def component_boxes(mask: ArrayLike, components: Components = "largest") -> NDArray[np.int64]:
    """Return the boxes around the 8-connected components of a boolean map (H, W), largest component first.

    Args:
        mask: (H, W), truthy inside.
        components: "largest" (by pixels, the first in reading order on a tie), or "all".

    Returns:
        (n, 4) int64 of x1, y1, x2, y2 in pixels, x2 and y2 exclusive; n is 0 for an empty map.

    Raises:
        ValueError: ``mask`` is not two-dimensional, or ``components`` is neither "largest" nor "all".
    """
    return find_components(mask, components)[2]


def find_components(
    mask: ArrayLike, components: Components = "largest"
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Return a map (H, W) with a number per component, and the numbers (n,) and boxes that ``component_boxes`` returns.

    Raises:
        ValueError: As ``component_boxes``.
    """
    check_components(components)
    filled = np.asarray(mask).astype(bool, copy=False)
    if filled.ndim != 2:
        raise ValueError(f"mask: expected (H, W), got shape {filled.shape}; pass one map at a time")
    from scipy import ndimage  # here, so that overlays need NumPy only

    labels, count = ndimage.label(filled, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel())[1:] if count > 1 else np.ones(count)
    numbers = 1 + np.argsort(-areas, kind="stable")
    if components == "largest":
        numbers = numbers[:1]
    if len(numbers) == 1:  # a fifth of the time of find_objects, or less
        rows, columns = ((labels == numbers[0]).any(axis).nonzero()[0] for axis in (1, 0))
        return labels, numbers, np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]])
    regions = ndimage.find_objects(labels)
    edges = [(x.start, y.start, x.stop, y.stop) for y, x in (regions[number - 1] for number in numbers)]
    return labels, numbers, np.array(edges, dtype=np.int64).reshape(-1, 4)


def box_scores(cams: Tensor, found: list[list[Tensor]]) -> list[list[Tensor]]:
    """Return the mean of the map inside each box of ``boxes``: per image and class a float32 tensor (n,)."""

    def plane_scores(plane: Tensor, corners: Tensor) -> Tensor:
        return torch.tensor([float(plane[y1:y2, x1:x2].mean()) for x1, y1, x2, y2 in corners.int().tolist()])

    images = zip(read_cams(cams), found, strict=True)
    return [[plane_scores(*pair) for pair in zip(*image, strict=True)] for image in images]
