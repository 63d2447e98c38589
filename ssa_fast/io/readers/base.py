"""The common part of all readers: check a window, turn it upright, read it, convert it to 8-bit RGB."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ssa_fast.io.samples import Conversion, ImageError, Selection, select
from ssa_fast.io.value_range import choose_ranges, sample_windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ssa_fast.io.samples import ReadOptions, SampleFormat

# Orientation tag -> whether rows and columns are exchanged, then whether rows, columns are mirrored.
ORIENTATIONS = {number: (number >= 5, number in (3, 4, 7, 8), number in (2, 3, 6, 7)) for number in range(1, 9)}


class SupportsWindows(Protocol):
    """Protocol of a caller's own reader."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return a window inside the image as uint8 RGB (y1 − y0, x1 − x0, 3)."""


class WindowReader(ABC):
    """Base class of the readers; a context manager.

    Args:
        stored: (H, W) as stored.
        form: What the image declares about its samples.
        options: Bands, range and backdrop.
        orientation: The orientation tag, 1 to 8.
        owned: What ``close`` closes.

    Attributes:
        size: (H, W) in pixels, upright.
        notes: How the image was understood, one sentence each; complete once all windows have been read.
    """

    def __init__(
        self,
        stored: tuple[int, int],
        form: SampleFormat,
        options: ReadOptions,
        *,
        orientation: int = 1,
        owned: Any = None,
    ) -> None:
        self._transposed, self._flip_y, self._flip_x = ORIENTATIONS[orientation]
        self.stored = stored
        self.size = stored[::-1] if self._transposed else stored
        self.form, self.options, self._owned = form, options, owned
        self.selection = Selection(())
        self.notes = list(form.notes)
        self._conversion: Conversion | None = None

    def prepare(self) -> None:
        """Choose the bands and the range of values, for which parts of the image may be read.

        Raises:
            ImageError: There are no such bands, the image does not say which of its channels are colours, or the data
                are damaged or hold NaN that is not declared as NoData.
        """
        self.selection = select(self.form, self.options.bands)
        ranges, opaque, notes = choose_ranges(self.form, self.selection, self.options.range, self._examine)
        self.notes += [*self.selection.notes, *notes]
        self._conversion = Conversion(self.form, self.selection, self.options.backdrop, ranges, opaque, self.notes)

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return a window as uint8 RGB (y1 − y0, x1 − x0, 3).

        Raises:
            ValueError: The window is empty or not inside the image.
            ImageError: The data of the window are damaged.
        """
        self._check_window(y0, y1, x0, x1)
        if self._conversion is None:
            self.prepare()
        assert self._conversion is not None
        (H, W), rows, columns = self.size, (y0, y1), (x0, x1)
        rows = (H - y1, H - y0) if self._flip_y else rows
        columns = (W - x1, W - x0) if self._flip_x else columns
        rgb = self._conversion(self._samples(*((*columns, *rows) if self._transposed else (*rows, *columns))))
        rgb = rgb.swapaxes(0, 1) if self._transposed else rgb
        return np.ascontiguousarray(rgb[:: -1 if self._flip_y else 1, :: -1 if self._flip_x else 1])

    def _samples(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the selected samples of a window as stored, (h, w, n)."""
        try:
            samples = self._window(y0, y1, x0, x1)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # decoders raise nearly every exception on damaged data
            raise ImageError(
                f"its rows {y0} to {y1}, columns {x0} to {x1} cannot be read ({type(error).__name__}: {error})."
            ) from error
        return samples[..., None] if samples.ndim == 2 else samples

    def _examine(self) -> np.ndarray:
        """Return samples (n, samples) of the windows from which ranges are chosen."""
        windows = [self._samples(*window) for window in sample_windows(self.stored)]
        return np.concatenate([window.reshape(-1, window.shape[2]) for window in windows])

    def _check_window(self, y0: int, y1: int, x0: int, x1: int) -> None:
        H, W = self.size
        if not (0 <= y0 < y1 <= H and 0 <= x0 < x1 <= W):
            raise ValueError(
                f"window: expected rows and columns inside {H}x{W}, got rows {y0} to {y1}, columns {x0} to {x1}; "
                "crop it to the image first"
            )

    @abstractmethod
    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the samples ``selection.samples`` of a window as stored, (h, w, n)."""

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

    def __init__(self, reader: SupportsWindows) -> None:
        size = tuple(reader.size)
        if len(size) != 2 or any(int(side) != side or side < 1 for side in size):
            raise ValueError(f"image: expected a reader whose size is (H, W), got {size}")
        self.size, self.notes, self._owned = (int(size[0]), int(size[1])), [], None
        self.reader = reader

    def prepare(self) -> None:
        """Do nothing: the reader's windows are RGB."""

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


def check_chunks(dtype: np.dtype, chunks: Any, memory: int | None) -> None:
    """Raise ValueError unless a chunk, decoded as a whole, fits in ``memory`` bytes."""
    if memory is None or not chunks or not all(isinstance(side, int) for side in chunks):
        return
    size = math.prod(chunks) * dtype.itemsize
    if size > memory:
        raise ValueError(
            f"image: expected chunks of at most {memory:,} bytes, got {tuple(chunks)}, which take {size:,} each; "
            "save it with chunks of 512x512, or raise memory"
        )
