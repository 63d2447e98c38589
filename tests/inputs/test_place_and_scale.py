"""Heading 14, place and scale survive: whatever says where an image's pixels lie, on all outputs of large images.

The class: georeferences (transform and CRS of GeoTIFFs north-up, rotated, of points, by control points or rational
polynomials; of rasterio datasets; in files beside an image) and pixel sizes (TIFF's resolution, OME-TIFF, ImageJ,
slides, OME-Zarr, dots per inch of a PNG), through what opens them, into the CAMs and the mask as ``.tif`` and
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
from tests.inputs.places import PIXELS, SIZE, geotiff, place_of

if TYPE_CHECKING:
    from pathlib import Path

tifffile = pytest.importorskip("tifffile", reason="needs the extra 'large'")
zarr = pytest.importorskip("zarr", reason="needs the extra 'large'")

H, W = SIZE


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


KINDS = ["north-up", "rotated", "degrees", "no crs", "of points", "control points", "polynomials"]


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
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


def test_a_file_beside_the_image_places_it(tmp_path: Path) -> None:
    source = geotiff(tmp_path / "in.png", "north-up", "PNG")
    assert (tmp_path / "in.png.aux.xml").exists()
    out = written(tmp_path / "out.tif", find_placement(source, (H, W)))
    assert place_of(out)[:3] == place_of(source)[:3]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_image_has_no_georeference_but_its_scale(tmp_path: Path, orientation: int) -> None:
    """The georeference is of the pixels as they are stored; the outputs are upright."""
    placed = find_placement(geotiff(tmp_path / "placed.tif", "north-up"), (H, W))
    tags = [*((*tag, True) for tag in placed.geo), (274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "in.tif", PIXELS, extratags=tags, resolution=(100, 50), resolutionunit="CENTIMETER")
    turned = orientation >= 5
    found = find_placement(tmp_path / "in.tif", (W, H) if turned else (H, W))
    assert found.geo == ()
    assert "orientation" in found.notes[0]
    assert found.pixel_size == pytest.approx((100.0, 200.0) if turned else (200.0, 100.0))
    out = written(tmp_path / "out.tif", found)
    assert resolution(out)[0] == ((50.0, 100.0) if turned else (100.0, 50.0), 3)


def test_ome_zarr_keeps_the_tags_and_says_that_it_has_no_georeference(tmp_path: Path) -> None:
    placement = find_placement(geotiff(tmp_path / "in.tif", "north-up"), (H, W))
    attributes = zarr.open_group(str(written(tmp_path / "out.zarr", placement)), mode="r").attrs
    assert attributes["ssa_fast"]["geotiff_tags"]["33550"] == [0.5, 0.25, 0.0]


# Pixel sizes.


def resolution(path: Path) -> list[tuple[tuple[float, float], int]]:
    """Pixels per unit along x and y, and the unit, of the first page and its reduced copies."""
    found = []
    with tifffile.TiffFile(path) as file:
        for page in (file.pages[0], *(file.pages[0].pages or ())):
            x, y = (page.tags[code].value for code in (282, 283))
            found.append(((x[0] / x[1], y[0] / y[1]), int(page.tags[296].value)))
    return found


OME = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 250.0}
SOURCES: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {  # what tifffile writes; (y, x) in µm
    "centimetres": ({"resolution": (20_000, 40_000), "resolutionunit": "CENTIMETER"}, (0.25, 0.5)),
    "inches": ({"resolution": (300, 300), "resolutionunit": "INCH"}, (25_400 / 300, 25_400 / 300)),
    "OME": ({"ome": True, "metadata": {**OME, "PhysicalSizeYUnit": "nm"}}, (0.25, 0.5)),
    "OME without units": ({"ome": True, "metadata": {**OME, "PhysicalSizeX": 2, "PhysicalSizeY": 3}}, (3.0, 2.0)),
    "ImageJ": ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "micron"}}, (0.25, 0.5)),
    "ImageJ in mm": ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "mm"}}, (250.0, 500.0)),
    "Aperio": ({"description": "Aperio Image Library v1\n|AppMag = 20|MPP = 0.499|", "metadata": None}, (0.499, 0.499)),
}


@pytest.fixture(params=SOURCES)
def scaled(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, tuple[float, float]]:
    options, pixel_size = SOURCES[request.param]
    tifffile.imwrite(tmp_path / "in.tif", PIXELS, photometric="rgb", **options)
    return tmp_path / "in.tif", pixel_size


def test_the_pixel_size_is_in_the_tags_and_halves_with_each_copy(
    scaled: tuple[Path, tuple[float, float]], tmp_path: Path
) -> None:
    source, (y, x) = scaled
    placement = find_placement(source, (H, W))
    assert placement.pixel_size == pytest.approx((y, x))
    out = written(tmp_path / "out.tif", placement, size=(16, 2500))
    length = {2: 25_400.0, 3: 10_000.0}
    found = resolution(out)
    assert len(found) == 3
    for n, ((across, down), unit) in enumerate(found):
        assert (length[unit] / down, length[unit] / across) == pytest.approx((y * 2**n, x * 2**n), rel=1e-6)


def test_what_ome_readers_show(scaled: tuple[Path, tuple[float, float]], tmp_path: Path) -> None:
    """QuPath's names of channels and µm per pixel are those of OME-XML."""
    source, (y, x) = scaled
    out = written(tmp_path / "out.tif", find_placement(source, (H, W)))
    with tifffile.TiffFile(out) as file:
        assert file.is_ome
        (series,) = file.series
        assert (series.axes, series.shape) == ("CYX", (2, H, W))
        tree = ElementTree.fromstring(file.ome_metadata)
    found = {each.tag.partition("}")[2]: each for each in tree.iter()}
    assert [each.get("Name") for each in tree.iter() if each.tag.endswith("}Channel")] == ["cat", "café"]
    assert float(found["Pixels"].get("PhysicalSizeY", 0)) == pytest.approx(y)
    assert float(found["Pixels"].get("PhysicalSizeX", 0)) == pytest.approx(x)
    assert found["Pixels"].get("PhysicalSizeXUnit") == "µm"
    assert json.loads(found["Value"].text or "") == {"name": "cat", "classes": [3, 5]}


