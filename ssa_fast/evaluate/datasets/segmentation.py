"""Mean IoU of CAM files against a dataset's label maps, with one image in memory at a time."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn.functional import interpolate

from ssa_fast.evaluate.datasets.base import first_of
from ssa_fast.evaluate.segmentation import DEFAULT_THRESHOLDS, IGNORE, Sweep, iou_per_class, mean_iou, threshold_sweep
from ssa_fast.io.cam_files import full_size
from ssa_fast.io.progress import paced
from ssa_fast.localize import estimate_background

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ssa_fast.evaluate.datasets.base import LabelledImage, SegmentationSet
    from ssa_fast.evaluate.datasets.cam_folder import CamFolder, Missing
    from ssa_fast.evaluate.segmentation import Absent
    from ssa_fast.io.cam_files import CamFile

__all__ = ["Match", "SegmentationReport", "SegmentationSource", "TruthFree", "evaluate_segmentation"]

Match = Literal["auto", "names", "index"]
"""How a CAM's class becomes the dataset's: by its name, by its index, or by the name where the file has names."""


@dataclass(frozen=True, eq=False)
class TruthFree:
    """The result at background scores that no true label was looked at for.

    Attributes:
        backgrounds: (n,) the score of each image, by ``localize.estimate_background``; NaN without a CAM.
        confusion: (N, N) pixel counts by truth (row) and prediction (column).
        miou: Its mean IoU, in the convention of the report.
    """

    backgrounds: NDArray[np.float64]
    confusion: NDArray[np.int64]
    miou: float


@dataclass(frozen=True, eq=False)
class SegmentationReport:
    """What ``evaluate_segmentation`` found.

    Attributes:
        source: The dataset and its CAM files, which panels read again.
        images: The images that were counted, with their files.
        absent: The convention of the means.
        sweep: Mean IoU at every background score.
        image_mious: (n, T) float32, per image the mean IoU over the classes in its truth or prediction.
        truth_free: The result at background scores that are estimated per image.
        notes: What the reader should know of the numbers, one sentence each.
    """

    source: SegmentationSource
    images: tuple[tuple[LabelledImage, Path | None], ...]
    absent: Absent
    sweep: Sweep
    image_mious: NDArray[np.float32]
    truth_free: TruthFree
    notes: tuple[str, ...]

    @property
    def best(self) -> int:
        """Position of the best threshold."""
        return int(np.argmax(self.sweep.mious))

    @property
    def class_ious(self) -> dict[str, float]:
        """IoU of each class at the best threshold, background first; NaN for one in no truth and no prediction."""
        names = ("background", *self.source.dataset.class_names)
        return dict(zip(names, self.sweep.ious[self.best].tolist(), strict=True))

    def worst(self, count: int = 10) -> list[tuple[int, float]]:
        """Return position and mean IoU of the images with the lowest one at the best threshold, lowest first."""
        scores = self.image_mious[:, self.best]
        return [(int(i), float(scores[i])) for i in np.argsort(scores, kind="stable")[:count]]

    def to_json(self) -> dict[str, Any]:
        """Return all numbers in JSON's types; NaN becomes None."""
        free = self.truth_free
        return {
            "dataset": self.source.dataset.name,
            "measure": "mIoU",
            "images": len(self.images),
            "absent": self.absent,
            "best_threshold": self.sweep.best_threshold,
            "best_miou": self.sweep.best_miou,
            "iou": {name: as_number(iou) for name, iou in self.class_ious.items()},
            "truth_free": {"miou": free.miou, "mean_threshold": as_number(mean_known(free.backgrounds))},
            "thresholds": self.sweep.thresholds.tolist(),
            "miou": [as_number(value) for value in self.sweep.mious.tolist()],
            "worst": [{"image": self.images[i][0].id, "miou": score} for i, score in self.worst()],
            "notes": list(self.notes),
        }


