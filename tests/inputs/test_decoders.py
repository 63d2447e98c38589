"""Heading 12: one decoder per format, or two that agree.

The class: an image file whose pixels depend on who opens it. ``read_image`` (a run's images) and ``open_image`` (large
images) read every TIFF of a matrix alike, as the values that were written, or refuse it with the same sentence: bits ×
number type × planes × photometric × bands and their meaning × compression × predictor × tiles × byte order ×
orientation. So do the decoders that stand in where tifffile or a codec is missing, and the formats that Pillow reads.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from ssa_fast.io.images import ImageError, read_image
from ssa_fast.io.readers import open_image, size_of
from tests.inputs.tiffs import (
    GROUPS,
    H,
    Tiff,
    W,
    by_tifffile,
    every_tiff,
    hide,
    integers,
    other_numbers,
    random,
    smooth,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

tifffile = pytest.importorskip("tifffile", reason="needs the extra 'large'")
pytest.importorskip("imagecodecs", reason="writes what the extra 'large' reads")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Dataset has no geotransform"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
    if importlib.util.find_spec("rasterio")
    else [],
]
MEMORY = 1 << 24

CHILD = """
import importlib.util, json, sys
sys.modules["imagecodecs"] = None
hidden, find = {"imagecodecs", "rasterio", "openslide"}, importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in hidden else find(name, *rest)
import numpy as np
from pathlib import Path
from ssa_fast.io.images import ImageError, read_image
found = {}
for path in sorted(Path(sys.argv[1]).glob("*.tif")):
    try:
        rgb = read_image(path).rgb
        np.save(path.with_suffix(".npy"), rgb)
        found[path.stem] = ""
    except ImageError as error:
        found[path.stem] = str(error)
