"""Decode image files to 8-bit RGB, whatever their format, or refuse them with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ssa_fast.io.pillow import MAX_PIXELS
from ssa_fast.io.readers.open import open_file
from ssa_fast.io.samples import WHITE, ImageError, ReadOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ssa_fast.io.samples import ValueRange

__all__ = ["MAX_PIXELS", "WHITE", "DecodedImage", "ImageError", "read_image"]

WHOLE = 1 << 40  # bytes: an image within max_pixels is decoded whole, whatever that takes


@dataclass(frozen=True)
class DecodedImage:
    """The pixels of one file, upright and opaque.

    Attributes:
        rgb: uint8 array (H, W, 3), sRGB as stored.
        notes: How the file was understood where it leaves a choice, and conversions that changed the stored values, one
            sentence each.
    """

    rgb: np.ndarray
    notes: tuple[str, ...] = ()


def read_image(
    path: str | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    backdrop: tuple[int, int, int] = WHITE,
    bands: Sequence[int] | None = None,
    range: ValueRange = "auto",
) -> DecodedImage:
    """Decode an image file to 8-bit RGB, upright according to its EXIF tag, on a ``backdrop`` if transparent.

    Files are read by the decoders of ``readers.open_image``. The first of several frames is used, with a note.

    Args:
        path: The file.
        max_pixels: Refuse images with more.
        backdrop: RGB colour behind transparent parts.
        bands: One band (grey) or three (red, green, blue), counted from 1; None: what the file declares as colours, the
            first three bands with a note if it declares nothing.
        range: The values that become 0 and 255: (low, high), the percentage of values to cut off at each end, or
            "auto": see ``value_range.choose_ranges``.

    Raises:
        ImageError: The file is missing, empty, not an image, damaged, or has more than ``max_pixels`` pixels, or there
            are no such bands.
        ValueError: ``bands`` or ``range`` is out of range.
    """
    path = Path(path)
    options = ReadOptions(None if bands is None else tuple(bands), range, backdrop)
    with open_file(path, WHOLE, options, max_pixels) as reader:
        H, W = reader.size
        rgb = reader.read(0, H, 0, W)
        return DecodedImage(rgb, tuple(dict.fromkeys(reader.notes)))
