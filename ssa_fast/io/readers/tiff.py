"""Read windows of TIFF and BigTIFF files with tifffile, tile by tile or strip by strip."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.io.images import ORIENTATION, ImageError
from ssa_fast.io.readers.base import Color, WindowReader, check_pixels, image_errors

if TYPE_CHECKING:
    from pathlib import Path

MINISWHITE, MINISBLACK, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
JPEGS = (6, 7, 34892, 33007)  # compressions whose decoders convert YCbCr to RGB
APERIO_YCBCR = 33003  # a compression whose decoder does not
CONTIG, UPRIGHT = 1, 1
PREMULTIPLIED, STRAIGHT = 1, 2  # kinds of alpha


class UnsupportedTiff(ImageError):
    """A valid TIFF that the installed tifffile cannot decode; ``remedy`` says what to install or change."""

    def __init__(self, reason: str, remedy: str = "pip install rasterio, or save it as RGB of 8 bits") -> None:
        super().__init__(reason)
        self.remedy = remedy


class TiffReader(WindowReader):
    """The first page of a TIFF; segments (tiles or strips) that a window touches are decoded and cached.

    With ``memory=None`` only ``size`` may be used.

    Attributes:
        segments, held, decoded: Cached segments (h, w, samples) by index, their bytes, and how many were decoded.

    Raises:
        UnsupportedTiff: The installed tifffile cannot decode it.
        ImageError: The file is damaged, or not an upright image of 8 or 16 bits, or one segment exceeds ``memory``.
    """

    def __init__(self, path: Path, memory: int | None, backdrop: Color) -> None:
        import tifffile

        self.segments: dict[int, np.ndarray] = {}  # least recently used first
        self.mapped: np.ndarray | None = None
        self.held = self.decoded = 0
        self.memory = memory or 0
        self.file: Any = None
        try:
            self.file = tifffile.TiffFile(path)
            page = self.page = self.file.pages.first
            super().__init__((page.imagelength, page.imagewidth), backdrop)
            _check_page(page)
            self.channels, self.premultiplied = _channels(page)
            self.contiguous = page.planarconfig == CONTIG or page.samplesperpixel == 1
            strip = min(page.rowsperstrip, page.imagelength), page.imagewidth
            height, width = (page.tilelength, page.tilewidth) if page.is_tiled else strip
            self.segment_shape = (height, width, page.samplesperpixel if self.contiguous else 1)
            self.segment_bytes = math.prod(self.segment_shape) * int(page.dtype.itemsize)
            if memory is not None:
                self.mapped = self._map()
                if self.mapped is None and self.segment_bytes > memory:
                    raise ImageError(
                        f"its {'tiles' if page.is_tiled else 'strips'} of {height}x{width} pixels take "
                        f"{self.segment_bytes:,} bytes each, more than the {memory:,} allowed: "
                        "save it with tiles of 512x512, or raise memory."
                    )
                if self.mapped is None:
                    self._segment(0)  # fail now if the data cannot be decoded
        except Exception as error:  # the parser raises nearly every exception on damaged files
            self.close()
            if isinstance(error, ImageError | MemoryError):
                raise
            raise ImageError(f"it is damaged or not a TIFF ({type(error).__name__}: {error}).") from None

    def _map(self) -> np.ndarray | None:
        """Memory-map the pixels if they are stored uncompressed and in order."""
        import tifffile

        if self.page.is_tiled or not self.contiguous or not self.page.is_memmappable:
            return None
        try:
            mapped: np.ndarray = tifffile.memmap(self.file.filehandle.path, page=0, mode="r")
        except ValueError as error:  # the file ends before its pixels do
            raise ImageError(f"it is damaged or cut short ({error}).") from None
        return mapped.reshape(*self.size, self.segment_shape[2])

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        if self.mapped is not None:
            return self._to_colors(np.asarray(self.mapped[y0:y1, x0:x1, self.channels]))
        height, width, _ = self.segment_shape
        down, across = (-(-side // step) for side, step in zip(self.size, (height, width), strict=True))
        pixels = np.empty((y1 - y0, x1 - x0, len(self.channels)), dtype=self.page.dtype)
        for row in range(y0 // height, -(-y1 // height)):
            for column in range(x0 // width, -(-x1 // width)):
                top, left = row * height, column * width
                ya, yb = max(y0, top), min(y1, top + height)
                xa, xb = max(x0, left), min(x1, left + width)
                target = pixels[ya - y0 : yb - y0, xa - x0 : xb - x0]
                for n, channel in enumerate(self.channels):
                    plane, sample = (0, channel) if self.contiguous else (channel, 0)
                    segment = self._segment((plane * down + row) * across + column)
                    target[..., n] = segment[ya - top : yb - top, xa - left : xb - left, sample]
        return self._to_colors(pixels)

    def _segment(self, index: int) -> np.ndarray:
        """Return a decoded segment, from the cache or the file."""
        segment = self.segments.pop(index, None)
        if segment is None:
            while self.segments and self.held + self.segment_bytes > self.memory:
                self.held -= self.segments.pop(next(iter(self.segments))).nbytes
            segment = self._decode(index)
            self.held += segment.nbytes
        self.segments[index] = segment
        return segment

    def _decode(self, index: int) -> np.ndarray:
        page = self.page
        try:
            count = page.databytecounts[index]
            if count == 0:  # a sparse file omits empty tiles
                value = page.nodata if 0 <= page.nodata <= np.iinfo(page.dtype).max else 0
                return np.full(self.segment_shape, value, dtype=page.dtype)
            self.file.filehandle.seek(page.dataoffsets[index])
            data = self.file.filehandle.read(count)
            self.decoded += 1
            return np.asarray(page.decode(data, index, jpegtables=page.jpegtables)[0][0])
        except MemoryError:
            raise
        except Exception as error:  # only the text distinguishes a missing codec from damaged data
            if "imagecodecs" in str(error):
                reason = f"its {page.compression.name} data need the package imagecodecs"
                raise UnsupportedTiff(reason, "pip install imagecodecs") from None
            raise ImageError(f"its tile or strip {index} is damaged ({type(error).__name__}: {error}).") from None

    def _to_colors(self, pixels: np.ndarray) -> np.ndarray:
        if self.page.photometric == PALETTE:
            return (np.asarray(self.page.colormap) >> 8).astype(np.uint8).T[pixels[..., 0]]
        if self.page.photometric == MINISWHITE:
            pixels[..., 0] = np.iinfo(pixels.dtype).max - pixels[..., 0]
        return pixels

    def close(self) -> None:
        """Close the file and clear the cache."""
        self.segments.clear()
        self.mapped = None
        if self.file is not None:
            self.file.close()


def _check_page(page: Any) -> None:
    if 0 in (page.imagelength, page.imagewidth):
        raise ImageError(f"it is damaged: its size is {page.imagelength}x{page.imagewidth}.")
    if page.imagedepth != 1:
        raise ImageError(f"it is a volume of {page.imagedepth} planes: save the one to be read.")
    tag = page.tags.get(ORIENTATION)
    if tag is not None and tag.value != UPRIGHT:
        raise ImageError("its orientation tag rotates it: save it upright.")
    raw = page.compression == APERIO_YCBCR or (page.photometric == YCBCR and page.compression not in JPEGS)
    if raw or page.photometric not in (MINISWHITE, MINISBLACK, RGB, PALETTE, YCBCR):
        raise UnsupportedTiff(f"its colours are {getattr(page.photometric, 'name', page.photometric)}")
    small = page.dtype is not None and page.dtype.kind in "bu" and page.dtype.itemsize <= 2
    if small and page.bitspersample not in (8, 16):
        raise UnsupportedTiff(f"its pixels have {page.bitspersample} bits")
    with image_errors():
        check_pixels(page.dtype)


def _channels(page: Any) -> tuple[list[int], bool]:
    """Return the samples that are grey or RGB, and alpha, and whether colours are premultiplied by alpha."""
    # Samples without a declared meaning, such as a satellite's near infrared, are left out; three or more declared as
    # grey are taken as RGB, in their order, as rasters of bands are commonly stored.
    if page.photometric == PALETTE:
        return [0], False
    extras = list(page.extrasamples)
    first = page.samplesperpixel - len(extras)
    alphas = [first + n for n, extra in enumerate(extras) if extra in (PREMULTIPLIED, STRAIGHT)]
    colors = 3 if page.photometric != MINISWHITE and page.samplesperpixel - len(alphas) >= 3 else 1
    premultiplied = bool(alphas) and extras[alphas[0] - first] == PREMULTIPLIED
    return [*range(colors), *alphas[:1]], premultiplied
