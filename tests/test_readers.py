"""Test reading windows: equal to a crop of the image, decoded in parts, or refused with a remedy."""

from __future__ import annotations

import importlib.util
import json
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from ssa_fast.io.images import ImageError, read_image
from ssa_fast.io.readers import open_image, size_of
from ssa_fast.io.readers.tiff import TiffReader

tifffile = pytest.importorskip("tifffile", reason="needs the extra 'large'")
zarr = pytest.importorskip("zarr", reason="needs the extra 'large'")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

H, W, TILE = 150, 205, 32
MEMORY = 1 << 20
RED = (200, 10, 30)


def pixels(channels: int, dtype: str = "uint8", size: tuple[int, int] = (H, W)) -> np.ndarray:
    rng = np.random.default_rng(channels)
    return rng.integers(0, np.iinfo(dtype).max, (*size, channels), dtype=dtype, endpoint=True)


def expected_rgb(values: np.ndarray, backdrop: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """Return the RGB that a reader should give, computed in float64."""
    real = values.reshape(*values.shape[:2], -1).astype(np.float64)
    if values.dtype == np.uint16:
        real = np.floor(real * 255.0 / 65535.0 + 0.5)
    if real.shape[2] in (2, 4):
        alpha = real[..., -1:] / 255.0
        real = np.floor(real[..., :-1] * alpha + np.array(backdrop) * (1.0 - alpha) + 0.5 + 1e-9)
    return np.broadcast_to(real, (*real.shape[:2], 3)).astype(np.uint8)


def check(reader: Any, expected: np.ndarray, count: int = 12) -> None:
    height, width = expected.shape[:2]
    assert reader.size == (height, width)
    rng = np.random.default_rng(1)
    windows = [(0, height, 0, width), (height - 1, height, width - 1, width)]
    for _ in range(count):
        y0, x0 = int(rng.integers(0, height)), int(rng.integers(0, width))
        windows.append((y0, int(rng.integers(y0, height)) + 1, x0, int(rng.integers(x0, width)) + 1))
    for y0, y1, x0, x1 in windows:
        pixels = reader.read(y0, y1, x0, x1)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, expected[y0:y1, x0:x1], err_msg=f"{(y0, y1, x0, x1)}")


def opened(source: Any, memory: int = MEMORY, **options: Any) -> Any:
    return open_image(source, memory=memory, **options)


def check_tiff(path: Path, expected: np.ndarray, count: int = 12, **options: Any) -> None:
    """Assert that tifffile reads a TIFF correctly, and rasterio, too, if it is installed."""
    with opened(path, **options) as reader:
        assert isinstance(reader, TiffReader)
        check(reader, expected, count)
    if importlib.util.find_spec("rasterio") is not None:
        import rasterio

        with rasterio.open(path) as dataset:
            check(opened(dataset, **options), expected, count)


def create_array(group: Any, name: str, shape: tuple[int, ...], chunks: tuple[int, ...]) -> Any:
    """Create a uint8 array in a zarr group, with zarr 2 or 3."""
    create = group.create_array if hasattr(group, "create_array") else group.create_dataset
    return create(name, shape=shape, chunks=chunks, dtype="uint8")


def refusal(source: Any, memory: int = MEMORY) -> str:
    """Return why a source cannot be opened or read."""
    with pytest.raises(ValueError, match=r".") as caught:  # noqa: PT012 - either may raise
        reader = opened(source, memory)
        reader.read(0, reader.size[0], 0, reader.size[1])
    if isinstance(source, Path):
        assert isinstance(caught.value, ImageError)
        assert str(caught.value).endswith(".")
    return str(caught.value)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("layout", ["tiles", "strips"])