class SegmentationSource:
    """A dataset together with its CAM files: one image's CAMs, classes and truth at a time.

    Args:
        dataset, cams: Both.
        match: How classes are matched.

    Raises:
        ValueError: ``match`` is unknown.
    """

    def __init__(self, dataset: SegmentationSet, cams: CamFolder, match: Match = "auto") -> None:
        if match not in ("auto", "names", "index"):
            raise ValueError(f"match: expected auto, names or index, got {match!r}; choose one of them")
        self.dataset, self.cams, self.match = dataset, cams, match
        self._position = {name.casefold(): k for k, name in enumerate(dataset.class_names)}

    def read(
        self, image: LabelledImage, path: Path | None, notes: Counter[str] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.integer]]:
        """Return CAMs (K, H, W) at the truth's size, their K classes, and the truth (H, W); K is 0 without a file.

        Raises:
            ValueError: The file cannot be read, is of an image of another size, or has a class that is not one of the
                dataset's; the message names it.
        """
        truth = image.truth()
        cam = None if path is None else self.cams.read(path)
        notes = Counter() if notes is None else notes
        if cam is None or path is None:
            notes[
                "have no CAM file and count as background" if path is None else "have no class in their CAM file"
            ] += 1
            return np.zeros((0, *truth.shape), np.float32), np.zeros(0, np.int64), truth
        maps = _at_size(cam, truth.shape, path, notes)
        if not self.dataset.has_classes:
            if len(maps) > 1:
                notes["have CAMs of several classes, whose highest is taken for the object"] += 1
            return maps.max(0, keepdims=True), np.zeros(1, np.int64), truth
        return maps, self._classes(cam, path), truth

    def _classes(self, cam: CamFile, path: Path) -> NDArray[np.int64]:
        if cam.names is not None and self.match != "index":
            if unknown := [name for name in cam.names if name.casefold() not in self._position]:
                raise ValueError(
                    f"match: expected classes of {self.dataset.name} ({first_of(self.dataset.class_names)}), got "
                    f"{unknown[0]!r} in {path}; if the network's outputs are these classes in this order, pass "
                    "--match index"
                )
            return np.array([self._position[name.casefold()] for name in cam.names], np.int64)
        if cam.classes is None or self.match == "names":
            what = "names" if self.match == "names" else "classes"
            raise ValueError(f"match: {path} does not say the {what} of its CAMs; pass files that do, as runs write")
        count = len(self.dataset.class_names)
        if wrong := [index for index in cam.classes.tolist() if not 0 <= index < count]:
            raise ValueError(
                f"match: expected class indices 0 to {count - 1} of {self.dataset.name}, got {wrong[0]} in {path}; the "
                "network has other classes"
            )
        return cam.classes


def evaluate_segmentation(
    dataset: SegmentationSet,
    cams: CamFolder,
    *,
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
    absent: Absent = "skip",
    match: Match = "auto",
    missing: Missing = "refuse",
    progress: bool = False,
) -> SegmentationReport:
    """Return the mean IoU of CAM files at every background score, and at one that does not look at the truth.

    The numbers are those of ``threshold_sweep`` over the whole dataset.

    Args:
        dataset: The images with their label maps.
        cams: Their CAM files. Smaller CAMs are resized bilinearly to the truth's size.
        thresholds: See ``threshold_sweep``.
        absent: See ``threshold_sweep``.
        match: How classes are matched, see ``Match``.
        missing: What an image without a CAM file is, see ``Missing``.
        progress: Whether to show on stderr how far it is.

    Raises:
        FileNotFoundError: A file of the dataset is missing, or a CAM file with ``missing="refuse"``.
        ValueError: A file does not fit its image or the dataset; the message names it.
    """
    source, notes = SegmentationSource(dataset, cams, match), Counter[str]()
    files = cams.find_all([image.id for image in dataset.images], missing)
    images = [pair for pair in zip(dataset.images, files, strict=True) if missing != "skip" or pair[1] is not None]
    levels = np.unique(np.asarray(thresholds, dtype=np.float64))
    count = len(dataset.class_names) + 1
    total, estimated = np.zeros((len(levels), count, count), np.int64), np.zeros((count, count), np.int64)
    backgrounds, image_mious = np.full(len(images), np.nan), np.zeros((len(images), len(levels)), np.float32)
    for i, (image, path) in enumerate(shown_progress(images, progress)):
        maps, classes, truth = source.read(image, path, notes)
        if len(maps):
            backgrounds[i] = float(estimate_background(torch.from_numpy(maps)))
        if (truth == IGNORE).all():
            continue
        labels, local_truth = _local(classes, truth, count)
        level = np.nan_to_num(backgrounds[i])
        both = np.union1d(levels, level)
        local = np.searchsorted(labels, classes + 1) - 1
        counts = threshold_sweep([maps], [local], [local_truth], len(labels), both.tolist(), absent).confusions
        estimated[np.ix_(labels, labels)] += counts[np.searchsorted(both, level)]
        counts = counts[np.searchsorted(both, levels)]
        total[np.ix_(np.arange(len(levels)), labels, labels)] += counts
        image_mious[i] = _mean_ious(counts)
    said = [*dataset.notes, *(f"{n} of {len(images)} images {note}" for note, n in notes.items())]
    if skipped := len(dataset.images) - len(images):
        said.append(f"{skipped} of {len(dataset.images)} images have no CAM file and are left out")
    ious = np.stack([iou_per_class(confusion, absent) for confusion in total])
    sweep = Sweep(levels, np.array([mean_iou(confusion, absent) for confusion in total]), ious, total)
    truth_free = TruthFree(backgrounds, estimated, mean_iou(estimated, absent))
    return SegmentationReport(source, tuple(images), absent, sweep, image_mious, truth_free, tuple(said))


