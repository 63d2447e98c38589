"""Find the images of a run: files, folders, globs, text lists, ImageFolder and PASCAL VOC layouts.

No image is opened here.
"""

from __future__ import annotations

import glob
import itertools
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["VOC_CLASSES", "ImageSource", "Listing", "find_images", "has_image_suffix", "labels_of", "output_names"]

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
LIST_SUFFIXES = (".txt", ".lst")
ZARR = ".zarr"  # a folder that is one image


@dataclass(frozen=True)
class ImageSource:
    """An image file (or zarr folder) and what its dataset says about it.

    Attributes:
        path: Where it is.
        relative: Its path below the folder that was given, or its own name; outputs are named after it.
        dataset, annotation: Class names of its dataset and its VOC annotation file; None without one.
        prefixed: ``relative`` behind its folder's name, where images of several folders share it; else None.
    """

    path: Path
    relative: PurePosixPath
    dataset: tuple[str, ...] | None = None
    annotation: Path | None = None
    prefixed: PurePosixPath | None = None

    @property
    def file_name(self) -> str:
        """The image's name in ``boxes.json`` and CAM files, unique among those listed with it."""
        return (self.prefixed or self.relative).as_posix()


@dataclass(frozen=True)
class Listing:
    """The result of ``find_images``.

    Attributes:
        sources: Images, each once, in the order of the paths given and sorted inside each folder.
        missing, skipped: Paths that cannot be found or listed, and files and subfolders left out, with the reasons.
    """

    sources: tuple[ImageSource, ...]
    missing: tuple[tuple[Path, str], ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()


def find_images(paths: Sequence[str | Path], *, split: str | None = None, exclude: Sequence[Path] = ()) -> Listing:
    """Return the images that ``paths`` stand for, each once.

    - A file is taken whatever its suffix.
    - A text list (.txt, .lst) has one path per line, relative to the list or to the current folder.
    - A folder is searched recursively by suffix; its first level of subfolders are the classes of an ImageFolder.
    - A folder with VOC's layout (JPEGImages beside ImageSets or Annotations) stands for the images of ``split``.
    - A path that does not exist and contains ``*``, ``?`` or ``[`` is a glob; ``**`` matches any folders.

    Args:
        paths: Files, folders, text lists and globs.
        split: Of VOC folders: a name such as "train" (ImageSets/Segmentation, else ImageSets/Main), or a file of ids.
        exclude: Folders to skip inside other folders.

    Raises:
        ValueError: ``split`` is given, but no path is a VOC folder.
    """
    search = _Search({os.path.realpath(folder) for folder in exclude}, split)
    for path in map(Path, paths):
        search.add(path)
    if split is not None and not search.split_used:
        raise ValueError(
            f"split: expected a folder with VOC's layout among the paths (JPEGImages, ImageSets), got {split!r} and "
            "none; leave it out"
        )
    unique: dict[tuple[str, str], ImageSource] = {}
    for source in search.sources:
        # A link to a file counts as an image of its own; the same file reached through a linked folder does not.
        unique.setdefault((os.path.realpath(source.path.parent), source.path.name), source)
    return Listing(tuple(_distinguish(list(unique.values()))), tuple(search.missing), tuple(search.skipped))


def labels_of(source: ImageSource) -> tuple[str, ...]:
    """Return an image's classes: the objects of its VOC annotation, or its ImageFolder's subfolder.

    Raises:
        ValueError: The image belongs to no dataset, or its annotation cannot be read.
    """
    if source.annotation is not None:
        try:
            tree = ElementTree.parse(source.annotation)
        except (OSError, ElementTree.ParseError) as error:
            raise ValueError(f"its labels cannot be read from {source.annotation} ({error}).") from None
        present = {(node.text or "").strip() for node in tree.iterfind("object/name")}
        return tuple(name for name in source.dataset or () if name in present)
    if source.dataset is None or len(source.relative.parts) < 2:
        raise ValueError("it has no labels: they come from an ImageFolder or a folder with VOC's layout.")
    return source.relative.parts[:1]


class _Search:
    def __init__(self, excluded: set[str], split: str | None) -> None:
        self.excluded, self.split, self.split_used = excluded, split, False
        self.sources: list[ImageSource] = []
        self.missing: list[tuple[Path, str]] = []
        self.skipped: list[tuple[Path, str]] = []

    def add(self, path: Path) -> None:
        if path.is_dir() and path.suffix.lower() != ZARR:
            self.sources.extend(self._voc(path) if _is_voc(path) else self._folder(path))
        elif path.exists():
            is_list = path.suffix.lower() in LIST_SUFFIXES
            self.sources.extend(self._list(path) if is_list else [ImageSource(path, PurePosixPath(path.name))])
        elif glob.has_magic(str(path)):
            self._glob(path)
        else:
            self.missing.append((path, "there is no such file or folder."))

    def _glob(self, pattern: Path) -> None:
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
        matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
        files = [match for match in matches if not match.is_dir() or match.suffix.lower() == ZARR]
        if not files:
            self.missing.append((pattern, "no file matches it."))
        self.sources.extend(_below(root, file) for file in files)

    def _list(self, path: Path) -> Iterator[ImageSource]:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            self.missing.append((path, f"the list cannot be read ({error})."))
            return
        for line in filter(None, map(str.strip, lines)):
            beside, written = path.parent / line, PurePosixPath(Path(line).as_posix())
            file = beside if beside.exists() else Path(line)
            if not file.exists():
                self.missing.append((Path(line), f"{path} lists it, but there is no such file."))
                continue
            inside = not written.is_absolute() and ".." not in written.parts
            yield ImageSource(file, written if inside else PurePosixPath(file.name))

    def _voc(self, root: Path) -> Iterator[ImageSource]:
        images = root / "JPEGImages"
        if self.split is None:
            names = sorted(path.name for path in images.iterdir() if path.suffix.lower() in _image_suffixes())
        else:
            names = [f"{image_id}.jpg" for image_id in self._split_ids(root, self.split)]
        for name in names:
            annotation = root / "Annotations" / f"{Path(name).stem}.xml"
            yield ImageSource(images / name, PurePosixPath(name), VOC_CLASSES, annotation)

    def _split_ids(self, root: Path, split: str) -> list[str]:
        self.split_used = True
        file = f"{split}.txt"
        for path in (root / "ImageSets/Segmentation" / file, root / "ImageSets/Main" / file, Path(split)):
            if path.is_file():
                lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
                # The second column is a flag in the list of one class (-1: absent), a mask's path in a list of pairs.
                return [Path(first).stem for first, *rest in lines if rest[:1] != ["-1"]]
        self.missing.append((root, f"it has no split {split!r} in ImageSets/Segmentation or ImageSets/Main."))
        return []

    def _folder(self, root: Path) -> list[ImageSource]:
        sources = sorted(self._walk(root), key=lambda source: source.relative)
        classes = tuple(sorted({source.relative.parts[0] for source in sources if len(source.relative.parts) > 1}))
        return [replace(source, dataset=classes) for source in sources] if classes else sources

    def _walk(self, root: Path) -> Iterator[ImageSource]:
        suffixes, visited = _image_suffixes(), {os.path.realpath(root)}

        def unreadable(error: OSError) -> None:
            self.missing.append((Path(error.filename), f"the folder cannot be listed: {error.strerror}."))

        for folder, subfolders, files in os.walk(root, onerror=unreadable, followlinks=True):
            for name in sorted(subfolders):
                path = Path(folder, name)
                real, is_zarr = os.path.realpath(path), path.suffix.lower() == ZARR
                if real in self.excluded:
                    self.skipped.append((path, "it is an output folder of this run."))
                elif is_zarr:
                    yield _below(root, path)
                if is_zarr or real in self.excluded | visited or name.startswith("."):
                    subfolders.remove(name)
                visited.add(real)
            for path in (Path(folder, name) for name in files if not name.startswith(".")):
                if path.suffix.lower() in suffixes:
                    yield _below(root, path)
                else:
                    self.skipped.append((path, "its suffix is not that of an image format."))


def _below(root: Path, path: Path) -> ImageSource:
    return ImageSource(path, PurePosixPath(path.relative_to(root).as_posix()))


def _distinguish(sources: list[ImageSource]) -> list[ImageSource]:
    """Prefix the names that images of several folders share with what is different in the folders' paths."""
    counts = Counter(source.relative for source in sources)
    if len(counts) == len(sources):
        return sources
    shared = [counts[source.relative] > 1 for source in sources]
    found = _prefix(sources, shared)
    unique = len({source.file_name for source in found}) == len(found)
    return found if unique else _prefix(sources, [True] * len(sources))


def _prefix(sources: list[ImageSource], chosen: list[bool]) -> list[ImageSource]:
    absolute = [Path(os.path.abspath(source.path)) for source in sources]
    pairs = zip(absolute, sources, chosen, strict=True)
    roots = [path.parents[len(source.relative.parts) - 1] for path, source, taken in pairs if taken]
    common = os.path.commonpath(roots)
    return [
        replace(source, prefixed=PurePosixPath(path.relative_to(common).as_posix())) if taken else source
        for path, source, taken in zip(absolute, sources, chosen, strict=True)
    ]


def _is_voc(path: Path) -> bool:
    return (path / "JPEGImages").is_dir() and ((path / "ImageSets").is_dir() or (path / "Annotations").is_dir())


def _image_suffixes() -> set[str]:
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def has_image_suffix(path: Path) -> bool:
    """Return True if a file's name ends as that of an image that Pillow can read."""
    return path.suffix.lower() in _image_suffixes()


def output_names(sources: Sequence[ImageSource]) -> list[PurePosixPath]:
    """Return one unique name without suffix per source; names do not depend on the order of the sources.

    A name is the source's relative path without its suffix. Sources that share one (ignoring case) get their suffix
    back after an underscore (``a.png``, ``a.jpg`` -> ``a_png``, ``a_jpg``) and, if still not unique, a number.
    """

    stems = [str(source.relative.with_suffix("") if source.relative.suffix else source.relative) for source in sources]
    counts = Counter(stem.casefold() for stem in stems)
    taken = {stem for stem, count in counts.items() if count == 1}
    names = list(stems)
    for index in sorted(
        range(len(sources)), key=lambda i: (sources[i].relative, sources[i].file_name, str(sources[i].path))
    ):
        if counts[stems[index].casefold()] > 1:
            stem = stems[index] + sources[index].relative.suffix.lower().replace(".", "_")
            candidates = (stem if n == 1 else f"{stem}-{n}" for n in itertools.count(1))
            names[index] = next(name for name in candidates if name.casefold() not in taken)
            taken.add(names[index].casefold())
    return [PurePosixPath(name) for name in names]
