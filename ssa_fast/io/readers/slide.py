"""Read windows of whole-slide images with OpenSlide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.io.readers.base import WindowReader
from ssa_fast.io.samples import ImageError, SampleFormat

if TYPE_CHECKING:
    from pathlib import Path

    from ssa_fast.io.samples import ReadOptions


class OpenSlideReader(WindowReader):
    """An OpenSlide at its full resolution; closed with a reader that ``owns`` it."""

    def __init__(self, slide: Any, options: ReadOptions, *, owns: bool = False) -> None:
        form = SampleFormat(np.dtype(np.uint8), 4, "rgb", alpha=3)
        super().__init__(slide.dimensions[::-1], form, options, owned=slide if owns else None)
        self.slide = slide

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return np.asarray(self.slide.read_region((x0, y0), 0, (x1 - x0, y1 - y0)))[..., self.selection.samples]


def open_slide(path: Path, options: ReadOptions) -> OpenSlideReader:
    """Open a file; raise ImageError if OpenSlide is not installed or cannot open it."""
    try:
        import openslide
    except ModuleNotFoundError:
        raise ImageError("it is a slide: pip install openslide-python openslide-bin.") from None
    try:
        return OpenSlideReader(openslide.OpenSlide(str(path)), options, owns=True)
    except openslide.OpenSlideError as error:
        raise ImageError(f"openslide cannot open it ({error}).") from None
