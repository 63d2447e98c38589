"""Boundary F-measure of masks, as DAVIS computes it (Perazzi et al., CVPR 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def boundary_f(
    predicted: ArrayLike, truth: ArrayLike, *, bound: float = 0.008, ignore: ArrayLike | None = None
) -> float:
    """Return the boundary F-measure of one mask against its truth, as davis2017-evaluation's script.

    A boundary pixel differs from its right, lower or lower-right neighbour. Precision is the share of the prediction's
    boundary within the bound of the truth's (in a straight line between pixel centres), recall the reverse, and F their
    harmonic mean. Two masks without a boundary (empty, or filling the image) agree: 1; if only one has none, 0.

    Args:
        predicted: ``(H, W)``, truthy on the object. Of a label map, pass ``labels == k`` for each class.
        truth: Same shape.
        bound: How far apart boundaries may be: a fraction of the image's diagonal, rounded up to whole pixels (DAVIS
            uses 0.008, Martin et al., PAMI 2004, 0.0075), or a whole number of pixels ≥ 1.
        ignore: Same shape, truthy on pixels that count as background in both.

    Raises:
        ValueError: The shapes differ, are not ``(H, W)``, or ``bound`` is neither.
    """
    masks = {"predicted": predicted, "truth": truth} | ({} if ignore is None else {"ignore": ignore})
    planes = {name: np.asarray(mask).astype(bool) for name, mask in masks.items()}
    shape = planes["truth"].shape
    for name, plane in planes.items():
        if plane.ndim != 2 or plane.shape != shape:
            raise ValueError(
                f"{name}: expected (H, W) in the shape of truth, {shape}, got {plane.shape}; pass one mask at a time"
            )
    if not (0 < bound < 1 or (bound >= 1 and float(bound).is_integer())):
        raise ValueError(f"bound: expected a fraction in (0, 1) or whole pixels >= 1, got {bound}; DAVIS uses 0.008")
    distance = bound if bound >= 1 else np.ceil(bound * np.linalg.norm(shape))
    counted = ~planes["ignore"] if ignore is not None else True
    found, true = (_boundary(planes[name] & counted) for name in ("predicted", "truth"))
    if not found.any() or not true.any():
        return float(found.any() == true.any())
    precision, recall = _share_near(found, true, distance), _share_near(true, found, distance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels that differ from a neighbour to the right, below or both; beyond the edge all is equal."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask != right) | (mask != below) | (mask != diagonal)


def _share_near(boundary: NDArray[np.bool_], other: NDArray[np.bool_], distance: float) -> float:
    # Within a distance of the other is what a dilation by a disk gives, at any radius in the same time.
    near = ndimage.distance_transform_edt(~other) <= distance
    return int((boundary & near).sum()) / int(boundary.sum())