@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_tiffs_of_every_kind(
    tmp_path: Path, layout: str, compression: str | None, dtype: str, channels: int, planar: str, big: bool
) -> None:
    image = pixels(channels, dtype)
    stored = np.moveaxis(image, -1, 0) if planar == "separate" else image
    options: dict[str, Any] = {"tile": (TILE, 48)} if layout == "tiles" else {"rowsperstrip": 7}
    if channels > 1:
        options |= {"planarconfig": planar, "extrasamples": ["unassalpha"] if channels in (2, 4) else None}
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored if channels > 1 else image[..., 0],
        photometric="rgb" if channels > 2 else "minisblack",
        compression=compression,
        bigtiff=big,
        byteorder=">" if big else "<",
        metadata=None,
        **options,
    )
    check_tiff(tmp_path / "a.tif", expected_rgb(image, RED), count=4, backdrop=RED)
    assert size_of(tmp_path / "a.tif") == (H, W)


def test_predictors_are_decoded(tmp_path: Path) -> None:
    image = pixels(3)
    Image.fromarray(image).save(tmp_path / "a.tif", compression="tiff_adobe_deflate", tiffinfo={317: 2})
    check_tiff(tmp_path / "a.tif", image)


@pytest.mark.parametrize("tile", [None, (TILE, TILE)], ids=["mapped", "tiles"])
def test_white_is_zero_and_palettes(tmp_path: Path, tile: tuple[int, int] | None) -> None:
    image, palette = pixels(1)[..., 0], pixels(3, size=(1, 256))[0]
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="miniswhite", tile=tile)
    check_tiff(tmp_path / "a.tif", expected_rgb(255 - image))
    for scale in (256, 257):
        table = (palette.astype(np.uint16) * scale).T
        tifffile.imwrite(tmp_path / "b.tif", image, photometric="palette", colormap=table, tile=tile)
        check_tiff(tmp_path / "b.tif", palette[image])


@pytest.mark.parametrize("tile", [None, (TILE, TILE)], ids=["mapped", "tiles"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_extra_bands_are_not_alpha(tmp_path: Path, tile: tuple[int, int] | None, planar: str, photometric: str) -> None:
    image = pixels(5)
    stored = np.moveaxis(image, -1, 0) if planar == "separate" else image
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, planarconfig=planar, tile=tile)
    check_tiff(tmp_path / "a.tif", image[..., :3], count=3)


def test_premultiplied_alpha_is_not_applied_twice(tmp_path: Path) -> None:
    image = pixels(4)
    image[..., :3] = image[..., :3] * (image[..., 3:] / 255.0)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", extrasamples=["assocalpha"])
    expected = image[..., :3].astype(float) + np.array(RED) * (1.0 - image[..., 3:] / 255.0)
    check(opened(tmp_path / "a.tif", backdrop=RED), np.floor(expected + 0.5 + 1e-9).astype(np.uint8))


def test_only_the_tiles_of_a_window_are_decoded_once(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels(3), photometric="rgb", tile=(TILE, TILE), compression="zlib")
    with opened(tmp_path / "a.tif") as reader:
        assert reader.decoded == 1  # the test when it is opened
        for window, decoded in {(40, 90, 70, 100): 1 + 4, (33, 95, 65, 127): 1 + 4, (33, 97, 65, 127): 1 + 6}.items():
            reader.read(*window)
            assert reader.decoded == decoded


def test_unused_planes_are_not_decoded(tmp_path: Path) -> None:
    image = np.moveaxis(pixels(5), -1, 0)
    tile = {"tile": (TILE, TILE), "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", planarconfig="separate", **tile)
    with opened(tmp_path / "a.tif") as reader:
        reader.read(0, TILE, 0, TILE)
        assert reader.decoded == 3


@pytest.mark.parametrize("layout", [{"tile": (TILE, TILE)}, {"rowsperstrip": 5}], ids=["tiles", "strips"])
def test_cached_segments_stay_within_memory(tmp_path: Path, layout: dict[str, Any]) -> None:
    image = pixels(3)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", compression="zlib", **layout)
    memory = 3 * TILE * TILE * 3 + 100
    rng = np.random.default_rng(2)
    with opened(tmp_path / "a.tif", memory) as reader:
        for _ in range(20):
            y, x = int(rng.integers(0, H - 40)), int(rng.integers(0, W - 40))
            np.testing.assert_array_equal(reader.read(y, y + 40, x, x + 40), image[y : y + 40, x : x + 40])
            held = sum(segment.nbytes for segment in reader.segments.values())
            assert 0 < held == reader.held <= memory
        last = next(reversed(reader.segments))
        before = reader.decoded
        reader._segment(last)
        assert reader.decoded == before
        assert len(reader.segments) >= 3


def test_uncompressed_strips_are_memory_mapped(tmp_path: Path) -> None:
    image = pixels(3)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb")  # one strip of all rows
    with opened(tmp_path / "a.tif", memory=100) as reader:
        check(reader, image)
        assert reader.decoded == 0


def test_missing_tiles_of_a_sparse_file_are_filled(tmp_path: Path) -> None:
    image = pixels(1)[:64, :64, 0]

    for value, filled in (("7", 7), ("-9999", 0)):
        tiles = iter((image[:32, :32], None, image[32:, :32], image[32:, 32:]))
        tags = [(42113, 2, 0, value, True)]  # GDAL_NODATA
        options = {"tile": (32, 32), "compression": "zlib", "photometric": "minisblack", "extratags": tags}
        tifffile.imwrite(tmp_path / "a.tif", tiles, shape=(64, 64), dtype=np.uint8, **options)
        image[:32, 32:] = filled
        check_tiff(tmp_path / "a.tif", expected_rgb(image))


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "packbits"])
def test_without_imagecodecs_rasterio_is_used(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio", reason="reads what tifffile cannot without imagecodecs")
    hide(monkeypatch, "imagecodecs")
    Image.fromarray(pixels(3)).save(tmp_path / "a.tif", compression=compression)
    expected = np.asarray(Image.open(tmp_path / "a.tif").convert("RGB"))
    with opened(tmp_path / "a.tif") as reader:
        check(reader, expected)
    assert size_of(tmp_path / "a.tif") == (H, W)


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make packages look as if they were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in modules else find(name, *rest))


