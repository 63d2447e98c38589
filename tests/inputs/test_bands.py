"""Heading 13: bands and range.

The class: an image whose file does not say how its samples become red, green and blue. Values of fewer bits than their
type has (satellites, X-ray detectors, microscopes) or of floats come out black; a band that is no alpha makes holes;
channels that are pages, or more than three bands, are cut to what a photograph has. What a file declares is obeyed
(ExtraSamples, SampleFormat, bits in use, NoData), what is assumed is noted, and ``bands`` and ``range`` choose, alike
for a run's images, arrays, zarr stores and large images.
"""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from ssa_fast.io import value_range
from ssa_fast.io.images import ImageError, read_image
from ssa_fast.io.readers import open_image, size_of
from ssa_fast.io.samples import ReadOptions, parse_bands, parse_range
from tests.inputs.tiffs import hide

if TYPE_CHECKING:
    from pathlib import Path

tifffile = pytest.importorskip("tifffile", reason="needs the extra 'large'")
zarr = pytest.importorskip("zarr", reason="needs the extra 'large'")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

H, W, MEMORY = 24, 36, 1 << 24
BACKDROP = (255, 255, 255)


def reflectance(bands: int, scale: float = 1500.0, offset: float = 1000.0, dtype: str = "uint16") -> np.ndarray:
    """Return a scene as Sentinel-2 delivers it: 10,000 is white paper, land is dark, a cloud is not."""
    rng = np.random.default_rng(bands)
    values = offset + scale * rng.gamma(2.0, 0.5, (H, W, bands)) * np.linspace(0.6, 1.4, bands)
    values[:3, :5] = 14_000
    return values.astype(dtype)


def stretch(values: np.ndarray, low: Any, high: Any) -> np.ndarray:
    real = (values.astype(np.float64) - low) * 255.0 / (np.asarray(high, dtype=np.float64) - low)
    return np.broadcast_to(np.floor(real.clip(0, 255) + 0.5), (*values.shape[:2], 3)).astype(np.uint8)


def percentiles(values: np.ndarray, percent: float, axis: Any) -> tuple[np.ndarray, np.ndarray]:
    low = np.percentile(values, percent, axis=axis, method="lower")
    return low, np.percentile(values, 100 - percent, axis=axis, method="higher")


def write_all(folder: Path, values: np.ndarray) -> list[Any]:
    """Return sources of an image (H, W, C): a TIFF of each planar configuration, a raster, arrays and stores."""
    options = {"photometric": "minisblack", "metadata": None}
    tifffile.imwrite(folder / "contig.tif", values, planarconfig="contig", **options)
    separate = np.ascontiguousarray(np.moveaxis(values, -1, 0))
    tifffile.imwrite(
        folder / "tiles.tif", separate, planarconfig="separate", tile=(16, 16), compression="zlib", **options
    )
    np.save(folder / "a.npy", values)
    stored = zarr.open(str(folder / "a.zarr"), mode="w", shape=values.shape, chunks=(10, 10, 3), dtype=values.dtype)
    stored[:] = values
    sources = [folder / "contig.tif", folder / "tiles.tif", folder / "a.npy", folder / "a.zarr", values, stored]
    if importlib.util.find_spec("rasterio") is not None:
        import rasterio

        form = {"driver": "GTiff", "height": H, "width": W, "count": values.shape[2], "dtype": values.dtype.name}
        with rasterio.open(folder / "gdal.tif", "w", **form) as dataset:
            dataset.write(separate)
        sources += [folder / "gdal.tif", rasterio.open(folder / "gdal.tif")]
    return sources