print(json.dumps(found))
"""


def write(case: Tiff, path: Path) -> None:
    try:
        case.write(path)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} writes it")


def outcome(read: Callable[[], tuple[np.ndarray, Any]]) -> tuple[np.ndarray | None, Any]:
    """Return pixels and notes, or None and the reason of the refusal."""
    try:
        return read()
    except ImageError as error:
        return None, " ".join(str(error).split("\n"))


def whole(path: Path, **options: Any) -> tuple[np.ndarray, Any]:
    image = read_image(path, **options)
    return image.rgb, image.notes


def windows(path: Path, **options: Any) -> tuple[np.ndarray, Any]:
    """Read an image as a large one: in four windows."""
    with open_image(path, memory=MEMORY, **options) as reader:
        (height, width), y, x = reader.size, 9, 13
        assert size_of(path) == reader.size
        rows = [
            np.concatenate([reader.read(y0, y1, 0, x), reader.read(y0, y1, x, width)], axis=1)
            for y0, y1 in ((0, y), (y, height))
        ]
        return np.concatenate(rows), tuple(dict.fromkeys(reader.notes))


def check(rgb: np.ndarray, case: Tiff, rounding: float = 0.0) -> None:
    assert case.rgb is not None, "it should have been refused"
    assert rgb.shape == case.rgb.shape
    assert np.abs(rgb - case.rgb).max() <= case.tolerance + rounding


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in every_tiff()])
def test_both_readers_read_a_tiff_as_it_was_written_or_refuse_it(tmp_path: Path, case: Tiff) -> None:
    write(case, tmp_path / "a.tif")
    (rgb, notes), (tiles, large_notes) = (outcome(lambda f=f: f(tmp_path / "a.tif")) for f in (whole, windows))
    assert notes == large_notes
    if case.rgb is None:
        assert rgb is None
        assert tiles is None
        assert "save it as RGB" in notes
        return
    assert rgb is not None, notes
    check(rgb, case)
    np.testing.assert_array_equal(rgb, tiles)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("package", ["rasterio", "PIL"])
def test_without_tifffile_what_is_read_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, group: Callable[[], Iterator[Tiff]]
) -> None:
    pytest.importorskip(package, reason="stands in for tifffile")
    read = 0
    for case in islice(
        group(), 0, None, 4 if group in (integers, other_numbers) else 1
    ):  # every kind and every coding, not each pair
        path = tmp_path / f"{case.name}.tif"
        write(case, path)
        with monkeypatch.context() as patch:
            hide(patch, *{"tifffile", "rasterio", "openslide"} - {package})
            rgb, reason = outcome(lambda path=path: whole(path))
            assert rgb is None or size_of(path) == rgb.shape[:2]
        if rgb is None:
            assert "pip install tifffile imagecodecs" in reason or case.rgb is None or "cannot be read" in reason
        else:
            read += 1
            check(rgb, case, rounding=1.0)  # GDAL rounds CMYK down, and Pillow cuts 16 bits
    assert read


@pytest.mark.slow
def test_without_imagecodecs_the_refusal_names_it(tmp_path: Path) -> None:
    cases = {}
    for n, case in enumerate(every_tiff()):
        if n % 10 == 0 or (n % 3 == 0 and "zstd" in case.name):
            write(case, tmp_path / f"{n}.tif")
            cases[str(n)] = case
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found.keys() == cases.keys()
    for n, reason in found.items():
        if reason == "":
            check(np.load(tmp_path / f"{n}.npy"), cases[n], rounding=1.0)
        elif cases[n].rgb is not None:
            assert "need the package imagecodecs" in reason
            assert reason.endswith("pip install imagecodecs.")
    zstd = {reason for n, reason in found.items() if "zstd" in cases[n].name}
    if sys.version_info < (3, 14):  # whose own library decodes it
        assert all("its ZSTD data" in reason for reason in zstd - {""})  # Pillow decodes some
        assert len(zstd) > 1


def test_a_missing_codec_is_noticed_where_the_first_tile_is_omitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = random("uint8", 1)
    by_tifffile(values, photometric="minisblack", compression="lzw", tile=(16, 16))(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        counts = file.pages.first.tags["TileByteCounts"]
        counts.overwrite((0, *counts.value[1:]))

    def decode(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "decode", property(lambda _: decode))
    hide(monkeypatch, "rasterio", "openslide", "PIL")
    with pytest.raises(ImageError, match=r"its LZW data need the package imagecodecs\): pip install imagecodecs"):
        open_image(tmp_path / "a.tif", memory=MEMORY)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_tiff_is_known_by_its_content(tmp_path: Path, suffix: str) -> None:
    values = random("uint16", 3)
    by_tifffile(values, photometric="rgb", planarconfig="separate")(tmp_path / f"a{suffix}")
    expected = np.floor(values / 257.0 + 0.5)
    for rgb, _ in (whole(tmp_path / f"a{suffix}"), windows(tmp_path / f"a{suffix}")):
        np.testing.assert_array_equal(rgb, expected)


def test_frames_pyramids_and_series(tmp_path: Path) -> None:
    image = random("uint8", 3)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(image, photometric="rgb", tile=(16, 16), subifds=1)
        file.write(image[::2, ::2], photometric="rgb", tile=(16, 16), subfiletype=1)
    with tifffile.TiffWriter(tmp_path / "frames.tif") as file:
        for frame in (image, 255 - image, image[:16, :16]):
            file.write(frame, photometric="rgb", metadata=None)
    for name, notes in (("pyramid", ()), ("frames", ("the first of its 3 frames is used.",))):
        for rgb, found in (whole(tmp_path / f"{name}.tif"), windows(tmp_path / f"{name}.tif")):
            np.testing.assert_array_equal(rgb, image)
            assert found == notes


@pytest.mark.parametrize("orientation", [2, 5, 6, 8])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_windows_of_turned_images_lie_where_the_upright_image_has_them(
    tmp_path: Path, orientation: int, planar: str
) -> None:
    image = random("uint8", 3)
    tags = [(274, 3, 1, orientation, True)]
    by_tifffile(image, photometric="rgb", planarconfig=planar, tile=(16, 16), extratags=tags)(tmp_path / "a.tif")
    expected = read_image(tmp_path / "a.tif").rgb
    assert expected.shape == ((H, W, 3) if orientation == 2 else (W, H, 3))
    with open_image(tmp_path / "a.tif", memory=MEMORY) as reader:
        for y0, y1, x0, x1 in ((0, 1, 0, 1), (3, 17, 2, 19), (5, 6, 0, reader.size[1]), (18, 20, 18, 20)):
            np.testing.assert_array_equal(reader.read(y0, y1, x0, x1), expected[y0:y1, x0:x1])


def png(values: np.ndarray) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.png_encode(np.ascontiguousarray(values)))


def portable(values: np.ndarray, largest: int) -> bytes:
    head = f"P{6 if values.ndim == 3 else 5}\n{values.shape[1]} {values.shape[0]}\n{largest}\n"
    return head.encode() + values.astype(">u2" if largest > 255 else "u1").tobytes()


def jpeg2000(values: np.ndarray, bits: int) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpeg2k_encode(np.ascontiguousarray(values), level=0, bitspersample=bits, reversible=True))


def deep_images() -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Yield names, files and RGB of formats that Pillow reads, with more than 8 bits."""
    white = np.full(3, 255.0)
    for count in (1, 2, 3, 4):
        values = random("uint16", count)
        real = np.floor(values / 257.0 + 0.5)
        if count in (2, 4):
            real = real[..., :-1] * (real[..., -1:] / 255.0) + white * (1.0 - real[..., -1:] / 255.0)
        rgb = np.broadcast_to(real, (H, W, 3))
        yield f"{count}.png", png(values.squeeze()), rgb
        if count in (1, 3):
            yield f"{count}.jp2", jpeg2000(values.squeeze(), 16), rgb
    for count in (1, 3):
        for largest in (1023, 4095, 65535, 100):
            values = random("uint16", count, largest)
            rgb = np.broadcast_to(np.floor(values * 255.0 / largest + 0.5), (H, W, 3))
            yield f"{count}-{largest}.p{'p' if count == 3 else 'g'}m", portable(values.squeeze(), largest), rgb
        values = random("uint16", count, 4095)
        rgb = np.broadcast_to(np.floor(values * 255.0 / 4095 + 0.5), (H, W, 3))
        yield f"{count}-12-bits.jp2", jpeg2000(values.squeeze(), 12), rgb


