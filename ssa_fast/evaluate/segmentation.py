"""Mean IoU of pseudo-masks, and the sweep over background thresholds.

Protocol: VOC's mean IoU (Everingham et al., IJCV 2010), with the background threshold swept as in the evaluation
scripts of IRN (Ahn et al., CVPR 2019; ``step/eval_cam.py``) and SEAM (Wang et al., CVPR 2020; ``evaluation.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

Absent = Literal["skip", "zero"]
IGNORE = 255
"""True label of pixels that are not counted (VOC's void)."""
DEFAULT_THRESHOLDS: tuple[float, ...] = tuple(step / 100 for step in range(1, 100))
"""Background scores of ``threshold_sweep``."""
SEAM_THRESHOLDS: tuple[float, ...] = tuple(step / 100 for step in range(60))
"""Background scores of SEAM's own curve."""
ZERO_EPS = 1e-10
"""What SEAM's script adds to every denominator."""


def confusion_matrix(predicted: ArrayLike, truth: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Return pixel counts ``(N, N)`` by truth (row) and prediction (column).

    Args:
        predicted: Label map of integers in ``[0, N)``.
        truth: Label map of the same shape, in ``[0, N)`` or ``IGNORE`` (255), which is not counted.
        num_classes: N, background included.

    Raises:
        ValueError: The shapes differ, or a counted label lies outside ``[0, N)``.
        TypeError: A map does not hold integers.
    """
    maps = {"predicted": np.asarray(predicted), "truth": np.asarray(truth)}
    for name, labels in maps.items():
        if not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"{name}: expected a label map of integers, got {labels.dtype}; cast it, e.g. to int64")
    shape, expected = (labels.shape for labels in maps.values())
    if shape != expected:
        raise ValueError(
            f"predicted: expected the shape of truth, {expected}, got {shape}; resize the prediction first"
        )
    counted = maps["truth"] != IGNORE
    guess, true = (labels[counted].astype(np.int64) for labels in maps.values())
    for name, labels in (("predicted", guess), ("truth", true)):
        if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
            raise ValueError(
                f"{name}: expected labels in [0, {num_classes}), got {labels.min()} to {labels.max()}; "
                "num_classes counts the background too"
            )
    return np.bincount(true * num_classes + guess, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou_per_class(confusion: ArrayLike, absent: Absent = "skip") -> NDArray[np.float64]:
    """Return the IoU ``(N,)`` of each class of a confusion matrix; NaN or 0 for a class in neither map.

    Args:
        confusion: ``(N, N)`` pixel counts.
        absent: "skip" gives such a class NaN, as IRN's script; "zero" gives it 0 and adds ``ZERO_EPS`` to every
            denominator, as SEAM's.

    Raises:
        ValueError: ``absent`` is neither.
    """
    _check_absent(absent)
    counts = np.asarray(confusion, dtype=np.float64)
    hits = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - hits
    if absent == "zero":
        return hits / (union + ZERO_EPS)
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def mean_iou(confusion: ArrayLike, absent: Absent = "skip") -> float:
    """Return the mean of ``iou_per_class``: over the classes present ("skip"), or over all ("zero").

    NaN if no pixel was counted and absent classes are skipped. Arguments and errors are those of ``iou_per_class``.
    """
    return _mean(iou_per_class(confusion, absent))


def _mean(ious: NDArray[np.float64]) -> float:
    return float(np.nanmean(ious)) if np.isfinite(ious).any() else float("nan")


def _check_absent(absent: str) -> None:
    if absent not in ("skip", "zero"):
        raise ValueError(f'absent: expected "skip" or "zero", got {absent!r}; IRN skips absent classes, SEAM counts 0')


@dataclass(frozen=True)
class Sweep:
    """Mean IoU at every background threshold.

    Attributes:
        thresholds: ``(T,)``, ascending.
        mious: ``(T,)``, mean IoU in [0, 1] at each threshold.
        ious: ``(T, N)``, IoU of each class; that of a class in neither map is NaN or 0, as ``absent`` says.
        confusions: ``(T, N, N)`` pixel counts.
    """

    thresholds: NDArray[np.float64]
    mious: NDArray[np.float64]
    ious: NDArray[np.float64]
    confusions: NDArray[np.int64]

    @property
    def best_threshold(self) -> float:
        """The (lowest) threshold of the highest mean IoU."""
        return float(self.thresholds[int(np.argmax(self.mious))])

    @property
    def best_miou(self) -> float:
        """The highest mean IoU."""
        return float(self.mious.max())


def threshold_sweep(
    cams: Iterable[ArrayLike],
    classes: Iterable[Sequence[int] | NDArray[np.integer]],
    truths: Iterable[ArrayLike],
    num_classes: int,
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
    absent: Absent = "skip",
) -> Sweep:
    """Return the mean IoU of CAMs at each background score, as the scripts of IRN or SEAM define it.

    At threshold ``t`` a pixel's label is ``argmax([t, cam_1, …, cam_K])``: the highest CAM if it exceeds ``t``, else
    background. Scores and thresholds are compared as float32, as in both scripts. All thresholds take one pass.

    Args:
        cams: Per image ``(K, H, W)`` in [0, 1], of the classes present; K may differ between images and may be 0.
        classes: Per image the K class indices, 0-based without background; class ``k`` is ``k + 1`` in the truth.
        truths: Per image ``(H, W)`` integers: 0 background, ``k + 1`` for class ``k``, 255 not counted.
        num_classes: N, background included.
        thresholds: Background scores, in any order.
        absent: What a class counts that no map holds, in truth or prediction: "skip" leaves it out of the mean (IRN),
            "zero" counts it as 0 (SEAM). Of equal CAMs the first wins; with "zero" the class of the lowest index.

    Raises:
        ValueError: Iterables of different lengths, a wrong shape or label, NaN in a CAM, no threshold, no pixel that is
            counted, or an unknown ``absent``.
    """
    _check_absent(absent)
    levels = np.unique(np.asarray(thresholds, dtype=np.float64))
    if not levels.size or np.isnan(levels).any():
        raise ValueError(
            f"thresholds: expected at least one number and no NaN, got {list(thresholds)}; pass e.g. DEFAULT_THRESHOLDS"
        )
    count, side = len(levels), num_classes**2
    # Pixel counts by number of thresholds below the score: labelled foreground at those, background at the others.
    foreground, background = np.zeros((2, count + 1, side), np.int64)
    for cam, present, truth in zip(cams, classes, truths, strict=True):
        score, label = _strongest(np.asarray(cam), np.asarray(present, dtype=np.int64), by_index=absent == "zero")
        true = np.asarray(truth)
        confusion_matrix(label, true, num_classes)  # checks shapes and ranges
        counted = true != IGNORE
        below = np.searchsorted(levels.astype(np.float32), score[counted])
        bins = below * side + true[counted].astype(np.int64) * num_classes
        foreground += np.bincount(bins + label[counted], minlength=foreground.size).reshape(-1, side)
        background += np.bincount(bins, minlength=background.size).reshape(-1, side)
    if not background.any():
        raise ValueError(f"truths: expected at least one pixel that is not {IGNORE}, got none; pass images and truths")
    confusions = (foreground.sum(0) - foreground.cumsum(0) + background.cumsum(0))[:count]
    confusions = confusions.reshape(-1, num_classes, num_classes)
    ious = np.stack([iou_per_class(confusion, absent) for confusion in confusions])
    return Sweep(levels, np.array([_mean(row) for row in ious]), ious, confusions)


def _strongest(
    cam: NDArray[np.floating], present: NDArray[np.int64], by_index: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return each pixel's highest CAM value and its label (class + 1); the first class, or lowest index, wins a tie."""
    if cam.ndim != 3 or len(cam) != len(present):
        raise ValueError(
            f"cams: expected (K, H, W) with K = {len(present)} as in classes, got {cam.shape}; pass a map per class"
        )
    if np.isnan(cam).any():
        raise ValueError("cams: expected numbers, got NaN; replace NaN, e.g. by 0, first")
    if not len(cam):
        return np.full(cam.shape[1:], -np.inf, np.float32), np.zeros(cam.shape[1:], np.int64)
    order = np.argsort(present, kind="stable") if by_index else np.arange(len(present))
    scores = cam.astype(np.float32, copy=False)[order]
    return scores.max(0), present[order][scores.argmax(0)] + 1
