"""Read windows of files that are decoded whole, by Pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssa_fast.io import pillow
from ssa_fast.io.readers.array import ArrayReader
from ssa_fast.io.readers.base import WindowReader
from ssa_fast.io.samples import ImageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from ssa_fast.io.samples import ReadOptions


class PillowReader(WindowReader):
    """A file of a format that Pillow reads; it is decoded by ``prepare``, until then only its size is known.

    Raises:
        ImageError: It is not an image, or decoding it takes more than a quarter of ``memory`` bytes.
    """

    def __init__(self, path: Path, memory: int | None, options: ReadOptions) -> None:
        self.path, self.options, self.notes, self._owned = path, options, [], None
        self.size = H, W = pillow.read_size(path)
        self._pixels: ArrayReader | None = None
        if memory is not None and memory // 4 < 4 * H * W:  # Pillow decodes to 4 bytes per pixel
            raise ImageError(
                f"its {H * W:,} pixels can only be decoded whole, which takes more than a quarter of the memory "
                "allowed: raise memory, or save it as a tiled TIFF (vips tiffsave --tile, or gdal_translate -co "
                "TILED=YES)."
            )

    def prepare(self) -> None:
        """Decode the file and choose the bands and the range of values; raise ImageError if it is damaged."""
        if self._pixels is not None:
            return
        H, W = self.size
        # This size is allowed; what else the file holds, such as the other sizes of an icon, is limited as usual.
        samples, form, orientation = pillow.decode(self.path, max(H * W, pillow.MAX_PIXELS), self.options)
        self._pixels = ArrayReader(samples, None, self.options, form=form, orientation=orientation)
        self._pixels.prepare()
        self.size, self.notes = self._pixels.size, self._pixels.notes

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return a window as uint8 RGB; raise ValueError if it is not inside the image."""
        self.prepare()
        assert self._pixels is not None
        return self._pixels.read(y0, y1, x0, x1)

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return self.read(y0, y1, x0, x1)
