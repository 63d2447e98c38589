"""Average precision of image scores, and of CAM pixels (PxAP of Choe et al., CVPR 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def average_precision(scores: ArrayLike, positive: ArrayLike) -> float:
    """Return the average precision, ``Σ (R_n − R_{n−1}) P_n`` over the distinct scores, highest first.

    As scikit-learn's ``average_precision_score``: no interpolation, tied scores are one step.

    Args:
        scores: Any shape, real; higher means more likely positive.
        positive: Same shape, truthy where positive.

    Raises:
        ValueError: The shapes differ, a score is NaN, or nothing is positive (recall is undefined then).
    """
    score, truth = np.asarray(scores, dtype=np.float64), np.asarray(positive).astype(bool)
    if score.shape != truth.shape:
        raise ValueError(f"positive: expected the shape of scores, {score.shape}, got {truth.shape}; pair them up")
    if np.isnan(score).any():
        raise ValueError("scores: expected numbers, got NaN; drop those entries first")
    if not truth.any():
        raise ValueError("positive: expected at least one positive, got none; leave such classes out of the mean")
    order = np.argsort(-score, axis=None)
    last_of_tie = np.append(np.diff(score.ravel()[order]) != 0, True)
    hits, ranks = np.cumsum(truth.ravel()[order])[last_of_tie], np.flatnonzero(last_of_tie) + 1
    return float(np.sum(np.diff(hits, prepend=0) * hits / ranks) / hits[-1])


def pixel_average_precision(cams: ArrayLike, masks: ArrayLike, ignore: ArrayLike | None = None) -> float:
    """Return PxAP of Choe et al. (CVPR 2020): the average precision of CAM pixels against true masks.

    All pixels of all maps are ranked together by score, so the maps should share a scale, as min–max scaled ones do.
    The paper's script uses 1,000 score bins; here every distinct score is a threshold, so nothing is rounded.

    Args:
        cams: ``(N, H, W)`` scores.
        masks: ``(N, H, W)``, truthy on the object.
        ignore: ``(N, H, W)``, truthy where a pixel is left out.

    Raises:
        ValueError: As ``average_precision``, or ``ignore`` differs in shape.
    """
    scores, truth = np.asarray(cams), np.asarray(masks)
    if ignore is None or scores.shape != truth.shape:
        return average_precision(scores, truth)
    ignored = np.asarray(ignore).astype(bool)
    if ignored.shape != scores.shape:
        raise ValueError(
            f"ignore: expected the shape of cams, {scores.shape}, got {ignored.shape}; pass one flag per pixel"
        )
    return average_precision(scores[~ignored], truth[~ignored])
