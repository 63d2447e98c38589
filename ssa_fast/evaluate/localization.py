"""Localisation accuracy of a classifier and its CAMs: GT-known, top-1 and top-5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ssa_fast.evaluate.boxes import BoxAccuracy


@dataclass(frozen=True)
class LocalizationAccuracy:
    """Fractions of images in [0, 1] that are localised, at one CAM threshold and IoU.

    Attributes:
        threshold, iou: CAM threshold, and IoU that a box must reach.
        gt_known: Images whose true class's box reaches the IoU.
        top1, top5: Of those, the images whose true class is also the first, or among the first five, of the classifier;
            as a fraction of all images.
    """

    threshold: float
    iou: float
    gt_known: float
    top1: float
    top5: float


def localization_accuracy(
    found: BoxAccuracy, scores: ArrayLike, labels: ArrayLike, *, iou: float = 0.5, threshold: float | None = None
) -> LocalizationAccuracy:
    """Return GT-known, top-1 and top-5 localisation accuracy (ILSVRC; Russakovsky et al., IJCV 2015).

    A box counts only with its class, so all three look at the box from the true class's CAM. Of equal class scores the
    lower index ranks first.

    Args:
        found: Result of ``max_box_acc`` for one map per image, that of its true class; ``components="largest"`` gives
            the one box per class that the challenge asks for.
        scores: ``(M, N)`` class scores (logits or probabilities) of the M images.
        labels: ``(M,)`` integers, the true classes.
        iou: IoU that a box must reach, in (0, 1].
        threshold: One of ``found.thresholds``; the lowest that is best for GT-known by default, which looks at the
            truth: to be fair, pass one that was chosen on other images.

    Raises:
        ValueError: A shape, label, threshold or IoU does not fit, or a score is NaN.
        TypeError: ``labels`` are not integers.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou: expected a number in (0, 1], got {iou}; 0.5 is usual")
    ranks = _true_class_ranks(scores, labels, len(found.overlaps))
    correct = found.overlaps >= iou  # [M, T]
    column = int(np.argmax(correct.mean(0))) if threshold is None else _column(found.thresholds, threshold)
    localized = correct[:, column]
    accuracies = (float((localized & (ranks < limit)).mean()) for limit in (np.inf, 1, 5))
    return LocalizationAccuracy(float(found.thresholds[column]), iou, *accuracies)


def _column(thresholds: NDArray[np.float64], threshold: float) -> int:
    columns = np.flatnonzero(thresholds == threshold)
    if not len(columns):
        raise ValueError(f"threshold: expected one of found.thresholds, got {threshold}; pass it to max_box_acc too")
    return int(columns[0])


def _true_class_ranks(scores: ArrayLike, labels: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return how many classes come before the true one, per image ``(M,)``."""
    table, true = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if table.ndim != 2 or len(table) != count:
        raise ValueError(f"scores: expected (M, N) with M = {count} maps, got {table.shape}; pass a row per map")
    if not np.issubdtype(true.dtype, np.integer):
        raise TypeError(f"labels: expected integers, got {true.dtype}; pass class indices")
    if true.shape != (count,) or (true < 0).any() or (true >= table.shape[1]).any():
        raise ValueError(
            f"labels: expected ({count},) indices in [0, {table.shape[1]}), got shape {true.shape} from "
            f"{true.min(initial=0)} to {true.max(initial=0)}; pass the true class of each map"
        )
    if np.isnan(table).any():
        raise ValueError("scores: expected numbers, got NaN; leave those images out")
    own = np.take_along_axis(table, true[:, None].astype(np.int64), axis=1)
    earlier = np.arange(table.shape[1]) < true[:, None]
    return ((table > own) | ((table == own) & earlier)).sum(1)
