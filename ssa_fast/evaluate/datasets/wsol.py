"""Datasets of weakly supervised localisation: wsolevaluation's metadata (ImageNet, OpenImages, CUB), CUB-200-2011.

Boxes are those that wsolevaluation reads (Choe et al., CVPR 2020): whole pixels, as the files have them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ssa_fast.evaluate.datasets.base import (
    LocalizationSet,
    LocatedImage,
    first_of,
    read_fields,
    read_lines,
    require,
)
from ssa_fast.io.pillow import read_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ssa_fast.evaluate.datasets.base import Box

SPLITS = ("train", "val", "test")


def read_imagenet(root: str | Path, *, split: str = "test", images: str | Path | None = None) -> LocalizationSet:
    """List a split of ImageNet from wsolevaluation's metadata: true boxes and one class per image.

    Args:
        root: The folder with image_ids.txt, class_labels.txt, image_sizes.txt and localization.txt, or the one that
            holds it as ``split``.
        split: "val" (train-fullsup) or "test", in wsolevaluation's words.
        images: The folder that the ids are relative to; only panels need it.

    Raises:
        FileNotFoundError: A file is missing; the message names it.
        ValueError: A line has another form, or an image has no class, size or box.
    """
    return _with_boxes("ImageNet", _metadata(root, split), split, images)


def read_openimages(
    root: str | Path, *, split: str = "test", masks: str | Path | None = None, images: str | Path | None = None
) -> LocalizationSet:
    """List a split of OpenImages from wsolevaluation's metadata: masks of objects and of what is not counted.

    Args:
        root: See ``read_imagenet``; image_sizes.txt is not read.
        split: See ``read_imagenet``.
        images: See ``read_imagenet``.
        masks: The folder that the masks' paths are relative to; default: ``root``.

    Raises:
        FileNotFoundError: A file is missing; the message names it. Masks are looked for when they are read.
        ValueError: A line has another form, or an image has no class or mask.
    """
    metadata = _metadata(root, split)
    folder = Path(root if masks is None else masks)
    ids, labels = _labels(metadata)
    form = "image,mask,ignore mask (or nothing)"
    rows = read_fields(metadata / "localization.txt", "the images' masks", form, ",")
    found: dict[str, list[Path]] = {}
    ignored: dict[str, Path] = {}
    for name, mask, ignore in rows:
        found.setdefault(name, []).append(folder / mask)
        if ignore:
            ignored[name] = folder / ignore
    _complete(ids, found, metadata / "localization.txt", "mask")
    located = (
        LocatedImage(each, _picture(images, each), labels[each], masks=tuple(found[each]), ignore=ignored.get(each))
        for each in ids
    )
    return _located(f"OpenImages {split}", located, images)


def read_cub(
    root: str | Path, *, split: str = "test", masks: bool = False, images: str | Path | None = None
) -> LocalizationSet:
    """List a split of CUB-200-2011 from its own files, or from wsolevaluation's metadata.

    A true box is (x, y, x + width, y + height) in whole pixels, as in wsolevaluation's metadata of the same images.

    Args:
        root: The folder CUB_200_2011 (images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt and
            images/), or metadata as in ``read_imagenet``.
        split: "train" or "test"; with metadata also "val" (CUBV2).
        masks: Whether the truth also has the masks of segmentations/, in ``root`` or beside it.
        images: The folder of the images, if it is not ``root / "images"``.

    Raises:
        FileNotFoundError: A file is missing; the message names it.
        ValueError: A line has another form, or an image has no class, size or box.
    """
    root = Path(root)
    if not (root / "images.txt").is_file():
        if not any((folder / "image_ids.txt").is_file() for folder in (root, root / split)):
            require(root / "images.txt", "CUB's list of images (or wsolevaluation's image_ids.txt)")
        return _with_boxes("CUB", _metadata(root, split), split, images)
    if split not in ("train", "test"):
        raise ValueError(f"split: expected train or test, got {split!r}; choose one of them")
    names = dict(read_fields(root / "images.txt", "CUB's list of images", "number path"))
    labels = dict(read_fields(root / "image_class_labels.txt", "CUB's classes", "number class"))
    is_train = dict(read_fields(root / "train_test_split.txt", "CUB's split", "number is_train"))
    boxes = {
        number: edges
        for number, *edges in read_fields(root / "bounding_boxes.txt", "CUB's boxes", "number x y width height")
    }
    wanted = [number for number in names if is_train.get(number) == str(int(split == "train"))]
    if not wanted:
        raise ValueError(f"split: expected images of {split!r} in {root / 'train_test_split.txt'}, got none")
    for table, file in ((labels, "image_class_labels.txt"), (boxes, "bounding_boxes.txt")):
        _complete(wanted, table, root / file, "line")
    folder, outlines = Path(images or root / "images"), _segmentations(root) if masks else None
    located = []
    for number in wanted:
        name = names[number]
        x, y, width, height = map(float, boxes[number])
        mask = () if outlines is None else (require((outlines / name).with_suffix(".png"), "CUB's mask"),)
        picture = require(folder / name, "CUB's image, whose size the boxes are in")
        H, W = read_size(picture)
        box = (int(x), int(y), int(x + width), int(y + height))
        located.append(LocatedImage(name, picture, int(labels[number]) - 1, (W, H), (box,), mask))
    return LocalizationSet(f"CUB-200-2011 {split}", tuple(located))


def _segmentations(root: Path) -> Path:
    beside = root.parent / "segmentations"
    return require(beside if beside.is_dir() else root / "segmentations", "CUB's masks", folder=True)


def _metadata(root: str | Path, split: str) -> Path:
    """Return the folder of a split's metadata."""
    root = Path(root)
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}; choose one of them")
    return root if (root / "image_ids.txt").is_file() else root / split


