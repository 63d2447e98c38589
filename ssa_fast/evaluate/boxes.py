"""Box accuracy of CAMs: MaxBoxAccV2 and accuracy at one threshold.

Protocol: Choe et al., *Evaluating Weakly Supervised Object Localization Methods Right*, CVPR 2020, arXiv 2001.07437.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ssa_fast.localize.boxes import component_boxes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from ssa_fast.localize.options import Components

IOUS: tuple[float, ...] = (0.3, 0.5, 0.7)
"""IoUs that MaxBoxAccV2 averages over."""
DEFAULT_THRESHOLDS: tuple[float, ...] = tuple(step / 100 for step in range(100))
"""CAM thresholds of ``max_box_acc``."""


def box_iou(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Return the IoUs ``(n, m)`` of boxes ``(n, 4)`` and ``(m, 4)``, ends exclusive; 0 if both are empty."""
    a = np.asarray(first, dtype=np.float64).reshape(-1, 1, 4)
    b = np.asarray(second, dtype=np.float64).reshape(1, -1, 4)
    both = np.concatenate([np.maximum(a, b)[..., :2], np.minimum(a, b)[..., 2:]], axis=-1)
    shared, *areas = (np.clip(box[..., 2:] - box[..., :2], 0.0, None).prod(-1) for box in (both, a, b))
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


@dataclass(frozen=True)
class BoxAccuracy:
    """Localisation accuracy at every CAM threshold and IoU.

    Attributes:
        thresholds: ``(T,)`` CAM thresholds.
        ious: The required IoUs.
        accuracies: ``(len(ious), T)``, fraction of maps in [0, 1] whose box reaches the IoU.
    """

    thresholds: NDArray[np.float64]
    ious: tuple[float, ...]
    accuracies: NDArray[np.float64]

    @property
    def max_box_acc(self) -> dict[float, float]:
        """MaxBoxAcc per IoU: the highest accuracy over the thresholds, for each IoU on its own."""
        return {iou: float(row.max()) for iou, row in zip(self.ious, self.accuracies, strict=True)}

    @property
    def max_box_acc_v2(self) -> float:
        """MaxBoxAccV2: the mean of MaxBoxAcc over the IoUs."""
        return float(self.accuracies.max(axis=1).mean())

    @property
    def best_threshold(self) -> float:
        """The (lowest) threshold whose accuracy, averaged over the IoUs, is highest."""
        return float(self.thresholds[int(np.argmax(self.accuracies.mean(axis=0)))])


def max_box_acc(
    cams: Iterable[ArrayLike],
    boxes: Iterable[ArrayLike],
    *,
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
    ious: Sequence[float] = IOUS,
    components: Components = "all",
) -> BoxAccuracy:
    """Return the box accuracy of CAMs against true boxes (MaxBoxAccV2 of Choe et al., CVPR 2020).

    Each map is min–max scaled to [0, 1] and thresholded (``score > t``); it counts as correct if the box around any of
    its components reaches the IoU with any of its true boxes. The older MaxBoxAcc uses the largest component only.

    Unlike in the paper's script, scores are thresholded as floats instead of 8-bit pixels, and boxes end one past their
    last pixel instead of on it.

    Args:
        cams: Per image and class ``(H, W)``, any real scale, at the resolution of the boxes.
        boxes: Per map its true boxes ``(n, 4)``, n ≥ 1: ``x0, y0, x1, y1`` in pixels, far edges exclusive.
        thresholds: Thresholds in [0, 1).
        ious: Required IoUs in (0, 1].
        components: "all", or "largest" for MaxBoxAcc.

    Raises:
        ValueError: No map, one that is not ``(H, W)``, holds NaN or has no true box, iterables of different lengths, or
            a threshold or IoU out of range.
    """
    levels, required = np.asarray(thresholds, dtype=np.float64), np.asarray(ious, dtype=np.float64)
    if not levels.size or not ((levels >= 0) & (levels < 1)).all():
        raise ValueError(
            f"thresholds: expected at least one number, all in [0, 1), got {list(thresholds)}; "
            "pass e.g. DEFAULT_THRESHOLDS"
        )
    if not required.size or not ((required > 0) & (required <= 1)).all():
        raise ValueError(f"ious: expected at least one IoU, all in (0, 1], got {list(ious)}; pass e.g. IOUS")
    correct = []  # per map, (len(required), len(levels))
    for cam, true in zip(cams, boxes, strict=True):
        score, truth = _scaled(cam), np.asarray(true, dtype=np.float64).reshape(-1, 4)
        if not len(truth):
            raise ValueError(
                "boxes: expected at least one true box per map, got none; leave out maps of classes without a box"
            )
        predicted = (component_boxes(score > level, components) for level in levels)
        best = [box_iou(found, truth).max(initial=0.0) for found in predicted]
        correct.append(np.array(best) >= required[:, None])
    if not correct:
        raise ValueError("cams: expected at least one map, got none; pass one map per image and class")
    return BoxAccuracy(levels, tuple(ious), np.mean(correct, axis=0))


def box_accuracy(
    cams: Iterable[ArrayLike],
    boxes: Iterable[ArrayLike],
    *,
    threshold: float,
    iou: float = 0.5,
    components: Components = "largest",
) -> float:
    """Return the fraction of maps whose box reaches ``iou`` at one threshold.

    Known as CorLoc (Deselaers et al., IJCV 2012). Arguments, scaling and errors are those of ``max_box_acc``.
    """
    return float(max_box_acc(cams, boxes, thresholds=(threshold,), ious=(iou,), components=components).accuracies[0, 0])


def _scaled(cam: ArrayLike) -> NDArray[np.float64]:
    """Return a map scaled to [0, 1]; a constant map becomes 0, which has no box."""
    score = np.asarray(cam, dtype=np.float64)
    if score.ndim != 2 or not np.isfinite(score).all():
        got = f"shape {score.shape}" if score.ndim != 2 else "NaN or infinity"
        raise ValueError(f"cams: expected maps (H, W) of finite numbers, got {got}; pass one map per image and class")
    score = score - score.min(initial=np.inf)
    return score / (score.max(initial=0.0) or 1.0)
