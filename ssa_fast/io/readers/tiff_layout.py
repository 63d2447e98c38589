"""What the tags of a TIFF say: which pages are bands, what the samples mean, what is upright."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.io.readers.base import ORIENTATIONS
from ssa_fast.io.samples import ImageError, SampleFormat
from ssa_fast.io.tiff_tags import (
    MINISBLACK,
    MINISWHITE,
    ORIENTATION,
    PALETTE,
    PREMULTIPLIED,
    SEPARATED,
    STRAIGHT,
    YCBCR,
)

if TYPE_CHECKING:
    from ssa_fast.io.samples import Meaning, ReadOptions

JPEGS = (6, 7, 34892, 33007)  # compressions whose decoders convert YCbCr to RGB
LOSSY = (*JPEGS, 33003, 33005, 34712, 50001)  # …, and JPEG 2000 and WebP
APERIO_YCBCR = 33003  # a compression whose decoder does not convert
GDAL_METADATA, GDAL_NODATA, SMALLEST, LARGEST = 42112, 42113, 340, 341  # tags
COLORS = ("Red", "Green", "Blue")
COLOR_ITEM = re.compile(r'<Item name="COLORINTERP" sample="(\d+)" role="colorinterp">(\w+)</Item>')


class UnsupportedTiff(ImageError):
    """A valid TIFF that the installed tifffile cannot decode; ``remedy`` says what to install or change."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


def unsupported(
    reason: str, remedy: str = "pip install rasterio, or save it as RGB of 8 bits", *, pages: int
) -> ImageError:
    """Return the error of a TIFF that tifffile cannot decode; final if it has channels of which others see one."""
    return ImageError(f"{reason}: {remedy}.") if pages > 1 else UnsupportedTiff(reason, remedy)


@dataclass(frozen=True)
class TiffLayout:
    """The image in a TIFF.

    Attributes:
        pages: Pages of the same size; more than one: a band each.
        form: Its samples, after colours of a palette were looked up.
        orientation: The orientation tag.
        palette: (n, 3) uint8, or None.
    """

    pages: tuple[Any, ...]
    form: SampleFormat
    orientation: int
    palette: np.ndarray | None = None


def describe(file: Any, options: ReadOptions) -> TiffLayout:
    """Return the layout of an open ``tifffile.TiffFile``.

    Channels of OME-TIFF and ImageJ that are pages become bands; so do other pages of one size if bands are chosen.

    Raises:
        UnsupportedTiff: tifffile cannot decode it.
        ImageError: It is damaged, or no image.
    """
    series = file.series[0] if file.series else None
    page = file.pages.first if series is None else series.keyframe
    if 0 in (page.imagelength, page.imagewidth):
        raise ImageError(f"it is damaged: its size is {page.imagelength}x{page.imagewidth}.")
    if page.imagedepth != 1:
        raise ImageError(f"it is a volume of {page.imagedepth} planes: save the one to be read.")
    tag = page.tags.get(ORIENTATION)
    orientation = tag.value if tag is not None and tag.value in ORIENTATIONS else 1
    pages, frames = _bands(series, page, options)
    if (reason := _obstacle(page)) is not None:
        raise unsupported(reason, pages=len(pages))
    frames += sum(1 for other in file.series[1:] if not other.keyframe.is_reduced)
    notes = (f"the first of its {frames} frames is used.",) if frames > 1 else ()
    if page.photometric == PALETTE:
        palette = (np.asarray(page.colormap) >> 8).astype(np.uint8).T
        return TiffLayout(pages[:1], SampleFormat(np.dtype(np.uint8), 3, "rgb", notes=notes), orientation, palette)
    return TiffLayout(pages, _form(file, page, len(pages), notes), orientation)


def _bands(series: Any, page: Any, options: ReadOptions) -> tuple[tuple[Any, ...], int]:
    """Return the pages that are bands, or the first, and the number of images of which they are the first."""
    if series is None:
        return (page,), 1
    axes = series.axes[: len(series.shape) - len(page.axes)]  # of pages; the others are inside a page
    sizes = dict(zip(axes, series.shape, strict=False))
    total = math.prod(sizes.values())
    if page.samplesperpixel > 1 or total == 1:
        return (page,), total
    if "C" in sizes:
        step = math.prod(series.shape[axes.index("C") + 1 : len(axes)])
        numbers = range(0, sizes["C"] * step, step)
    elif options.bands is not None and max(options.bands) > 1 and len(sizes) == 1 and not sizes.keys() & {"Z", "T"}:
        numbers = range(total)
    else:
        return (page,), total
    if getattr(series, "is_truncated", False) or len(series.pages) < total:
        raise ImageError("only the first of its channels has a page: save it again with a page per channel.")
    pages = tuple(series.pages[number] for number in numbers)
    if any(each is None for each in pages):
        raise ImageError("some of its channels are in other files that are missing.")
    return pages, total // len(pages)


