"""Test decoding: every kind of image file is read correctly or refused with the reason."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from ssa_fast.io.images import ImageError, read_image

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def refusal(path: Path, **options: int) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("size", [(6, 9), (1, 1)])
def test_png_is_read_pixel_for_pixel_without_notes(tmp_path: Path, photo: np.ndarray, size: tuple[int, int]) -> None:
    expected = photo[: size[0], : size[1]]
    Image.fromarray(expected).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.rgb, expected)
    assert (image.rgb.dtype, image.notes) == (np.uint8, ())


def test_greyscale_and_bilevel(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png").rgb, np.repeat(photo[..., :1], 3, axis=2))
    Image.fromarray(photo[..., 0] > 127).save(tmp_path / "bilevel.png")
    expected = np.repeat((photo[..., :1] > 127) * np.uint8(255), 3, axis=2)
    np.testing.assert_array_equal(read_image(tmp_path / "bilevel.png").rgb, expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 255, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.rgb[0, :, 0].tolist() == [0, 1, 1, 128, 255]
    assert image.rgb.shape == (1, 5, 3)
    assert image.notes == ()


def test_wider_values_are_stretched_and_noted(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-100, 0, 100]], dtype=np.int32)).save(tmp_path / "int.tif")
    image = read_image(tmp_path / "int.tif")
    assert image.rgb[0, :, 1].tolist() == [0, 128, 255]
    assert "-100 to 100" in image.notes[0]
    Image.fromarray(np.array([[7.5, 7.5]], dtype=np.float32)).save(tmp_path / "flat.tif")
    assert read_image(tmp_path / "flat.tif").rgb.max() == 0


def test_float_images(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "unit.tif")
    assert read_image(tmp_path / "unit.tif").rgb[0, :, 2].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)).save(tmp_path / "nan.tif")
    assert "NaN" in refusal(tmp_path / "nan.tif")


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").rgb, np.full((3, 4, 3), (255, 0, 0)))


def test_palette_with_transparency_is_shown_on_the_backdrop(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "opaque.png")
    assert read_image(tmp_path / "opaque.png").rgb.tolist() == [[[10, 20, 30], [200, 100, 50]]]
    image.save(tmp_path / "clear.png", transparency=1)
    image = read_image(tmp_path / "clear.png", backdrop=(0, 0, 255))
    assert image.rgb.tolist() == [[[10, 20, 30], [0, 0, 255]]]
    assert "rgb(0, 0, 255)" in image.notes[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (3, 2), (0, 0, 0, 51) if mode == "RGBA" else (0, 51)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.rgb, np.full((2, 3, 3), 204))  # white behind 20 % black
    assert image.notes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, photo: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    flipped, transposed = photo[::-1, ::-1], photo.swapaxes(0, 1)
    upright = [photo, photo[:, ::-1], flipped, photo[::-1]]
    upright += [transposed, np.rot90(photo, -1), flipped.swapaxes(0, 1), np.rot90(photo)]
    Image.fromarray(photo).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").rgb, upright[orientation - 1])


def test_first_of_several_frames(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = read_image(tmp_path / "a.gif")
    assert image.rgb[0, 0].tolist() == [255, 0, 0]
    assert "first of its 3 frames" in image.notes[-1]


def test_too_many_pixels_are_refused_with_a_remedy(tmp_path: Path) -> None:
    Image.new("L", (100, 30)).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    assert read_image(tmp_path / "a.png", max_pixels=3000).rgb.shape == (30, 100, 3)
    for limit in (2999, 1400):  # Pillow warns at the first and refuses the second
        message = refusal(tmp_path / "a.png", max_pixels=limit)
        assert f"{limit:,} pixels" in message
        assert "--max-pixels" in message
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif", "webp"])
def test_every_truncation_is_refused(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
        buffer, {"jpg": "jpeg", "tif": "tiff"}.get(kind, kind)
    )
    whole = buffer.getvalue()
    for fraction in (0.02, 0.3, 0.6, 0.9):
        (tmp_path / f"a.{kind}").write_bytes(whole[: int(len(whole) * fraction)])
        message = refusal(tmp_path / f"a.{kind}")
        assert "damaged" in message or "not an image" in message


def test_files_that_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert "0 bytes" in refusal(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("not an image at all")
    assert "Pillow" in refusal(tmp_path / "text.png")
    assert "No such file" in refusal(tmp_path / "absent.png")
    assert "regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert "regular file" in refusal(tmp_path / "pipe.png")


def test_unreadable_file(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read any file
    assert "Permission denied" in refusal(tmp_path / "a.png")


def test_damaged_exif_data_are_ignored(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").rgb, photo)