def shown_progress(images: Sequence[Any], progress: bool) -> Iterator[Any]:
    if not progress:
        yield from images
        return
    with closing(paced(images, "evaluate", costs=[1.0] * len(images))) as shown:
        yield from shown


def _at_size(cam: CamFile, size: tuple[int, ...], path: Path, notes: Counter[str]) -> NDArray[np.float32]:
    """Return a file's CAMs at the truth's (H, W)."""
    if cam.size is None:  # a map of wsolevaluation covers its image, whatever its own size
        notes["have maps without the image's size, resized bilinearly (align_corners=False)"] += 1
        maps = torch.from_numpy(np.ascontiguousarray(cam.cams, dtype=np.float32))[None]
        return np.asarray(interpolate(maps, size, mode="bilinear", align_corners=False)[0].numpy())
    (H, W), (image_H, image_W) = size, cam.size
    if (image_H, image_W) != (H, W):
        if abs(H * image_W - W * image_H) > max(H, W, image_H, image_W):  # more than a pixel's rounding
            raise ValueError(
                f"cams: expected CAMs of an image of {H}x{W} pixels, as its truth has, or of its ratio of sides, got "
                f"{image_H}x{image_W} in {path}; make them from the dataset's own images"
            )
        notes["have a truth of another size than the image, to which the CAMs are resized"] += 1
    return full_size(replace(cam, size=(H, W)))


def _local(
    classes: NDArray[np.int64], truth: NDArray[np.integer], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the labels that occur in an image, and the truth in their positions: a few classes are counted faster."""
    present = np.flatnonzero(np.bincount(truth.ravel()))
    labels = np.union1d(np.append(0, classes + 1), present[present != IGNORE]).astype(np.int64)
    if labels[-1] >= count:
        raise ValueError(f"truth: expected labels below {count}, or {IGNORE}, got {labels[-1]}; pass the classes")
    return labels, np.where(truth == IGNORE, IGNORE, np.searchsorted(labels, truth))


def _mean_ious(confusions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean IoU (T,) over the classes in a confusion matrix (T, n, n), without a warning where none is."""
    hits = np.diagonal(confusions, axis1=1, axis2=2).astype(np.float64)
    union = confusions.sum(1) + confusions.sum(2) - hits
    ious = np.divide(hits, union, out=np.zeros_like(hits), where=union > 0)
    return np.asarray(ious.sum(1) / np.maximum((union > 0).sum(1), 1))


def mean_known(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are not NaN; NaN if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def as_number(value: float) -> float | None:
    """Return a number in JSON's types; None for NaN."""
    return None if np.isnan(value) else float(value)
