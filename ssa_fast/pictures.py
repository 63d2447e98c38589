"""Pictures from files: found in folders, read as 8-bit RGB whatever their kind, or refused with the reason.

Nothing here knows a network: a picture is an array of pixels and a list of things worth telling its owner.
"""

from __future__ import annotations

import os
import stat
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["MAX_PIXELS", "Found", "Picture", "PictureError", "Source", "find", "output_names", "read"]

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs: a quarter of a GiB of 24-bit pixels."""

WHITE = (255, 255, 255)


class PictureError(ValueError):
    """A file that cannot be read as a picture; the message is one sentence and says why."""


@dataclass(frozen=True)
class Picture:
    """Pixels of one file, upright and opaque.

    Attributes:
        rgb: uint8 array (H, W, 3), sRGB as stored.
        notes: what was done to get there that its owner may want to know, one sentence each.
    """

    rgb: np.ndarray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A file to read, and the name it goes by: its path below the folder that was given, or its own name."""

    path: Path
    relative: PurePosixPath


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


def find(paths: Sequence[str | Path], *, leave_out: Sequence[Path] = ()) -> Found:
    """Files named by `paths`: each file as it is, each folder searched through for files with a picture's suffix.

    A file given by name is kept whatever its suffix, so that it is read or reported. A file met twice is kept once.

    Args:
        paths: files and folders.
        leave_out: folders that are not entered when met inside another one (the folders a run writes to).
    """
    sources: list[Source] = []
    missing: list[tuple[Path, str]] = []
    skipped: list[tuple[Path, str]] = []
    barred = {os.path.realpath(folder) for folder in leave_out}
    for path in map(Path, paths):
        if path.is_dir():
            sources.extend(_walk(path, barred, missing, skipped))
        elif path.exists():
            sources.append(Source(path, PurePosixPath(path.name)))
        else:
            missing.append((path, "there is no such file or folder."))
    unique: dict[tuple[str, str], Source] = {}
    for source in sources:
        unique.setdefault(_identity(source.path), source)
    return Found(tuple(unique.values()), tuple(missing), tuple(skipped))


def _identity(path: Path) -> tuple[str, str]:
    # A link to a file is a picture under a name of its own; the same file by another road is not.
    return os.path.realpath(path.parent), path.name


def _walk(
    root: Path, barred: set[str], missing: list[tuple[Path, str]], skipped: list[tuple[Path, str]]
) -> list[Source]:
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    entered = {os.path.realpath(root)}
    found: list[Source] = []

    def unreadable(error: OSError) -> None:
        missing.append((Path(error.filename), f"the folder cannot be listed: {error.strerror}."))

    for folder, subfolders, files in os.walk(root, onerror=unreadable, followlinks=True):
        for name in sorted(subfolders):
            place = os.path.realpath(os.path.join(folder, name))
            if place in barred:
                skipped.append((Path(folder, name), "the outputs of this run go there."))
            if place in barred or place in entered or name.startswith("."):
                subfolders.remove(name)
            entered.add(place)
        for name in files:
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() in suffixes:
                found.append(Source(path, PurePosixPath(path.relative_to(root).as_posix())))
            else:
                skipped.append((path, "its suffix is not one of a picture."))
    return sorted(found, key=lambda source: source.relative)


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


def read(path: str | Path, *, max_pixels: int = MAX_PIXELS, backdrop: tuple[int, int, int] = WHITE) -> Picture:
    """The picture in `path` as 8-bit RGB: turned upright by its EXIF tag, laid on `backdrop` where it is transparent.

    16-bit greyscale is scaled from its full range (0..65535 -> 0..255); wider integers and floats from their own
    range, which is noted. Of several frames the first is taken, which is noted too.

    Raises:
        PictureError: the file is missing, empty, not a picture, damaged, or has more than `max_pixels` pixels.
    """
    path = Path(path)
    _check_file(path)
    with _warnings_as_notes(max_pixels) as notes:
        try:
            with Image.open(path) as image:
                frames = _frame_count(image)
                image.load()
                upright = _upright(image, notes)
                rgb = _to_rgb(upright, backdrop, notes)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise PictureError(
                f"it has more than {max_pixels:,} pixels, which may be a decompression bomb: "
                "raise --max-pixels if you trust the file, or make the picture smaller."
            ) from None
        except UnidentifiedImageError:
            raise PictureError("it is not a picture of any kind that Pillow can read.") from None
        except PictureError:
            raise
        except MemoryError:
            raise PictureError("there is not enough memory to decode it.") from None
        except Exception as error:  # decoders meet damaged data with nearly every exception there is
            raise PictureError(f"it is damaged or cut short ({_one_line(error)}).") from error
    if frames > 1:
        notes.append(f"the first of its {frames} frames is used.")
    return Picture(rgb, tuple(dict.fromkeys(notes)))


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise PictureError(f"it cannot be opened ({error.strerror}).") from None
    if not stat.S_ISREG(status.st_mode):
        raise PictureError("it is not a regular file.")
    if status.st_size == 0:
        raise PictureError("the file is empty (0 bytes).")
    if not os.access(path, os.R_OK):
        raise PictureError("it cannot be opened (Permission denied).")


@contextmanager
def _warnings_as_notes(max_pixels: int) -> Iterator[list[str]]:
    """Pillow's limit set to `max_pixels` and made binding; whatever else Pillow warns of becomes a note."""
    notes: list[str] = []
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield notes
        notes.extend(f"Pillow warns: {_one_line(warning.message)}." for warning in caught)
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _frame_count(image: Image.Image) -> int:
    try:
        count = int(getattr(image, "n_frames", 1))
        image.seek(0)
    except (OSError, EOFError, SyntaxError, ValueError):
        return 1  # a later frame is damaged: no matter, the first one is read for itself
    return count


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # an EXIF block can be damaged in any way; the pixels are sound
        notes.append(f"its EXIF data is damaged, so it was not turned upright ({_one_line(error)}).")
        return image


def _to_rgb(image: Image.Image, backdrop: tuple[int, int, int], notes: list[str]) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        grey = _to_eight_bits(np.asarray(image), notes)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*backdrop, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA"))
        notes.append("its transparent parts are laid on rgb({}, {}, {}).".format(*backdrop))
    return np.array(image.convert("RGB"))


def _to_eight_bits(values: np.ndarray, notes: list[str]) -> np.ndarray:
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise PictureError("it holds NaN or infinite values.")
    low, high = float(wide.min()), float(wide.max())
    if values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    else:
        notes.append(f"its values, {low:g} to {high:g}, are stretched to 0..255.")
    scaled: np.ndarray = np.rint((wide - low) * 255.0 / ((high - low) or 1.0))
    return scaled.astype(np.uint8)


def _one_line(error: object) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
