"""The common part of all readers: check a window, read it, convert it to 8-bit RGB."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from ssa_fast.io.images import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

Color: TypeAlias = tuple[int, int, int]


class SupportsWindows(Protocol):
    """Protocol of a caller's own reader."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return a window inside the image as uint8 RGB (y1 − y0, x1 − x0, 3)."""


class WindowReader(ABC):
    """Base class of the readers; a context manager.

    Attributes:
        size: (H, W) in pixels.
        backdrop: RGB colour behind transparent parts.
    """

    premultiplied = False  # whether stored colours are already multiplied by their alpha

    def __init__(self, size: tuple[int, int], backdrop: Color, *, owned: Any = None) -> None:
        self.size, self.backdrop, self._owned = size, backdrop, owned

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return a window as uint8 RGB (y1 − y0, x1 − x0, 3).

        Raises:
            ValueError: The window is empty or not inside the image.
            ImageError: The data of the window are damaged.
        """
        self._check_window(y0, y1, x0, x1)
        try:
            pixels = self._window(y0, y1, x0, x1)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # decoders raise nearly every exception on damaged data
            raise ImageError(
                f"its rows {y0} to {y1}, columns {x0} to {x1} cannot be read ({type(error).__name__}: {error})."
            ) from error
        return to_rgb(pixels, self.backdrop, premultiplied=self.premultiplied)

    def _check_window(self, y0: int, y1: int, x0: int, x1: int) -> None:
        H, W = self.size
        if not (0 <= y0 < y1 <= H and 0 <= x0 < x1 <= W):
            raise ValueError(
                f"window: expected rows and columns inside {H}x{W}, got rows {y0} to {y1}, columns {x0} to {x1}; "
                "crop it to the image first"
            )

    @abstractmethod
    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the stored pixels of a window, (h, w) or (h, w, channels)."""

    def close(self) -> None:
        """Close what this reader opened."""
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> WindowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CustomReader(WindowReader):
    """A caller's own reader: its windows are checked, its errors pass through, and it is not closed."""

    def __init__(self, reader: SupportsWindows, backdrop: Color) -> None:
        size = tuple(reader.size)
        if len(size) != 2 or any(int(side) != side or side < 1 for side in size):
            raise ValueError(f"image: expected a reader whose size is (H, W), got {size}")
        super().__init__((int(size[0]), int(size[1])), backdrop)
        self.reader = reader

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return a window; raise ValueError if it is not uint8 RGB or not inside the image."""
        self._check_window(y0, y1, x0, x1)
        pixels = self.reader.read(y0, y1, x0, x1)
        shape, dtype = getattr(pixels, "shape", None), getattr(pixels, "dtype", None)
        if dtype != np.uint8 or shape != (y1 - y0, x1 - x0, 3):
            raise ValueError(
                f"image: expected the reader to return uint8 {(y1 - y0, x1 - x0, 3)}, got {dtype} {shape}; "
                "read(y0, y1, x0, x1) returns RGB"
            )
        return pixels

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return self.reader.read(y0, y1, x0, x1)


@contextmanager
def image_errors() -> Iterator[None]:
    """Re-raise a ValueError about an array as an ImageError about the file that holds it; also a decorator."""
    try:
        yield
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(f"{error}.") from None


def check_pixels(dtype: Any, chunks: Any = None, memory: int | None = None) -> None:
    """Raise ValueError unless pixels have 8 or 16 bits and a chunk, decoded as a whole, fits in ``memory`` bytes."""
    if str(dtype) not in ("uint8", "uint16", "<u2", ">u2"):
        raise ValueError(f"image: expected uint8 or uint16 pixels, got {dtype}; rescale them to one of these first")
    if memory is None or not chunks or not all(isinstance(side, int) for side in chunks):
        return
    size = math.prod(chunks) * np.dtype(dtype).itemsize
    if size > memory:
        raise ValueError(
            f"image: expected chunks of at most {memory:,} bytes, got {tuple(chunks)}, which take {size:,} each; "
            "save it with chunks of 512x512, or raise memory"
        )


def scale_to_uint8(values: np.ndarray, largest: int) -> np.ndarray:
    """Scale integers from 0..``largest`` to 0..255, rounded."""
    return ((values.astype(np.uint32) * 255 + largest // 2) // largest).astype(np.uint8)


def to_rgb(pixels: np.ndarray, backdrop: Color, *, premultiplied: bool = False) -> np.ndarray:
    """Convert uint8 or uint16 pixels, (h, w) or (h, w, 1 to 4), grey or RGB and alpha, to uint8 RGB (h, w, 3)."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype.itemsize == 2:
        pixels = scale_to_uint8(pixels, 65535)
    if pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:].astype(np.uint32)
        behind = np.asarray(backdrop, dtype=np.uint32) * (255 - alpha)
        front = pixels[..., :-1].astype(np.uint32) * (255 if premultiplied else alpha)
        pixels = np.minimum((front + behind + 127) // 255, 255).astype(np.uint8)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels)
