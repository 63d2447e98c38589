"""COCO: instance annotations drawn into semantic label maps by pycocotools, which owns the rule of their outlines."""

from __future__ import annotations

import contextlib
import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.evaluate.datasets.base import LabelledImage, SegmentationSet, require

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_coco(
    root: str | Path,
    *,
    split: str = "train2014",
    annotations: str | Path | None = None,
    images: str | Path | None = None,
) -> SegmentationSet:
    """List a split of COCO with label maps drawn from its instances.

    Class ``k`` is the category with the k-th smallest id: COCO's ids have gaps. An image's instances are drawn in the
    file's order, a later one over an earlier one, and crowds as their class: COCO's own rule for such maps.

    Args:
        root: The folder with ``annotations`` and the images.
        split: Of "annotations/instances_{split}.json".
        annotations: That file, if it is elsewhere.
        images: The folder of the images; default: ``root / split``. Without it only panels lack something.

    Raises:
        ModuleNotFoundError: pycocotools is not installed.
        FileNotFoundError: There is no such annotation file.
        ValueError: It holds no instances.
    """
    root = Path(root)
    path = Path(annotations) if annotations else root / "annotations" / f"instances_{split}.json"
    coco = _load(require(path, "COCO's instances"))
    if not coco.imgs or not coco.cats:
        raise ValueError(f"root: expected images and categories in {path}, got {len(coco.imgs)} and {len(coco.cats)}")
    categories = sorted(coco.cats)
    label_of = {category: k + 1 for k, category in enumerate(categories)}
    folder = Path(images) if images else root / split
    found = tuple(
        LabelledImage(
            info["file_name"],
            picture if (picture := folder / info["file_name"]).is_file() else None,
            partial(_draw, coco, image, label_of),
        )
        for image, info in sorted(coco.imgs.items())
    )
    return SegmentationSet(f"COCO {split}", tuple(coco.cats[each]["name"] for each in categories), found)


def _load(path: Path) -> Any:
    try:
        from pycocotools.coco import COCO
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "coco: needs pycocotools, which is not installed; pip install 'ssa_fast[eval]'", name="pycocotools"
        ) from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it took
            return COCO(str(path))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"root: {path} is no annotation file of COCO ({type(error).__name__}: {error})") from None


def _draw(coco: Any, image: int, label_of: dict[int, int]) -> NDArray[np.uint8]:
    """Return the label map of one image."""
    info = coco.imgs[image]
    labels = np.zeros((info["height"], info["width"]), np.uint8)
    for instance in coco.imgToAnns.get(image, []):
        labels[coco.annToMask(instance) > 0] = label_of[instance["category_id"]]
    return labels
