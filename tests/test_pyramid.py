"""Test maps written in windows: content, reduced copies, and atomic replacement."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from ssa_fast.io import pyramid
from ssa_fast.io.progress import Progress
from ssa_fast.localize.masks import voc_palette

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

tifffile = pytest.importorskip("tifffile", reason="needs the extra 'large'")
zarr = pytest.importorskip("zarr", reason="needs the extra 'large'")

K, H, W, TILE = 2, 301, 1230, 64
NAMES = ["cat", "café"]


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (K, H, W), dtype=np.uint8)


@pytest.fixture(params=["tif", "zarr"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"a.{request.param}"


def window_of(maps: np.ndarray) -> Callable[..., np.ndarray]:
    return lambda k, y0, y1, x0, x1: maps[k, y0:y1, x0:x1]


def write(path: Path, maps: np.ndarray, **options: Any) -> None:
    defaults = {"shape": maps.shape, "names": [f"map {k}" for k in range(len(maps))], "tile": TILE}
    pyramid.write(path, **{"window": window_of(maps), **defaults, **options})


def halved(values: np.ndarray) -> np.ndarray:
    """Return 2×2 means in float64, halves rounded up; an odd last row or column is repeated."""
    real = np.pad(values, ((0, values.shape[0] % 2), (0, values.shape[1] % 2)), mode="edge").astype(np.float64)
    means = real.reshape(real.shape[0] // 2, 2, real.shape[1] // 2, 2).mean(axis=(1, 3))
    return np.floor(means + 0.5).astype(np.uint8)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_tiff_holds_a_page_per_map_its_copies_names_and_metadata(tmp_path: Path, maps: np.ndarray) -> None:
    write(tmp_path / "a.tif", maps, names=NAMES, metadata={"classes": [3, 5]})
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert not file.is_bigtiff
        assert len(file.pages) == K
        for k, page in enumerate(file.pages):
            assert (page.tilelength, page.tilewidth) == (TILE, TILE)
            assert page.compression.name == "ADOBE_DEFLATE"
            np.testing.assert_array_equal(page.asarray(), maps[k])
            assert len(page.pages) == 1
            np.testing.assert_array_equal(page.pages[0].asarray(), halved(maps[k]))
            assert json.loads(page.description) == {"name": NAMES[k], **({} if k else {"classes": [3, 5]})}
            assert page.datetime is None
    with Image.open(tmp_path / "a.tif") as image:
        for k in range(K):
            image.seek(k)
            np.testing.assert_array_equal(np.asarray(image), maps[k])


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_rasterio_reads_each_map(tmp_path: Path, maps: np.ndarray) -> None:
    rasterio = pytest.importorskip("rasterio", reason="GDAL is another reader of TIFF")
    write(tmp_path / "a.tif", maps)
    for k in range(K):
        with rasterio.open(f"GTIFF_DIR:{k + 1}:{tmp_path / 'a.tif'}") as dataset:
            np.testing.assert_array_equal(dataset.read(1), maps[k])


def test_copies_are_halved_until_one_is_small(tmp_path: Path) -> None:
    maps = np.random.default_rng(1).integers(0, 256, (1, 3, 4099), dtype=np.uint8)
    write(tmp_path / "a.tif", maps)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        copies = [page.asarray() for page in file.pages[0].pages]
    expected = maps[0]
    assert [copy.shape for copy in copies] == [(2, 2050), (1, 1025), (1, 513)]
    for copy in copies:
        expected = halved(expected)
        np.testing.assert_array_equal(copy, expected)


def test_a_mask_has_its_palette_and_its_copies_have_no_new_labels(tmp_path: Path) -> None:
    mask = np.random.default_rng(2).choice(np.array([0, 15, 255], np.uint8), (1, H, W))
    write(tmp_path / "m.tif", mask, kind="mask", palette=voc_palette())
    with tifffile.TiffFile(tmp_path / "m.tif") as file:
        (copy,) = file.pages[0].pages
        np.testing.assert_array_equal(copy.asarray(), mask[0, ::2, ::2])
    with Image.open(tmp_path / "m.tif") as image:
        assert image.mode == "P"
        assert image.getpalette() == list(voc_palette())
        np.testing.assert_array_equal(np.asarray(image), mask[0])


@pytest.mark.parametrize("kind", ["cam", "mask"])
def test_a_zarr_group_is_ome_zarr_with_every_level(tmp_path: Path, maps: np.ndarray, kind: str) -> None:
    write(tmp_path / "a.zarr", maps, names=NAMES, metadata={"classes": [3, 5]}, kind=kind)
    group = zarr.open(str(tmp_path / "a.zarr"), mode="r")
    (scales,) = group.attrs["multiscales"]
    assert [axis["name"] for axis in scales["axes"]] == ["c", "y", "x"]
    assert [level["path"] for level in scales["datasets"]] == ["0", "1"]
    assert scales["datasets"][1]["coordinateTransformations"] == [{"type": "scale", "scale": [1.0, 2.0, 2.0]}]
    assert group.attrs["ssa_fast"] == {"names": NAMES, "classes": [3, 5]}
    assert group["0"].chunks == (1, TILE, TILE)
    np.testing.assert_array_equal(group["0"][:], maps)
    for k in range(K):
        np.testing.assert_array_equal(group["1"][k], halved(maps[k]) if kind == "cam" else maps[k, ::2, ::2])
    assert (tmp_path / "a.zarr" / "0" / "0" / "0" / "0").is_file()  # nested chunks, as OME-Zarr 0.4 requires


def test_windows_are_requested_once_map_by_map_and_row_by_row(path: Path, maps: np.ndarray) -> None:
    requested: list[tuple[int, ...]] = []
    reports: list[Progress] = []

    def window(*place: int) -> np.ndarray:
        requested.append(place)
        return window_of(maps)(*place)

    write(path, maps, window=window, on_progress=reports.append)
    rows = [(y, min(y + TILE, H)) for y in range(0, H, TILE)]
    columns = [(x, min(x + TILE, W)) for x in range(0, W, TILE)]
    assert requested == [(k, *row, *column) for k in range(K) for row in rows for column in columns]
    total = K * len(rows) * len(columns)
    assert reports == [Progress(n + 1, total) for n in range(total)]


@pytest.mark.slow
def test_large_copies_use_a_temporary_file_that_is_removed(
    path: Path, maps: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory, on_disk = (path.parent / name for name in ("memory", "disk"))
    write(in_memory / path.name, maps)
    monkeypatch.setattr(pyramid, "IN_MEMORY", 100)
    mapped: list[int] = []
    memmap = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *args, **options: mapped.append(1) or memmap(*args, **options))
    write(on_disk / path.name, maps)
    assert len(mapped) == K
    assert contents(on_disk) == contents(in_memory)
    assert list(on_disk.iterdir()) == [on_disk / path.name]


@pytest.mark.slow
def test_the_same_maps_give_the_same_bytes(path: Path, maps: np.ndarray) -> None:
    for folder in ("one", "two"):
        write(path.parent / folder / path.name, maps, metadata={"b": 1, "a": 2})
    assert contents(path.parent / "one") == contents(path.parent / "two")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
def test_an_error_keeps_the_existing_file(
    path: Path, maps: np.ndarray, error: type[BaseException], existing: bool
) -> None:
    if existing:
        write(path, maps)
    before = contents(path.parent)

    def window(k: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        if k == 1 and y0 == 2 * TILE:
            raise error("failed")
        return 255 - maps[k, y0:y1, x0:x1]

    with pytest.raises(error, match="failed"):
        write(path, maps, window=window)
    assert contents(path.parent) == before
    assert len(list(path.parent.iterdir())) == existing


def test_existing_files_are_replaced(path: Path, maps: np.ndarray) -> None:
    write(path, maps)
    write(path, maps[:1] // 2)
    replaced = contents(path.parent)
    write(path.parent / "fresh" / path.name, maps[:1] // 2)
    assert contents(path.parent / "fresh") == replaced


def test_a_file_that_may_exceed_4_gb_is_a_bigtiff(
    tmp_path: Path, maps: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = pyramid._Pyramid(window_of(maps), (1, 64_000, 64_000), 512, "cam", None)
    assert large.uncompressed_bytes() > pyramid.MAX_CLASSIC
    assert (
        pyramid._Pyramid(window_of(maps), (1, 32_000, 32_000), 512, "cam", None).uncompressed_bytes()
        < pyramid.MAX_CLASSIC
    )
    monkeypatch.setattr(pyramid, "MAX_CLASSIC", 1000)
    write(tmp_path / "a.tif", maps)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
        np.testing.assert_array_equal(file.pages[1].asarray(), maps[1])


def test_memory_is_a_few_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "IN_MEMORY", 1 << 10)
    side, tile = 4096, 256
    monkeypatch.setattr(tifffile.TIFF, "MAXWORKERS", 4)  # as on a machine with more cores
    write(tmp_path / "warm.tif", np.zeros((1, 16, 16), np.uint8))
    tracemalloc.start()
    try:
        window = np.zeros((tile, tile), np.uint8)
        pyramid.write(tmp_path / "a.tif", lambda *_: window.copy(), shape=(1, side, side), names=["a"], tile=tile)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < side * side // 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": ["one"]}, "names: expected 2, one per map, got 1"),
        ({"tile": 100}, "tile: expected a multiple of 16"),
        ({"shape": (2, 0, 5)}, "shape: expected"),
        ({"kind": "box"}, "kind: expected 'cam' or 'mask'"),
        ({"palette": [1, 2, 3]}, "palette: expected 768 values"),
        ({"window": lambda *_: np.zeros((1, 1), np.uint8)}, r"window: expected uint8 \(64, 64\), got uint8 \(1, 1\)"),
        ({"window": lambda *_: np.zeros((64, 64))}, r"window: expected uint8 \(64, 64\), got float64"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, maps: np.ndarray, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.tif", maps, **changed)
    assert list(tmp_path.iterdir()) == []


def test_other_suffixes_are_refused(tmp_path: Path, maps: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"ends in \.tif or \.zarr, got 'a\.png'"):
        write(tmp_path / "a.png", maps)


class RecordingReader:
    """A reader of an array that records its largest window."""

    def __init__(self, rgb: np.ndarray) -> None:
        self.rgb, self.size, self.largest = rgb, rgb.shape[:2], 0

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        self.largest = max(self.largest, (y1 - y0) * (x1 - x0))
        return self.rgb[y0:y1, x0:x1]


@pytest.mark.parametrize(("longest", "factor"), [(100, 4), (57, 7), (1, 391), (391, 1), (1000, 1)])
def test_a_thumbnail_is_the_mean_of_blocks_read_in_windows(longest: int, factor: int) -> None:
    reader = RecordingReader(np.random.default_rng(3).integers(0, 256, (203, 391, 3), dtype=np.uint8))
    small: np.ndarray = pyramid.thumbnail(reader, longest, tile=64)  # type: ignore[arg-type]
    assert small.dtype == np.uint8
    assert small.shape == (-(-203 // factor), -(-391 // factor), 3)
    assert reader.largest <= max(64, factor) ** 2
    last = (small.shape[0] - 1, small.shape[1] - 1)
    for y, x in [last, *np.random.default_rng(4).integers(0, small.shape[:2], (200, 2)).tolist()]:
        block = reader.rgb[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor].astype(np.float64)
        np.testing.assert_array_equal(small[y, x], np.floor(block.mean(axis=(0, 1)) + 0.5))
