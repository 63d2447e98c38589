"""Pixel average precision (PxAP) and pixel IoU of CAM files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import tee
from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.evaluate.datasets.base import read_object_mask
from ssa_fast.evaluate.datasets.localization import LocalizationSource, describe, estimate_threshold
from ssa_fast.evaluate.datasets.segmentation import as_number, mean_known, shown_progress
from ssa_fast.evaluate.precision import pixel_average_precision
from ssa_fast.evaluate.segmentation import IGNORE, threshold_sweep
from ssa_fast.io.cam_values import WSOL_SIZE, nearest_pixels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ssa_fast.evaluate.datasets.base import LocalizationSet, LocatedImage
    from ssa_fast.evaluate.datasets.cam_folder import CamFolder, Missing
    from ssa_fast.evaluate.datasets.localization import Pairs

__all__ = ["PixelReport", "evaluate_pixels", "read_truth"]

THRESHOLDS: tuple[float, ...] = tuple(step / 100 for step in range(100))
"""CAM thresholds of the pixel IoU; PxAP has those of wsolevaluation."""
MASK_THRESHOLD = 0.5  # of 255, as in wsolevaluation: where a mask is not black, the object is


@dataclass(frozen=True, eq=False)
class PixelReport:
    """What ``evaluate_pixels`` found.

    Attributes:
        source, images, backgrounds, notes: As in ``BoxReport``.
        pxap: Pixel average precision in [0, 1].
        thresholds: (T,) ascending.
        ious: (T,) IoU of the pixels above each threshold with the objects, over all images together.
        image_ious: (n, T) the same per image; 1 where both are empty.
        truth_free: IoU at a threshold per image that no mask was looked at for.
    """

    source: LocalizationSource
    images: Pairs
    pxap: float
    thresholds: NDArray[np.float64]
    ious: NDArray[np.float64]
    image_ious: NDArray[np.float64]
    truth_free: float
    backgrounds: NDArray[np.float64]
    notes: tuple[str, ...]

    @property
    def best_threshold(self) -> float:
        """The lowest threshold of the best IoU."""
        return float(self.thresholds[int(np.argmax(self.ious))])

    def worst(self, count: int = 10) -> list[tuple[int, float]]:
        """Return position and IoU of the images with the lowest one at the best threshold, lowest first."""
        scores = self.image_ious[:, int(np.argmax(self.ious))]
        return [(int(i), float(scores[i])) for i in np.argsort(scores, kind="stable")[:count]]

    def to_json(self) -> dict[str, Any]:
        """Return all numbers in JSON's types."""
        return {
            "dataset": self.source.dataset.name,
            "measure": "PxAP",
            "images": len(self.images),
            "pxap": self.pxap,
            "best_threshold": self.best_threshold,
            "peak_iou": float(self.ious.max()),
            "truth_free": {"iou": self.truth_free, "mean_threshold": as_number(mean_known(self.backgrounds))},
            "thresholds": self.thresholds.tolist(),
            "iou": self.ious.tolist(),
            "worst": [{"image": self.images[i][0].id, "iou": score} for i, score in self.worst()],
            "notes": list(self.notes),
        }


def evaluate_pixels(
    dataset: LocalizationSet,
    cams: CamFolder,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    missing: Missing = "refuse",
    progress: bool = False,
) -> PixelReport:
    """Return PxAP as wsolevaluation prints it, and the pixel IoU at every threshold.

    Args:
        dataset: The images with their objects' masks.
        cams: Their CAM files, of which the true class's map is compared at 224 x 224.
        thresholds: Of the IoU.
        missing: What an image without a CAM of its true class is, see ``Missing``.
        progress: Whether to show on stderr how far it is.

    Raises:
        FileNotFoundError: A mask is missing, or a CAM file with ``missing="refuse"``.
        ValueError: A file cannot be read or does not fit; the message names it.
    """
    source, notes = LocalizationSource(dataset, cams, missing), Counter[str]()
    images, levels = source.pairs(), np.unique(np.asarray(thresholds, dtype=np.float64))
    counts = np.zeros((len(images), len(levels), 2), np.int64)  # pixels in both, and in either
    free, backgrounds = np.zeros((len(images), 2), np.int64), np.full(len(images), np.nan)

    def stream() -> Iterator[tuple[NDArray[np.float64], NDArray[np.integer]]]:
        for i, (image, path) in enumerate(shown_progress(images, progress)):
            cam, _ = source.read(image, path, notes)
            truth = read_truth(image)
            backgrounds[i] = estimate_threshold(cam)
            if (truth != IGNORE).any():
                counts[i] = _overlap(cam, truth, levels)
                free[i] = _overlap(cam, truth, np.nan_to_num(backgrounds[i : i + 1]))[0]
            yield cam, truth

    scores, objects, ignored = tee(stream(), 3)  # they are read in step: one image is kept
    pxap = pixel_average_precision(
        (cam for cam, _ in scores), (truth == 1 for _, truth in objects), (truth == IGNORE for _, truth in ignored)
    )
    return PixelReport(
        source,
        images,
        pxap,
        levels,
        _ratio(counts.sum(0)),
        _ratio(counts),
        float(_ratio(free.sum(0))),
        backgrounds,
        tuple(describe(notes, source, images)),
    )


def read_truth(image: LocatedImage) -> NDArray[np.integer]:
    """Return the truth (224, 224) of an image: 1 on its objects, 255 where pixels are not counted, else 0.

    Raises:
        FileNotFoundError: A mask is missing; the message names it.
        ImageError: A mask is not an image.
    """
    truth = np.zeros((WSOL_SIZE, WSOL_SIZE), np.uint8)
    if image.ignore is not None:
        truth[_mask(image.ignore)] = IGNORE
    for path in image.masks:
        truth[_mask(path)] = 1
    return truth


def _mask(path: Path) -> NDArray[np.bool_]:
    mask = read_object_mask(path, MASK_THRESHOLD)
    rows, columns = map(nearest_pixels, mask.shape)
    return mask[rows[:, None], columns]


def _overlap(cam: NDArray[np.float64], truth: NDArray[np.integer], levels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return (T, 2) pixels in both and in either of the objects and what exceeds each level."""
    confusions = threshold_sweep([cam[None]], [[0]], [truth], 2, levels.tolist()).confusions
    return np.stack([confusions[:, 1, 1], confusions[:, 1, :].sum(1) + confusions[:, 0, 1]], axis=1)


def _ratio(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    both, either = counts[..., 0].astype(np.float64), counts[..., 1]
    return np.asarray(np.divide(both, either, out=np.ones_like(both), where=either > 0))
