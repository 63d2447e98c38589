"""Images with their classes and truths, from folders or generated scenes, and the score of a map against a truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image

from ssa_fast.demo.scenes import make_scenes
from ssa_fast.evaluate import average_precision, max_box_acc, threshold_sweep
from ssa_fast.evaluate.boxes import IOUS, resize_boxes
from ssa_fast.evaluate.datasets.base import read_fields, read_object_mask
from ssa_fast.localize.threshold import BOX_POWER, estimate_background, self_weighted_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Scorer: TypeAlias = Callable[[NDArray[np.float32]], "Scores"]

SCENES_SEED = 2024  # that of the demo: not used for training, nor for choosing the demo's options
LEVELS = (0.0, *(10 ** (step / 8 - 4) for step in range(16)), *(step / 100 for step in range(1, 100)))
"""Thresholds of a map in [0, 1]: dense near 0, because a product of maps has most of its values there."""


class Scores(NamedTuple):
    """Scores of one map.

    Attributes:
        levels: (criteria, ``LEVELS``) in [0, 1]: IoUs with the mask, or whether a box reaches each required IoU.
        own: The same, averaged over the criteria, at the threshold that the map gives by itself ("auto").
        precision: Average precision of the map's pixels, which takes no threshold; NaN for boxes.
    """

    levels: NDArray[np.float64]
    own: float
    precision: float = float("nan")


@dataclass(frozen=True)
class MaskTruth:
    """Where one class is: a file, as ``read_object_mask`` reads it, or an array (H, W)."""

    mask: Path | NDArray[np.bool_]

    def scorer(self, size: tuple[int, int]) -> Scorer:
        """Return the function that scores a map of ``size`` (H, W); ValueError if there is no object."""
        shown = read_object_mask(self.mask) if isinstance(self.mask, Path) else self.mask
        grey = Image.fromarray(255 * shown.astype(np.uint8)).resize(size[::-1], Image.Resampling.BILINEAR)
        truth = np.asarray(grey) > 127
        if not truth.any():
            raise ValueError(f"masks: expected an object in every mask, got none in {self.mask}; leave the image out")

        def score(cam: NDArray[np.float32]) -> Scores:
            own = float(estimate_background(torch.from_numpy(cam)))
            levels = sorted({*LEVELS, own})
            counts = threshold_sweep([cam[None]], [[0]], [truth.astype(np.uint8)], 2, levels).confusions
            ious = counts[:, 1, 1] / (counts[:, 1, :].sum(1) + counts[:, 0, 1])
            at = np.searchsorted(levels, [*LEVELS, own])
            return Scores(ious[None, at[:-1]], float(ious[at[-1]]), average_precision(cam.ravel(), truth.ravel()))

        return score


@dataclass(frozen=True)
class BoxTruth:
    """Boxes ``x0, y0, x1, y1``, far edges inside, in pixels of an image of ``size`` (H, W)."""

    size: tuple[int, int]
    boxes: list[list[float]]

    def scorer(self, size: tuple[int, int]) -> Scorer:
        """Return the function that scores a map of ``size`` (H, W), in wsolevaluation's convention."""
        boxes = resize_boxes(self.boxes, self.size, size)

        def score(cam: NDArray[np.float32]) -> Scores:
            own = float(self_weighted_mean(torch.from_numpy(cam), BOX_POWER))
            found = max_box_acc([cam], [boxes], thresholds=(*LEVELS, own), ious=IOUS).accuracies
            return Scores(found[:, :-1], float(found[:, -1].mean()))

        return score


Truth: TypeAlias = MaskTruth | BoxTruth


@dataclass(frozen=True)
class Example:
    """One image, as a file or an array (H, W, 3), with a truth per class; class None stands for the predicted one."""

    image: Path | NDArray[np.uint8]
    truths: dict[int | None, Truth]

    def read(self) -> Image.Image:
        """Return the image as RGB."""
        if isinstance(self.image, np.ndarray):
            return Image.fromarray(self.image)
        with Image.open(self.image) as image:
            return image.convert("RGB")


def from_folder(images: Path, classes: str, find_truth: Callable[[Path], Truth | None]) -> list[Example]:
    """List the images that have a truth, by name; subfolders are searched too.

    Args:
        images: The folder.
        classes: A class index for all, a file of lines ``name,index``, or "predicted".
        find_truth: ``masks(…)`` or ``boxes(…)``.

    Raises:
        ValueError: An image without a class, or no image with a truth.
    """
    known = None
    if classes != "predicted" and not classes.isdecimal():
        if not Path(classes).is_file():
            raise ValueError(f"classes: expected an index, 'predicted' or a file of lines name,index, got {classes!r}")
        fields = read_fields(Path(classes), "classes of images", "name,index", ",")
        known = {Path(name).name: int(index) for name, index in fields}
    found = []
    for path in sorted(path for path in images.rglob("*") if path.is_file()):
        if (truth := find_truth(path)) is None:
            continue
        if known is not None and path.name not in known:
            raise ValueError(f"classes: expected a line for every image, got none for {path.name} in {classes}")
        index = known[path.name] if known else int(classes) if classes.isdecimal() else None
        found.append(Example(path, {index: truth}))
    if not found:
        raise ValueError(f"images: expected images that have a mask or a box, got none in {images}; names must agree")
    return found


def masks(folder: Path) -> Callable[[Path], Truth | None]:
    """Return the function from an image to the mask of the same name."""
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.is_file()}
    return lambda image: MaskTruth(files[image.stem]) if image.stem in files else None


def boxes(file: Path) -> Callable[[Path], Truth | None]:
    """Return the function from an image to its boxes in a file of lines ``name,x0,y0,x1,y1``, as wsolevaluation's."""
    corners: dict[str, list[list[float]]] = {}
    for name, *box in read_fields(file, "boxes of images", "name,x0,y0,x1,y1", ","):
        corners.setdefault(Path(name).name, []).append([float(edge) for edge in box])

    def find(path: Path) -> Truth | None:
        if path.name not in corners:
            return None
        with Image.open(path) as image:
            return BoxTruth((image.height, image.width), corners[path.name])

    return find


def from_scenes(count: int) -> list[Example]:
    """Return generated scenes with a mask per class that is seen in them."""
    found = []
    for scene in make_scenes(count, SCENES_SEED):
        classes = scene.box_classes.tolist()
        found.append(Example(scene.image, {index: MaskTruth(scene.mask == index + 1) for index in classes}))
    return [example for example in found if example.truths]
