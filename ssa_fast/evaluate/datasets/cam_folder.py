"""Find and read the CAM file of each image of a dataset."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from ssa_fast.evaluate.datasets.base import first_of
from ssa_fast.io.cam_files import NoCamError, read_cam
from ssa_fast.io.datasets import has_image_suffix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssa_fast.io.cam_files import CamFile

__all__ = ["CamFolder", "Missing"]

Missing = Literal["refuse", "skip", "empty"]
"""What an image without a CAM file is: an error, left out, or an image whose CAMs are 0 everywhere."""
SUFFIXES = (".npz", ".npy")


class CamFolder:
    """The CAM files below a folder, in any format of ``io.cam_files``.

    A file belongs to the image whose path it ends with, or that ends with its own: ``a/b.npz`` and ``b.npz`` are of
    ``a/b.jpg``, and so is ``out/a/b.jpg.npy``; an exact match goes first.

    Args:
        folder: The folder; that of a run stands for its ``cams``.
        allow_pickle: Required for the files of IRN, PSA and CLIP-ES.

    Raises:
        FileNotFoundError: There is no such folder, or no CAM file in it.
    """

    def __init__(self, folder: str | Path, *, allow_pickle: bool = False) -> None:
        folder = Path(folder)
        self.folder = folder / "cams" if (folder / "cams").is_dir() else folder
        self.allow_pickle = allow_pickle
        self._by_name: dict[str, list[tuple[tuple[str, ...], Path]]] = defaultdict(list)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"cams: expected a folder of CAM files, got {folder}; there is no such folder")
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                parts = _parts(path.relative_to(self.folder).with_suffix("").as_posix())
                self._by_name[parts[-1]].append((parts, path))
        if not self._by_name:
            raise FileNotFoundError(f"cams: expected CAM files (.npz, .npy), got none in {self.folder}")

    def find(self, image: str) -> Path | None:
        """Return the file of an image of the dataset; None if there is none, ValueError if there are several."""
        wanted = _parts(image)
        best: list[tuple[tuple[str, ...], Path]] = []
        for parts, path in self._by_name.get(wanted[-1], ()):
            shared = min(len(parts), len(wanted))
            if parts[-shared:] == wanted[-shared:]:
                best.append((parts, path))
        exact = [each for each in best if each[0] == wanted]
        found = [str(path) for _, path in exact or best]
        if len(found) > 1:
            raise ValueError(f"cams: expected one CAM file of {image}, got {first_of(found)}; pass the folder of one")
        return Path(found[0]) if found else None

    def find_all(self, images: Sequence[str], missing: Missing) -> list[Path | None]:
        """Return the file of each image; None for one without.

        Raises:
            FileNotFoundError: An image has no file and ``missing`` is "refuse", or none of them has one.
            ValueError: ``missing`` is unknown, two images share a file, or an image has several.
        """
        if missing not in ("refuse", "skip", "empty"):
            raise ValueError(f"missing: expected refuse, skip or empty, got {missing!r}; choose one of them")
        found = [self.find(image) for image in images]
        owners: dict[Path, str] = {}
        for image, path in zip(images, found, strict=True):
            if path is not None and owners.setdefault(path, image) != image:
                raise ValueError(
                    f"cams: expected a CAM file per image, got {path} for both {owners[path]} and {image}; keep the "
                    "subfolders of the images in the CAM folder"
                )
        lacking = [image for image, path in zip(images, found, strict=True) if path is None]
        if len(lacking) == len(images) or (lacking and missing == "refuse"):
            hint = "pass the folder that a run wrote" if len(lacking) == len(images) else "pass --missing skip or empty"
            raise FileNotFoundError(
                f"cams: expected a CAM file for each of {len(images)} images in {self.folder}, there is none for "
                f"{len(lacking)}: {first_of(lacking)}; {hint}"
            )
        return found

    def read(self, path: Path) -> CamFile | None:
        """Return the CAMs of a file; None if it says that its image has no class.

        Raises:
            ValueError: The file cannot be read, see ``cam_files.read_cam``.
        """
        try:
            return read_cam(path, allow_pickle=self.allow_pickle)
        except NoCamError:
            return None


def _parts(name: str) -> tuple[str, ...]:
    """Return the parts of an image's path without its suffix."""
    path = PurePosixPath(name)
    return path.with_suffix("").parts if has_image_suffix(Path(path.name)) else path.parts
