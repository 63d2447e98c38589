"""Localisation quality: MaxBoxAccV2 and plain box accuracy (Choe et al., *Evaluating Weakly Supervised Object
Localization Methods Right*, CVPR 2020, arXiv 2001.07437)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

Components = Literal["largest", "all"]

IOUS: tuple[float, ...] = (0.3, 0.5, 0.7)
"""The overlaps that MaxBoxAccV2 averages."""

DEFAULT_THRESHOLDS: tuple[float, ...] = tuple(step / 100 for step in range(100))
"""CAM thresholds tried: 0 to 0.99 in steps of 0.01."""

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)


def component_boxes(mask: ArrayLike, components: Components = "largest") -> NDArray[np.int64]:
    """Boxes ``(n, 4)`` of a boolean map's 8-connected components: ``x0, y0, x1, y1`` in pixels, far edges exclusive.

    ``"largest"`` keeps the component of most pixels (the first in reading order on a tie); an empty map has no box.

    Raises:
        ValueError: ``mask`` is not two-dimensional, or ``components`` is neither ``"largest"`` nor ``"all"``.
    """
    if components not in ("largest", "all"):
        raise ValueError(f'components: expected "largest" or "all", got {components!r}; choose one of the two')
    filled = np.asarray(mask).astype(bool)
    if filled.ndim != 2:
        raise ValueError(f"mask: expected (H, W), got shape {filled.shape}; give one map at a time")
    labels, count = ndimage.label(filled, structure=_EIGHT_NEIGHBOURS)
    found = ndimage.find_objects(labels)
    if components == "largest" and count > 1:
        found = [found[int(np.argmax(np.bincount(labels.ravel())[1:]))]]
    edges = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in found]
    return np.array(edges, dtype=np.int64).reshape(-1, 4)


def box_iou(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union ``(n, m)`` of boxes ``(n, 4)`` and ``(m, 4)``, ends exclusive; 0 where both are empty."""
    a = np.asarray(first, dtype=np.float64).reshape(-1, 1, 4)
    b = np.asarray(second, dtype=np.float64).reshape(1, -1, 4)
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0, None)
    shared = sides.prod(-1)
    areas = [np.clip(box[..., 2:] - box[..., :2], 0.0, None).prod(-1) for box in (a, b)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


@dataclass(frozen=True)
class BoxAccuracy:
    """Localisation accuracy at every CAM threshold and overlap.

    Attributes:
        thresholds: ``(T,)`` CAM thresholds.
        ious: the overlaps asked for.
        accuracies: ``(len(ious), T)`` fraction of maps in [0, 1] whose box meets the overlap.
    """

    thresholds: NDArray[np.float64]
    ious: tuple[float, ...]
    accuracies: NDArray[np.float64]

    @property
    def max_box_acc(self) -> dict[float, float]:
        """MaxBoxAcc by overlap: the best over thresholds, each overlap at a threshold of its own."""
        return {iou: float(row.max()) for iou, row in zip(self.ious, self.accuracies, strict=True)}

    @property
    def max_box_acc_v2(self) -> float:
        """The mean of MaxBoxAcc over the overlaps."""
        return float(self.accuracies.max(axis=1).mean())

    @property
    def best_threshold(self) -> float:
        """The one threshold whose accuracy, averaged over the overlaps, is highest (the lowest such threshold)."""
        return float(self.thresholds[int(np.argmax(self.accuracies.mean(axis=0)))])


def max_box_acc(
    cams: Iterable[ArrayLike],
    boxes: Iterable[ArrayLike],
    *,
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
    ious: Sequence[float] = IOUS,
    components: Components = "all",
) -> BoxAccuracy:
    """MaxBoxAccV2 of CAMs against true boxes.

    Each map is min–max scaled to [0, 1] and cut at every threshold (``score > t``); the boxes of its components are the
    guesses. A map is right at an overlap if any guess meets any of its true boxes at that IoU or more. The paper's
    MaxBoxAccV2 takes the boxes of all components; MaxBoxAcc before it the largest one's: ``components="largest"``.

    Two details differ from the paper's script, neither of weight: scores are cut as floats instead of 8-bit pixels, and
    boxes end one past their last pixel instead of on it.

    Args:
        cams: per picture and class ``(H, W)``, any real scale, at the size that the boxes are given in.
        boxes: per map its true boxes ``(n, 4)``, n ≥ 1: ``x0, y0, x1, y1`` in pixels, far edges exclusive.
        thresholds: cuts in [0, 1).
        ious: overlaps in (0, 1].
        components: which components give boxes.

    Raises:
        ValueError: no map is given, a map is not ``(H, W)`` or holds NaN, a map has no true box, the iterables differ
            in length, or a threshold or overlap is out of range.
    """
    cuts, overlaps = np.asarray(thresholds, dtype=np.float64), np.asarray(ious, dtype=np.float64)
    if not cuts.size or not ((cuts >= 0) & (cuts < 1)).all():
        raise ValueError(
            f"thresholds: expected one cut or more, all in [0, 1), got {list(thresholds)}; give e.g. DEFAULT_THRESHOLDS"
        )
    if not overlaps.size or not ((overlaps > 0) & (overlaps <= 1)).all():
        raise ValueError(f"ious: expected at least one overlap, all in (0, 1], got {list(ious)}; give e.g. IOUS")
    right = np.zeros((len(overlaps), len(cuts)), np.int64)
    count = 0
    for cam, true in zip(cams, boxes, strict=True):
        score, truth = _scaled(cam), np.asarray(true, dtype=np.float64).reshape(-1, 4)
        if not len(truth):
            raise ValueError(
                "boxes: expected at least one true box per map, got none; leave out maps of classes without a box"
            )
        best = np.array([box_iou(component_boxes(score > cut, components), truth).max(initial=0.0) for cut in cuts])
        right += best >= overlaps[:, None]
        count += 1
    if not count:
        raise ValueError("cams: expected at least one map, got none; an accuracy of nothing has no value")
    return BoxAccuracy(cuts, tuple(ious), right / count)


def box_accuracy(
    cams: Iterable[ArrayLike],
    boxes: Iterable[ArrayLike],
    *,
    threshold: float,
    iou: float = 0.5,
    components: Components = "largest",
) -> float:
    """Fraction of maps whose box meets ``iou`` at one fixed threshold: CorLoc, or localisation with known class.

    Arguments, scaling and errors are those of :func:`max_box_acc`.
    """
    return float(max_box_acc(cams, boxes, thresholds=(threshold,), ious=(iou,), components=components).accuracies[0, 0])


def _scaled(cam: ArrayLike) -> NDArray[np.float64]:
    """A map scaled to [0, 1]; a constant map becomes 0, which has no box."""
    score = np.asarray(cam, dtype=np.float64)
    if score.ndim != 2 or not np.isfinite(score).all():
        what = f"shape {score.shape}" if score.ndim != 2 else "NaN or infinity"
        raise ValueError(f"cams: expected maps (H, W) of numbers, got {what}; give one map per picture and class")
    low, high = (score.min(), score.max()) if score.size else (0.0, 0.0)
    return (score - low) / (high - low) if high > low else np.zeros_like(score)