def test_openslide_reads_the_pixel_size(tmp_path: Path) -> None:
    """Of a generic tiled TIFF, which the CAMs are, too."""
    openslide = pytest.importorskip("openslide", reason="needs OpenSlide")
    source = tmp_path / "in.tif"
    options: dict[str, Any] = {"resolution": (20_000, 40_000), "resolutionunit": "CENTIMETER", "tile": (16, 16)}
    tifffile.imwrite(source, PIXELS, photometric="rgb", **options)
    with openslide.OpenSlide(source) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        found = find_placement(slide, (H, W))
        assert found == Placement((0.25, 0.5))
    with openslide.OpenSlide(written(tmp_path / "out.tif", found)) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.25)


def test_dots_per_inch_of_what_pillow_reads(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "in.png", dpi=(254, 508))
    y, x = find_placement(tmp_path / "in.png", (H, W)).pixel_size or (0, 0)
    assert (y, x) == pytest.approx((50, 100), rel=1e-3)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PIXELS).save(tmp_path / "in.jpg", dpi=(254, 508), exif=exif)
    assert find_placement(tmp_path / "in.jpg", (W, H)).pixel_size == pytest.approx((100, 50))


# OME-Zarr.


def ome_zarr(path: Path, version: str, unit: str | None, level: list[Any], common: list[Any]) -> Path:
    group = zarr.open_group(str(path), mode="w", zarr_format=3 if version == "0.5" else 2)
    group.create_array("s0", data=np.moveaxis(PIXELS, -1, 0))
    space = {"type": "space", **({} if unit is None else {"unit": unit})}
    axes = [{"name": "c", "type": "channel"}, {"name": "y", **space}, {"name": "x", **space}]
    image = {"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": level}]}
    multiscales = [{**image, "coordinateTransformations": common}]
    group.attrs.update(
        {"ome": {"version": "0.5", "multiscales": multiscales}} if version == "0.5" else {"multiscales": multiscales}
    )
    return path


LEVEL = [{"type": "scale", "scale": [1, 0.25, 0.5]}, {"type": "translation", "translation": [0, 10, 20]}]
COMMON = [{"type": "scale", "scale": [1, 2, 2]}]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(("unit", "length"), [("micrometer", 1.0), ("nanometer", 1e-3), (None, 1.0), ("foot", 1.0)])
@pytest.mark.parametrize("inside", ["", "s0"], ids=["group", "level"])
def test_ome_zarr_is_laid_over_ome_zarr(
    tmp_path: Path, version: str, unit: str | None, length: float, inside: str
) -> None:
    source = ome_zarr(tmp_path / "in.zarr", version, unit, LEVEL, COMMON)
    found = find_placement(source / inside, (H, W))
    assert found.pixel_size == pytest.approx((0.5 * length, 1.0 * length))
    assert found.origin == pytest.approx((20 * length, 40 * length))
    assert found.notes == () or unit == "foot"
    attributes = zarr.open_group(str(written(tmp_path / "out.zarr", found, size=(16, 1100))), mode="r").attrs
    (image,) = attributes["multiscales"]
    assert image["version"] == "0.4"
    units = [axis.get("unit") for axis in image["axes"]]
    assert units == ([None, "micrometer", "micrometer"] if unit in ("micrometer", "nanometer") else [None] * 3)
    for n, each in enumerate(image["datasets"]):
        scale, translation = each["coordinateTransformations"]  # OME-Zarr 0.4: one scale, then at most one translation
        assert scale == {"type": "scale", "scale": pytest.approx([1.0, 0.5 * length * 2**n, length * 2**n])}
        shift = (2**n - 1) / 2  # the mean of two pixels lies between them
        expected = pytest.approx([0.0, (20 + 0.5 * shift) * length, (40 + shift) * length])
        assert translation == {"type": "translation", "translation": expected}
    channels = attributes["omero"]["channels"]
    assert [each["label"] for each in channels] == ["cat", "café"]
    assert len({each["color"] for each in channels}) == 2
    for each in channels:
        assert each["window"] == {"start": 0, "end": 255, "min": 0, "max": 255}
        assert int(each["color"], 16) < 1 << 24


