"""TIFF and BigTIFF by tifffile, tile by tile or strip by strip."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from ssa_fast.large.readers import Windows, check_dtype
from ssa_fast.pictures import PictureError

if TYPE_CHECKING:
    from pathlib import Path

MINISWHITE, MINISBLACK, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
CONTIG, ORIENTATION, UPRIGHT = 1, 274, 1


class Undecodable(PictureError):
    """A sound TIFF of a kind that tifffile cannot decode as it is installed."""


class Tiff(Windows):
    """The first page of a file; what a window touches is decoded, and kept while ``memory`` bytes allow."""

    def __init__(self, path: Path, memory: int, backdrop: tuple[int, int, int]) -> None:
        import tifffile

        try:
            self.file = tifffile.TiffFile(path)
            self.page = self.file.pages.first
        except Exception as error:  # damaged files meet the parser with any exception
            raise PictureError(f"it is damaged or no TIFF ({type(error).__name__}: {error}).") from None
        try:
            self._open(memory, backdrop)
        except BaseException:
            self.file.close()
            raise

    def _open(self, memory: int, backdrop: tuple[int, int, int]) -> None:
        page = self.page
        super().__init__((page.imagelength, page.imagewidth), backdrop)
        try:
            check_dtype(page.dtype)
        except ValueError as error:
            raise PictureError(f"{error}.") from None
        if page.photometric not in (MINISWHITE, MINISBLACK, RGB, PALETTE, YCBCR):
            raise Undecodable(f"its colours are {page.photometric.name}")
        tag = page.tags.get(ORIENTATION)
        if tag is not None and tag.value != UPRIGHT:
            raise PictureError("its orientation tag turns it: save it upright.")
        self.memory, self.held = memory, 0
        self.segments: OrderedDict[int, np.ndarray] = OrderedDict()
        self.decoded = 0  # segments decoded so far
        self.tall = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
        self.wide = page.tilewidth if page.is_tiled else page.imagewidth
        self.samples = page.samplesperpixel if page.planarconfig == CONTIG else 1
        self.planes = 1 if page.planarconfig == CONTIG else page.samplesperpixel
        self.across = -(-page.imagewidth // self.wide)
        self.down = -(-page.imagelength // self.tall)
        self.mapped = self._map()
        if self.mapped is not None:
            return
        segment = self.tall * self.wide * self.samples * page.dtype.itemsize
        if segment > memory:
            kind = "tiles" if page.is_tiled else "strips"
            raise PictureError(
                f"its {kind} of {self.tall}x{self.wide} pixels take {segment:,} bytes each, more than the {memory:,} "
                "allowed: save it with tiles of 512x512, or raise memory."
            )
        if memory < 1 << 62:  # more than the header is asked for
            self._segment(0)

    def _map(self) -> np.ndarray | None:
        """A memory map, where the pixels lie in the file as they are."""
        import tifffile

        if self.page.is_tiled or self.planes != 1 or self.page.photometric == PALETTE:
            return None
        try:
            mapped: np.ndarray = tifffile.memmap(self.file.filehandle.path, page=0, mode="r")
        except ValueError:
            return None
        return mapped

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        if self.mapped is not None:
            return self._coloured(np.asarray(self.mapped[y0:y1, x0:x1]).reshape(y1 - y0, x1 - x0, -1))
        pixels = np.empty((y1 - y0, x1 - x0, self.samples * self.planes), dtype=self.page.dtype)
        for row in range(y0 // self.tall, -(-y1 // self.tall)):
            for column in range(x0 // self.wide, -(-x1 // self.wide)):
                top, left = row * self.tall, column * self.wide
                ya, yb = max(y0, top), min(y1, top + self.tall)
                xa, xb = max(x0, left), min(x1, left + self.wide)
                for plane in range(self.planes):
                    segment = self._segment((plane * self.down + row) * self.across + column)
                    part = segment[ya - top : yb - top, xa - left : xb - left]
                    pixels[ya - y0 : yb - y0, xa - x0 : xb - x0, plane : plane + self.samples] = part
        return self._coloured(pixels)

    def _segment(self, index: int) -> np.ndarray:
        """A decoded tile or strip, (h, w, samples)."""
        if index in self.segments:
            self.segments.move_to_end(index)
            return self.segments[index]
        segment = self._decode(index)
        self.segments[index] = segment
        self.held += segment.nbytes
        while self.held > self.memory and len(self.segments) > 1:
            _, dropped = self.segments.popitem(last=False)
            self.held -= dropped.nbytes
        return segment

    def _decode(self, index: int) -> np.ndarray:
        page = self.page
        count = page.databytecounts[index]
        if count == 0:  # a sparse file leaves empty tiles out
            return np.full((self.tall, self.wide, self.samples), page.nodata, dtype=page.dtype)
        self.file.filehandle.seek(page.dataoffsets[index])
        data = self.file.filehandle.read(count)
        self.decoded += 1
        try:
            decoded, _, _ = page.decode(data, index, jpegtables=page.jpegtables)
        except Exception as error:  # a missing codec and damaged data are told apart by the text alone
            if "imagecodecs" in str(error):
                raise Undecodable(f"its {page.compression.name} data need the package imagecodecs") from None
            raise PictureError(f"its tile or strip {index} is damaged ({type(error).__name__}: {error}).") from None
        if decoded is None:
            return np.full((self.tall, self.wide, self.samples), page.nodata, dtype=page.dtype)
        segment: np.ndarray = decoded[0]
        return segment

    def _coloured(self, pixels: np.ndarray) -> np.ndarray:
        if self.page.photometric == PALETTE:
            colours = (self.page.colormap // 257).astype(np.uint8).T
            found: np.ndarray = colours[pixels[..., 0]]
            return found
        if self.page.photometric == MINISWHITE:
            return np.asarray(np.iinfo(pixels.dtype).max - pixels)
        return pixels[..., :4]

    def close(self) -> None:
        """Close the file and forget what was decoded."""
        self.segments.clear()
        self.mapped = None
        self.file.close()
