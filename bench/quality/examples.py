"""Images with the classes and truths on which maps are scored: from folders, or generated scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bench.quality.truths import BoxTruth, MaskTruth
from ssa_fast.demo.scenes import make_scenes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from bench.quality.truths import Truth

SCENES_SEED = 2024  # that of the demo: not used for training, nor for choosing the demo's options


@dataclass(frozen=True)
class Example:
    """One image, as a file or an array (H, W, 3), with a truth per class; class None stands for the predicted one."""

    image: Path | NDArray[np.uint8]
    classes: tuple[int | None, ...]
    truths: tuple[Truth, ...]

    def read(self) -> Image.Image:
        """Return the image as RGB."""
        if isinstance(self.image, np.ndarray):
            return Image.fromarray(self.image)
        with Image.open(self.image) as image:
            return image.convert("RGB")


def from_masks(
    images: Path, masks: Path, classes: str, values: Sequence[int] = (), ignored: Sequence[int] = ()
) -> list[Example]:
    """List the images that have a mask of the same name, by name; see ``MaskTruth`` for ``values`` and ``ignored``.

    Args:
        images, masks: Folders; images are searched for in subfolders too.
        classes: A class index for all, a file of lines ``name,index``, or "predicted".

    Raises:
        ValueError: An image without a class, or no image with a mask.
    """
    find, of_object, uncounted = _class_finder(classes), frozenset(values), frozenset(ignored)
    truths = {path.stem: path for path in sorted(masks.iterdir()) if path.is_file()}
    return _checked(
        images,
        [
            Example(path, (find(path),), (MaskTruth(truths[path.stem], of_object, uncounted),))
            for path in _files(images)
            if path.stem in truths
        ],
    )


def from_boxes(images: Path, boxes: Path, classes: str) -> list[Example]:
    """List the images that have boxes in the file ``boxes``, by name.

    Its lines are ``name,x0,y0,x1,y1`` in pixels of the image, one per box, as wsolevaluation's; folders before a name
    are ignored. Arguments and errors are otherwise those of ``from_masks``.
    """
    find = _class_finder(classes)
    corners: dict[str, list[list[float]]] = {}
    for name, box in _lines(boxes):
        corners.setdefault(name, []).append([float(edge) for edge in box])
    found = []
    for path in _files(images):
        if path.name in corners:
            with Image.open(path) as image:
                truth = BoxTruth((image.height, image.width), corners[path.name])
            found.append(Example(path, (find(path),), (truth,)))
    return _checked(images, found)


def from_scenes(count: int, *, boxes: bool) -> list[Example]:
    """Return generated scenes with a mask, or a box, per class that is seen in them."""
    found = []
    for scene in make_scenes(count, SCENES_SEED):
        truths: dict[int, Truth] = {}
        for index, (x0, y0, x1, y1) in zip(scene.box_classes.tolist(), scene.boxes.tolist(), strict=True):
            masked = MaskTruth(scene.mask, frozenset({index + 1}))
            truths[index] = BoxTruth(scene.mask.shape, [[x0, y0, x1 - 1, y1 - 1]]) if boxes else masked
        if truths:
            found.append(Example(scene.image, tuple(truths), tuple(truths.values())))
    return found


def _files(images: Path) -> list[Path]:
    return sorted(path for path in images.rglob("*") if path.is_file())


def _checked(images: Path, found: list[Example]) -> list[Example]:
    if not found:
        raise ValueError(f"images: expected images that have a mask or a box, got none in {images}; names must agree")
    return found


def _class_finder(classes: str) -> Callable[[Path], int | None]:
    """Return the function from an image to its class, None for the predicted one."""
    if classes == "predicted":
        return lambda image: None
    if classes.isdecimal():
        return lambda image: int(classes)
    if not Path(classes).is_file():
        raise ValueError(f"classes: expected an index, 'predicted' or a file of lines name,index, got {classes!r}")
    indices = {name: fields[0] for name, fields in _lines(Path(classes))}

    def find(image: Path) -> int:
        if image.name not in indices:
            raise ValueError(f"classes: expected a line for every image, got none for {image.name} in {classes}")
        return int(indices[image.name])

    return find


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield name and fields of each line ``name,field,…``, names without their folders."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            name, *fields = (part.strip() for part in line.split(","))
            yield Path(name).name, fields
