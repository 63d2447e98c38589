"""Read windows of whole-slide images with OpenSlide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.io.images import ImageError
from ssa_fast.io.readers.base import Color, WindowReader

if TYPE_CHECKING:
    from pathlib import Path


class OpenSlideReader(WindowReader):
    """An OpenSlide at its full resolution; closed with a reader that ``owns`` it."""

    def __init__(self, slide: Any, backdrop: Color, *, owns: bool = False) -> None:
        super().__init__(slide.dimensions[::-1], backdrop, owned=slide if owns else None)
        self.slide = slide

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return np.asarray(self.slide.read_region((x0, y0), 0, (x1 - x0, y1 - y0)))


def open_slide(path: Path, backdrop: Color) -> OpenSlideReader:
    """Open a file; raise ImageError if OpenSlide is not installed or cannot open it."""
    try:
        import openslide
    except ModuleNotFoundError:
        raise ImageError("it is a slide: pip install openslide-python openslide-bin.") from None
    try:
        return OpenSlideReader(openslide.OpenSlide(str(path)), backdrop, owns=True)
    except openslide.OpenSlideError as error:
        raise ImageError(f"openslide cannot open it ({error}).") from None
