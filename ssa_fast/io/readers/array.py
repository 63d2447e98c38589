"""Read windows of NumPy arrays, memory maps, zarr arrays and ``.npy`` files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.io.readers.base import WindowReader, check_chunks
from ssa_fast.io.samples import ImageError, SampleFormat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ssa_fast.io.samples import ReadOptions

RGBA_NOTE = "its fourth channel is read as alpha: bands=(1, 2, 3) leaves it out."


class ArrayReader(WindowReader):
    """Anything that is sliced like a NumPy array.

    Args:
        array: (H, W), (H, W, 3) or (H, W, 4), the fourth alpha; (H, W, C) with ``bands``.
        memory: Bytes that a chunk may take; None: only the size is used.
        options: Bands, range and backdrop.
        axes: Names of the axes of a microscope's image, of which only y, x and c may have more than one position.
        form: What is known about the samples of (H, W, C); None: what their number says.
        orientation: The orientation tag, 1 to 8.
    """

    def __init__(
        self,
        array: Any,
        memory: int | None,
        options: ReadOptions,
        *,
        axes: Sequence[str] | None = None,
        form: SampleFormat | None = None,
        orientation: int = 1,
    ) -> None:
        shape, dtype = tuple(array.shape), array.dtype
        if not isinstance(dtype, np.dtype):
            raise ValueError(f"image: expected an array with a NumPy dtype, got {dtype}; convert it to NumPy first")
        self.array, self.axes = array, list("yxc"[: len(shape)] if axes is None else axes)
        if axes is None and form is None:
            _check_shape(shape, options)
        sizes = dict(zip(self.axes, shape, strict=False))
        extra = [axis for axis in sizes if axis not in ("c", "y", "x") and sizes[axis] != 1]
        planar = len(self.axes) == len(shape) and "y" in sizes and "x" in sizes and not extra
        count = sizes.get("c", 1)
        several = axes is not None and options.bands is None and count not in (1, 3)
        if not planar or (several and memory is not None):
            raise ImageError(
                f"its axes {', '.join(self.axes)} of {shape} are not a single grey, RGB or RGBA image: "
                "open the array and pass the part that is one, or choose channels with bands."
            )
        check_chunks(dtype, getattr(array, "chunks", None), memory)
        form = form or _form(dtype, count, array, microscope=axes is not None, chosen=options.bands is not None)
        super().__init__((sizes["y"], sizes["x"]), form, options, orientation=orientation)

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        samples = self.selection.samples
        slices = {"y": slice(y0, y1), "x": slice(x0, x1), "c": slice(min(samples), max(samples) + 1)}
        pixels = np.asarray(self.array[tuple(slices.get(axis, 0) for axis in self.axes)])
        left = [axis for axis in self.axes if axis in slices]
        pixels = pixels.transpose([left.index(axis) for axis in ("y", "x", "c") if axis in left])
        chosen = [sample - min(samples) for sample in samples]
        return pixels if "c" not in left or chosen == list(range(len(chosen))) else pixels[..., chosen]


def _check_shape(shape: tuple[int, ...], options: ReadOptions) -> None:
    """Raise ValueError unless an array is an image, or with ``bands`` has its bands in the last axis."""
    images = len(shape) in (2, 3) and shape[2:] in ((), (1,), (3,), (4,))
    bands = options.bands is not None and len(shape) == 3 and shape[2] <= min(shape[:2])
    if not (images or bands) or 0 in shape:
        raise ValueError(
            f"image: expected (H, W), (H, W, 3) or (H, W, 4), got {shape}; move the channels to the end, and choose "
            "bands where there are more"
        )


def _form(dtype: np.dtype, count: int, array: Any, *, microscope: bool, chosen: bool) -> SampleFormat:
    fill = getattr(array, "fill_value", None)  # of zarr
    nodata = float("nan") if dtype.kind == "f" and isinstance(fill, float | np.floating) and np.isnan(fill) else None
    if microscope and count > 1:
        return SampleFormat(dtype, count, "channels", nodata=nodata)
    if count == 4 and not chosen:
        return SampleFormat(dtype, 4, "rgb", alpha=3, nodata=nodata, notes=(RGBA_NOTE,))
    return SampleFormat(dtype, count, "rgb" if count == 3 else "bands" if count > 1 else "grey", nodata=nodata)


def open_npy(path: Path, memory: int | None, options: ReadOptions) -> ArrayReader:
    """Memory-map a ``.npy`` file; raise ValueError if it is damaged or holds no image."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header raises nearly every exception
        raise ImageError(f"it is not an array that can be memory-mapped ({error}).") from None
    return ArrayReader(array, memory, options)
