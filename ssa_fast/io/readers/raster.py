"""Read windows of rasterio datasets."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.io.readers.base import ORIENTATIONS, WindowReader, check_chunks
from ssa_fast.io.samples import ImageError, SampleFormat
from ssa_fast.io.tiff_tags import EXTRA, ORIENTATION, PREMULTIPLIED, check_pages, read_tags

if TYPE_CHECKING:
    from pathlib import Path

    from ssa_fast.io.samples import Meaning, ReadOptions

COLORS, INKS = ("red", "green", "blue"), ("cyan", "magenta", "yellow", "black")


class RasterioReader(WindowReader):
    """A rasterio dataset; closed with a reader that ``owns`` it."""

    def __init__(
        self, dataset: Any, memory: int | None, options: ReadOptions, *, owns: bool = False, orientation: int = 1
    ) -> None:
        names = [each.name for each in dataset.colorinterp]
        self.dataset = dataset
        white = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"  # GDAL gives it a palette
        self.palette = _palette(dataset.colormap(1)) if names[0] == "palette" and not white else None
        form = _format(dataset, names, white=white) if self.palette is None else _palette_format(self.palette)
        stored, owned = (dataset.height, dataset.width), dataset if owns else None
        super().__init__(stored, form, options, orientation=orientation, owned=owned)
        check_chunks(form.dtype, (*dataset.block_shapes[0], dataset.count), memory)

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        window, samples = ((y0, y1), (x0, x1)), self.selection.samples
        if self.palette is not None:
            return np.asarray(self.palette[self.dataset.read(1, window=window)][..., samples])
        return np.moveaxis(self.dataset.read([sample + 1 for sample in samples], window=window), 0, -1)


def _format(dataset: Any, names: list[str], *, white: bool) -> SampleFormat:
    """Return what a dataset declares about bands that are no palette's."""
    pages = len(dataset.subdatasets)
    if pages > 1 and dataset.count == 1:
        check_pages(dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION", ""))
    if len(set(dataset.dtypes)) > 1:
        raise ImageError(f"its bands have different types ({', '.join(dataset.dtypes)}): save them as one.")
    dtype = np.dtype(dataset.dtypes[0])
    alpha = names.index("alpha") if "alpha" in names else None
    colors = tuple(names.index(color) for color in COLORS) if set(COLORS) <= set(names) else None
    meaning: Meaning = "bands"
    if colors is not None:
        meaning = "rgb"
    elif tuple(names[:4]) == INKS:
        meaning = "cmyk"
    elif dataset.count - (alpha is not None) == 1:
        meaning = "white" if white else "grey"
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * dtype.itemsize))
    premultiplied = (
        alpha is not None
        and dataset.driver == "GTiff"
        and read_tags(dataset.name).get(EXTRA, ())[:1] == (PREMULTIPLIED,)
    )
    return SampleFormat(
        dtype,
        dataset.count,
        meaning,
        colors=colors,
        alpha=alpha,
        premultiplied=premultiplied,
        bits=bits if dtype.kind in "ui" and bits < 8 * dtype.itemsize else None,
        nodata=dataset.nodata,
        notes=(f"the first of its {pages} frames is used.",) if pages > 1 else (),
    )


def open_raster(path: Path, memory: int | None, options: ReadOptions) -> RasterioReader:
    """Open a file; raise ValueError unless it holds an image."""
    import rasterio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rasterio warns of every image that is not georeferenced
            dataset = rasterio.open(path)
    except rasterio.errors.RasterioError as error:
        raise ImageError(f"rasterio cannot open it ({error}).") from None
    try:
        orientation = read_tags(path).get(ORIENTATION, 1)
        return RasterioReader(
            dataset, memory, options, owns=True, orientation=orientation if orientation in ORIENTATIONS else 1
        )
    except BaseException:
        dataset.close()
        raise


def _palette(entries: dict[int, tuple[int, int, int, int]]) -> np.ndarray:
    table = np.zeros((max(entries) + 1, 4), dtype=np.uint8)
    table[list(entries)] = list(entries.values())
    return table


def _palette_format(palette: np.ndarray) -> SampleFormat:
    opaque = bool((palette[:, 3] == 255).all())
    return SampleFormat(palette.dtype, 3 if opaque else 4, "rgb", alpha=None if opaque else 3)
