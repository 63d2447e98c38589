"""Which pictures a run is over: files, folders, globs, text lists, and datasets laid out as the field does it.

Nothing here opens a picture: a source is a path, the name its outputs go by, and where its labels are told.
"""

from __future__ import annotations

import glob
import os
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["VOC_CLASSES", "Found", "Source", "find", "labels_of", "output_names"]

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
LISTS = (".txt", ".lst")
ZARR = ".zarr"
"""A folder that is one image: it is a source and never entered."""


@dataclass(frozen=True)
class Source:
    """A file to read, and the name it goes by: its path below the folder that was given, or its own name.

    `dataset` is the class list of the dataset that it belongs to, and `annotation` its VOC annotation, where there is
    one.
    """

    path: Path
    relative: PurePosixPath
    dataset: tuple[str, ...] | None = None
    annotation: Path | None = None


@dataclass(frozen=True)
class Found:
    """What `find` came upon.

    Attributes:
        sources: files to read, each once, in the order of the paths given and sorted inside each folder.
        missing: paths that could not be looked at, with the reason.
        skipped: things inside folders that were passed over, with the reason.
    """

    sources: tuple[Source, ...]
    missing: tuple[tuple[Path, str], ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()


def find(paths: Sequence[str | Path], *, split: str | None = None, leave_out: Sequence[Path] = ()) -> Found:
    """The pictures that `paths` mean.

    A file is taken as it is, whatever its suffix, so that it is read or reported; a text list (.txt, .lst) stands for
    the paths in it, one a line, beside the list or in the current folder. A folder is searched through for files with
    a picture's suffix; its first level of subfolders are the classes of an ImageFolder. A folder with VOC's layout
    (JPEGImages beside ImageSets or Annotations) stands for the pictures of `split`. A path that does not exist and
    holds *, ? or [ is a glob, ** included. A file met twice is kept once.

    Args:
        paths: files, folders, text lists and globs.
        split: of VOC folders: a name such as "train" (ImageSets/Segmentation, else ImageSets/Main) or a file of ids;
            None for all pictures.
        leave_out: folders that are not entered when met inside another one (the folders a run writes to).

    Raises:
        ValueError: `split` is given and no VOC folder has it.
    """
    search = _Search({os.path.realpath(folder) for folder in leave_out}, split)
    for path in map(Path, paths):
        search.add(path)
    if split is not None and not search.split_found:
        raise ValueError(
            f"split: expected a folder with VOC's layout among the paths (JPEGImages, ImageSets), got {split!r} and "
            "none; leave it out"
        )
    unique: dict[tuple[str, str], Source] = {}
    for source in search.sources:
        unique.setdefault(_identity(source.path), source)
    return Found(tuple(unique.values()), tuple(search.missing), tuple(search.skipped))


def labels_of(source: Source) -> tuple[str, ...]:
    """The classes that the dataset says are in a picture, in the order of its class list.

    They are the objects of its VOC annotation, or the name of its ImageFolder's subfolder.

    Raises:
        ValueError: the picture belongs to no dataset, or its annotation cannot be read.
    """
    if source.annotation is not None:
        try:
            tree = ElementTree.parse(source.annotation)
        except (OSError, ElementTree.ParseError) as error:
            raise ValueError(f"its labels cannot be read from {source.annotation} ({error}).") from None
        present = {(node.text or "").strip() for node in tree.iterfind("object/name")}
        return tuple(name for name in source.dataset or () if name in present)
    if source.dataset is None or len(source.relative.parts) < 2:
        raise ValueError("no dataset tells its labels: give an ImageFolder or a folder with VOC's layout.")
    return source.relative.parts[:1]


class _Search:
    def __init__(self, barred: set[str], split: str | None) -> None:
        self.barred, self.split, self.split_found = barred, split, False
        self.sources: list[Source] = []
        self.missing: list[tuple[Path, str]] = []
        self.skipped: list[tuple[Path, str]] = []

    def add(self, path: Path) -> None:
        if path.is_dir() and path.suffix.lower() != ZARR:
            self.sources.extend(self._voc(path) if _is_voc(path) else self._folder(path))
        elif path.exists():
            self.sources.extend(self._list(path) if path.suffix.lower() in LISTS else [_alone(path)])
        elif glob.has_magic(str(path)):
            self._glob(path)
        else:
            self.missing.append((path, "there is no such file or folder."))

    def _glob(self, pattern: Path) -> None:
        fixed = Path(*_before_magic(pattern.parts))
        matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
        files = [match for match in matches if not match.is_dir() or match.suffix.lower() == ZARR]
        if not files:
            self.missing.append((pattern, "no file matches it."))
        self.sources.extend(Source(file, PurePosixPath(file.relative_to(fixed).as_posix())) for file in files)

    def _list(self, path: Path) -> Iterator[Source]:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            self.missing.append((path, f"the list cannot be read ({error})."))
            return
        for line in filter(None, map(str.strip, lines)):
            beside, written = path.parent / line, PurePosixPath(Path(line).as_posix())
            file = beside if beside.exists() else Path(line)
            if not file.exists():
                self.missing.append((Path(line), f"{path} lists it, and there is no such file."))
                continue
            tame = not written.is_absolute() and ".." not in written.parts
            yield Source(file, written if tame else PurePosixPath(file.name))

    def _voc(self, root: Path) -> Iterator[Source]:
        pictures = root / "JPEGImages"
        if self.split is None:
            names = [path.name for path in sorted(pictures.iterdir()) if path.suffix.lower() in _suffixes()]
        else:
            names = [f"{identity}.jpg" for identity in self._ids(root, self.split)]
        for name in names:
            annotation = root / "Annotations" / f"{Path(name).stem}.xml"
            yield Source(pictures / name, PurePosixPath(name), VOC_CLASSES, annotation)

    def _ids(self, root: Path, split: str) -> list[str]:
        folders = (root / "ImageSets" / kind for kind in ("Segmentation", "Main"))
        for path in (*(folder / f"{split}.txt" for folder in folders), Path(split)):
            if path.is_file():
                self.split_found = True
                lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
                # One class's list has a flag behind each id; lists of pairs have the mask's path there.
                return [Path(first).stem for first, *rest in lines if rest[:1] != ["-1"]]
        self.missing.append((root, f"it has no split {split!r} in ImageSets/Segmentation or ImageSets/Main."))
        self.split_found = True  # it was looked for, and its lack is told
        return []

    def _folder(self, root: Path) -> list[Source]:
        found = list(self._walk(root))
        classes = tuple(sorted({source.relative.parts[0] for source in found if len(source.relative.parts) > 1}))
        members = [replace(source, dataset=classes) if classes else source for source in found]
        return sorted(members, key=lambda source: source.relative)

    def _walk(self, root: Path) -> Iterator[Source]:
        suffixes, entered = _suffixes(), {os.path.realpath(root)}

        def unreadable(error: OSError) -> None:
            self.missing.append((Path(error.filename), f"the folder cannot be listed: {error.strerror}."))

        for folder, subfolders, files in os.walk(root, onerror=unreadable, followlinks=True):
            for name in sorted(subfolders):
                path = Path(folder, name)
                place = os.path.realpath(path)
                if place in self.barred:
                    self.skipped.append((path, "the outputs of this run go there."))
                elif path.suffix.lower() == ZARR:
                    yield Source(path, PurePosixPath(path.relative_to(root).as_posix()))
                if place in self.barred | entered or name.startswith(".") or path.suffix.lower() == ZARR:
                    subfolders.remove(name)
                entered.add(place)
            for name in files:
                path = Path(folder, name)
                if name.startswith("."):
                    continue
                if path.suffix.lower() in suffixes:
                    yield Source(path, PurePosixPath(path.relative_to(root).as_posix()))
                else:
                    self.skipped.append((path, "its suffix is not one of a picture."))


def _alone(path: Path) -> Source:
    return Source(path, PurePosixPath(path.name))


def _is_voc(path: Path) -> bool:
    return (path / "JPEGImages").is_dir() and ((path / "ImageSets").is_dir() or (path / "Annotations").is_dir())


def _before_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def _suffixes() -> set[str]:
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _identity(path: Path) -> tuple[str, str]:
    # A link to a file is a picture under a name of its own; the same file by another road is not.
    return os.path.realpath(path.parent), path.name


def output_names(sources: Sequence[Source]) -> list[PurePosixPath]:
    """One name without suffix per source, no two alike (nor alike but for case), whatever the order of the sources.

    A name is the source's relative path less its suffix. Where several sources share that, each gets its suffix
    back behind an underscore (`a.png`, `a.jpg` -> `a_png`, `a_jpg`) and, where that is not enough, a number.
    """

    def bare(source: Source) -> str:
        return str(source.relative.with_suffix("")) if source.relative.suffix else str(source.relative)

    sharing: dict[str, list[int]] = {}
    for index in sorted(range(len(sources)), key=lambda i: (sources[i].relative, str(sources[i].path))):
        sharing.setdefault(bare(sources[index]).casefold(), []).append(index)
    names = {group[0]: bare(sources[group[0]]) for group in sharing.values() if len(group) == 1}
    taken = {name.casefold() for name in names.values()}
    for index in (i for group in sharing.values() if len(group) > 1 for i in group):
        stem = f"{bare(sources[index])}{sources[index].relative.suffix.lower().replace('.', '_')}"
        name, count = stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{stem}-{count}"
        names[index] = name
        taken.add(name.casefold())
    return [PurePosixPath(names[index]) for index in range(len(sources))]