def test_without_tifffile_rasterio_is_used_or_the_error_names_tifffile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels(3), photometric="rgb", tile=(TILE, TILE))
    tifffile.imwrite(tmp_path / "b.tif", pixels(3).astype(np.float32), photometric="rgb")
    hide(monkeypatch, "tifffile", "rasterio", "openslide")
    assert "tifffile is not installed" in (message := refusal(tmp_path / "b.tif"))
    assert "pip install tifffile" in message
    check(opened(tmp_path / "a.tif"), pixels(3))  # whole, by Pillow
    monkeypatch.undo()
    pytest.importorskip("rasterio", reason="reads TIFF without tifffile")
    hide(monkeypatch, "tifffile")
    check(opened(tmp_path / "a.tif"), pixels(3))


def test_cmyk_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cmyk = Image.merge("CMYK", Image.fromarray(pixels(4)).split())
    cmyk.save(tmp_path / "a.tif", compression=None)
    expected = np.asarray(cmyk.convert("RGB"))
    check(opened(tmp_path / "a.tif"), expected)
    hide(monkeypatch, "tifffile")
    if importlib.util.find_spec("rasterio") is not None:  # GDAL converts the inks, and rounds down
        read = opened(tmp_path / "a.tif").read(0, H, 0, W).astype(int)
        assert np.abs(read - expected).max() <= 1
    hide(monkeypatch, "tifffile", "rasterio", "openslide")
    check(opened(tmp_path / "a.tif"), expected)


def test_other_bit_depths_are_read_by_rasterio(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="reads packed bits")
    bilevel = pixels(1)[..., 0] > 127
    Image.fromarray(bilevel).save(tmp_path / "1.tif")
    check(opened(tmp_path / "1.tif"), expected_rgb(bilevel.astype(np.uint8) * np.uint8(255)))
    values = pixels(1, "uint16")[..., 0] >> 4
    form = {"driver": "GTiff", "height": H, "width": W, "count": 1, "dtype": "uint16", "nbits": 12}
    with rasterio.open(tmp_path / "12.tif", "w", **form) as dataset:
        dataset.write(values, 1)
    check(opened(tmp_path / "12.tif"), expected_rgb(np.floor(values * 255.0 / 4095.0 + 0.5).astype(np.uint8)))


