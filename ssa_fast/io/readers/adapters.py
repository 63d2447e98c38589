"""What images come as, behind one way of reading windows: arrays, OME-Zarr, rasterio datasets and slides."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.io import images
from ssa_fast.io.images import ImageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssa_fast.io.readers.open import Reader


class WindowReader(ABC):
    """The common part of the readers: the window's check, and ``with``. Subclasses have ``_window``."""

    premultiplied = False
    """Whether colours hold their alpha already."""

    def __init__(self, size: tuple[int, int], backdrop: tuple[int, int, int] = images.WHITE) -> None:
        self._size, self.backdrop = size, backdrop

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self._size

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """uint8 RGB (y1 − y0, x1 − x0, 3) of a window inside the image.

        Raises:
            ValueError: the window is empty or leaves the image. ImageError: a part of it is damaged.
        """
        self._inside(y0, y1, x0, x1)
        try:
            pixels = self._window(y0, y1, x0, x1)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # decoders meet damaged data with nearly every exception there is
            raise ImageError(
                f"its rows {y0} to {y1}, columns {x0} to {x1} cannot be read ({type(error).__name__}: {error})."
            ) from error
        return to_rgb(pixels, self.backdrop, premultiplied=self.premultiplied)

    def _inside(self, y0: int, y1: int, x0: int, x1: int) -> None:
        H, W = self._size
        if not (0 <= y0 < y1 <= H and 0 <= x0 < x1 <= W):
            raise ValueError(
                f"window: expected rows and columns inside {H}x{W}, got rows {y0} to {y1}, columns {x0} to {x1}; "
                "cut it to the image first"
            )

    @abstractmethod
    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """The window's pixels as they are stored, (h, w) or (h, w, n)."""

    def close(self) -> None:  # noqa: B027 - most hold nothing that has to be let go
        """Let go of files."""

    def __enter__(self) -> WindowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CustomReader(WindowReader):
    """A reader of the caller's own, whose windows are checked, and which is its owner's to close."""

    def __init__(self, reader: Reader) -> None:
        size = tuple(reader.size)
        if len(size) != 2 or any(int(side) != side or side < 1 for side in size):
            raise ValueError(f"image: expected a reader whose size is (H, W), got {size}")
        super().__init__((int(size[0]), int(size[1])))
        self.reader = reader

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """As ``Windows.read``; what the reader raises comes through."""
        self._inside(y0, y1, x0, x1)
        pixels = self._window(y0, y1, x0, x1)
        shape, dtype = getattr(pixels, "shape", None), getattr(pixels, "dtype", None)
        if dtype != np.uint8 or shape != (y1 - y0, x1 - x0, 3):
            raise ValueError(
                f"image: expected the reader to give uint8 {(y1 - y0, x1 - x0, 3)}, got {dtype} {shape}; "
                "read(y0, y1, x0, x1) gives RGB"
            )
        return pixels

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return self.reader.read(y0, y1, x0, x1)


class ArrayReader(WindowReader):
    """Anything that is sliced like an array: NumPy's, a memory map, zarr's."""

    def __init__(self, array: Any, memory: int | None, backdrop: tuple[int, int, int]) -> None:
        shape = tuple(array.shape)
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
            raise ValueError(
                f"image: expected (H, W), (H, W, 3) or (H, W, 4), got {shape}; move the channels to the end"
            )
        check_dtype(array.dtype)
        check_chunks(getattr(array, "chunks", None), array.dtype, memory)
        super().__init__(shape[:2], backdrop)
        self.array = array

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return np.asarray(self.array[y0:y1, x0:x1])


class OmeZarrReader(WindowReader):
    """An array of an OME-Zarr, whose axes have names: channels (1, 3 or 4) anywhere, one moment, one plane."""

    def __init__(self, array: Any, axes: Sequence[str], memory: int | None, backdrop: tuple[int, int, int]) -> None:
        sizes = dict(zip(axes, array.shape, strict=False))
        spread = [axis for axis in sizes if axis not in ("c", "y", "x") and sizes[axis] != 1]
        plain = len(axes) == len(array.shape) and "y" in sizes and "x" in sizes and not spread
        if not plain or sizes.get("c", 1) not in (1, 3, 4):
            raise ImageError(
                f"its axes {', '.join(axes)} of {tuple(array.shape)} are no single grey, RGB or RGBA picture: "
                "open the array and pass the part that is one."
            )
        check_dtype(array.dtype)
        check_chunks(getattr(array, "chunks", None), array.dtype, memory)
        super().__init__((sizes["y"], sizes["x"]), backdrop)
        self.array, self.axes = array, list(axes)

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        part: dict[str, int | slice] = {"y": slice(y0, y1), "x": slice(x0, x1), "c": slice(None)}
        pixels = np.asarray(self.array[tuple(part.get(axis, 0) for axis in self.axes)])
        kept = [axis for axis in self.axes if axis in part]
        return pixels.transpose([kept.index(axis) for axis in ("y", "x", "c") if axis in kept])


