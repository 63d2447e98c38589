"""What a dataset on disk says about its images, and the small readers that all layouts share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ssa_fast.io.datasets import has_image_suffix
from ssa_fast.io.images import ImageError
from ssa_fast.io.pillow import check_file, pillow_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    Box = tuple[int, int, int, int]

__all__ = [
    *("LabelledImage", "LocalizationSet", "LocatedImage", "SegmentationSet"),
    *("read_classes", "read_fields", "read_label_map", "read_lines", "read_object_mask", "require"),
]


@dataclass(frozen=True)
class LabelledImage:
    """An image with a true label map.

    Attributes:
        id: Its name in the dataset, with ``/`` and perhaps a suffix; CAM files are found by it.
        image: Its file; None if there is none, which panels only miss.
        truth: Returns the label map (H, W) of integers: 0 background, ``k + 1`` for class ``k``, 255 not counted.
    """

    id: str
    image: Path | None
    truth: Callable[[], NDArray[np.integer]]


@dataclass(frozen=True)
class SegmentationSet:
    """Images with true label maps.

    Attributes:
        name: The dataset, with its split.
        class_names: Names of the classes, background left out; ("object",) if objects have no class.
        images: The images, in the order of the dataset.
        has_classes: Whether objects have classes; if not, a file's CAMs are all of the object.
        notes: How the layout was understood, one sentence each.
    """

    name: str
    class_names: tuple[str, ...]
    images: tuple[LabelledImage, ...]
    has_classes: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LocatedImage:
    """An image of one class whose objects are known by boxes or masks.

    Attributes:
        id, image: As in ``LabelledImage``.
        label: Its class, from 0.
        size: (W, H) of the image, which the boxes are in; None without boxes.
        boxes: True boxes ``x0, y0, x1, y1`` in pixels, as the dataset writes them.
        masks: Files of the objects' masks; their union is the truth.
        ignore: File of the mask whose pixels outside the objects are not counted; None if all are.
    """

    id: str
    image: Path | None
    label: int
    size: tuple[int, int] | None = None
    boxes: tuple[Box, ...] = ()
    masks: tuple[Path, ...] = ()
    ignore: Path | None = None


@dataclass(frozen=True)
class LocalizationSet:
    """Images of one class each, with boxes or masks.

    Attributes:
        name, notes: As in ``SegmentationSet``.
        images: The images, in the order of the dataset.
    """

    name: str
    images: tuple[LocatedImage, ...]
    notes: tuple[str, ...] = ()


def require(path: Path, what: str, *, folder: bool = False) -> Path:
    """Return ``path`` if it is there; FileNotFoundError that names it and says ``what`` it is otherwise."""
    if not (path.is_dir() if folder else path.is_file()):
        raise FileNotFoundError(f"root: expected {what}, {path}; there is no such {'folder' if folder else 'file'}")
    return path


def read_lines(path: Path, what: str) -> list[str]:
    """Return the lines of a text file that are not empty; FileNotFoundError if there is none, ValueError if empty."""
    text = require(path, what).read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"root: expected {what}, {path}; the file is empty")
    return lines


def read_fields(path: Path, what: str, form: str, separator: str | None = None) -> list[list[str]]:
    """Return the fields of each line of a table that has the columns of ``form``.

    Args:
        path, what: See ``read_lines``.
        form: The columns, e.g. "id,class"; a line with another number of them is a ValueError.
        separator: Between columns; None: white space.
    """
    rows = []
    count = len(form.split(separator))
    for number, line in enumerate(read_lines(path, what), 1):
        fields = [field.strip() for field in line.split(separator)]
        if len(fields) != count:
            raise ValueError(f"root: expected {form!r} in line {number} of {path}, got {line!r}")
        rows.append(fields)
    return rows


def read_classes(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return class names given as a list, as "cat,dog", or as a file with a name per line.

    Raises:
        ValueError: A name occurs twice, or there are more than 254.
    """
    if isinstance(given, str):
        is_file = Path(given).is_file()
        given = (
            read_lines(Path(given), "a class name per line") if is_file else [name.strip() for name in given.split(",")]
        )
    found = tuple(given)
    if len(set(found)) != len(found) or not all(found) or len(found) > 254:
        raise ValueError(f"classes: expected up to 254 different names such as cat,dog, or a file of them, got {found}")
    return found


def read_label_map(path: Path, num_classes: int) -> NDArray[np.uint8]:
    """Return a true label map (H, W) from an indexed or grey 8-bit image.

    Args:
        path: The file.
        num_classes: N, background included: labels are in ``[0, N)`` or 255.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: It is not an image, or one whose pixels are not labels.
    """
    require(path, "a label map")
    try:
        check_file(path)
        with pillow_errors(None), Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise ImageError(f"its pixels are {image.mode}: expected an indexed or grey image of class numbers.")
            labels = np.asarray(image)
    except ImageError as error:
        raise ImageError(f"root: {path}: {error}") from None
    if (wrong := labels[(labels >= num_classes) & (labels != 255)]).size:
        raise ImageError(
            f"root: {path}: expected labels 0 to {num_classes - 1}, or 255, got {wrong[0]}; pass the classes"
        )
    return labels


def read_object_mask(path: Path, threshold: float | None = None) -> NDArray[np.bool_]:
    """Return where a mask (H, W) of figure and ground shows the object.

    Args:
        path: An image of any mode.
        threshold: Grey values above it are the object; None: above half of the mask's own maximum.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: It is not an image.
    """
    require(path, "a mask")
    try:
        check_file(path)
        with pillow_errors(None), Image.open(path) as image:
            # The numbers of an indexed image are its labels, whatever their colours.
            values = np.asarray(image if image.mode == "P" else image.convert("L"))
    except ImageError as error:
        raise ImageError(f"root: {path}: {error}") from None
    return np.asarray(values > (float(values.max()) / 2 if threshold is None else threshold))


def by_stem(folder: Path, files: Iterable[Path] | None = None) -> dict[str, Path]:
    """Return the images below ``folder`` by relative path without suffix; ValueError if two share one."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")) if files is None else files:
        relative = path.relative_to(folder)
        if not path.is_file() or not has_image_suffix(path) or any(part.startswith(".") for part in relative.parts):
            continue
        stem = PurePosixPath(relative.with_suffix("").as_posix()).as_posix()
        if stem in found:
            raise ValueError(f"root: expected one file per name, got {found[stem]} and {path}; remove one of them")
        found[stem] = path
    return found


def first_of(names: Sequence[str], limit: int = 3) -> str:
    """Return the first few names for an error or a note."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
