"""Decode image files to 8-bit RGB, whatever their format, or refuse them with the reason."""

from __future__ import annotations

import os
import stat
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_PIXELS", "DecodedImage", "ImageError", "check_file", "exif_orientation", "read_image", "read_size"]

MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs: a quarter of a GiB of 24-bit pixels
WHITE = (255, 255, 255)
ORIENTATION = 274  # tag of EXIF and TIFF


class ImageError(ValueError):
    """A file that cannot be read as an image; the message is one sentence that gives the reason."""


@dataclass(frozen=True)
class DecodedImage:
    """The pixels of one file, upright and opaque.

    Attributes:
        rgb: uint8 array (H, W, 3), sRGB as stored.
        notes: Conversions that changed the stored values, one sentence each.
    """

    rgb: np.ndarray
    notes: tuple[str, ...] = ()


def read_image(
    path: str | Path, *, max_pixels: int = MAX_PIXELS, backdrop: tuple[int, int, int] = WHITE
) -> DecodedImage:
    """Decode an image file to 8-bit RGB, upright according to its EXIF tag, on a ``backdrop`` if transparent.

    16-bit greyscale is scaled from its full range (0..65535 -> 0..255); wider integers and floats are stretched from
    their own range, with a note. The first of several frames is used, with a note.

    Raises:
        ImageError: The file is missing, empty, not an image, damaged, or has more than ``max_pixels`` pixels.
    """
    path = Path(path)
    check_file(path)
    with _pillow(max_pixels) as notes, Image.open(path) as image:
        frames = _frame_count(image)
        image.load()
        rgb = _to_rgb(_upright(image, notes), backdrop, notes)
    if frames > 1:
        notes.append(f"the first of its {frames} frames is used.")
    return DecodedImage(rgb, tuple(dict.fromkeys(notes)))


def read_size(path: Path) -> tuple[int, int]:
    """Return (H, W) of the upright image in a file, from its header, however many pixels it has.

    Raises:
        ImageError: The file is missing, empty, not an image, or damaged.
    """
    check_file(path)
    with _pillow(None), Image.open(path) as image:
        rotated = exif_orientation(image) >= 5
        return (image.width, image.height) if rotated else (image.height, image.width)


def exif_orientation(image: Image.Image) -> int:
    """Return the orientation tag, 1 to 8; 1 (upright) if there is none or its EXIF data are damaged."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole image to search for the tag behind the pixels
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data raise nearly every exception; ``read_image`` ignores the tag then, too
        return 1


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


@contextmanager
def _pillow(max_pixels: int | None) -> Iterator[list[str]]:
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
        raise ImageError(
            f"it has more than {max_pixels:,} pixels, which may be a decompression bomb: "
            "raise --max-pixels if you trust the file, or make the image smaller."
        ) from None
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


def _frame_count(image: Image.Image) -> int:
    try:
        count = int(getattr(image, "n_frames", 1))
        image.seek(0)
        return count
    except (OSError, EOFError, SyntaxError, ValueError):
        return 1  # a later frame is damaged, but only the first one is used


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # damaged EXIF data raise nearly every exception; the pixels are intact
        notes.append(f"its EXIF data is damaged, so it was not rotated upright ({_one_line(error)}).")
        return image


def _to_rgb(image: Image.Image, backdrop: tuple[int, int, int], notes: list[str]) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_to_uint8(np.asarray(image), notes)[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*backdrop, 255)), image.convert("RGBA"))
        notes.append("its transparent parts are shown on rgb({}, {}, {}).".format(*backdrop))
    return np.array(image.convert("RGB"))


def _to_uint8(values: np.ndarray, notes: list[str]) -> np.ndarray:
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ImageError("it holds NaN or infinite values.")
    low, high = float(wide.min()), float(wide.max())
    if values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    else:
        notes.append(f"its values, {low:g} to {high:g}, are stretched to 0..255.")
    return np.rint((wide - low) * 255.0 / ((high - low) or 1.0)).astype(np.uint8)


def _one_line(error: object) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
