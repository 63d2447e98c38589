"""Read windows of NumPy arrays, memory maps, zarr arrays and ``.npy`` files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.io.images import ImageError
from ssa_fast.io.readers.base import Color, WindowReader, check_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class ArrayReader(WindowReader):
    """Anything that is sliced like a NumPy array; ``axes`` names its axes if they are not y, x and channels."""

    def __init__(self, array: Any, memory: int | None, backdrop: Color, axes: Sequence[str] | None = None) -> None:
        shape = tuple(array.shape)
        if axes is None and (len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,), (4,)) or 0 in shape):
            raise ValueError(
                f"image: expected (H, W), (H, W, 3) or (H, W, 4), got {shape}; move the channels to the end"
            )
        self.array, self.axes = array, list("yxc"[: len(shape)] if axes is None else axes)
        sizes = dict(zip(self.axes, shape, strict=False))
        extra = [axis for axis in sizes if axis not in ("c", "y", "x") and sizes[axis] != 1]
        planar = len(self.axes) == len(shape) and "y" in sizes and "x" in sizes and not extra
        if not planar or sizes.get("c", 1) not in (1, 3, 4):
            raise ImageError(
                f"its axes {', '.join(self.axes)} of {shape} are not a single grey, RGB or RGBA image: "
                "open the array and pass the part that is one."
            )
        check_pixels(array.dtype, getattr(array, "chunks", None), memory)
        super().__init__((sizes["y"], sizes["x"]), backdrop)

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        slices = {"y": slice(y0, y1), "x": slice(x0, x1), "c": slice(None)}
        pixels = np.asarray(self.array[tuple(slices.get(axis, 0) for axis in self.axes)])
        left = [axis for axis in self.axes if axis in slices]
        return pixels.transpose([left.index(axis) for axis in ("y", "x", "c") if axis in left])


def open_npy(path: Path, memory: int | None, backdrop: Color) -> ArrayReader:
    """Memory-map a ``.npy`` file; raise ValueError if it is damaged or holds no image."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header raises nearly every exception
        raise ImageError(f"it is not an array that can be memory-mapped ({error}).") from None
    return ArrayReader(array, memory, backdrop)