def test_a_rasterio_dataset_stays_open(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="its datasets are sources")
    image = pixels(4, "uint16")
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(TILE, TILE), extrasamples=["unassalpha"])
    with rasterio.open(tmp_path / "a.tif") as dataset:
        with opened(dataset, backdrop=RED) as reader:
            check(reader, expected_rgb(image, RED))
        assert not dataset.closed


def test_a_rasterio_dataset_is_refused_for_its_dtype_or_its_blocks(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="its datasets are sources")
    tifffile.imwrite(tmp_path / "a.tif", pixels(1)[..., 0].astype(np.complex64))
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert "its samples are complex64" in refusal(dataset)
    tifffile.imwrite(tmp_path / "b.tif", pixels(3), photometric="rgb", compression="zlib", rowsperstrip=H)
    with rasterio.open(tmp_path / "b.tif") as dataset:
        assert "chunks of 512x512" in refusal(dataset, memory=1000)


def test_slides(tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide", reason="slides are read by openslide")
    image = pixels(3)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(TILE, TILE), compression="zlib")
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        with opened(slide) as reader:
            check(reader, image)
        assert slide.dimensions == (W, H)
        slide.read_region((0, 0), 0, (1, 1))  # still open
    shutil.copy(tmp_path / "a.tif", tmp_path / "a.svslide")
    check(opened(tmp_path / "a.svslide"), image)
    assert size_of(tmp_path / "a.svslide") == (H, W)
    (tmp_path / "b.mrxs").write_bytes(b"not a slide")
    assert "openslide cannot open it" in refusal(tmp_path / "b.mrxs")


