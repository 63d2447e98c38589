"""TIFFs of every kind, written by tifffile and GDAL, each with the RGB that it stands for."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest

H, W = 20, 28
WHITE = 255.0

CODINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("strips", {"rowsperstrip": 7, "byteorder": "<"}),
    ("tiles-big-endian", {"tile": (16, 16), "byteorder": ">"}),
    ("zlib-strips-big-endian", {"rowsperstrip": 7, "compression": "zlib", "byteorder": ">"}),
    ("zlib-predictor-tiles", {"tile": (16, 16), "compression": "zlib", "predictor": True}),
    ("lzw-tiles-big-endian", {"tile": (16, 16), "compression": "lzw", "byteorder": ">"}),
    ("lzw-predictor-strips", {"rowsperstrip": 7, "compression": "lzw", "predictor": True}),
    ("zstd-predictor-tiles", {"tile": (16, 16), "compression": "zstd", "predictor": True}),
    ("packbits-strips", {"rowsperstrip": 7, "compression": "packbits"}),
    ("lzma-tiles", {"tile": (16, 16), "compression": "lzma"}),
)
KINDS: tuple[tuple[str, int, str, tuple[str, ...]], ...] = (  # name, samples, photometric, meaning of the extra samples
    ("grey", 1, "minisblack", ()),
    ("white-is-zero", 1, "miniswhite", ()),
    ("grey-alpha", 2, "minisblack", ("unassalpha",)),
    ("grey-premultiplied", 2, "minisblack", ("assocalpha",)),
    ("two-bands", 2, "minisblack", ("unspecified",)),
    ("rgb", 3, "rgb", ()),
    ("rgb-alpha", 4, "rgb", ("unassalpha",)),
    ("rgb-premultiplied", 4, "rgb", ("assocalpha",)),
    ("rgb-infrared", 4, "rgb", ("unspecified",)),
    ("three-bands", 3, "minisblack", ("unspecified",) * 2),
    ("four-bands", 4, "minisblack", ("unspecified",) * 3),
    ("five-bands", 5, "minisblack", ("unspecified",) * 4),
    ("twelve-bands", 12, "minisblack", ("unspecified",) * 11),
)


@dataclass(frozen=True)
class Tiff:
    """A file to be written, and the RGB (H, W, 3) in float64 that it stands for; None: it is to be refused."""

    name: str
    write: Callable[[Path], object]
    rgb: np.ndarray | None
    tolerance: float = 1e-6


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make packages look as if they were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in modules else find(name, *rest))


def random(dtype: str, samples: int, largest: float | None = None) -> np.ndarray:
    """Return values of a dtype's whole range (of 0 to 1 for floats), (H, W, samples), some of them the extremes."""
    rng = np.random.default_rng(samples)
    unit = rng.random((H, W, samples))
    unit[0, 0], unit[-1, -1] = 0.0, 1.0
    if np.dtype(dtype).kind == "f":
        return unit.astype(dtype)
    info = np.iinfo(dtype)
    low, high = (info.min, info.max) if largest is None else (0, largest)
    return np.floor(low + unit * (float(high) - low + 1.0)).clip(low, float(high)).astype(dtype)


def stretched(values: np.ndarray, joint: bool) -> np.ndarray:
    """Return values scaled from their 2nd to 98th percentile, of all bands together or of each."""
    flat = values.astype(np.float64)
    axes = None if joint else (0, 1)
    low = np.percentile(flat, 2, axis=axes, method="lower")
    high = np.percentile(flat, 98, axis=axes, method="higher")
    return ((flat - low) * 255.0 / (high - low)).clip(0.0, 255.0)


def scaled(values: np.ndarray, joint: bool, bits: int | None = None) -> np.ndarray:
    """Return samples scaled to 0..255 in float64: from all bits, from 0..1, or stretched."""
    if values.dtype.kind == "f":
        return values.astype(np.float64) * 255.0
    if values.dtype.kind == "i" or values.dtype.itemsize > 2:
        return stretched(values, joint)
    return values.astype(np.float64) * 255.0 / (2 ** (bits or 8 * values.dtype.itemsize) - 1)