@pytest.mark.parametrize(("name", "content", "expected"), [pytest.param(*each, id=each[0]) for each in deep_images()])
def test_more_than_8_bits_in_other_formats(tmp_path: Path, name: str, content: bytes, expected: np.ndarray) -> None:
    (tmp_path / name).write_bytes(content)
    for rgb, notes in (whole(tmp_path / name), windows(tmp_path / name)):
        inexact = "transparent" in str(notes) or "-100." in name  # Pillow rounds halves to even
        assert np.abs(rgb - expected).max() <= (1.0 if inexact else 1e-6)
        assert "cut" not in str(notes)


def test_without_imagecodecs_colours_are_cut_to_8_bits_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = random("uint16", 3)
    (tmp_path / "a.png").write_bytes(png(values))
    (tmp_path / "a.jp2").write_bytes(jpeg2000(values, 16))
    hide(monkeypatch, "imagecodecs")
    rgb, notes = whole(tmp_path / "a.png")
    assert np.abs(rgb - values / 257.0).max() <= 1.0
    assert notes == ("its 16 bits are cut to 8: pip install imagecodecs keeps them.",)
    with pytest.raises(ImageError, match="no range can be chosen: pip install imagecodecs"):
        read_image(tmp_path / "a.png", range=(0, 4095))
    with pytest.raises(ImageError, match="Pillow turns its white into black: pip install imagecodecs"):
        read_image(tmp_path / "a.jp2")


def eight_bit_images(folder: Path) -> Iterator[tuple[Path, np.ndarray, float]]:
    """Write images of 8 bits; yield them with their RGB by another decoder, and how much a lossy one may differ."""
    import cv2

    image = smooth()
    pillow = Image.fromarray(image)
    for suffix, options in (
        *(("bmp", {}), ("ppm", {}), ("tga", {}), ("webp", {"lossless": True}), ("png", {}), ("jpg", {})),
        *(("jp2", {}), ("gif", {}), ("ico", {"sizes": [(W, H)], "bitmap_format": "bmp"}), ("pcx", {})),
    ):
        pillow.save(folder / f"a.{suffix}", **options)
        read = cv2.imread(str(folder / f"a.{suffix}"), cv2.IMREAD_COLOR)
        expected = image if read is None else read[..., ::-1]
        yield folder / f"a.{suffix}", expected, 60.0 if suffix == "gif" else 4.0 if suffix == "jpg" else 0.0
    pillow.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "p.png")
    yield folder / "p.png", cv2.imread(str(folder / "p.png"))[..., ::-1], 0.0
    pillow.convert("CMYK").save(folder / "cmyk.jpg", quality=95)  # Pillow writes inks inverted, as Adobe does
    yield folder / "cmyk.jpg", image, 14.0
    pillow.save(folder / "gamma.png", pnginfo=None)
    yield folder / "gamma.png", image, 0.0


def test_formats_of_8_bits_agree_with_another_decoder(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="the other decoder")
    for path, expected, tolerance in eight_bit_images(tmp_path):
        (rgb, notes), (tiles, large_notes) = whole(path), windows(path)
        np.testing.assert_array_equal(rgb, tiles, err_msg=path.name)
        assert notes == large_notes == ()
        assert np.abs(rgb.astype(float) - expected).max() <= tolerance, path.name
