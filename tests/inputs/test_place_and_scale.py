"""Heading 14, place and scale survive: whatever says where an image's pixels lie, on all outputs of large images.

The class: georeferences (transform and CRS of GeoTIFFs north-up, rotated, of points, by control points or rational
polynomials; of rasterio datasets; in files beside an image) and pixel sizes (TIFF's resolution, OME-TIFF, ImageJ,
slides, OME-Zarr, dots per inch of a PNG), through the readers that open them, into the CAMs and the mask as ``.tif`` and
``.zarr``. The outputs are read by what people lay them over the input with: rasterio, OpenSlide, tifffile, zarr.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from ssa_fast import SSA
from ssa_fast.io import pyramid
from ssa_fast.io.placement import Placement, find_placement
from ssa_fast.large import LargeImageSSA

if TYPE_CHECKING:
    from pathlib import Path

tifffile = pytest.importorskip("tifffile", reason="needs the extra 'large'")
zarr = pytest.importorskip("zarr", reason="needs the extra 'large'")

H, W = 40, 56
PIXELS = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)


def written(path: Path, placement: Placement, *, size: tuple[int, int] = (H, W), kind: Any = "cam") -> Path:
    """Two maps with a placement, as the export writes them."""
    maps = np.zeros((2, *size), dtype=np.uint8)
    pyramid.write(
        path,
        lambda k, y0, y1, x0, x1: maps[k, y0:y1, x0:x1],
        shape=maps.shape,
        names=["cat", "café"],
        kind=kind,
        metadata={"classes": [3, 5]},
        placement=placement,
    )
    return path


# Georeferences.


NORTH_UP = (0.5, 0.0, 370_000.0, 0.0, -0.25, 5_800_000.0)
ROTATED = (0.4, 0.3, 370_000.0, 0.3, -0.4, 5_800_000.0)
POINTS = [(0, 0, 13.0, 52.0), (0, W, 13.1, 52.0), (H, 0, 13.0, 51.9), (H, W, 13.12, 51.91)]


def geotiff(path: Path, kind: str, driver: str = "GTiff") -> Path:
    """An image placed as ``kind`` says; PNG has the place in a file beside it."""
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio")
    place: dict[str, Any] = {"crs": "EPSG:32633", "transform": rasterio.Affine(*NORTH_UP)}
    if kind == "rotated":
        place["transform"] = rasterio.Affine(*ROTATED)
    elif kind == "degrees":
        place = {"crs": "EPSG:4326", "transform": rasterio.Affine(1e-4, 0, 13.0, 0, -1e-4, 52.0)}
    elif kind == "no crs":
        del place["crs"]
    elif kind == "control points":
        gcps = [rasterio.control.GroundControlPoint(*each) for each in POINTS]
        place = {"gcps": gcps, "crs": "EPSG:4326"}
    elif kind == "polynomials":
        numbers = {name: 1.0 for name in ("line_off", "samp_off", "lat_off", "long_off", "height_off")}
        scales = {name: 2.0 for name in ("line_scale", "samp_scale", "lat_scale", "long_scale", "height_scale")}
        coefficients = {f"{a}_{b}_coeff": [0.5] * 20 for a in ("line", "samp") for b in ("num", "den")}
        place = {"rpcs": rasterio.rpc.RPC(**numbers, **scales, **coefficients)}
    with rasterio.open(path, "w", driver=driver, height=H, width=W, count=3, dtype="uint8", **place) as file:
        file.write(np.moveaxis(PIXELS, -1, 0))
        if kind == "of points":
            file.update_tags(AREA_OR_POINT="Point")
    return path


def place_of(path: Path | str) -> tuple[Any, ...]:
    """What GIS programs place a raster by."""
    import rasterio

    with rasterio.open(path) as file:
        gcps, crs = file.gcps
        points = [(each.row, each.col, each.x, each.y) for each in gcps]
        rpcs = None if file.rpcs is None else file.rpcs.to_dict()
        point = file.tags().get("AREA_OR_POINT")
        return file.crs, file.transform, file.bounds, points, crs, rpcs, point


KINDS = ["north-up", "rotated", "degrees", "no crs", "of points", "control points", "polynomials"]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning" if pyramid else "")
@pytest.mark.parametrize("opened", [False, True], ids=["path", "dataset"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_georeference_is_the_same(tmp_path: Path, kind: str, opened: bool) -> None:
    source = geotiff(tmp_path / "in.tif", kind)
    expected = place_of(source)
    if opened:
        import rasterio

        with rasterio.open(source) as dataset:
            placement = find_placement(dataset, (H, W))
    else:
        placement = find_placement(source, (H, W))
    assert placement.geo
    assert placement.notes == ()
    out = written(tmp_path / "out.tif", placement)
    assert place_of(out) == expected
    assert place_of(f"GTIFF_DIR:2:{out}") == expected  # the second class
