"""Read windows of rasterio datasets."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ssa_fast.io.images import ImageError, exif_orientation
from ssa_fast.io.readers.base import Color, WindowReader, check_pixels, scale_to_uint8

if TYPE_CHECKING:
    from pathlib import Path


class RasterioReader(WindowReader):
    """A rasterio dataset: its first band or first three, and alpha; closed with a reader that ``owns`` it."""

    def __init__(self, dataset: Any, memory: int | None, backdrop: Color, *, owns: bool = False) -> None:
        super().__init__((dataset.height, dataset.width), backdrop, owned=dataset if owns else None)
        self.dataset = dataset
        meanings = [each.name for each in dataset.colorinterp]
        alpha = [meanings.index("alpha") + 1] if "alpha" in meanings else []
        colors = [band for band in range(1, dataset.count + 1) if band not in alpha]
        self.bands = colors[: 3 if len(colors) >= 3 else 1] + alpha
        for band in self.bands:
            check_pixels(dataset.dtypes[band - 1], (*dataset.block_shapes[0], dataset.count), memory)
        self.palette = _palette(dataset.colormap(1)) if meanings[0] == "palette" else None
        self.bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
        self.white_is_zero = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        bands = self.dataset.read(self.bands, window=((y0, y1), (x0, x1)))
        if self.palette is not None:
            return np.asarray(self.palette[bands[0]])
        if self.bits not in (8, 16):
            bands = scale_to_uint8(bands, (1 << self.bits) - 1)
        if self.white_is_zero:
            bands[0] = np.iinfo(bands.dtype).max - bands[0]
        return np.moveaxis(bands, 0, -1)


def open_raster(path: Path, memory: int | None, backdrop: Color) -> RasterioReader:
    """Open a file; raise ValueError unless it holds an upright image of 8 or 16 bits."""
    import rasterio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rasterio warns of every image that is not georeferenced
            dataset = rasterio.open(path)
    except rasterio.errors.RasterioError as error:
        raise ImageError(f"rasterio cannot open it ({error}).") from None
    try:
        if _is_rotated(path):
            raise ImageError("its orientation tag rotates it: save it upright.")
        return RasterioReader(dataset, memory, backdrop, owns=True)
    except BaseException:
        dataset.close()
        raise


def _is_rotated(path: Path) -> bool:
    """Return whether the file has an orientation tag other than upright, which GDAL ignores."""
    try:
        with Image.open(path) as image:
            return exif_orientation(image) != 1
    except (OSError, Image.DecompressionBombError):
        return False  # not a format of Pillow's, and so without the tag


def _palette(entries: dict[int, tuple[int, int, int, int]]) -> np.ndarray:
    table = np.zeros((max(entries) + 1, 4), dtype=np.uint8)
    table[list(entries)] = list(entries.values())
    return table
