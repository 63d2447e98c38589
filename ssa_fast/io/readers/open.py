"""Choose the reader of a path, an array, a dataset or a slide."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssa_fast.io import pillow
from ssa_fast.io.readers.array import ArrayReader, open_npy
from ssa_fast.io.readers.base import CustomReader, WindowReader, image_errors
from ssa_fast.io.readers.raster import RasterioReader, open_raster
from ssa_fast.io.readers.slide import OpenSlideReader, open_slide
from ssa_fast.io.readers.tiff import TiffReader
from ssa_fast.io.readers.tiff_layout import UnsupportedTiff
from ssa_fast.io.readers.whole import PillowReader
from ssa_fast.io.readers.zarr import is_zarr, open_zarr
from ssa_fast.io.samples import WHITE, Color, ImageError, ReadOptions
from ssa_fast.io.tiff_tags import check_colors, read_tags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssa_fast.io.samples import ValueRange

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".bigtiff", ".svs")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SLIDE_SUFFIXES = (".ndpi", ".mrxs", ".vms", ".vmu", ".bif", ".svslide", ".scn", ".dcm")


def open_image(
    source: Any,
    *,
    memory: int,
    backdrop: Color = WHITE,
    bands: Sequence[int] | None = None,
    range: ValueRange = "auto",
) -> WindowReader:
    """Return a reader of ``source``, which is a context manager.

    Objects that were open when they were passed stay open when the reader is closed.

    Args:
        source: A path to a TIFF, slide, zarr store, ``.npy`` or any file that Pillow reads; a NumPy or zarr array,
            (H, W), (H, W, 3), (H, W, 4) with alpha, or (H, W, C) with ``bands``; an open rasterio dataset or OpenSlide;
            or a reader of your own, with ``size`` (H, W) and ``read(y0, y1, x0, x1)`` -> uint8 RGB (h, w, 3).
        memory: Bytes that decoded parts of a file may take.
        backdrop: RGB colour behind transparent parts.
        bands, range: See ``images.read_image``.

    Raises:
        ValueError: ``source`` is something else; as an ``ImageError`` for a file that cannot be read.
    """
    options = ReadOptions(None if bands is None else tuple(bands), range, backdrop)
    if isinstance(source, str | Path):
        return open_file(Path(source), memory, options)
    reader = _open_object(source, memory, options)
    reader.prepare()
    return reader


def _open_object(source: Any, memory: int, options: ReadOptions) -> WindowReader:
    if hasattr(source, "read_region") and hasattr(source, "dimensions"):
        return OpenSlideReader(source, options)
    if hasattr(source, "colorinterp") and hasattr(source, "read"):
        return RasterioReader(source, memory, options)
    if hasattr(source, "read") and hasattr(source, "size"):
        if not options.is_default:
            raise ValueError(
                "bands, range: expected neither with a reader of your own, whose windows are RGB; choose them in it"
            )
        return CustomReader(source)
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        return ArrayReader(source, memory, options)
    raise ValueError(
        f"image: expected a path, an array, a rasterio dataset, an OpenSlide or a reader, got {type(source).__name__}; "
        "a reader has .size (H, W) and .read(y0, y1, x0, x1)"
    )


def size_of(path: str | Path, bands: Sequence[int] | None = None) -> tuple[int, int]:
    """Return (H, W) of the upright image in a file, from its header; some are images only if ``bands`` are chosen.

    Raises:
        ImageError: The file is missing or not an image.
    """
    path = Path(path)
    with _open_path(path, None, ReadOptions(None if bands is None else tuple(bands))) as reader:
        return reader.size


@image_errors()
def open_file(path: Path, memory: int, options: ReadOptions, max_pixels: int | None = None) -> WindowReader:
    """Return a reader of a file, with its range of values chosen; raise ImageError if it has too many pixels."""
    reader = _open_path(path, memory, options)
    try:
        if max_pixels is not None and max_pixels < math.prod(reader.size):
            raise pillow.too_many_pixels(max_pixels)
        reader.prepare()
    except BaseException:
        reader.close()
        raise
    return reader


@image_errors()
def _open_path(path: Path, memory: int | None, options: ReadOptions) -> WindowReader:
    """Open a file; with ``memory=None`` only the reader's size may be used."""
    suffix = path.suffix.lower()
    if is_zarr(path):
        return open_zarr(path, memory, options)
    pillow.check_file(path)
    if suffix == ".npy":
        return open_npy(path, memory, options)
    if suffix in SLIDE_SUFFIXES:
        return open_slide(path, options)
    with path.open("rb") as file:
        is_tiff = file.read(4) in TIFF_STARTS
    if is_tiff or suffix in TIFF_SUFFIXES:
        return _open_tiff(path, memory, options)
    return PillowReader(path, memory, options)


def _open_tiff(path: Path, memory: int | None, options: ReadOptions) -> WindowReader:
    """Open a TIFF with tifffile; with rasterio, OpenSlide or Pillow if tifffile cannot decode it."""
    check_colors(read_tags(path))
    reasons, remedy = ["tifffile is not installed"], "pip install tifffile imagecodecs"
    if importlib.util.find_spec("tifffile") is not None:
        try:
            return TiffReader(path, memory, options)
        except UnsupportedTiff as error:
            reasons, remedy = [str(error)], error.remedy
    for package, opener in (("rasterio", open_raster), ("openslide", _open_slide), ("PIL", _open_by_pillow)):
        if importlib.util.find_spec(package) is not None:
            try:
                return opener(path, memory, options)
            except ValueError as error:
                reason = str(error).rstrip(".").replace("it is damaged or cut short", "Pillow does not decode it")
                reasons.append(reason)
    raise ImageError(f"it cannot be read ({'; '.join(reasons)}): {remedy}.")


def _open_by_pillow(path: Path, memory: int | None, options: ReadOptions) -> WindowReader:
    reader = PillowReader(path, memory, options)
    if memory is not None:
        reader.prepare()  # fail now if Pillow cannot decode it
    return reader


def _open_slide(path: Path, _: int | None, options: ReadOptions) -> WindowReader:
    return open_slide(path, options)
