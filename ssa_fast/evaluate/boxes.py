"""Box accuracy of CAMs: MaxBoxAcc, MaxBoxAccV2 and accuracy at one threshold.

Protocol: Choe et al., *Evaluating Weakly Supervised Object Localization Methods Right*, CVPR 2020, arXiv 2001.07437,
and its script, ``evaluation.py`` of clovaai/wsolevaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ssa_fast.evaluate.contours import contour_boxes
from ssa_fast.localize.boxes import component_boxes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from ssa_fast.localize.options import Components

Convention = Literal["wsol", "continuous"]
IOUS: tuple[float, ...] = (0.3, 0.5, 0.7)
"""IoUs that MaxBoxAccV2 averages over."""
DEFAULT_THRESHOLDS: tuple[float, ...] = tuple(np.arange(0.0, 1.0, 0.01).tolist())
"""CAM thresholds of ``max_box_acc``, those of wsolevaluation's command line."""


def box_iou(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Return the IoUs ``(n, m)`` of boxes ``(n, 4)`` and ``(m, 4)``, ends exclusive; 0 if both are empty."""
    a = np.asarray(first, dtype=np.float64).reshape(-1, 1, 4)
    b = np.asarray(second, dtype=np.float64).reshape(1, -1, 4)
    both = np.concatenate([np.maximum(a, b)[..., :2], np.minimum(a, b)[..., 2:]], axis=-1)
    shared, *areas = (np.clip(box[..., 2:] - box[..., :2], 0.0, None).prod(-1) for box in (both, a, b))
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def resize_boxes(
    boxes: ArrayLike, size: tuple[int, int], new_size: tuple[int, int] = (224, 224)
) -> NDArray[np.float64]:
    """Return boxes of an image of ``size`` (H, W) in the coordinates of one of ``new_size``, not rounded.

    Multiplies before it divides, so that wsolevaluation's truncation, which ``max_box_acc`` does, gives the same pixel.

    Args:
        boxes: ``(n, 4)``: ``x0, y0, x1, y1`` in pixels.
        size: Height and width of the image, as its annotations have it.
        new_size: Height and width of the maps.

    Raises:
        ValueError: A size is not positive.
    """
    if min(*size, *new_size) <= 0:
        raise ValueError(f"size, new_size: expected heights and widths > 0, got {size} and {new_size}; pass (H, W)")
    (height, width), (new_height, new_width) = size, new_size
    edges = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return edges * np.tile([new_width, new_height], 2) / np.tile([width, height], 2)


@dataclass(frozen=True)
class BoxAccuracy:
    """Localisation accuracy at every CAM threshold and IoU.

    Attributes:
        thresholds: ``(T,)`` CAM thresholds.
        ious: The required IoUs.
        accuracies: ``(len(ious), T)``, fraction of maps in [0, 1] whose box reaches the IoU.
        overlaps: ``(M, T)``, the best IoU of each of the M maps with any of its true boxes.
    """

    thresholds: NDArray[np.float64]
    ious: tuple[float, ...]
    accuracies: NDArray[np.float64]
    overlaps: NDArray[np.float64]

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
    convention: Convention = "wsol",
    rescale: bool = True,
) -> BoxAccuracy:
    """Return MaxBoxAccV2 or MaxBoxAcc (Choe et al., CVPR 2020): box accuracy at every CAM threshold.

    A map counts as correct at a threshold if the box around any of its regions above it reaches the IoU with any of its
    true boxes. MaxBoxAcc takes the largest region only: ``components="largest"``.

    ``convention="wsol"`` gives the figures of wsolevaluation's script: scores become 8-bit pixels,
    ``uint8(255·score)``, and those above ``int(t·max)`` are kept; boxes are those of ``contour_boxes``; true boxes are
    truncated to whole pixels; far edges count as inside. ``convention="continuous"`` rounds nothing: ``score > t``,
    boxes around 8-connected components (``component_boxes``: no holes, the largest by pixels), far edges exclusive, and
    an empty map has no box.

    Args:
        cams: Per image and class ``(H, W)``, any real scale; the script's are 224 x 224.
        boxes: Per map its true boxes ``(n, 4)``, n ≥ 1: ``x0, y0, x1, y1`` in pixels of the map (``resize_boxes``).
            "wsol" takes them as the metadata holds them, "continuous" with exclusive far edges.
        thresholds: Thresholds in [0, 1).
        ious: Required IoUs in (0, 1].
        components: "all", or "largest" for MaxBoxAcc.
        convention: "wsol" or "continuous".
        rescale: Min–max scale each map, as wsolevaluation's inference does (a constant map becomes 0); False takes maps
            in [0, 1] as they are, as its ``evaluation.py`` does with saved ones.

    Raises:
        ValueError: No map, one that is not ``(H, W)``, holds NaN, leaves [0, 1] without ``rescale`` or has no true box,
            iterables of different lengths, a box that is inverted, not finite or (with "wsol") negative, a threshold or
            IoU out of range, or an unknown ``convention``.
        ModuleNotFoundError: OpenCV is missing and ``convention`` is "wsol".
    """
    levels, required = np.asarray(thresholds, dtype=np.float64), np.asarray(ious, dtype=np.float64)
    if not levels.size or not ((levels >= 0) & (levels < 1)).all():
        raise ValueError(
            f"thresholds: expected at least one number, all in [0, 1), got {list(thresholds)}; "
            "pass e.g. DEFAULT_THRESHOLDS"
        )
    if not required.size or not ((required > 0) & (required <= 1)).all():
        raise ValueError(f"ious: expected at least one IoU, all in (0, 1], got {list(ious)}; pass e.g. IOUS")
    if convention not in ("wsol", "continuous"):
        raise ValueError(f'convention: expected "wsol" or "continuous", got {convention!r}; choose one of them')
    best = _wsol_overlaps if convention == "wsol" else _continuous_overlaps
    pairs = zip(cams, boxes, strict=True)
    overlaps = np.array([best(_read_map(cam, rescale), _read_boxes(true), levels, components) for cam, true in pairs])
    if not len(overlaps):
        raise ValueError("cams: expected at least one map, got none; pass one map per image and class")
    return BoxAccuracy(levels, tuple(ious), np.stack([(overlaps >= iou).mean(0) for iou in required]), overlaps)


def box_accuracy(
    cams: Iterable[ArrayLike],
    boxes: Iterable[ArrayLike],
    *,
    threshold: float,
    iou: float = 0.5,
    components: Components = "largest",
    convention: Convention = "wsol",
    rescale: bool = True,
) -> float:
    """Return the fraction of maps whose box reaches ``iou`` at one threshold.

    Known as CorLoc (Deselaers et al., IJCV 2012). Arguments, scaling and errors are those of ``max_box_acc``.
    """
    options: Any = {"components": components, "convention": convention, "rescale": rescale}
    return float(max_box_acc(cams, boxes, thresholds=(threshold,), ious=(iou,), **options).accuracies[0, 0])


def _wsol_overlaps(
    score: NDArray[np.float64], truth: NDArray[np.float64], levels: NDArray[np.float64], components: Components
) -> NDArray[np.float64]:
    if (truth < 0).any():
        raise ValueError(f'boxes: expected coordinates >= 0 with convention="wsol", got {truth.tolist()}; clip them')
    pixels = (255 * score).astype(np.uint8)
    found, same = _boxes_at_each(pixels, (levels * pixels.max()).astype(np.uint8), components, contour_boxes)
    inside = np.array([0, 0, 1, 1])  # far edges count as inside
    return _best_overlaps([boxes + inside for boxes in found], np.trunc(truth) + inside)[same]


def _continuous_overlaps(
    score: NDArray[np.float64], truth: NDArray[np.float64], levels: NDArray[np.float64], components: Components
) -> NDArray[np.float64]:
    found, same = _boxes_at_each(score, levels, components, component_boxes)
    return _best_overlaps(found, truth)[same]


def _boxes_at_each(
    values: NDArray[Any],
    cuts: NDArray[Any],
    components: Components,
    boxes: Callable[[NDArray[np.bool_], Components], NDArray[np.int64]],
) -> tuple[list[NDArray[np.int64]], NDArray[np.intp]]:
    """Return the boxes of each distinct mask ``values > cut``, and which of them every cut ``(T,)`` has."""
    below = np.searchsorted(np.unique(values), cuts, side="right")
    _, first, same = np.unique(below, return_index=True, return_inverse=True)
    return [boxes(values > cut, components) for cut in cuts[first]], same


def _best_overlaps(found: list[NDArray[np.int64]], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the best IoU of each group of boxes with any true box; 0 for an empty group."""
    groups = np.repeat(np.arange(len(found)), [len(boxes) for boxes in found])
    best = np.zeros(len(found))
    np.maximum.at(best, groups, box_iou(np.concatenate(found), truth).max(1))
    return best


def _read_boxes(boxes: ArrayLike) -> NDArray[np.float64]:
    truth = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if not len(truth):
        raise ValueError(
            "boxes: expected at least one true box per map, got none; leave out maps of classes without a box"
        )
    if not np.isfinite(truth).all() or (truth[:, 2:] < truth[:, :2]).any():
        raise ValueError(f"boxes: expected x0 <= x1 and y0 <= y1, all finite, got {truth.tolist()}; order the corners")
    return truth


def _read_map(cam: ArrayLike, rescale: bool) -> NDArray[np.float64]:
    """Return a map with scores in [0, 1]; rescaled, a constant map becomes 0."""
    score = np.asarray(cam, dtype=np.float64)
    if score.ndim != 2 or not score.size or not np.isfinite(score).all():
        got = f"shape {score.shape}" if score.ndim != 2 or not score.size else "NaN or infinity"
        raise ValueError(f"cams: expected maps (H, W) of finite numbers, got {got}; pass one map per image and class")
    if rescale:
        score = score - score.min()
        return score / (score.max() or 1.0)
    if score.min() < 0 or score.max() > 1:
        raise ValueError(f"cams: expected scores in [0, 1], got {score.min()} to {score.max()}; pass rescale=True")
    return score