def _obstacle(page: Any) -> str | None:
    """Return why tifffile cannot decode a page, or cannot turn it into RGB; None: it can."""
    if page.compression == APERIO_YCBCR or (page.photometric == YCBCR and page.compression not in JPEGS):
        return "its colours are YCBCR"
    if page.photometric == SEPARATED and page.compression in LOSSY:  # some writers invert the inks
        return "its colours are CMYK in JPEG"
    if page.photometric == PALETTE and page.samplesperpixel != 1:
        return f"its palette has {page.samplesperpixel - 1} more samples per pixel"
    if page.dtype is None or not isinstance(page.bitspersample, int):
        return f"its pixels have {page.bitspersample} bits"
    return None


def _form(file: Any, page: Any, bands: int, notes: tuple[str, ...]) -> SampleFormat:
    """Return the format of samples that are no palette's."""
    dtype = np.dtype(page.dtype)
    dtype = np.dtype(np.uint8) if dtype.kind == "b" else dtype
    extras = list(page.extrasamples)
    first = page.samplesperpixel - len(extras)
    alphas = [first + n for n, extra in enumerate(extras) if extra in (PREMULTIPLIED, STRAIGHT)]
    meaning: Meaning
    if bands > 1:
        meaning = "channels"
    elif page.photometric == SEPARATED:
        meaning = "cmyk"
    elif page.photometric == MINISWHITE:
        meaning = "white"
    elif page.photometric == MINISBLACK:
        meaning = "bands" if page.samplesperpixel - len(alphas) > 1 else "grey"
    elif page.samplesperpixel - len(alphas) >= 3:
        meaning = "rgb"
    else:
        raise ImageError(f"it is damaged: its colours are RGB, its pixels have {page.samplesperpixel} samples.")
    names = _names(page) if bands == 1 else {}
    named = tuple(names[color] for color in COLORS) if names.keys() >= set(COLORS) else None
    if not alphas and "Alpha" in names:
        alphas = [names["Alpha"]]
    return SampleFormat(
        dtype,
        bands if bands > 1 else page.samplesperpixel,
        "rgb" if named else meaning,
        colors=named,
        alpha=alphas[0] if alphas else None,
        premultiplied=bool(alphas) and extras[alphas[0] - first : alphas[0] - first + 1] == [PREMULTIPLIED],
        bits=_bits(file, page) if dtype.kind in "ui" else None,
        limits=_limits(page),
        nodata=_nodata(page),
        notes=notes,
    )


def _names(page: Any) -> dict[str, int]:
    """Return the samples that GDAL's metadata name, "Red", "Alpha" and so on."""
    tag = page.tags.get(GDAL_METADATA)
    names = {color: int(sample) for sample, color in COLOR_ITEM.findall(str(tag.value))} if tag is not None else {}
    return {color: sample for color, sample in names.items() if sample < page.samplesperpixel}


def _bits(file: Any, page: Any) -> int | None:
    """Return the bits in use of an integer, if they are fewer than it has."""
    found = re.search(r'SignificantBits="(\d+)"', file.ome_metadata or "") if file.is_ome else None
    bits = int(found[1]) if found else int(page.bitspersample)
    return bits if 0 < bits < 8 * page.dtype.itemsize else None


def _limits(page: Any) -> tuple[float, float] | None:
    """Return the declared range of samples. (MinSampleValue, by contrast, must not affect how an image is shown.)"""
    tags = [page.tags.get(code) for code in (SMALLEST, LARGEST)]
    if any(tag is None for tag in tags):
        return None
    try:
        low, high = (f(np.atleast_1d(tag.value).astype(float)) for f, tag in zip((np.min, np.max), tags, strict=True))
    except (TypeError, ValueError):
        return None
    dtype = np.dtype(page.dtype)
    whole = dtype.kind in "ui" and (low, high) == (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return (float(low), float(high)) if low < high and np.isfinite([low, high]).all() and not whole else None


def _nodata(page: Any) -> float | None:
    tag = page.tags.get(GDAL_NODATA)
    try:
        return None if tag is None else float(str(tag.value).replace(",", ".").strip("\0 "))
    except ValueError:
        return None
