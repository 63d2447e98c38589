"""Rasters with a georeference of any kind, and what GIS programs place them by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from pathlib import Path

H, W = SIZE = 40, 56
PIXELS = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
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
        numbers = dict.fromkeys(("line_off", "samp_off", "lat_off", "long_off", "height_off"), 1.0)
        scales = dict.fromkeys(("line_scale", "samp_scale", "lat_scale", "long_scale", "height_scale"), 2.0)
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
