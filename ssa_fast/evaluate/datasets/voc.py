"""PASCAL VOC 2012 as the field uses it: SegmentationClass, or SegmentationClassAug for the images of ``trainaug``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ssa_fast.evaluate.datasets.base import LabelledImage, SegmentationSet, first_of, read_label_map, require
from ssa_fast.io.datasets import VOC_CLASSES, find_images

LABELS = ("SegmentationClass", "SegmentationClassAug")


def read_voc(root: str | Path, *, split: str = "train", labels: str | None = None) -> SegmentationSet:
    """List a split of VOC 2012 with its true label maps.

    Args:
        root: The folder with JPEGImages and ImageSets: VOC2012, or VOCdevkit or its parent.
        split: A list in ImageSets/Segmentation such as "train", "val" or "trainaug", or a file of ids.
        labels: Folder of the label maps, in ``root`` or anywhere; None: SegmentationClass if it holds them all, else
            SegmentationClassAug, with a note.

    Raises:
        FileNotFoundError: A folder, the split or a label map is missing; the message names it.
    """
    root = Path(root)
    inner = [root, root / "VOC2012", root / "VOCdevkit/VOC2012"]
    folder = next((each for each in inner if (each / "JPEGImages").is_dir()), root)
    require(folder / "JPEGImages", "VOC's images", folder=True)
    require(folder / "ImageSets", "VOC's lists of images", folder=True)
    listing = find_images([folder], split=split)
    if listing.missing:
        raise FileNotFoundError(
            f"split: expected a list such as {folder / 'ImageSets/Segmentation' / (split + '.txt')}, or a file of ids; "
            "there is no such file"
        )
    ids = [source.path.stem for source in listing.sources]
    if not ids:
        raise ValueError(f"split: expected the ids of images, got an empty list {split!r} in {folder / 'ImageSets'}")
    maps, notes = _label_folder(folder, ids, labels)
    count = len(VOC_CLASSES) + 1
    images = tuple(
        LabelledImage(
            each,
            source.path if source.path.is_file() else None,
            partial(read_label_map, maps / f"{each}.png", count),
        )
        for each, source in zip(ids, listing.sources, strict=True)
    )
    return SegmentationSet(f"VOC 2012 {Path(split).stem}", VOC_CLASSES, images, notes=notes)


def _label_folder(root: Path, ids: list[str], labels: str | None) -> tuple[Path, tuple[str, ...]]:
    """Return the folder that holds a label map for every id, and a note if it is not the first choice."""
    names = LABELS if labels is None else (labels,)
    folders = [root / name if (root / name).is_dir() else Path(name) for name in names]
    missing = [[each for each in ids if not (folder / f"{each}.png").is_file()] for folder in folders]
    for folder, lacking in zip(folders, missing, strict=True):
        if not lacking:
            note = f"label maps are those of {folder.name}: {LABELS[0]} lacks {len(missing[0])} of {len(ids)}"
            return folder, ((note,) if folder is not folders[0] else ())
    shown = [str(root / name / f"{missing[0][0]}.png") for name in names]
    raise FileNotFoundError(
        f"root: expected a label map for every image of the split, {' or '.join(shown)}; there is none for "
        f"{first_of(missing[-1])}"
    )
