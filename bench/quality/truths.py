"""The truth of one class in one image, and the score of a map against it at every threshold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image

from ssa_fast.evaluate import average_precision, max_box_acc, threshold_sweep
from ssa_fast.evaluate.boxes import IOUS, resize_boxes
from ssa_fast.evaluate.segmentation import IGNORE
from ssa_fast.localize.threshold import BOX_POWER, estimate_background, self_weighted_mean

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

LEVELS = (0.0, *(10 ** (step / 8 - 4) for step in range(16)), *(step / 100 for step in range(1, 100)))
"""Thresholds of a map in [0, 1]: dense near 0, because a product of maps has most of its values there."""


@dataclass(frozen=True)
class Scores:
    """Scores of one map.

    Attributes:
        levels: (criteria, ``LEVELS``) in [0, 1]: IoUs with the mask, or whether a box reaches each required IoU.
        own: The same, averaged over the criteria, at the threshold that the map gives by itself ("auto").
        precision: Average precision of the map's pixels, which takes no threshold; NaN for boxes.
    """

    levels: NDArray[np.float64]
    own: float
    precision: float = float("nan")


class Truth(Protocol):
    """The truth of one class in one image."""

    def scorer(self, size: tuple[int, int]) -> Callable[[NDArray[np.float32]], Scores]:
        """Return the function that scores a map of ``size`` (H, W)."""
        ...


@dataclass(frozen=True)
class MaskTruth:
    """A mask, as a file or an array (H, W).

    Attributes:
        values: The mask's values on the object; empty: those above half of its largest value.
        ignored: The mask's values where nothing is counted.
    """

    mask: Path | NDArray[np.uint8]
    values: frozenset[int] = frozenset()
    ignored: frozenset[int] = frozenset()

    def scorer(self, size: tuple[int, int]) -> Callable[[NDArray[np.float32]], Scores]:
        """Return the function that scores a map of ``size`` (H, W); ValueError if nothing of the object is counted."""
        truth = self._labels(size)
        counted, positive = truth != IGNORE, truth == 1
        if not positive.any():
            raise ValueError(
                f"masks: expected an object in every mask, got none in {self.mask}; leave the image out, or name the "
                "object's values with --object"
            )

        def score(cam: NDArray[np.float32]) -> Scores:
            own = float(estimate_background(torch.from_numpy(cam)))
            levels = sorted({*LEVELS, own})
            counts = threshold_sweep([cam[None]], [[0]], [truth], 2, levels).confusions
            ious = counts[:, 1, 1] / (counts[:, 1, :].sum(1) + counts[:, 0, 1])
            at = [np.searchsorted(levels, LEVELS), np.searchsorted(levels, own)]
            return Scores(ious[at[0]][None], float(ious[at[1]]), average_precision(cam[counted], positive[counted]))

        return score

    def _labels(self, size: tuple[int, int]) -> NDArray[np.int64]:
        """Return 1 on the object, 0 beside it, ``IGNORE`` where nothing is counted, at ``size``."""
        image = Image.fromarray(self.mask) if isinstance(self.mask, np.ndarray) else Image.open(self.mask)
        with image:
            named = self.values or self.ignored
            image = image if image.mode == "P" and named else image.convert("L")
            resampling = Image.Resampling.NEAREST if named else Image.Resampling.BILINEAR
            found = np.asarray(image.resize(size[::-1], resampling))
        on = np.isin(found, list(self.values)) if self.values else found > found.max() / 2
        return np.where(np.isin(found, list(self.ignored)), IGNORE, on).astype(np.int64)


@dataclass(frozen=True)
class BoxTruth:
    """Boxes ``x0, y0, x1, y1``, far edges inside, in pixels of an image of ``size`` (H, W)."""

    size: tuple[int, int]
    boxes: list[list[float]] = field(default_factory=list)

    def scorer(self, size: tuple[int, int]) -> Callable[[NDArray[np.float32]], Scores]:
        """Return the function that scores a map of ``size`` (H, W), in wsolevaluation's convention."""
        boxes = resize_boxes(self.boxes, self.size, size)

        def score(cam: NDArray[np.float32]) -> Scores:
            own = float(self_weighted_mean(torch.from_numpy(cam), BOX_POWER))
            found = max_box_acc([cam], [boxes], thresholds=(*LEVELS, own), ious=IOUS).accuracies
            return Scores(found[:, :-1], float(found[:, -1].mean()))

        return score