class RasterioReader(WindowReader):
    """A rasterio dataset: its first band or the first three, and what is called alpha.

    It is closed with the reader where that ``owns`` it.
    """

    def __init__(self, dataset: Any, memory: int | None, backdrop: tuple[int, int, int], *, owns: bool = False) -> None:
        super().__init__((dataset.height, dataset.width), backdrop)
        self.dataset, self.owns = dataset, owns
        meanings = [each.name for each in dataset.colorinterp]
        alpha = [meanings.index("alpha") + 1] if "alpha" in meanings else []
        colours = [band for band in range(1, dataset.count + 1) if band not in alpha]
        self.bands = colours[: 3 if len(colours) >= 3 else 1] + alpha
        for band in self.bands:
            check_dtype(dataset.dtypes[band - 1])
        check_chunks((*dataset.block_shapes[0], dataset.count), dataset.dtypes[0], memory)
        self.colours = _colour_table(dataset.colormap(1)) if meanings[0] == "palette" else None
        self.bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
        self.white_is_zero = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        bands = self.dataset.read(self.bands, window=((y0, y1), (x0, x1)))
        if self.colours is not None:
            return np.asarray(self.colours[bands[0]])
        if self.bits not in (8, 16):
            bands = eight_bits(bands, (1 << self.bits) - 1)
        if self.white_is_zero:
            bands[0] = np.iinfo(bands.dtype).max - bands[0]
        return np.moveaxis(bands, 0, -1)

    def close(self) -> None:
        """Close the dataset, if it was opened here."""
        if self.owns:
            self.dataset.close()


class OpenSlideReader(WindowReader):
    """An OpenSlide, at its full resolution; closed with the reader where that ``owns`` it."""

    def __init__(self, slide: Any, backdrop: tuple[int, int, int], *, owns: bool = False) -> None:
        width, height = slide.dimensions
        super().__init__((height, width), backdrop)
        self.slide, self.owns = slide, owns

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return np.asarray(self.slide.read_region((x0, y0), 0, (x1 - x0, y1 - y0)))

    def close(self) -> None:
        """Close the slide, if it was opened here."""
        if self.owns:
            self.slide.close()


def _colour_table(entries: dict[int, tuple[int, int, int, int]]) -> np.ndarray:
    table = np.zeros((max(entries) + 1, 4), dtype=np.uint8)
    for value, rgba in entries.items():
        table[value] = rgba
    return table


def check_dtype(dtype: Any) -> None:
    """Raises ValueError unless pixels are of 8 or 16 bits."""
    if str(dtype) not in ("uint8", "uint16", "<u2", ">u2"):
        raise ValueError(f"image: expected uint8 or uint16 pixels, got {dtype}; rescale them to one of the two first")


def check_chunks(chunks: Any, dtype: Any, memory: int | None) -> None:
    """Raises ValueError where what is decoded at once takes more than ``memory``."""
    if memory is None or not chunks or not all(isinstance(side, int) for side in chunks):
        return
    size = math.prod(chunks) * np.dtype(dtype).itemsize
    if size > memory:
        raise ValueError(
            f"image: expected chunks of at most {memory:,} bytes, got {tuple(chunks)}, which take {size:,} each; "
            "save it with chunks of 512x512, or raise memory"
        )


def eight_bits(values: np.ndarray, full: int) -> np.ndarray:
    """0..full -> 0..255, rounded."""
    scaled: np.ndarray = ((values.astype(np.uint32) * 255 + full // 2) // full).astype(np.uint8)
    return scaled


def to_rgb(pixels: np.ndarray, backdrop: tuple[int, int, int], *, premultiplied: bool = False) -> np.ndarray:
    """Grey or RGB, with alpha or without, of 8 or 16 bits, (h, w) or (h, w, n), as uint8 (h, w, 3).

    16 bits are scaled from their full range, as ``pictures.read`` does.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype.itemsize == 2:
        pixels = eight_bits(pixels, 65535)
    if pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:].astype(np.uint32)
        shine = np.asarray(backdrop, dtype=np.uint32) * (255 - alpha)
        own = pixels[..., :-1].astype(np.uint32) * (255 if premultiplied else alpha)
        pixels = np.minimum((own + shine + 127) // 255, 255).astype(np.uint8)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels)
