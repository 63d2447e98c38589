"""MaxBoxAcc, MaxBoxAccV2, GT-known, top-1 and top-5 localisation of CAM files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.evaluate.boxes import DEFAULT_THRESHOLDS, IOUS, BoxAccuracy, max_box_acc, resize_boxes
from ssa_fast.evaluate.datasets.localization import LocalizationSource, describe, estimate_threshold
from ssa_fast.evaluate.datasets.predictions import predicted_classes, rank_true_classes
from ssa_fast.evaluate.datasets.segmentation import as_number, mean_known, shown_progress
from ssa_fast.evaluate.localization import localization_accuracy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ssa_fast.evaluate.datasets.base import LocalizationSet
    from ssa_fast.evaluate.datasets.cam_folder import CamFolder, Missing
    from ssa_fast.evaluate.datasets.localization import Pairs
    from ssa_fast.evaluate.datasets.predictions import Predictions
    from ssa_fast.localize.options import Components

__all__ = ["BoxReport", "evaluate_boxes"]

COMPONENTS: tuple[Components, ...] = ("largest", "all")
TOP_K = 5


@dataclass(frozen=True, eq=False)
class BoxReport:
    """What ``evaluate_boxes`` found.

    Attributes:
        source: The dataset and its CAM files, which panels read again.
        images: The images that were counted, with their files.
        found: "largest" (MaxBoxAcc) and "all" (MaxBoxAccV2) -> accuracy at every threshold and IoU.
        truth_free: The same at a threshold per image that no box was looked at for, ``backgrounds``.
        backgrounds: (n,) those thresholds, by ``localize.estimate_background``; NaN without a CAM.
        ranks: (n,) how many classes were predicted before the true one, at most ``depth``.
        depth: How many predicted classes of every image are known.
        notes: What the reader should know of the numbers, one sentence each.
    """

    source: LocalizationSource
    images: Pairs
    found: dict[Components, BoxAccuracy]
    truth_free: dict[Components, BoxAccuracy]
    backgrounds: NDArray[np.float64]
    ranks: NDArray[np.int64]
    depth: int
    notes: tuple[str, ...]

    def top(self, k: int, iou: float = 0.5) -> float | None:
        """Return top-k localisation at the best threshold for GT-known; None if so many predictions are not known."""
        if self.depth < k:
            return None
        # Only the rank of the true class matters: it stands for the class, and scores fall from rank to rank.
        scores = np.tile(np.arange(self.depth, -1, -1), (len(self.ranks), 1))
        found = localization_accuracy(self.found["largest"], scores, self.ranks, iou=iou)
        return {1: found.top1, 5: found.top5}[k]

    def worst(self, count: int = 10) -> list[tuple[int, float]]:
        """Return position and IoU of the images whose largest region's box is worst at the best threshold."""
        column = int(np.argmax(self.found["largest"].thresholds == self.best_threshold))
        scores = self.found["largest"].overlaps[:, column]
        return [(int(i), float(scores[i])) for i in np.argsort(scores, kind="stable")[:count]]

    @property
    def best_threshold(self) -> float:
        """The lowest threshold of the best MaxBoxAcc at IoU 50."""
        found = self.found["largest"]
        return float(found.thresholds[int(np.argmax((found.overlaps >= 0.5).mean(0)))])

    def to_json(self) -> dict[str, Any]:
        """Return all numbers in JSON's types; what is not known is None."""
        largest, every = self.found["largest"], self.found["all"]
        free = self.truth_free
        return {
            "dataset": self.source.dataset.name,
            "measure": "MaxBoxAcc",
            "images": len(self.images),
            "best_threshold": self.best_threshold,
            "max_box_acc": _by_iou(largest),
            "max_box_acc_all_regions": _by_iou(every),
            "max_box_acc_v2": every.max_box_acc_v2,
            "gt_known": largest.max_box_acc.get(0.5),
            "top1": self.top(1),
            "top5": self.top(TOP_K),
            "truth_free": {
                "box_acc": _by_iou(free["largest"]),
                "box_acc_v2": free["all"].max_box_acc_v2,
                "mean_threshold": as_number(mean_known(self.backgrounds)),
            },
            "thresholds": largest.thresholds.tolist(),
            "accuracies": dict(zip(map(_percent, largest.ious), largest.accuracies.tolist(), strict=True)),
            "accuracies_all_regions": dict(zip(map(_percent, every.ious), every.accuracies.tolist(), strict=True)),
            "worst": [{"image": self.images[i][0].id, "iou": score} for i, score in self.worst()],
            "notes": list(self.notes),
        }


