"""Read windows of TIFF and BigTIFF files with tifffile, tile by tile or strip by strip."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.io.readers.base import WindowReader
from ssa_fast.io.readers.tiff_layout import describe, unsupported
from ssa_fast.io.samples import ImageError

if TYPE_CHECKING:
    from pathlib import Path

    from ssa_fast.io.samples import ReadOptions

CONTIG = 1


class TiffReader(WindowReader):
    """The first image of a TIFF; segments (tiles or strips) that a window touches are decoded and cached.

    With ``memory=None`` only ``size`` may be used.

    Attributes:
        segments, held, decoded: Cached segments (h, w, samples) by page and index, their bytes, and how many were
            decoded.

    Raises:
        UnsupportedTiff: The installed tifffile cannot decode it, but another package may.
        ImageError: The file is damaged or no image, or one segment exceeds ``memory``.
    """

    def __init__(self, path: Path, memory: int | None, options: ReadOptions) -> None:
        import tifffile

        self.segments: dict[tuple[int, int], np.ndarray] = {}  # least recently used first
        self.mapped: list[np.ndarray] = []
        self.held = self.decoded = 0
        self.memory = memory or 0
        self.file: Any = None
        try:
            self.file = tifffile.TiffFile(path)
            self.layout = describe(self.file, options)
            page = self.page = self.layout.pages[0].keyframe
            stored, orientation = (page.imagelength, page.imagewidth), self.layout.orientation
            super().__init__(stored, self.layout.form, options, orientation=orientation)
            self.contiguous = page.planarconfig == CONTIG or page.samplesperpixel == 1
            strip = min(page.rowsperstrip, page.imagelength), page.imagewidth
            height, width = (page.tilelength, page.tilewidth) if page.is_tiled else strip
            self.segment_shape = (height, width, page.samplesperpixel if self.contiguous else 1)
            self.segment_bytes = math.prod(self.segment_shape) * int(page.dtype.itemsize)
            if memory is not None:
                self._check_segments(memory)
        except Exception as error:  # the parser raises nearly every exception on damaged files
            self.close()
            if isinstance(error, ImageError | MemoryError):
                raise
            raise ImageError(f"it is damaged or not a TIFF ({type(error).__name__}: {error}).") from None

    def _check_segments(self, memory: int) -> None:
        """Map the file, or decode a first segment, to fail now if the data cannot be decoded."""
        if self._map():
            return
        if self.segment_bytes > memory:
            height, width, _ = self.segment_shape
            raise ImageError(
                f"its {'tiles' if self.page.is_tiled else 'strips'} of {height}x{width} pixels take "
                f"{self.segment_bytes:,} bytes each, more than the {memory:,} allowed: "
                "save it with tiles of 512x512, or raise memory."
            )
        stored = (index for index, count in enumerate(self.page.databytecounts) if count)  # a sparse file omits some
        self._segment((0, next(stored, 0)))

    def _map(self) -> bool:
        """Memory-map the pixels if they are stored uncompressed and in order."""
        import tifffile

        if self.page.is_tiled or not self.contiguous or not self.page.is_memmappable:
            return False
        try:
            for page in self.layout.pages:
                mapped = tifffile.memmap(self.file.filehandle.path, page=page.index, mode="r")
                self.mapped.append(mapped.reshape(*self.stored, self.segment_shape[2]))
        except ValueError as error:
            self.mapped.clear()
            if "memory-mappable" in str(error):
                return False  # a later page is stored otherwise
            raise ImageError(f"it is damaged or cut short ({error}).") from None  # it ends before its pixels do
        return True

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        samples = [0] if self.layout.palette is not None else self.selection.samples
        paged = len(self.layout.pages) > 1
        if self.mapped:
            pages = self.mapped if paged else self.mapped * self.form.count
            planes = [pages[sample][y0:y1, x0:x1, 0 if paged else sample] for sample in samples]
            return self._look_up(np.stack(planes, axis=-1))
        height, width, _ = self.segment_shape
        down, across = (-(-side // step) for side, step in zip(self.stored, (height, width), strict=True))
        pixels = np.empty((y1 - y0, x1 - x0, len(samples)), dtype=self.page.dtype)
        for row in range(y0 // height, -(-y1 // height)):
            for column in range(x0 // width, -(-x1 // width)):
                top, left = row * height, column * width
                ya, yb = max(y0, top), min(y1, top + height)
                xa, xb = max(x0, left), min(x1, left + width)
                target = pixels[ya - y0 : yb - y0, xa - x0 : xb - x0]
                for n, sample in enumerate(samples):
                    plane, inner = (0, sample) if self.contiguous else (sample, 0)
                    page, plane, inner = (sample, 0, 0) if paged else (0, plane, inner)
                    segment = self._segment((page, (plane * down + row) * across + column))
                    target[..., n] = segment[ya - top : yb - top, xa - left : xb - left, inner]
        return self._look_up(pixels)

    def _look_up(self, samples: np.ndarray) -> np.ndarray:
        """Return the selected colours of a palette's indices, and other samples as they are."""
        if self.layout.palette is not None:
            colors = self.layout.palette[samples[..., 0].astype(np.intp)]
            return np.asarray(colors[..., self.selection.samples])
        return samples.view(np.uint8) if samples.dtype == np.bool_ else samples

    def _segment(self, key: tuple[int, int]) -> np.ndarray:
        """Return a decoded segment of a page, from the cache or the file."""
        segment = self.segments.pop(key, None)
        if segment is None:
            while self.segments and self.held + self.segment_bytes > self.memory:
                self.held -= self.segments.pop(next(iter(self.segments))).nbytes
            segment = self._decode(*key)
            self.held += segment.nbytes
        self.segments[key] = segment
        return segment

    def _decode(self, number: int, index: int) -> np.ndarray:
        page, frame = self.page, self.layout.pages[number]
        try:
            count = frame.databytecounts[index]
            if count == 0:  # a sparse file omits empty tiles
                info, nodata = np.iinfo(page.dtype) if page.dtype.kind in "ui" else None, page.nodata
                inside = info is None or info.min <= nodata <= info.max
                return np.full(self.segment_shape, nodata if inside else 0, dtype=page.dtype)
            self.file.filehandle.seek(frame.dataoffsets[index])
            data = self.file.filehandle.read(count)
            self.decoded += 1
            return np.asarray(page.decode(data, index, jpegtables=page.jpegtables)[0][0])
        except MemoryError:
            raise
        except Exception as error:
            # A missing codec is told apart from damaged data by the error's text, or by what tifffile falls back to.
            if "imagecodecs" in str(error) or isinstance(error, ImportError | NotImplementedError):
                bits = "" if page.bitspersample in (8, 16, 32, 64) else f" of {page.bitspersample} bits"
                bits += " with a predictor" if page.predictor != 1 else ""
                reason = f"its {page.compression.name} data{bits} need the package imagecodecs"
                raise unsupported(reason, "pip install imagecodecs", pages=len(self.layout.pages)) from None
            raise ImageError(f"its tile or strip {index} is damaged ({type(error).__name__}: {error}).") from None

    def close(self) -> None:
        """Close the file and clear the cache."""
        self.segments.clear()
        self.mapped.clear()
        if self.file is not None:
            self.file.close()
