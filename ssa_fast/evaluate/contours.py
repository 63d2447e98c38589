"""Boxes as wsolevaluation's script draws them: around OpenCV's contours, outer ones and those of holes.

OpenCV does it, a region tree (scikit-image's ``max_tree``) does not: on maps as smooth as CAMs are, all 255 levels cost
less here than the two trees that regions and holes would take (``python -m bench measures``), and which of several
regions of equal area, often 0, is the largest depends on the order in which OpenCV lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ssa_fast.localize.options import check_components

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ssa_fast.localize.options import Components


def contour_boxes(mask: ArrayLike, components: Components = "all") -> NDArray[np.int64]:
    """Return the boxes around the contours of a boolean map, in the convention of Choe et al. (CVPR 2020).

    Regions are 8-connected. A hole has a contour of its own, along the pixels around it. "Largest" is by the area of
    the polygon through the contour's pixels, which is 0 for lines and single pixels; of equal ones OpenCV's first.
    The far edge of a box is one past the last pixel, but at most ``W - 1`` (``H - 1``), and the box counts it as
    inside. An empty map has the box 0, 0, 0, 0.

    Args:
        mask: (H, W), truthy inside.
        components: "all" contours, or the "largest".

    Returns:
        (n, 4) int64, n ≥ 1: ``x0, y0, x1, y1`` in pixels, far edges inclusive.

    Raises:
        ValueError: ``mask`` is not (H, W), or ``components`` is unknown.
        ModuleNotFoundError: OpenCV is missing.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("contour_boxes: needs OpenCV; pip install 'ssa_fast[eval]'", name="cv2") from error
    check_components(components)
    filled = np.ascontiguousarray(np.asarray(mask).astype(bool, copy=False))
    if filled.ndim != 2 or not filled.size:
        raise ValueError(f"mask: expected (H, W) with at least one pixel, got shape {filled.shape}; pass one map")
    contours, _ = cv2.findContours(filled.view(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return np.zeros((1, 4), np.int64)
    kept = [max(contours, key=cv2.contourArea)] if components == "largest" else contours
    x, y, width, height = np.array([cv2.boundingRect(contour) for contour in kept], dtype=np.int64).T
    rows, columns = filled.shape
    return np.stack([x, y, np.minimum(x + width, columns - 1), np.minimum(y + height, rows - 1)], axis=1)