def evaluate_boxes(
    dataset: LocalizationSet,
    cams: CamFolder,
    *,
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
    ious: Sequence[float] = IOUS,
    predictions: Predictions | None = None,
    missing: Missing = "refuse",
    progress: bool = False,
) -> BoxReport:
    """Return MaxBoxAcc, MaxBoxAccV2, GT-known, top-1 and top-5 localisation as wsolevaluation prints them.

    Args:
        dataset: The images with their true boxes.
        cams: Their CAM files, of which the true class's map is compared at 224 x 224.
        thresholds: See ``max_box_acc``.
        ious: See ``max_box_acc``.
        predictions: Image -> its predicted classes, best first; or CAM files of a run with ``--classes top5``. None:
            what ``cams`` themselves say, if they are of predicted classes.
        missing: What an image without a CAM of its true class is, see ``Missing``.
        progress: Whether to show on stderr how far it is.

    Raises:
        FileNotFoundError: A CAM file is missing with ``missing="refuse"``.
        ModuleNotFoundError: OpenCV is not installed.
        ValueError: A file cannot be read or does not fit; the message names it.
    """
    source, notes = LocalizationSource(dataset, cams, missing), Counter[str]()
    images, levels = source.pairs(), np.asarray(thresholds, dtype=np.float64)
    overlaps = {each: np.zeros((len(images), len(levels))) for each in COMPONENTS}
    free = {each: np.zeros((len(images), 1)) for each in COMPONENTS}
    backgrounds, ranked = np.full(len(images), np.nan), list[tuple[int, ...]]()
    for i, (image, path) in enumerate(shown_progress(images, progress)):
        cam, content = source.read(image, path, notes)
        W, H = image.size or (0, 0)
        true = resize_boxes(np.array(image.boxes), (H, W), cam.shape)
        backgrounds[i] = estimate_threshold(cam)
        for each in COMPONENTS:
            overlaps[each][i] = max_box_acc([cam], [true], thresholds=levels.tolist(), components=each).overlaps[0]
            level = [float(np.nan_to_num(backgrounds[i]))]
            free[each][i] = max_box_acc([cam], [true], thresholds=level, components=each).overlaps[0]
        ranked.append(predicted_classes(image.id, content, predictions))
    ranks, depth = rank_true_classes([image.label for image, _ in images], ranked)
    said = describe(notes, source, images)
    if depth < TOP_K:
        unknown, known = ("top-5", f"only {depth}") if depth else ("top-1 and top-5", "no")
        said.append(
            f"{unknown} localisation: not known, as {known} predicted classes of each image are; pass --predictions "
            "with a run of --classes top5, or with a file of lines image,class,class,..."
        )
    return BoxReport(
        source,
        images,
        {each: _accuracy(levels, ious, overlaps[each]) for each in COMPONENTS},
        {each: _accuracy(np.array([mean_known(backgrounds)]), ious, free[each]) for each in COMPONENTS},
        backgrounds,
        ranks,
        depth,
        tuple(said),
    )


def _accuracy(thresholds: NDArray[np.float64], ious: Sequence[float], overlaps: NDArray[np.float64]) -> BoxAccuracy:
    accuracies = np.stack([(overlaps >= iou).mean(0) for iou in ious])
    return BoxAccuracy(thresholds, tuple(ious), accuracies, overlaps)


def _by_iou(found: BoxAccuracy) -> dict[str, float]:
    return {_percent(iou): accuracy for iou, accuracy in found.max_box_acc.items()}


def _percent(iou: float) -> str:
    return f"{100 * iou:g}"