def read(source: Any, **options: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read a source by windows, and a file whole, too: both are the same."""
    with open_image(source, memory=MEMORY, **options) as reader:
        height, width = reader.size
        rgb = np.concatenate([reader.read(0, 7, 0, width), reader.read(7, height, 0, width)])
        notes = tuple(dict.fromkeys(reader.notes))
    if hasattr(source, "suffix") and source.is_file():
        image = read_image(source, **options)
        np.testing.assert_array_equal(image.rgb, rgb)
        assert image.notes == notes
        assert size_of(source, options.get("bands")) == rgb.shape[:2]
    return rgb, notes


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        read(source, **options)
    return str(caught.value)


def test_chosen_bands_of_a_satellite_in_every_container(tmp_path: Path) -> None:
    scene = reflectance(12)
    chosen = scene[..., [3, 2, 1]]
    expected = stretch(chosen, *percentiles(chosen.reshape(-1, 3), 2, 0))
    assert 30 < np.median(expected) < 200  # neither black nor white
    for source in write_all(tmp_path, scene):
        rgb, notes = read(source, bands=(4, 3, 2))
        np.testing.assert_array_equal(rgb, expected)
        assert len(notes) == 1
        assert "2 % cut off at each end" in notes[0]
        rgb, notes = read(source, bands=(4, 3, 2), range=(0, 4000))
        np.testing.assert_array_equal(rgb, stretch(chosen, 0, 4000))
        assert notes == ()
        rgb, _ = read(source, bands=(8,), range=1)
        np.testing.assert_array_equal(rgb, stretch(scene[..., 7:8], *percentiles(scene[..., 7], 1, None)))
        assert "bands 1 to 12, not 13" in refusal(source, bands=(13,))


def test_bands_that_nothing_names_are_read_with_a_note(tmp_path: Path) -> None:
    scene = reflectance(12)
    tiffs = [source for source in write_all(tmp_path, scene) if str(source).endswith(".tif")]
    for source in tiffs:
        rgb, notes = read(source, range=(0, 5000))
        np.testing.assert_array_equal(rgb, stretch(scene[..., :3], 0, 5000))
        assert "its bands 1, 2 and 3 are read as red, green and blue, which it does not declare." in notes
        assert "its bands 4, 5, 6, 7, 8, 9, 10, 11, 12 are not declared as alpha and left out" in notes[1]
    for source in (tmp_path / "a.npy", tmp_path / "a.zarr", scene):
        assert "got (24, 36, 12); move the channels to the end, and choose bands" in refusal(source)
        assert "move the channels to the end" in refusal(np.moveaxis(scene, -1, 0), bands=(3, 2, 1))


@pytest.mark.parametrize("bits", [8, 9, 10, 12])
@pytest.mark.parametrize("kind", ["png", "tif", "pgm", "npy"])
def test_detectors_of_few_bits_are_not_black(tmp_path: Path, kind: str, bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (H, W)).astype(np.uint16)
    path = tmp_path / f"a.{kind}"
    np.save(path, values) if kind == "npy" else Image.fromarray(values).save(path)
    rgb, notes = read(path)
    np.testing.assert_array_equal(rgb, stretch(values[..., None], 0, 2**bits - 1))
    assert notes == (f"its values use {bits} of 16 bits: 0 to {2**bits - 1} become 0 to 255.",)


@pytest.mark.parametrize("kind", ["png", "tif", "pgm", "npy"])
def test_all_16_bits_are_read_as_before_without_a_note(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (H, W)).astype(np.uint16)
    path = tmp_path / f"a.{kind}"
    np.save(path, values) if kind == "npy" else Image.fromarray(values).save(path)
    rgb, notes = read(path)
    np.testing.assert_array_equal(rgb, stretch(values[..., None], 0, 65535))
    assert notes == ()


@pytest.mark.parametrize("colors", ["rgb", "minisblack"])
def test_colours_share_a_range_and_bands_have_their_own(tmp_path: Path, colors: str) -> None:
    scene = reflectance(3)
    tifffile.imwrite(tmp_path / "a.tif", scene, photometric=colors, planarconfig="contig")
    joint = colors == "rgb"
    rgb, notes = read(tmp_path / "a.tif")
    flat = scene.reshape(-1) if joint else scene.reshape(-1, 3)
    np.testing.assert_array_equal(rgb, stretch(scene, *percentiles(flat, 2, 0)))
    assert notes[-1].count(" to ") == (2 if joint else 4)


def test_single_hot_pixels_do_not_decide() -> None:
    values = np.random.default_rng(1).integers(0, 4096, (40, 60)).astype(np.uint16)
    values[3, 5] = 65535
    rgb, notes = read(values)
    assert "12 of 16 bits" in notes[0]
    assert rgb[3, 5, 0] == 255
    mask = np.zeros((40, 60), np.uint16)
    mask[3, 5] = 65535
    assert read(mask)[0][3, 5, 0] == 255


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("int16", -1024, 3071), ("int32", -5000, 90_000), ("uint32", 0, 10**9)]
)
def test_signed_and_wide_integers(tmp_path: Path, dtype: str, low: int, high: int) -> None:
    values = np.random.default_rng(2).integers(low, high, (H, W), endpoint=True).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    for source in (tmp_path / "a.tif", values):
        rgb, notes = read(source)
        np.testing.assert_array_equal(rgb, stretch(values[..., None], *percentiles(values, 2, None)))
        assert "stretched" in notes[0]
        rgb, notes = read(source, range=0)
        np.testing.assert_array_equal(rgb, stretch(values[..., None], values.min(), values.max()))
        rgb, notes = read(source, range=(low, high))
        np.testing.assert_array_equal(rgb, stretch(values[..., None], low, high))
        assert notes == ()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_float_rgb(tmp_path: Path, dtype: str) -> None:
    unit = np.random.default_rng(3).random((H, W, 3)).astype(dtype)
    for values, whole in ((unit, True), (unit * dtype_of(dtype, 0.2), False), (unit * dtype_of(dtype, 300), False)):
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", compression="zlib", predictor=True)
        for source in (tmp_path / "a.tif", values):
            rgb, notes = read(source)
            limits = (0, 1) if whole else percentiles(values, 2, None)
            np.testing.assert_array_equal(rgb, stretch(values, *(float(each) for each in limits)))
            assert bool(notes) != whole


def dtype_of(dtype: str, value: float) -> Any:
    return np.dtype(dtype).type(value)


@pytest.mark.parametrize("extra", ["unspecified", None, "assocalpha", "unassalpha"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_fourth_band_is_alpha_only_where_it_is_declared(tmp_path: Path, extra: str | None, dtype: str) -> None:
    top = 1.0 if dtype == "float32" else np.iinfo(dtype).max
    values = (np.random.default_rng(4).random((H, W, 4)) * top).astype(dtype)
    values[0, 0] = top
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[extra or "unspecified"])
    if extra is None:  # some writers leave the tag out
        with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
            tag = file.pages.first.tags[338]
            file.filehandle.seek(tag.offset)
            file.filehandle.write((60_000).to_bytes(2, "little"))  # a private tag
    rgb, notes = read(tmp_path / "a.tif")
    opaque = stretch(values[..., :3], 0, top)
    if extra in ("unspecified", None):
        np.testing.assert_array_equal(rgb, opaque)
        assert notes == ("its band 4 is not declared as alpha and left out; choose bands to read it.",)
    else:
        alpha = stretch(values[..., 3:], 0, top) / 255.0
        expected = opaque * (alpha if extra == "unassalpha" else 1.0) + 255.0 * (1.0 - alpha)
        assert np.abs(rgb - np.minimum(expected, 255.0)).max() <= 0.5 + 1e-6
        assert "transparent" in notes[0]
    np.testing.assert_array_equal(read(tmp_path / "a.tif", bands=(4, 1, 2))[0], stretch(values[..., [3, 0, 1]], 0, top))


def test_alpha_of_12_bits_beside_12_bits_is_opaque(tmp_path: Path) -> None:
    values = np.random.default_rng(5).integers(0, 4096, (H, W, 4)).astype(np.uint16)
    values[..., 3] = 4095
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0], stretch(values[..., :3], 0, 4095))


def test_a_fourth_channel_of_an_array_is_noted() -> None:
    values = np.random.default_rng(6).integers(0, 65536, (H, W, 4)).astype(np.uint16)
    assert "its fourth channel is read as alpha" in read(values)[1][0]
    rgb, notes = read(values, bands=(1, 2, 3))
    np.testing.assert_array_equal(rgb, stretch(values[..., :3], 0, 65535))
    assert notes == ()


def stack(path: Path, axes: str, shape: tuple[int, ...], **options: Any) -> np.ndarray:
    values = np.random.default_rng(len(axes)).integers(0, 65536, (*shape, H, W)).astype(np.uint16)
    tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": axes}, **options)
    return values


TILES: dict[str, Any] = {"tile": (16, 16), "compression": "zlib"}
PAGES: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    *(("CYX", (3,), {"imagej": True}), ("ZCYX", (2, 3), {"imagej": True}), ("TZCYX", (2, 4, 3), {"imagej": True})),
    *(("CYX", (3,), {"ome": True}), ("CZYX", (3, 2), {"ome": True}), ("TCZYX", (2, 3, 4), {"ome": True})),
    *(("CYX", (3,), {"ome": True, **TILES}), ("TCZYX", (2, 3, 4), {"ome": True, **TILES})),
    ("CYX", (3,), {"ome": True, "planarconfig": "separate"}),  # planes of one page
]


@pytest.mark.parametrize(("axes", "shape", "how"), PAGES)
def test_channels_that_are_pages(tmp_path: Path, axes: str, shape: tuple[int, ...], how: dict[str, Any]) -> None:
    values = stack(tmp_path / "a.tif", axes, shape, **how)
    at = axes.index("C")
    channels = np.moveaxis(values, at, -1).reshape(-1, H, W, 3)[0]
    rgb, notes = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(rgb, stretch(channels, 0, 65535))
    assert any("1, 2 and 3 are read as red, green and blue" in note for note in notes)
    frames = int(np.prod(shape)) // 3
    assert any("frames" in note for note in notes) == (frames > 1)
    rgb, _ = read(tmp_path / "a.tif", bands=(2,))
    np.testing.assert_array_equal(rgb, stretch(channels[..., 1:2], 0, 65535))


@pytest.mark.parametrize("count", [2, 4, 5])
@pytest.mark.parametrize("kind", ["imagej", "ome", "ome-zarr"])
def test_channels_that_are_not_three_are_chosen(tmp_path: Path, kind: str, count: int) -> None:
    if kind == "ome-zarr":
        path = tmp_path / "a.zarr"
        values = np.random.default_rng(count).integers(0, 65536, (count, H, W)).astype(np.uint16)
        group = zarr.open_group(str(path), mode="w")
        create = group.create_array if hasattr(group, "create_array") else group.create_dataset
        create("0", shape=values.shape, chunks=(1, 16, 16), dtype="uint16")[:] = values
        group.attrs["multiscales"] = [{"axes": list("cyx"), "datasets": [{"path": "0"}]}]
    else:
        path = tmp_path / "a.tif"
        values = stack(path, "CYX", (count,), **{kind: True})
    assert "choose" in (message := refusal(path))
    assert "bands" in message
    assert size_of(path) == (H, W)
    rgb, notes = read(path, bands=(count, 1, 2))
    np.testing.assert_array_equal(rgb, stretch(np.moveaxis(values, 0, -1)[..., [count - 1, 0, 1]], 0, 65535))
    assert notes == ()


@pytest.mark.parametrize("package", ["rasterio", "PIL"])
@pytest.mark.parametrize("how", [{"imagej": True}, {"ome": True}])
def test_channels_are_not_read_as_grey_without_tifffile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, how: dict[str, bool]
) -> None:
    pytest.importorskip(package, reason="stands in for tifffile")
    stack(tmp_path / "a.tif", "CYX", (3,), **how)
    hide(monkeypatch, *{"tifffile", "rasterio", "openslide"} - {package})
    message = refusal(tmp_path / "a.tif")
    assert "its channels are pages, of which only tifffile reads more than the first" in message
    assert "pip install tifffile" in message


def test_pages_without_a_meaning_are_frames_unless_bands_are_chosen(tmp_path: Path) -> None:
    pages = np.random.default_rng(7).integers(0, 256, (5, H, W)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack", metadata=None)
    rgb, notes = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(rgb, stretch(pages[0][..., None], 0, 255))
    assert notes == ("the first of its 5 frames is used.",)
    rgb, _ = read(tmp_path / "a.tif", bands=(5, 3, 1))
    np.testing.assert_array_equal(rgb, np.moveaxis(pages[[4, 2, 0]], 0, -1))


def test_declared_bits_and_limits_are_obeyed_without_a_note(tmp_path: Path) -> None:
    dark = np.random.default_rng(8).integers(0, 500, (H, W)).astype(np.uint16)  # of a 12-bit camera
    tifffile.imwrite(
        tmp_path / "ome.tif", dark, photometric="minisblack", ome=True, metadata={"axes": "YX", "SignificantBits": 12}
    )
    assert tifffile.TiffFile(tmp_path / "ome.tif").ome_metadata.count('SignificantBits="12"') == 1
    limits = [(340, 3, 1, 100, True), (341, 3, 1, 900, True)]
    tifffile.imwrite(tmp_path / "limits.tif", dark, photometric="minisblack", extratags=limits, metadata=None)
    for name, (low, high) in {"ome.tif": (0, 4095), "limits.tif": (100, 900)}.items():
        rgb, notes = read(tmp_path / name)
        np.testing.assert_array_equal(rgb, stretch(dark[..., None], low, high))
        assert notes == ()
    # MinSampleValue and MaxSampleValue are statistics, by the TIFF specification.
    statistics = [(280, 3, 1, 0, True), (281, 3, 1, 65535, True)]
    tifffile.imwrite(tmp_path / "a.tif", dark, photometric="minisblack", extratags=statistics, metadata=None)
    assert "9 of 16 bits" in read(tmp_path / "a.tif")[1][0]


@pytest.mark.parametrize("roles", [("blue", "green", "red", "undefined"), ("undefined", "red", "green", "blue")])
def test_colours_that_gdal_names_are_in_their_place(tmp_path: Path, roles: tuple[str, ...]) -> None:
    rasterio = pytest.importorskip("rasterio", reason="writes the roles of bands")
    values = np.random.default_rng(9).integers(0, 65536, (4, H, W)).astype(np.uint16)
    form = {"driver": "GTiff", "height": H, "width": W, "count": 4, "dtype": "uint16"}
    with rasterio.open(tmp_path / "a.tif", "w", **form) as dataset:
        dataset.write(values)
        dataset.colorinterp = [rasterio.enums.ColorInterp[role] for role in roles]
    expected = stretch(np.stack([values[roles.index(c)] for c in ("red", "green", "blue")], axis=-1), 0, 65535)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        for source in (tmp_path / "a.tif", dataset):
            rgb, notes = read(source)
            np.testing.assert_array_equal(rgb, expected)
            assert "not declared as alpha" in notes[0]


@pytest.mark.parametrize(("dtype", "nodata"), [("float32", float("nan")), ("float32", -9999.0), ("uint16", 0)])
def test_pixels_without_data_are_left_out_and_shown_on_the_backdrop(tmp_path: Path, dtype: str, nodata: float) -> None:
    scene = reflectance(3, dtype=dtype)
    valid = scene[:, 10:]
    scene[:, :10] = nodata
    tags = [(42113, 2, 0, str(nodata), True)]
    tifffile.imwrite(tmp_path / "a.tif", scene, photometric="rgb", extratags=tags, metadata=None)
    sources: list[Any] = [tmp_path / "a.tif"]
    if importlib.util.find_spec("rasterio") is not None:
        import rasterio

        sources.append(rasterio.open(tmp_path / "a.tif"))
    for source in sources:
        rgb, notes = read(source)
        np.testing.assert_array_equal(rgb[:, 10:], stretch(valid, *percentiles(valid, 2, None)))
        assert (rgb[:, :10] == 255).all()
        assert "its pixels without data are shown on rgb(255, 255, 255)." in notes
        assert (read(source, backdrop=(1, 2, 3))[0][:, :10] == (1, 2, 3)).all()


def test_nan_that_is_not_declared_is_refused(tmp_path: Path) -> None:
    scene = reflectance(3, dtype="float32")
    for value in (np.nan, np.inf):
        scene[5, 5, 1] = value
        tifffile.imwrite(tmp_path / "a.tif", scene, photometric="rgb")
        for source in (tmp_path / "a.tif", scene):
            assert "it holds NaN or infinite values: declare them as its NoData" in refusal(source)


@pytest.mark.parametrize("size", [(300, 500), (40, 3000)])
def test_the_range_of_a_large_image_does_not_depend_on_the_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(value_range, "WHOLE", 1 << 14)
    monkeypatch.setattr(value_range, "GRID", 5)
    monkeypatch.setattr(value_range, "WINDOW", 24)
    rng = np.random.default_rng(10)
    scene = (1000 + 1500 * rng.gamma(2.0, 0.5, (*size, 3)) + np.linspace(0, 4000, size[1])[None, :, None]).astype(
        "uint16"
    )
    tifffile.imwrite(tmp_path / "tiles.tif", scene, photometric="rgb", tile=(32, 32), compression="zlib")
    tifffile.imwrite(tmp_path / "strips.tif", scene, photometric="rgb", rowsperstrip=9, compression="zlib")
    windows = list(value_range.sample_windows(size))
    assert sum((y1 - y0) * (x1 - x0) for y0, y1, x0, x1 in windows) < scene[..., 0].size
    examined = np.concatenate([scene[y0:y1, x0:x1].reshape(-1) for y0, y1, x0, x1 in windows])
    expected = stretch(scene, *percentiles(examined, 2, None))
    for source in (tmp_path / "tiles.tif", tmp_path / "strips.tif", scene):
        rgb, _ = read(source)
        np.testing.assert_array_equal(rgb, expected)
        with open_image(source, memory=1 << 20) as reader:  # nothing but one window, of the last corner
            np.testing.assert_array_equal(reader.read(30, 40, 400, 500), expected[30:40, 400:500])


def test_options_are_parsed_and_checked() -> None:
    assert [parse_bands(text) for text in (None, "3,2,1", "4")] == [None, (3, 2, 1), (4,)]
    assert [parse_range(text) for text in ("auto", "0,4095", "-1024, 3071", "2", "0.5%")] == [
        *("auto", (0.0, 4095.0), (-1024.0, 3071.0), 2.0, 0.5)
    ]
    for text in ("red", "1;2", ""):
        with pytest.raises(ValueError, match=r"^bands: expected numbers such as 3,2,1 or 4"):
            parse_bands(text)
    for text in ("low,high", "1,2,3", ""):
        with pytest.raises(ValueError, match=r"^range: expected auto, LOW,HIGH such as 0,4095"):
            parse_range(text)
    for bands in ((), (1, 2), (0,), (1.5,), (1, 2, 3, 4), (-1, 2, 3)):
        with pytest.raises(ValueError, match=r"^bands: expected one band \(grey\) or three"):
            ReadOptions(bands=bands)  # type: ignore[arg-type]
    for limits in ("full", (5, 5), (9, 1), (0, float("inf")), -1, 50, (1, 2, 3)):
        with pytest.raises(ValueError, match=r'^range: expected "auto"'):
            ReadOptions(range=limits)  # type: ignore[arg-type]


def test_bands_and_range_of_photographs(tmp_path: Path) -> None:
    image = np.random.default_rng(11).integers(0, 256, (H, W, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png", bands=(3, 2, 1))[0], image[..., ::-1])
    np.testing.assert_array_equal(read(tmp_path / "a.png", bands=(2,))[0], np.repeat(image[..., 1:2], 3, axis=2))
    np.testing.assert_array_equal(read(tmp_path / "a.png", range=(50, 150))[0], stretch(image, 50, 150))
    assert "bands 1 to 3, not 4" in refusal(tmp_path / "a.png", bands=(4,))
    Image.fromarray(image[..., 0]).save(tmp_path / "b.png")
    assert "it has one band, not 3, 2, 1: choose other bands." in refusal(tmp_path / "b.png", bands=(3, 2, 1))
    tifffile.imwrite(tmp_path / "white.tif", image[..., 0], photometric="miniswhite")
    for bands in ((1,), (1, 1, 1)):
        np.testing.assert_array_equal(read(tmp_path / "white.tif", bands=bands)[0][..., 2], 255 - image[..., 0])
    reader = type("Own", (), {"size": (H, W), "read": lambda self, y0, y1, x0, x1: image[y0:y1, x0:x1]})()
    assert "expected neither with a reader of your own" in refusal(reader, bands=(3, 2, 1))
    Image.fromarray(image).convert("CMYK").save(tmp_path / "c.tif")
    with pytest.raises(ImageError, match="CMYK, of which no bands"):
        read_image(tmp_path / "c.tif", bands=(1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_a_run_reads_bands_and_records_what_it_assumed(tmp_path: Path, large: bool) -> None:
    from typer.testing import CliRunner

    from ssa_fast.cli.app import app

    scene = np.kron(reflectance(12), np.ones((4, 4, 1), np.uint16))
    tifffile.imwrite(tmp_path / "scene.tif", scene, photometric="minisblack", planarconfig="contig")
    arguments = ["run", str(tmp_path / "scene.tif"), "--model", "demo", "--device", "cpu", "--no-overlays"]
    arguments += ["--large-above", "1000"] if large else []
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "a"), "--bands", "4,3,2"])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    settings = json.loads((tmp_path / "a" / "run.json").read_text())["settings"]
    assert (settings["bands"], settings["range"]) == ([4, 3, 2], "auto")
    assert any("2 % cut off at each end" in note for note in report["notes"])
    record = "".join(path.read_text() for path in (tmp_path / "a" / "records").rglob("*.json*"))
    assert "2 % cut off at each end" in record
    other = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "a"), "--bands", "4,3,2", "--range", "0,9000"])
    assert other.exit_code == 2  # another result: not resumed
    assert "range" in other.output
    wrong = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "b"), "--bands", "1,2"])
    assert wrong.exit_code == 2
    assert "bands: expected one band (grey) or three" in " ".join(wrong.output.split())
