"""The georeference of a raster as GeoTIFF's tags, which are copied from file to file as they are.

Of a GeoTIFF the tags themselves are taken; of anything else that rasterio opens, those that GDAL writes for it into a
file of one pixel. Control points and rational polynomials are tags like the others.
"""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GeoTags: TypeAlias = "tuple[tuple[int, int, int, Any], ...]"  # code, type, number of values, values

PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, RPC = 33550, 33922, 34264, 50844
KEYS, KEY_DOUBLES, KEY_TEXTS = 34735, 34736, 34737
CODES = (PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, KEYS, KEY_DOUBLES, KEY_TEXTS, RPC)
TEXT = 2  # a type of TIFF's, whose length the writer counts


def tiff_tags(page: Any) -> GeoTags:
    """Return the tags of tifffile's ``page``."""
    tags = [page.tags[code] for code in CODES if code in page.tags]
    return tuple((tag.code, int(tag.dtype), 0 if tag.dtype == TEXT else tag.count, tag.value) for tag in tags)


def dataset_tags(dataset: Any) -> GeoTags:
    """Return the tags of an open rasterio dataset; none if it has no georeference."""
    import tifffile
    from rasterio.io import MemoryFile

    gcps, gcps_crs = dataset.gcps
    place: dict[str, Any] = {"gcps": gcps, "crs": gcps_crs} if gcps else {"crs": dataset.crs}
    if not gcps and not dataset.transform.is_identity:
        place["transform"] = dataset.transform
    if dataset.rpcs is not None:
        place["rpcs"] = dataset.rpcs
    if not any(place.values()):
        return ()
    with MemoryFile() as memory, _quiet():
        with memory.open(driver="GTiff", width=1, height=1, count=1, dtype="uint8", **place) as pixel:
            pixel.update_tags(AREA_OR_POINT=dataset.tags().get("AREA_OR_POINT", "Area"))
        with tifffile.TiffFile(io.BytesIO(memory.read())) as file:
            return tiff_tags(file.pages.first)


def path_tags(path: Path) -> GeoTags:
    """Return the tags of a file that rasterio opens, with what stands in files beside it; none of any other."""
    import rasterio

    with _quiet():
        try:
            with rasterio.open(path) as dataset:
                return dataset_tags(dataset)
        except rasterio.errors.RasterioError:
            return ()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress rasterio's warning of every image that is not georeferenced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
