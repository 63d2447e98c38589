"""Images with their classes and truths, from folders or generated scenes, and the score of a map against a truth."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image

from ssa_fast.demo.scenes import make_scenes
from ssa_fast.evaluate import average_precision, max_box_acc, resize_boxes, threshold_sweep
from ssa_fast.evaluate.datasets import read_folder
from ssa_fast.evaluate.datasets.base import read_fields
from ssa_fast.evaluate.segmentation import IGNORE
from ssa_fast.io.datasets import has_image_suffix
from ssa_fast.localize.threshold import BOX_POWER, estimate_background, self_weighted_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from bench.quality.networks import Sample

    Scorer: TypeAlias = Callable[[NDArray[np.float32]], "Scores"]  # of maps (H, W) in [0, 1]
    Truth: TypeAlias = Callable[[Sample], Scorer]

SCENES_SEED = 2024  # that of the demo: not used for training, nor for choosing the demo's options
LEVELS = (0.0, *(10 ** (step / 8 - 4) for step in range(16)), *(step / 100 for step in range(1, 100)))
"""Thresholds of a map in [0, 1]: dense near 0, because a product of maps has most of its values there."""


class Example(NamedTuple):
    """One image: ``read`` returns it as RGB, and ``truths`` has its classes, None for the predicted one."""

    read: Callable[[], Image.Image]
    truths: Mapping[int | None, Truth]


class Scores(NamedTuple):
    """Scores of one map.

    Attributes:
        levels: (criteria, ``LEVELS``) in [0, 1]: IoUs with the mask, or whether a box reaches each required IoU.
        own: The same, averaged over the criteria, at the threshold that the map gives by itself ("auto").
        precision: Average precision of the map's pixels, which takes no threshold; NaN for boxes.
    """

    levels: NDArray[np.float64]
    own: float
    precision: float


def mask_scorer(read: Callable[[], NDArray[Any]], value: int, name: object, sample: Sample) -> Scorer:
    """Return the scorer by the labels (H, W) that ``read`` returns: the object's is ``value``, 255 is not counted."""
    labels = read()
    planes = (Image.fromarray(255 * (labels == each).astype(np.uint8)) for each in (value, IGNORE))
    shown, ignored = (np.asarray(each.resize(sample.size[::-1], Image.Resampling.BILINEAR)) > 127 for each in planes)
    truth = np.where(ignored, IGNORE, shown).astype(np.uint8)
    if not (truth == 1).any():
        raise ValueError(f"masks: expected an object in every mask, got none in {name}; leave the image out")

    def score(cam: NDArray[np.float32]) -> Scores:
        own = float(estimate_background(torch.from_numpy(cam)))
        sweep = partial(threshold_sweep, [cam[None]], [[0]], [truth], 2)
        ious, at_own = (sweep(levels).ious[:, 1] for levels in (LEVELS, [own]))
        return Scores(ious[None], float(at_own[0]), average_precision(cam[~ignored], truth[~ignored]))

    return score


def box_scorer(boxes: Sequence[Sequence[float]], sample: Sample) -> Scorer:
    """Return the scorer by boxes ``x0, y0, x1, y1`` in pixels of the image, far edges inside, as wsolevaluation's."""
    true = resize_boxes(boxes, sample.image.size[::-1], sample.size)

    def score(cam: NDArray[np.float32]) -> Scores:
        own = float(self_weighted_mean(torch.from_numpy(cam), BOX_POWER))
        found = max_box_acc([cam], [true], thresholds=(*LEVELS, own)).accuracies
        return Scores(found[:, :-1], float(found[:, -1].mean()), float("nan"))

    return score


def masks(folder: Path, value: int | None = None) -> dict[str, Truth]:
    """Return a folder's masks by name without suffix: above half of its largest value is a mask's object.

    With a ``value`` they are label maps, what has it is the object, and 255 is not counted.
    """
    label, classes = (1, None) if value is None else (value, [str(each) for each in range(254)])
    found = read_folder(".", images=folder, masks=folder, classes=classes).images
    return {Path(each.id).name: partial(mask_scorer, each.truth, label, folder / each.id) for each in found}


def boxes(file: Path) -> dict[str, Truth]:
    """Return the boxes in lines ``name,x0,y0,x1,y1`` by name without folder and suffix."""
    found = defaultdict(list)
    for name, *edges in read_fields(file, "boxes of images", "name,x0,y0,x1,y1", ","):
        found[Path(name).stem].append([float(edge) for edge in edges])
    return {name: partial(box_scorer, corners) for name, corners in found.items()}


def from_folder(images: Path, classes: str, truths: Mapping[str, Truth]) -> list[Example]:
    """List the images that have a truth, also those of subfolders; ValueError if none has, or one has no class.

    ``classes`` is an index for all, a file of lines ``name,index``, or "predicted".
    """
    given = {}
    if classes != "predicted" and not classes.isdecimal():
        fields = read_fields(Path(classes), "an index, 'predicted' or a file of lines name,index", "name,index", ",")
        given = {Path(name).stem: int(index) for name, index in fields}
    every = int(classes) if classes.isdecimal() else None
    paths = sorted(path for path in images.rglob("*") if path.stem in truths and has_image_suffix(path))
    if not paths:
        raise ValueError(f"images: expected images that have a mask or a box, got none in {images}; names must agree")
    if given and (missing := [path.name for path in paths if path.stem not in given]):
        raise ValueError(f"classes: expected a line for every image, got none for {missing[0]} in {classes}")
    return [Example(partial(_read, path), {given.get(path.stem, every): truths[path.stem]}) for path in paths]


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def from_scenes(count: int) -> list[Example]:
    """Return generated scenes with a mask per class that is seen in them."""
    found = []
    for scene in make_scenes(count, SCENES_SEED):
        read, classes = partial(np.asarray, scene.mask), scene.box_classes.tolist()
        truths = {index: partial(mask_scorer, read, index + 1, "a scene") for index in classes}
        found.append(Example(partial(Image.fromarray, scene.image), truths))
    return [example for example in found if example.truths]