def colors(values: np.ndarray, photometric: str, extras: tuple[str, ...], bits: int | None = None) -> np.ndarray:
    """Return the RGB of samples, in float64."""
    used = 3 if values.shape[2] - sum("alpha" in extra for extra in extras) >= 3 else 1
    real = np.floor(scaled(values[..., :used], photometric == "rgb", bits) + 0.5)
    if photometric == "miniswhite":
        real = 255.0 - real
    if extras and "alpha" in extras[0]:
        alpha = np.floor(values[..., -1:].astype(np.float64) * 255.0 / np.iinfo(values.dtype).max + 0.5) / 255.0
        real = real * (1.0 if extras[0] == "assocalpha" else alpha) + WHITE * (1.0 - alpha)
    return np.broadcast_to(np.minimum(real, 255.0), (H, W, 3))


def by_tifffile(values: np.ndarray, **options: Any) -> Callable[[Path], object]:
    """Return a function that writes samples (H, W, C) with tifffile."""

    def write(path: Path) -> None:
        import tifffile

        separate = options.get("planarconfig") == "separate"
        stored = np.moveaxis(values, -1, 0) if separate else values
        stored = stored[..., 0] if values.shape[2] == 1 else stored
        tifffile.imwrite(path, np.ascontiguousarray(stored), metadata=None, **options)

    return write


def by_gdal(values: np.ndarray, colormap: np.ndarray | None = None, **options: Any) -> Callable[[Path], object]:
    """Return a function that writes samples (H, W, C) with GDAL."""

    def write(path: Path) -> None:
        import rasterio

        form = {"driver": "GTiff", "height": H, "width": W, "count": values.shape[2], "dtype": values.dtype.name}
        with rasterio.open(path, "w", **form, **options) as dataset:
            dataset.write(np.moveaxis(values, -1, 0))
            if colormap is not None:
                dataset.write_colormap(1, {index: tuple(map(int, color)) for index, color in enumerate(colormap)})

    return write


def integers() -> Iterator[Tiff]:
    """8 and 16 bits of every kind, plane, coding."""
    for (kind, samples, photometric, extras), dtype in itertools.product(KINDS, ("uint8", "uint16")):
        values = random(dtype, samples)
        if "assocalpha" in extras:
            top = np.iinfo(dtype).max
            values[..., :-1] = (values[..., :-1] * (values[..., -1:] / top)).astype(dtype)
        rgb = colors(values, photometric, extras)
        for planar in ("contig", "separate") if samples > 1 else (None,):
            for coding, options in CODINGS:
                write = by_tifffile(
                    values, photometric=photometric, planarconfig=planar, extrasamples=extras or None, **options
                )
                yield Tiff(f"{dtype}-{kind}-{planar}-{coding}", write, rgb, 1.0 if "alpha" in str(extras) else 1e-6)


def other_numbers() -> Iterator[Tiff]:
    """Wider, signed and floating samples."""
    dtypes = ("uint32", "int8", "int16", "int32", "float16", "float32", "float64")
    kinds = [KINDS[0], KINDS[1], KINDS[5], KINDS[9]]
    for (kind, samples, photometric, extras), dtype in itertools.product(kinds, dtypes):
        values = random(dtype, samples)
        rgb = colors(values, photometric, extras)
        for planar in ("contig", "separate") if samples > 1 else (None,):
            for coding, options in CODINGS[:4] + CODINGS[6:7]:
                write = by_tifffile(
                    values, photometric=photometric, planarconfig=planar, extrasamples=extras or None, **options
                )
                yield Tiff(f"{dtype}-{kind}-{planar}-{coding}", write, rgb)


def packed_bits() -> Iterator[Tiff]:
    """Samples of fewer bits than their bytes have."""
    for bits, compress in itertools.product((1, 2, 4, 10, 12), (None, "deflate", "lzw", "packbits")):
        dtype = "uint8" if bits <= 8 else "uint16"
        for kind, samples, photometric in (
            ("grey", 1, "MINISBLACK"),
            ("white-is-zero", 1, "MINISWHITE"),
            ("rgb", 3, "RGB"),
        ):
            values = random(dtype, samples, 2**bits - 1)
            rgb = colors(values, photometric.lower(), (), bits)
            for interleave in ("pixel", "band") if samples > 1 else ("pixel",):
                how = {"photometric": photometric, "compress": compress, "interleave": interleave}
                name = f"{bits}-bits-{kind}-{interleave}-{compress}"
                yield Tiff(name, by_gdal(values, nbits=bits, **how), rgb)
        if bits <= 4:
            table = np.random.default_rng(bits).integers(0, 256, (2**bits, 3))
            values = random(dtype, 1, 2**bits - 1)
            write = by_gdal(values, table, nbits=bits, photometric="PALETTE", compress=compress)
            yield Tiff(f"{bits}-bits-palette-{compress}", write, table[values[..., 0]].astype(float))


