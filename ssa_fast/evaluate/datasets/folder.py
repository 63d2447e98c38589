"""A folder of images and a folder of masks, paired by name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssa_fast.evaluate.datasets.base import (
    LabelledImage,
    SegmentationSet,
    by_stem,
    first_of,
    read_classes,
    read_label_map,
    read_object_mask,
    require,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def read_folder(
    root: str | Path,
    *,
    images: str | Path = "images",
    masks: str | Path = "masks",
    classes: str | Sequence[str] | None = None,
) -> SegmentationSet:
    """List the masks of a folder, each with the image of its name.

    Args:
        root: A folder with both.
        images: Their folder, in ``root`` or anywhere; without it only panels lack something.
        masks: Their folder; a pair shares its path without suffix.
        classes: Names, as a list, as "cat,dog", or a file with one per line: masks are label maps, 0 background,
            ``k + 1`` for the k-th name, 255 not counted. None: masks show figure and ground, and what exceeds half of a
            mask's maximum is the object.

    Raises:
        FileNotFoundError: There is no folder of masks, or it holds none.
        ValueError: Two files share a name, or ``classes`` are none.
    """
    root = Path(root)
    masks, images = _inside(root, masks), _inside(root, images)
    truths = by_stem(require(masks, "a folder of masks", folder=True))
    pictures = by_stem(images) if images.is_dir() else {}
    if not truths:
        raise FileNotFoundError(f"root: expected masks in {masks}; there is no image in it")
    notes = []
    if unused := [name for name in pictures if name not in truths]:
        notes.append(f"{len(unused)} images have no mask and are left out: {first_of(unused)}")
    names = ("object",) if classes is None else read_classes(classes)
    read = _object if classes is None else partial(read_label_map, num_classes=len(names) + 1)
    found = tuple(LabelledImage(name, pictures.get(name), partial(read, path)) for name, path in truths.items())
    return SegmentationSet(root.resolve().name, names, found, classes is not None, tuple(notes))


def _object(path: Path) -> NDArray[np.uint8]:
    return read_object_mask(path).astype(np.uint8)


def _inside(root: Path, name: str | Path) -> Path:
    """Return a folder in ``root``, or elsewhere if only that one is there."""
    return Path(name) if Path(name).is_dir() and not (root / name).is_dir() else root / name
