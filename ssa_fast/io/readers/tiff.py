"""TIFF and BigTIFF by tifffile, tile by tile or strip by strip."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.io.images import ImageError
from ssa_fast.io.readers.adapters import WindowReader, check_dtype

if TYPE_CHECKING:
    from pathlib import Path

MINISWHITE, MINISBLACK, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
JPEGS = (6, 7, 34892, 33007)  # compressions whose decoders give RGB for YCbCr
APERIO_YCBCR = 33003  # one whose decoder does not
CONTIG, ORIENTATION, UPRIGHT = 1, 274, 1
PREMULTIPLIED, STRAIGHT = 1, 2  # kinds of alpha


class Undecodable(ImageError):
    """A sound TIFF of a kind that tifffile cannot decode as it is installed; ``remedy`` says what would."""

    def __init__(self, reason: str, remedy: str = "pip install rasterio, or save it as RGB of 8 bits") -> None:
        super().__init__(reason)
        self.remedy = remedy


class TiffReader(WindowReader):
    """The first page of a file; what a window touches is decoded, and kept while ``memory`` bytes allow.

    Without ``memory`` only the size may be asked for. ``decoded`` counts the tiles and strips decoded so far.
    """

    def __init__(self, path: Path, memory: int | None, backdrop: tuple[int, int, int]) -> None:
        import tifffile

        self.segments: OrderedDict[int, np.ndarray] = OrderedDict()
        self.mapped: np.ndarray | None = None
        self.held = self.decoded = 0
        self.memory = memory or 0
        self.file: Any = None
        try:
            self.file = tifffile.TiffFile(path)
            self.page = self.file.pages.first
            super().__init__((self.page.imagelength, self.page.imagewidth), backdrop)
            self._check()
            if memory is not None:
                self._lay_out()
        except (ImageError, MemoryError):
            self.close()
            raise
        except Exception as error:  # damaged files meet the parser with any exception
            self.close()
            raise ImageError(f"it is damaged or no TIFF ({type(error).__name__}: {error}).") from None

    def _check(self) -> None:
        page = self.page
        if 0 in self.size:
            raise ImageError(f"it is damaged: its size is {page.imagelength}x{page.imagewidth}.")
        if page.imagedepth != 1:
            raise ImageError(f"it is a volume of {page.imagedepth} planes: save the one to be read.")
        tag = page.tags.get(ORIENTATION)
        if tag is not None and tag.value != UPRIGHT:
            raise ImageError("its orientation tag turns it: save it upright.")
        raw = page.compression == APERIO_YCBCR or (page.photometric == YCBCR and page.compression not in JPEGS)
        if raw or page.photometric not in (MINISWHITE, MINISBLACK, RGB, PALETTE, YCBCR):
            raise Undecodable(f"its colours are {getattr(page.photometric, 'name', page.photometric)}")
        few = page.dtype is not None and page.dtype.kind in "bu" and page.dtype.itemsize <= 2
        if few and page.bitspersample not in (8, 16):
            raise Undecodable(f"its pixels have {page.bitspersample} bits")
        try:
            check_dtype(page.dtype)
        except ValueError as error:
            raise ImageError(f"{error}.") from None
        self.channels, self.premultiplied = _channels(page)

    def _lay_out(self) -> None:
        """Where tiles or strips lie; one of them is decoded, to know now that they can be."""
        page = self.page
        self.contiguous = page.planarconfig == CONTIG or page.samplesperpixel == 1
        self.tall = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
        self.wide = page.tilewidth if page.is_tiled else page.imagewidth
        self.samples: int = page.samplesperpixel if self.contiguous else 1
        self.across = -(-page.imagewidth // self.wide)
        self.down = -(-page.imagelength // self.tall)
        self.mapped = self._map()
        if self.mapped is not None:
            return
        self.segment_bytes = self.tall * self.wide * self.samples * np.dtype(page.dtype).itemsize
        if self.segment_bytes > self.memory:
            kind = "tiles" if page.is_tiled else "strips"
            raise ImageError(
                f"its {kind} of {self.tall}x{self.wide} pixels take {self.segment_bytes:,} bytes each, more than the "
                f"{self.memory:,} allowed: save it with tiles of 512x512, or raise memory."
            )
        self._segment(0)

    def _map(self) -> np.ndarray | None:
        """A memory map, where the pixels lie in the file as they are."""
        import tifffile

        if self.page.is_tiled or not self.contiguous or not self.page.is_memmappable:
            return None
        try:
            mapped: np.ndarray = tifffile.memmap(self.file.filehandle.path, page=0, mode="r")
        except ValueError as error:  # the file ends before the pixels do
            raise ImageError(f"it is damaged or cut short ({error}).") from None
        return mapped.reshape(*self.size, self.samples)

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        if self.mapped is not None:
            return self._coloured(np.asarray(self.mapped[y0:y1, x0:x1, self.channels]))
        pixels = np.empty((y1 - y0, x1 - x0, len(self.channels)), dtype=self.page.dtype)
        for row in range(y0 // self.tall, -(-y1 // self.tall)):
            for column in range(x0 // self.wide, -(-x1 // self.wide)):
                top, left = row * self.tall, column * self.wide
                ya, yb = max(y0, top), min(y1, top + self.tall)
                xa, xb = max(x0, left), min(x1, left + self.wide)
                place = pixels[ya - y0 : yb - y0, xa - x0 : xb - x0]
                for n, channel in enumerate(self.channels):
                    plane, sample = (0, channel) if self.contiguous else (channel, 0)
                    segment = self._segment((plane * self.down + row) * self.across + column)
                    place[..., n] = segment[ya - top : yb - top, xa - left : xb - left, sample]
        return self._coloured(pixels)

    def _segment(self, index: int) -> np.ndarray:
        """A decoded tile or strip, (h, w, samples)."""
        if index in self.segments:
            self.segments.move_to_end(index)
            return self.segments[index]
        while self.segments and self.held + self.segment_bytes > self.memory:
            _, dropped = self.segments.popitem(last=False)
            self.held -= dropped.nbytes
        segment = self._decode(index)
        self.segments[index] = segment
        self.held += segment.nbytes
        return segment

    def _decode(self, index: int) -> np.ndarray:
        page = self.page
        try:
            count, offset = page.databytecounts[index], page.dataoffsets[index]
            if count == 0:  # a sparse file leaves empty tiles out
                return self._empty()
            self.file.filehandle.seek(offset)
            data = self.file.filehandle.read(count)
            self.decoded += 1
            segment: np.ndarray = page.decode(data, index, jpegtables=page.jpegtables)[0][0]
            return segment
        except MemoryError:
            raise
        except Exception as error:  # a missing codec and damaged data are told apart by the text alone
            if "imagecodecs" in str(error):
                reason = f"its {page.compression.name} data need the package imagecodecs"
                raise Undecodable(reason, "pip install imagecodecs") from None
            raise ImageError(f"its tile or strip {index} is damaged ({type(error).__name__}: {error}).") from None

    def _empty(self) -> np.ndarray:
        value, largest = self.page.nodata, np.iinfo(self.page.dtype).max
        shape = (self.tall, self.wide, self.samples)
        return np.full(shape, value if 0 <= value <= largest else 0, dtype=self.page.dtype)

    def _coloured(self, pixels: np.ndarray) -> np.ndarray:
        if self.page.photometric == PALETTE:
            colours = (np.asarray(self.page.colormap) >> 8).astype(np.uint8).T
            found: np.ndarray = colours[pixels[..., 0]]
            return found
        if self.page.photometric == MINISWHITE:
            pixels[..., 0] = np.iinfo(pixels.dtype).max - pixels[..., 0]
        return pixels

    def close(self) -> None:
        """Close the file and forget what was decoded."""
        self.segments.clear()
        self.mapped = None
        if self.file is not None:
            self.file.close()


def _channels(page: Any) -> tuple[list[int], bool]:
    """Which of a page's samples are grey or RGB, and alpha, and whether alpha is in the colours already.

    Samples of no declared meaning, such as a satellite's near infrared, are left out; three or more that are
    declared grey are taken as RGB, in their order, as rasters of bands are commonly stored.
    """
    if page.photometric == PALETTE:
        return [0], False
    extras = list(page.extrasamples)
    first = page.samplesperpixel - len(extras)
    alphas = [first + n for n, extra in enumerate(extras) if extra in (PREMULTIPLIED, STRAIGHT)]
    colours = 3 if page.photometric != MINISWHITE and page.samplesperpixel - len(alphas) >= 3 else 1
    premultiplied = bool(alphas) and extras[alphas[0] - first] == PREMULTIPLIED
    return [*range(colours), *alphas[:1]], premultiplied
