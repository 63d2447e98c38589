"""Decode what Pillow decodes right, as samples with their format, and refuse the rest with the reason."""

from __future__ import annotations

import os
import stat
import warnings
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from ssa_fast.io.deep_color import stored_samples
from ssa_fast.io.samples import ImageError, SampleFormat
from ssa_fast.io.tiff_tags import check_tiff

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ssa_fast.io.samples import ReadOptions

WIDTH, HEIGHT, ORIENTATION = 256, 257, 274  # tags of EXIF and TIFF
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs: a quarter of a GiB of 24-bit pixels
UINT8 = np.dtype(np.uint8)


def check_file(path: Path) -> None:
    """Raise ImageError unless ``path`` is a readable, regular file that is not empty."""
    try:
        status = path.stat()
    except OSError as error:
        raise ImageError(f"it cannot be opened ({error.strerror}).") from None
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("it is not a regular file.")
    if status.st_size == 0:
        raise ImageError("the file is empty (0 bytes).")
    if not os.access(path, os.R_OK):
        raise ImageError("it cannot be opened (Permission denied).")


def read_size(path: Path) -> tuple[int, int]:
    """Return (H, W) of the upright image in a file, from its header, however many pixels it has.

    Raises:
        ImageError: The file is missing, empty, not an image, or damaged.
    """
    check_file(path)
    with pillow_errors(None), Image.open(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # some versions of Pillow turn its size, others do not
            width, height = (image.tag_v2[tag] for tag in (WIDTH, HEIGHT))  # type: ignore[attr-defined]
        return (width, height) if exif_orientation(image) >= 5 else (height, width)


def exif_orientation(image: Image.Image) -> int:
    """Return the orientation tag, 1 to 8; 1 (upright) if there is none or its EXIF data are damaged."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole image to search for the tag behind the pixels
    try:
        found = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data raise nearly every exception; the pixels are intact
        return 1
    return found if 1 <= found <= 8 else 1


def decode(path: Path, max_pixels: int | None, options: ReadOptions) -> tuple[np.ndarray, SampleFormat, int]:
    """Return an image's samples (H, W, C), their format, and the orientation tag.

    Raises:
        ImageError: It is not an image, damaged, has more than ``max_pixels``, or is one that Pillow gets wrong.
    """
    with pillow_errors(max_pixels) as notes, Image.open(path) as image:
        frames = _frame_count(image)
        bits = check_tiff(image, options, notes, frames) if image.format == "TIFF" else None
        stored = stored_samples(image, path, options, notes)
        image.load()
        orientation = _orientation(image, notes)
        samples, form = stored or _to_samples(image)
    if frames > 1:
        notes.append(f"the first of its {frames} frames is used.")
    return samples, replace(form, bits=bits or form.bits, notes=tuple(dict.fromkeys(notes))), orientation


@contextmanager
def pillow_errors(max_pixels: int | None) -> Iterator[list[str]]:
    """Make Pillow's size limit ``max_pixels``, its errors ImageErrors, and its warnings notes."""
    notes: list[str] = []
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield notes
        notes.extend(f"Pillow warns: {_one_line(warning.message)}." for warning in caught)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_many_pixels(max_pixels or 0) from None
    except UnidentifiedImageError:
        raise ImageError("it is not an image in any format that Pillow can read.") from None
    except MemoryError:
        raise ImageError("there is not enough memory to decode it.") from None
    except Exception as error:  # decoders raise nearly every exception on damaged data
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"it is damaged or cut short ({_one_line(error)}).") from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def too_many_pixels(max_pixels: int) -> ImageError:
    """Return the error of an image with more pixels than are allowed."""
    return ImageError(
        f"it has more than {max_pixels:,} pixels, which may be a decompression bomb: "
        "raise --max-pixels if you trust the file, or make the image smaller."
    )


def _frame_count(image: Image.Image) -> int:
    try:
        count = int(getattr(image, "n_frames", 1))
        image.seek(0)
        return count
    except (OSError, EOFError, SyntaxError, ValueError):
        return 1  # a later frame is damaged, but only the first one is used


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """Return the orientation tag of a decoded image."""
    try:
        found = int(image.getexif().get(ORIENTATION, 1))
    except Exception as error:  # damaged EXIF data raise nearly every exception; the pixels are intact
        notes.append(f"its EXIF data is damaged, so it was not rotated upright ({_one_line(error)}).")
        return 1
    return found if 1 <= found <= 8 else 1


def _to_samples(image: Image.Image) -> tuple[np.ndarray, SampleFormat]:
    """Return the pixels of a decoded image of any mode."""
    if image.mode.startswith("I") or image.mode == "F":
        samples = np.asarray(image)
        return samples[..., None], SampleFormat(samples.dtype.newbyteorder("="), 1, "grey")
    if image.mode == "LAB":
        raise ImageError("its colours are CIELAB: save it as RGB.")
    if image.has_transparency_data:
        return np.asarray(image.convert("RGBA")), SampleFormat(UINT8, 4, "rgb", alpha=3)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None], SampleFormat(UINT8, 1, "grey")
    return np.asarray(image.convert("RGB")), SampleFormat(UINT8, 3, "rgb")


def _one_line(error: object) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
