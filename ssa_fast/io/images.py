"""Pictures from files: read as 8-bit RGB whatever their kind, or refused with the reason.

Nothing here knows a network: a picture is an array of pixels and a list of things worth telling its owner.
"""

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

__all__ = ["MAX_PIXELS", "ImageError", "Picture", "check_file", "read"]

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs: a quarter of a GiB of 24-bit pixels."""

WHITE = (255, 255, 255)


class ImageError(ValueError):
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


def read(path: str | Path, *, max_pixels: int = MAX_PIXELS, backdrop: tuple[int, int, int] = WHITE) -> Picture:
    """The picture in `path` as 8-bit RGB: turned upright by its EXIF tag, laid on `backdrop` where it is transparent.

    16-bit greyscale is scaled from its full range (0..65535 -> 0..255); wider integers and floats from their own
    range, which is noted. Of several frames the first is taken, which is noted too.

    Raises:
        ImageError: the file is missing, empty, not a picture, damaged, or has more than `max_pixels` pixels.
    """
    path = Path(path)
    check_file(path)
    with _warnings_as_notes(max_pixels) as notes:
        try:
            with Image.open(path) as image:
                frames = _frame_count(image)
                image.load()
                upright = _upright(image, notes)
                rgb = _to_rgb(upright, backdrop, notes)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise ImageError(
                f"it has more than {max_pixels:,} pixels, which may be a decompression bomb: "
                "raise --max-pixels if you trust the file, or make the picture smaller."
            ) from None
        except UnidentifiedImageError:
            raise ImageError("it is not a picture of any kind that Pillow can read.") from None
        except ImageError:
            raise
        except MemoryError:
            raise ImageError("there is not enough memory to decode it.") from None
        except Exception as error:  # decoders meet damaged data with nearly every exception there is
            raise ImageError(f"it is damaged or cut short ({_one_line(error)}).") from error
    if frames > 1:
        notes.append(f"the first of its {frames} frames is used.")
    return Picture(rgb, tuple(dict.fromkeys(notes)))


def check_file(path: Path) -> None:
    """Raises ImageError unless `path` is a regular file that can be read and holds something."""
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
        raise ImageError("it holds NaN or infinite values.")
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