def smooth() -> np.ndarray:
    """Return an image that JPEG hardly changes."""
    y, x = np.mgrid[:H, :W]
    return np.stack([x * 7, y * 8, 60 + x * 3 + y * 4], axis=-1).clip(0, 255).astype(np.uint8)


def lossy() -> Iterator[Tiff]:
    """JPEG, WebP and JPEG 2000 in TIFF, within what their losses allow."""
    image = smooth()
    codecs = (("jpeg", {"level": 95}), ("webp", {"level": 100}), ("jpeg2000", {"level": 0}))
    for codec, args in codecs:
        write = by_tifffile(image, photometric="rgb", compression=codec, compressionargs=args, rowsperstrip=16)
        yield Tiff(f"{codec}-rgb", write, image.astype(float), 12.0)
    for photometric, tiled in itertools.product(("YCBCR", "RGB", "MINISBLACK"), ("YES", "NO")):
        values = image[..., :1] if photometric == "MINISBLACK" else image
        how = {"photometric": photometric, "compress": "JPEG", "jpeg_quality": 95, "tiled": tiled, "blockysize": 16}
        write = by_gdal(values, interleave="pixel", **how, **({"blockxsize": 16} if tiled == "YES" else {}))
        yield Tiff(f"gdal-jpeg-{photometric}-{tiled}", write, np.broadcast_to(values, (H, W, 3)).astype(float), 12.0)


def colour_spaces() -> Iterator[Tiff]:
    """Palettes, CMYK, CIELAB and YCbCr."""
    table = np.random.default_rng(5).integers(0, 256, (256, 3))
    values = random("uint8", 1)
    for coding, options in CODINGS:
        options = {name: value for name, value in options.items() if name != "predictor"}
        write = by_tifffile(values, photometric="palette", colormap=(table * 257).T.astype(np.uint16), **options)
        yield Tiff(f"palette-{coding}", write, table[values[..., 0]].astype(float))
    for dtype, planar, (coding, options) in itertools.product(("uint8", "uint16"), ("contig", "separate"), CODINGS[:4]):
        values = random(dtype, 4)
        ink = values.astype(np.float64) / np.iinfo(dtype).max
        rgb = 255.0 * (1.0 - ink[..., :3]) * (1.0 - ink[..., 3:])
        write = by_tifffile(values, photometric="separated", planarconfig=planar, **options)
        yield Tiff(f"{dtype}-cmyk-{planar}-{coding}", write, rgb, 1.6)
    yield Tiff("cielab", by_tifffile(random("uint8", 3), photometric="cielab"), None)
    yield Tiff("icclab", by_tifffile(random("uint8", 3), photometric="icclab"), None)
    inks = [(332, 3, 1, 2, True)]  # InkSet: not CMYK
    yield Tiff("other-inks", by_tifffile(random("uint8", 4), photometric="separated", extratags=inks), None)
    for compression in (None, "zlib"):
        rgb = smooth()
        y = rgb @ [0.299, 0.587, 0.114]
        ycc = np.stack([y, (rgb[..., 2] - y) / 1.772 + 128, (rgb[..., 0] - y) / 1.402 + 128], axis=-1)
        tags = [(530, 3, 2, (1, 1), True)]
        write = by_tifffile(
            ycc.round().clip(0, 255).astype(np.uint8), photometric="ycbcr", compression=compression, extratags=tags
        )
        yield Tiff(f"ycbcr-{compression}", write, rgb.astype(float), 4.0)


def orientations() -> Iterator[Tiff]:
    """Images that the orientation tag mirrors and turns."""
    image = random("uint8", 3)
    flipped, transposed = image[::-1, ::-1], image.swapaxes(0, 1)
    upright = [image, image[:, ::-1], flipped, image[::-1]]
    upright += [transposed, np.rot90(image, -1), flipped.swapaxes(0, 1), np.rot90(image)]
    for n, expected in enumerate(upright, start=1):
        for coding, options in CODINGS[:4]:
            write = by_tifffile(image, photometric="rgb", extratags=[(274, 3, 1, n, True)], **options)
            yield Tiff(f"orientation-{n}-{coding}", write, expected.astype(float))


def every_tiff() -> Iterator[Tiff]:
    """Yield the whole matrix."""
    for group in GROUPS:
        yield from group()


GROUPS = (integers, other_numbers, packed_bits, lossy, colour_spaces, orientations)