def _with_boxes(name: str, metadata: Path, split: str, images: str | Path | None) -> LocalizationSet:
    ids, labels = _labels(metadata)
    boxes: dict[str, list[Box]] = {}
    for image, (x0, y0, x1, y1) in _numbers(metadata / "localization.txt", "the images' boxes", "image,x0,y0,x1,y1"):
        boxes.setdefault(image, []).append((x0, y0, x1, y1))
    _complete(ids, boxes, metadata / "localization.txt", "box")
    table = _numbers(metadata / "image_sizes.txt", "the images' sizes", "image,width,height")
    sizes = {image: (W, H) for image, (W, H) in table}
    _complete(ids, sizes, metadata / "image_sizes.txt", "size")
    located = (
        LocatedImage(each, _picture(images, each), labels[each], sizes[each], tuple(boxes[each])) for each in ids
    )
    return _located(f"{name} {split}", located, images)


def _labels(metadata: Path) -> tuple[list[str], dict[str, int]]:
    ids = read_lines(metadata / "image_ids.txt", "the list of images")
    table = _numbers(metadata / "class_labels.txt", "the images' classes", "image,class")
    labels = {image: label for image, (label,) in table}
    _complete(ids, labels, metadata / "class_labels.txt", "class")
    return ids, labels


def _numbers(path: Path, what: str, form: str) -> list[tuple[str, list[int]]]:
    """Return the rows of a table of whole numbers behind an image's name."""
    rows = []
    for name, *fields in read_fields(path, what, form, ","):
        try:
            rows.append((name, [int(field) for field in fields]))
        except ValueError:
            raise ValueError(f"root: expected whole numbers in {path}, got {','.join((name, *fields))!r}") from None
    return rows


def _complete(ids: Sequence[str], table: Mapping[str, object], path: Path, what: str) -> None:
    """Raise ValueError unless every image has an entry."""
    if lacking := [each for each in ids if each not in table]:
        raise ValueError(f"root: expected a {what} for every image in {path}, got none for {first_of(lacking)}")


def _located(name: str, located: Iterable[LocatedImage], images: str | Path | None) -> LocalizationSet:
    """Return a dataset; FileNotFoundError if a folder of images was given that holds none of them."""
    found = tuple(located)
    lacking = [each.id for each in found if each.image is None]
    notes: tuple[str, ...] = ()
    if images is not None and len(lacking) == len(found):
        raise FileNotFoundError(f"images: expected images such as {Path(images) / lacking[0]}; there is no such file")
    if images is not None and lacking:
        notes = (f"{len(lacking)} of {len(found)} images are not in {images}: {first_of(lacking)}",)
    return LocalizationSet(name, found, notes)


def _picture(images: str | Path | None, image: str) -> Path | None:
    path = None if images is None else Path(images) / image
    return path if path is not None and path.is_file() else None
