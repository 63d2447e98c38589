"""Samples of more than 8 bits in formats of which Pillow scales them, or cuts colours to 8 bits."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING

import numpy as np

from ssa_fast.io.samples import ImageError, SampleFormat

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.ImageFile import ImageFile

    from ssa_fast.io.samples import Meaning, ReadOptions

SIZ, SYCC = b"\xff\x51", b"colr\x01\x00\x00\x00\x00\x00\x12"  # of JPEG 2000: the image's header, YCbCr colours
HEADER = 4096  # bytes in which they are found
UINT16 = np.dtype(np.uint16)


def stored_samples(
    image: ImageFile, path: Path, options: ReadOptions, notes: list[str]
) -> tuple[np.ndarray, SampleFormat] | None:
    """Return the samples (H, W, C) of an open, not yet decoded image as they are stored; None: Pillow has them.

    Raises:
        ImageError: A range is asked for that Pillow's 8 bits do not allow.
    """
    codec, args = (image.tile[0][0], image.tile[0][3]) if image.tile else ("", "")
    if image.format == "PPM" and codec in ("ppm", "raw") and (largest := _largest(args)) > 255:
        return _portable(image, path, largest)
    if image.format == "JPEG2000" and (bits := _jpeg2000_bits(path)) > 8:
        return _by_imagecodecs(image, path, options, notes, bits)
    if image.format == "PNG" and str(args).endswith("16B") and image.mode in ("RGB", "RGBA", "LA"):
        return _by_imagecodecs(image, path, options, notes, 16)
    if image.format == "SGI" and codec == "SGI16":
        _refuse_range(options, "save it as TIFF")
        notes.append("its 16 bits are cut to 8.")
    return None


def _largest(args: object) -> int:
    """Return the largest value that a PPM's header declares, from the arguments of Pillow's decoder."""
    return int(args[1]) if isinstance(args, tuple) and len(args) == 2 else 65535 if "16" in str(args) else 255


def _portable(image: ImageFile, path: Path, largest: int) -> tuple[np.ndarray, SampleFormat]:
    count = 3 if image.mode == "RGB" else 1
    shape = (image.height, image.width, count)
    samples = np.fromfile(path, ">u2", count=math.prod(shape), offset=image.tile[0][2])
    if samples.size != math.prod(shape):
        raise ImageError("it is damaged or cut short (it ends before its pixels do).")
    limits = None if largest == 65535 else (0.0, float(largest))
    meaning: Meaning = "rgb" if count == 3 else "grey"
    return samples.astype(np.uint16).reshape(shape), SampleFormat(UINT16, count, meaning, limits=limits)


def _jpeg2000_bits(path: Path) -> int:
    """Return the bits per sample of the first component of a JPEG 2000 file; 8 where they are not found."""
    with path.open("rb") as file:
        header = file.read(HEADER)
    at = header.find(SIZ)
    precision = header[at + 40 : at + 41] if at >= 0 else b""
    return (precision[0] & 0x7F) + 1 if precision and not precision[0] & 0x80 else 8


def _by_imagecodecs(
    image: ImageFile, path: Path, options: ReadOptions, notes: list[str], bits: int
) -> tuple[np.ndarray, SampleFormat] | None:
    """Return 16-bit samples of a PNG or JPEG 2000; without imagecodecs only those that Pillow does not cut."""
    if bits > 16:
        raise ImageError(f"it has {bits} bits, more than 16: save it as TIFF.")
    if image.mode.startswith("I"):  # Pillow shifts the samples of JPEG 2000 to 16 bits
        samples = np.asarray(image).astype(np.uint16)[..., None] >> (16 - bits)
        return samples, SampleFormat(UINT16, 1, "grey", bits=bits if bits < 16 else None)
    missing = importlib.util.find_spec("imagecodecs") is None
    if image.format == "JPEG2000":
        if missing:
            raise ImageError(
                f"it has {bits} bits, of which Pillow turns its white into black: pip install imagecodecs."
            )
        with path.open("rb") as file:
            if SYCC in file.read(HEADER) or image.mode not in ("RGB", "RGBA", "LA"):
                raise ImageError(f"its colours are YCbCr of {bits} bits: save it as RGB.")
    elif missing:
        _refuse_range(options, "pip install imagecodecs")
        notes.append(f"its {bits} bits are cut to 8: pip install imagecodecs keeps them.")
        return None
    import imagecodecs

    decoded = imagecodecs.png_decode if image.format == "PNG" else imagecodecs.jpeg2k_decode
    samples = np.asarray(decoded(path.read_bytes()))
    count = samples.shape[2]
    alpha = count - 1 if count in (2, 4) else None
    meaning: Meaning = "rgb" if count >= 3 else "grey"
    used = bits if bits < 16 else None
    return samples, SampleFormat(samples.dtype, count, meaning, alpha=alpha, bits=used)


def _refuse_range(options: ReadOptions, remedy: str) -> None:
    if options.range != "auto":
        raise ImageError(f"only 8 of its bits are read, so no range can be chosen: {remedy}.")
