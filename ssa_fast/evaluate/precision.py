"""Average precision of image scores, and of CAM pixels (PxAP of Choe et al., CVPR 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

Convention = Literal["wsol", "exact"]
PXAP_THRESHOLDS: tuple[float, ...] = tuple(np.arange(0.0, 1.0, 0.001).tolist())
"""Score steps of ``pixel_average_precision``, those of wsolevaluation's ``cam_curve_interval=.001``."""


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


def pixel_average_precision(
    cams: Iterable[ArrayLike],
    masks: Iterable[ArrayLike],
    ignore: Iterable[ArrayLike] | None = None,
    *,
    convention: Convention = "wsol",
    thresholds: Sequence[float] = PXAP_THRESHOLDS,
) -> float:
    """Return PxAP of Choe et al. (CVPR 2020): the average precision of CAM pixels against true masks.

    All pixels of all maps are ranked together by score, so the maps share a scale: min–max scale each to [0, 1].
    ``convention="wsol"`` gives the figures of wsolevaluation's script: the scores between two neighbouring thresholds
    are one step. ``convention="exact"`` has a step at every distinct score, and keeps all scores in memory.

    Args:
        cams: Per image ``(H, W)`` scores; in [0, 1] with "wsol".
        masks: Per image ``(H, W)``, truthy on the object.
        ignore: Per image ``(H, W)``, truthy where a pixel is left out; none by default.
        convention: "wsol" or "exact".
        thresholds: Steps of "wsol", ascending from 0, below 1.

    Raises:
        ValueError: Iterables of different lengths, shapes that differ, NaN, nothing positive, thresholds or scores out
            of range, or an unknown ``convention``.
    """
    if convention not in ("wsol", "exact"):
        raise ValueError(f'convention: expected "wsol" or "exact", got {convention!r}; choose one of them')
    pixels = _counted_pixels(cams, masks, ignore)
    if convention == "exact":
        kept = [(np.zeros(0), np.zeros(0, bool)), *pixels]
        return average_precision(np.concatenate([each for each, _ in kept]), np.concatenate([each for _, each in kept]))
    return _binned_average_precision(pixels, np.asarray(thresholds, dtype=np.float64))


def _counted_pixels(
    cams: Iterable[ArrayLike], masks: Iterable[ArrayLike], ignore: Iterable[ArrayLike] | None
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Yield scores and truths ``(n,)`` of each map's pixels that count."""
    groups = zip(cams, masks, strict=True) if ignore is None else zip(cams, masks, ignore, strict=True)
    for cam, *flags in groups:
        score = np.asarray(cam, dtype=np.float64)
        truth, *ignored = (np.asarray(flag).astype(bool) for flag in flags)
        for name, plane in zip(("masks", "ignore"), (truth, *ignored), strict=False):
            if plane.shape != score.shape:
                raise ValueError(
                    f"{name}: expected the shape of cams, {score.shape}, got {plane.shape}; pass one flag per pixel"
                )
        counted = ~ignored[0] if ignored else np.ones_like(truth)
        if np.isnan(score[counted]).any():
            raise ValueError("cams: expected numbers, got NaN; ignore those pixels or leave the map out")
        yield score[counted], truth[counted]


def _binned_average_precision(
    pixels: Iterable[tuple[NDArray[np.float64], NDArray[np.bool_]]], thresholds: NDArray[np.float64]
) -> float:
    if not thresholds.size or thresholds[0] != 0 or not (np.diff(thresholds, append=1.0) > 0).all():
        raise ValueError(
            f"thresholds: expected numbers that ascend from 0 and stay below 1, got {thresholds.tolist()[:5]}…; "
            "pass e.g. PXAP_THRESHOLDS"
        )
    edges = np.append(thresholds, 1.0)
    counts = np.zeros((2, len(edges)), np.int64)  # of pixels off and on the object
    for scores, truth in pixels:
        if scores.min(initial=0.0) < 0 or scores.max(initial=0.0) > 1:
            raise ValueError(
                f"cams: expected scores in [0, 1], got {scores.min()} to {scores.max()}; min–max scale each map first"
            )
        bins = np.searchsorted(edges, scores, side="right") - 1
        counts += np.bincount(bins + truth * len(edges), minlength=counts.size).reshape(counts.shape)
    negatives, positives = counts[:, ::-1].cumsum(1)
    if not positives[-1]:
        raise ValueError("masks: expected at least one pixel on an object, got none; pass masks that are truthy there")
    # The order of these operations is the script's, so that the last digit is too.
    gained = np.diff(positives / positives[-1], prepend=0.0)
    filled = positives + negatives > 0
    return float(((positives / np.maximum(positives + negatives, 1)) * gained)[filled].sum())