@pytest.mark.parametrize("shape", [(H, W), (H, W, 1), (H, W, 3), (H, W, 4)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_arrays(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    image = pixels(shape[2] if len(shape) == 3 else 1, dtype).reshape(shape)
    expected = expected_rgb(image, RED)
    np.save(tmp_path / "a.npy", image)
    stored = zarr.open(str(tmp_path / "a.zarr"), mode="w", shape=shape, chunks=(40, 40, *shape[2:]), dtype=dtype)
    stored[:] = image
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "folder")
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    paths = [tmp_path / "a.npy", tmp_path / "a.zarr", tmp_path / "folder"]
    for source in (image, image[::-1][::-1], mapped, stored, *paths, str(paths[0])):
        check(opened(source, backdrop=RED), expected, count=4)
    assert [size_of(path) for path in paths] == [(H, W)] * 3


@pytest.mark.parametrize("version", ["0.4", "0.5", None])
def test_zarr_groups(tmp_path: Path, version: str | None) -> None:
    image = pixels(3)
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    name = "0" if version is None else "full"
    create_array(group, name, image.shape, (40, 40, 3))[:] = image
    create_array(group, "half", (H // 2, W // 2, 3), (40, 40, 3))[:] = image[1::2, : W - 1 : 2]
    levels = [{"datasets": [{"path": name}, {"path": "half"}]}]
    if version == "0.4":
        group.attrs["multiscales"] = levels
    if version == "0.5":
        group.attrs["ome"] = {"version": version, "multiscales": levels}
    check(opened(tmp_path / "a.zarr"), image)
    check(opened(tmp_path / "a.zarr" / "half"), image[1::2, : W - 1 : 2])  # an array's own path
    assert size_of(tmp_path / "a.zarr") == (H, W)


@pytest.mark.parametrize("axes", ["yxc", "cyx", "xy", "tczyx", None])
@pytest.mark.parametrize("named", [False, True], ids=["letters", "names"])
def test_ome_zarr_axes(tmp_path: Path, axes: str | None, named: bool) -> None:
    image = pixels(3) if axes is None or "c" in axes else pixels(1)
    sizes = {"y": H, "x": W, "c": 3, "t": 1, "z": 1}
    order = axes or "tczyx"  # the axes of all images before version 0.3
    present = image if "c" in order else image[..., 0]
    moved = present.transpose(["yxc".index(axis) for axis in order if axis in "yxc"])
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    shape = tuple(sizes[axis] for axis in order)
    create_array(group, "0", shape, tuple(min(40, n) for n in shape))[:] = moved.reshape(shape)
    level: dict[str, Any] = {"datasets": [{"path": "0"}]}
    if axes is not None:
        level["axes"] = [{"name": axis} for axis in axes] if named else list(axes)
    group.attrs["multiscales"] = [level]
    check(opened(tmp_path / "a.zarr"), expected_rgb(image))


@pytest.mark.parametrize(("axes", "shape"), [("tczyx", (2, 3, 1, 6, 9)), ("zyx", (4, 6, 9)), ("cyx", (5, 6, 9))])
def test_ome_zarr_of_more_than_one_image(tmp_path: Path, axes: str, shape: tuple[int, ...]) -> None:
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    create_array(group, "0", shape, shape)
    group.attrs["multiscales"] = [{"axes": list(axes), "datasets": [{"path": "0"}]}]
    message = f"its axes {', '.join(axes)} of {shape} are not a single grey, RGB or RGBA image: open the array and pass"
    assert message in refusal(tmp_path / "a.zarr")


def test_invalid_zarr_stores(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    assert "not a zarr store that can be read" in refusal(tmp_path / "empty.zarr")
    group = zarr.open_group(str(tmp_path / "group.zarr"), mode="w")
    assert "give an array's own path" in refusal(tmp_path / "group.zarr")
    group.attrs["multiscales"] = [{"datasets": []}]
    assert "give an array's own path" in refusal(tmp_path / "group.zarr")
    group.create_group("0")
    del group.attrs["multiscales"]
    assert "a zarr group of groups" in refusal(tmp_path / "group.zarr")


def test_a_damaged_chunk_is_reported(tmp_path: Path) -> None:
    stored = zarr.open(str(tmp_path / "a.zarr"), mode="w", shape=(80, 80, 3), chunks=(40, 40, 3), dtype="uint8")
    stored[:] = pixels(3)[:80, :80]
    for chunk in (path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file() and path.stat().st_size > 2000):
        chunk.write_bytes(b"damaged" * 9)
    assert "its rows 0 to 80, columns 0 to 80 cannot be read" in refusal(tmp_path / "a.zarr")


def test_chunks_larger_than_memory_are_refused(tmp_path: Path) -> None:
    stored = zarr.open(str(tmp_path / "a.zarr"), mode="w", shape=(80, 80, 3), chunks=(80, 80, 3), dtype="uint16")
    stored[:] = 1
    message = "chunks of at most 38,399 bytes, got (80, 80, 3), which take 38,400 each; save it with chunks of 512x512"
    assert message in refusal(tmp_path / "a.zarr", 38_399)
    assert message in refusal(stored, 38_399)
    opened(stored, 38_400).read(0, 80, 0, 80)
    assert size_of(tmp_path / "a.zarr") == (80, 80)


@pytest.mark.parametrize("shape", [(4,), (1, 1, 3, 6, 9), (3, 6, 9), (0, 9, 3), (6, 9, 2)])
def test_shapes_that_are_not_an_image(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    zarr.open(str(tmp_path / "a.zarr"), mode="w", shape=shape, chunks=tuple(max(1, n) for n in shape), dtype="uint8")
    message = f"expected (H, W), (H, W, 3) or (H, W, 4), got {shape}; move the channels to the end"
    for source in (np.zeros(shape, np.uint8), tmp_path / "a.npy", tmp_path / "a.zarr"):
        assert message in refusal(source)
    with pytest.raises(ImageError):
        size_of(tmp_path / "a.zarr")


@pytest.mark.parametrize("dtype", ["complex64", "<U3", "datetime64[s]"])
def test_pixels_that_are_not_numbers(tmp_path: Path, dtype: str) -> None:
    image = np.zeros((6, 9), dtype)
    np.save(tmp_path / "a.npy", image)
    sources: list[Any] = [image, tmp_path / "a.npy"]
    if dtype == "complex64":
        tifffile.imwrite(tmp_path / "a.tif", image)
        sources.append(tmp_path / "a.tif")
    for source in sources:
        assert f"its samples are {dtype}: save it with whole or floating-point numbers" in refusal(source)
    with pytest.raises(ImageError, match="whole or floating-point"):
        size_of(tmp_path / "a.npy")


def test_other_objects_are_refused() -> None:
    import torch

    assert "expected a path, an array, a rasterio dataset, an OpenSlide or a reader, got dict" in refusal({})
    assert "got torch.uint8" in refusal(torch.zeros(6, 9, 3, dtype=torch.uint8))


def custom_reader(image: np.ndarray) -> Any:
    """Return the minimal reader that a caller can pass."""
    return SimpleNamespace(size=image.shape[:2], read=lambda y0, y1, x0, x1: image[y0:y1, x0:x1])


def test_custom_readers_are_read_and_not_closed() -> None:
    image = pixels(3)[:6, :9]
    check(opened(custom_reader(image)), image)
    custom = Mock(spec=["size", "read", "close"], size=(6, 9))
    custom.read.side_effect = custom_reader(image).read
    with opened(custom) as reader:
        check(reader, image)
    custom.close.assert_not_called()
    custom.read.side_effect = KeyError("its own error")
    with pytest.raises(KeyError, match="its own error"):
        reader.read(0, 1, 0, 1)


@pytest.mark.parametrize("given", [pixels(3)[:3, :9], pixels(4)[:6, :9], pixels(3)[:6, :9] / 255.0, [[1]]])
def test_custom_readers_that_return_something_else(given: Any) -> None:
    other = SimpleNamespace(size=(6, 9), read=lambda *_: given)
    assert "expected the reader to return uint8 (6, 9, 3), got" in refusal(other)
    other.size = (6, 9, 3)
    assert "whose size is (H, W), got (6, 9, 3)" in refusal(other)


@pytest.mark.parametrize("window", [(-1, 3, 0, 3), (0, 151, 0, 3), (0, 3, 0, 206), (3, 3, 0, 3), (0, 3, 5, 4)])
def test_windows_must_be_inside_the_image(tmp_path: Path, window: tuple[int, int, int, int]) -> None:
    image = pixels(3)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(TILE, TILE))
    y0, y1, x0, x1 = window
    message = f"expected rows and columns inside 150x205, got rows {y0} to {y1}, columns {x0} to {x1}"
    for source in (tmp_path / "a.tif", image, custom_reader(image)):
        with opened(source) as reader, pytest.raises(ValueError, match="window") as caught:
            reader.read(*window)
        assert message in str(caught.value)


def test_small_images_are_decoded_whole(tmp_path: Path) -> None:
    image = pixels(4)
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = read_image(tmp_path / "a.png", backdrop=RED).rgb
    check(opened(tmp_path / "a.png", backdrop=RED), expected)
    message = refusal(tmp_path / "a.png", 4 * 4 * H * W - 1)
    assert "its 30,750 pixels can only be decoded whole" in message
    assert "raise memory, or save it as a tiled TIFF" in message
    check(opened(tmp_path / "a.png", 4 * 4 * H * W, backdrop=RED), expected)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_are_those_of_the_upright_image(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels(3)).save(tmp_path / "a.jpg", exif=exif)
    shape = read_image(tmp_path / "a.jpg").rgb.shape[:2]
    assert size_of(tmp_path / "a.jpg") == shape == ((W, H) if orientation in (6, 8) else (H, W))
    assert opened(tmp_path / "a.jpg").size == shape


def test_size_of_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(pixels(3)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:60])  # only the header
    options = {"photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", pixels(3), tile=(TILE, TILE), **options)
    tifffile.imwrite(tmp_path / "strip.tif", pixels(3), rowsperstrip=H, **options)
    zarr.open(str(tmp_path / "a.zarr"), mode="w", shape=(10**7, 10**7), chunks=(512, 512), dtype="uint8")

    def fail(*_: object) -> None:
        raise AssertionError("a segment was decoded")

    monkeypatch.setattr(TiffReader, "_decode", fail)
    monkeypatch.setattr(TiffReader, "_map", fail)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for name in ("a.png", "a.tif", "strip.tif"):
        assert size_of(tmp_path / name) == (H, W)
    assert size_of(tmp_path / "a.zarr") == (10**7, 10**7)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy", "a.svs", "a.ndpi"])
def test_missing_empty_and_other_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (None, b"", b"not an image" * 20):
        if content is not None:
            path.write_bytes(content)
        refusal(path)
        with pytest.raises(ImageError):
            size_of(path)


def test_segments_larger_than_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels(3), photometric="rgb", compression="zlib", rowsperstrip=H)
    message = refusal(path, 92_249)
    assert "its strips of 150x205 pixels take 92,250 bytes each, more than the 92,249 allowed" in message
    assert "save it with tiles of 512x512, or raise memory" in message
    opened(path, 92_250).close()
    tifffile.imwrite(path, pixels(3), photometric="rgb", tile=(128, 128))
    assert "its tiles of 128x128 pixels take 49,152 bytes each" in refusal(path, 49_151)


def test_volumes_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((16, 32, 32), np.uint8), volumetric=True, tile=(16, 16, 16))
    assert "it is a volume of 16 planes" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("package", ["tifffile", "rasterio"])
def test_rotated_tiffs_are_read_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    pytest.importorskip(package)
    hide(monkeypatch, *{"tifffile", "rasterio", "openslide"} - {package})
    image = pixels(3)
    flipped = image[::-1, ::-1]
    for orientation, expected in {1: image, 3: flipped, 6: np.rot90(image, -1), 7: flipped.swapaxes(0, 1)}.items():
        Image.fromarray(image).save(tmp_path / "a.tif", tiffinfo={274: orientation})
        check(opened(tmp_path / "a.tif"), expected)
        assert size_of(tmp_path / "a.tif") == expected.shape[:2]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("layout", [{"tile": (TILE, TILE)}, {"rowsperstrip": 7}], ids=["tiles", "strips"])
def test_damaged_tiffs_are_read_or_refused(tmp_path: Path, compression: str | None, layout: dict[str, Any]) -> None:
    image = pixels(3)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", compression=compression, **layout)
    content = (tmp_path / "a.tif").read_bytes()
    for part in (4, 9, 60, 300, len(content) // 2, len(content) - 9):
        (tmp_path / "b.tif").write_bytes(content[:part])
        refusal(tmp_path / "b.tif")
    rng = np.random.default_rng(3)
    for _ in range(40):
        damaged = bytearray(content)
        damaged[int(rng.integers(0, 260))] = int(rng.integers(0, 256))  # in the header
        (tmp_path / "b.tif").write_bytes(damaged)
        with suppress(ImageError), opened(tmp_path / "b.tif", 1 << 22) as reader:
            y1, x1 = (min(side, 300) for side in reader.size)
            assert reader.read(0, y1, 0, x1).shape == (y1, x1, 3)


def test_a_damaged_tile_is_named_and_others_are_read(tmp_path: Path) -> None:
    image = pixels(1)[..., 0]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, photometric="minisblack", compression="zlib", tile=(TILE, TILE))
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.dataoffsets[8]
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = b"\0" * 20
    path.write_bytes(content)
    with opened(path) as reader:
        np.testing.assert_array_equal(reader.read(0, 32, 0, W)[..., 0], image[:32])
        with pytest.raises(ImageError, match=r"its tile or strip 8 is damaged .*\.$"):
            reader.read(0, H, 0, W)


def test_files_are_closed(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels(3), photometric="rgb", tile=(TILE, TILE))
    with opened(tmp_path / "a.tif") as reader:
        reader.read(0, 1, 0, 1)
    assert reader.file.filehandle.closed
    assert not reader.segments
    assert json.dumps(reader.size) == f"[{H}, {W}]"  # plain integers