def test_every_second_pixel_of_a_mask_stays_where_it_is(tmp_path: Path) -> None:
    placement = Placement((2.0, 2.0), (5.0, 5.0))
    out = written(tmp_path / "out.zarr", placement, size=(16, 1100), kind="mask")
    attributes = zarr.open_group(str(out), mode="r").attrs
    for each in attributes["multiscales"][0]["datasets"]:
        assert each["coordinateTransformations"][1]["translation"] == [0.0, 5.0, 5.0]
    assert "omero" not in attributes


# Nothing, or nothing that can be read.


def test_nothing_is_written_that_nobody_said(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", PIXELS)
    np.save(tmp_path / "in.npy", PIXELS)
    Image.fromarray(PIXELS).save(tmp_path / "in.png")
    zarr.save_array(str(tmp_path / "in.zarr"), PIXELS)
    sources = [*(tmp_path / f"in.{suffix}" for suffix in ("tif", "npy", "png", "zarr")), PIXELS]
    for source in sources:
        assert find_placement(source, (H, W)) == Placement(), source
    with tifffile.TiffFile(written(tmp_path / "out.tif", Placement())) as file:
        assert not {33550, 33922, 34264, 34735} & {tag.code for tag in file.pages[0].tags}
        assert json.loads(file.pages[0].description) == {"name": "cat", "classes": [3, 5]}
    assert resolution(tmp_path / "out.tif")[0] == ((1.0, 1.0), 1)


@pytest.mark.parametrize("number", ["-1", "nan", "many", "0"])
def test_a_scale_that_is_none_is_left_out_with_a_note(tmp_path: Path, number: str) -> None:
    xml = f'<OME xmlns="x"><Image><Pixels PhysicalSizeX="{number}" PhysicalSizeY="1"/></Image></OME>'
    tifffile.imwrite(tmp_path / "in.ome.tif", PIXELS, description=xml, metadata=None)
    found = find_placement(tmp_path / "in.ome.tif", (H, W))
    assert (found.pixel_size, found.geo) == (None, ())
    assert len(found.notes) == 1


def test_a_reader_of_ones_own_tells_its_place() -> None:
    class Reader:
        size = (H, W)
        placement = Placement((0.25, 0.5))

        def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
            return PIXELS[y0:y1, x0:x1]

    assert find_placement(Reader(), (H, W)) is Reader.placement


# From end to end.


@pytest.fixture(scope="module")
def polish_large() -> LargeImageSSA:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, stride=2, padding=1), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 3),
    )  # fmt: skip
    return LargeImageSSA(SSA(net.eval()), memory="2GB")


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_cams_and_mask_of_a_geotiff_lie_over_it(tmp_path: Path, polish_large: LargeImageSSA) -> None:
    source = geotiff(tmp_path / "in.tif", "north-up")
    result = polish_large(source, [1, 2], out=tmp_path / "out.tif")
    assert place_of(result.cams) == place_of(result.mask) == place_of(source)
    assert result.notes == ()
    result = polish_large(source, [1, 2], out=tmp_path / "other.zarr")
    assert "no georeference" in result.notes[0]


def test_cams_of_an_ome_zarr_lie_over_it(tmp_path: Path, polish_large: LargeImageSSA) -> None:
    source = ome_zarr(tmp_path / "in.zarr", "0.4", "micrometer", LEVEL, COMMON)
    result = polish_large(source, [1, 2], out=tmp_path / "out.zarr", names=["a", "b", "c"])
    for path in (result.cams, result.mask):
        (level,) = zarr.open_group(str(path), mode="r").attrs["multiscales"][0]["datasets"]
        scale, translation = level["coordinateTransformations"]
        assert (scale["scale"], translation["translation"]) == ([1.0, 0.5, 1.0], [0.0, 20.0, 40.0])
    channels = zarr.open_group(str(result.cams), mode="r").attrs["omero"]["channels"]
    assert [each["label"] for each in channels] == ["b", "c"]
