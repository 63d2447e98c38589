"""Read windows of NumPy arrays, memory maps, zarr arrays and ``.npy`` files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.io.images import ImageError
from ssa_fast.io.readers.base import Color, WindowReader, check_pixels

if TYPE_CHECKING:
    from pathlib import Path


class ArrayReader(WindowReader):
    """Anything that is sliced like a NumPy array."""

    def __init__(self, array: Any, memory: int | None, backdrop: Color) -> None:
        shape = tuple(array.shape)
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
            raise ValueError(
                f"image: expected (H, W), (H, W, 3) or (H, W, 4), got {shape}; move the channels to the end"
            )
        check_pixels(array.dtype, getattr(array, "chunks", None), memory)
        super().__init__(shape[:2], backdrop)
        self.array = array

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return np.asarray(self.array[y0:y1, x0:x1])


def open_npy(path: Path, memory: int | None, backdrop: Color) -> ArrayReader:
    """Memory-map a ``.npy`` file; raise ValueError if it is damaged or holds no image."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header raises nearly every exception
        raise ImageError(f"it is not an array that can be memory-mapped ({error}).") from None
    return ArrayReader(array, memory, backdrop)
