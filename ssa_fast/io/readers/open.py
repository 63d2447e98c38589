"""Choose the reader of a path, an array, a dataset or a slide."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from ssa_fast.io import images
from ssa_fast.io.images import ImageError
from ssa_fast.io.readers.array import ArrayReader, open_npy
from ssa_fast.io.readers.base import Color, CustomReader, WindowReader, image_errors
from ssa_fast.io.readers.raster import RasterioReader, open_raster
from ssa_fast.io.readers.slide import OpenSlideReader, open_slide
from ssa_fast.io.readers.tiff import TiffReader, UnsupportedTiff
from ssa_fast.io.readers.zarr import is_zarr, open_zarr

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".bigtiff", ".svs")
SLIDE_SUFFIXES = (".ndpi", ".mrxs", ".vms", ".vmu", ".bif", ".svslide", ".scn", ".dcm")


def open_image(source: Any, *, memory: int, backdrop: Color = images.WHITE) -> WindowReader:
    """Return a reader of ``source``, which is a context manager.

    Objects that were open when they were passed stay open when the reader is closed.

    Args:
        source: A path to a TIFF, slide, zarr store, ``.npy`` or any file that Pillow reads; a NumPy or zarr array,
            (H, W), (H, W, 3) or (H, W, 4), uint8 or uint16; an open rasterio dataset or OpenSlide; or a reader of your
            own, with ``size`` (H, W) and ``read(y0, y1, x0, x1)`` -> uint8 RGB (h, w, 3).
        memory: Bytes that decoded parts of a file may take.
        backdrop: RGB colour behind transparent parts.

    Raises:
        ValueError: ``source`` is something else; as an ``ImageError`` for a file that cannot be read.
    """
    if isinstance(source, str | Path):
        return _open_path(Path(source), memory, backdrop)
    if hasattr(source, "read_region") and hasattr(source, "dimensions"):
        return OpenSlideReader(source, backdrop)
    if hasattr(source, "colorinterp") and hasattr(source, "read"):
        return RasterioReader(source, memory, backdrop)
    if hasattr(source, "read") and hasattr(source, "size"):
        return CustomReader(source, backdrop)
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        return ArrayReader(source, memory, backdrop)
    raise ValueError(
        f"image: expected a path, an array, a rasterio dataset, an OpenSlide or a reader, got {type(source).__name__}; "
        "a reader has .size (H, W) and .read(y0, y1, x0, x1)"
    )


def size_of(path: str | Path) -> tuple[int, int]:
    """Return (H, W) of the upright image in a file, from its header.

    Raises:
        ImageError: The file is missing or not an image.
    """
    path = Path(path)
    if path.suffix.lower() in (*TIFF_SUFFIXES, *SLIDE_SUFFIXES, ".npy") or is_zarr(path):
        with _open_path(path, None, images.WHITE) as reader:
            return reader.size
    return images.read_size(path)


@image_errors()
def _open_path(path: Path, memory: int | None, backdrop: Color) -> WindowReader:
    """Open a file; with ``memory=None`` only the reader's size may be used."""
    suffix = path.suffix.lower()
    if is_zarr(path):
        return open_zarr(path, memory, backdrop)
    images.check_file(path)
    if suffix == ".npy":
        return open_npy(path, memory, backdrop)
    if suffix in SLIDE_SUFFIXES:
        return open_slide(path, backdrop)
    if suffix in TIFF_SUFFIXES:
        return _open_tiff(path, memory, backdrop)
    H, W = images.read_size(path)
    if memory is not None and memory // 4 < 4 * H * W:  # Pillow decodes to 4 bytes per pixel
        raise ImageError(
            f"its {H * W:,} pixels can only be decoded whole, which takes more than a quarter of the memory allowed: "
            "raise memory, or save it as a tiled TIFF (vips tiffsave --tile, or gdal_translate -co TILED=YES)."
        )
    return ArrayReader(images.read_image(path, max_pixels=H * W, backdrop=backdrop).rgb, memory, backdrop)


def _open_tiff(path: Path, memory: int | None, backdrop: Color) -> WindowReader:
    """Open a TIFF with tifffile; with rasterio or OpenSlide if tifffile cannot decode it."""
    reasons, remedy = ["tifffile is not installed"], "pip install tifffile imagecodecs"
    if importlib.util.find_spec("tifffile") is not None:
        try:
            return TiffReader(path, memory, backdrop)
        except UnsupportedTiff as error:
            reasons, remedy = [str(error)], error.remedy
    for package in ("rasterio", "openslide"):
        if importlib.util.find_spec(package) is not None:
            try:
                return open_raster(path, memory, backdrop) if package == "rasterio" else open_slide(path, backdrop)
            except ValueError as error:
                reasons.append(str(error).rstrip("."))
    raise ImageError(f"it cannot be read in windows ({'; '.join(reasons)}): {remedy}.")
