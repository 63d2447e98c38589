"""Write maps of large images window by window, with the reduced copies that viewers zoom with.

A writer requests windows in the order in which the file stores them. In memory are one window and the reduced copies of
one map; large copies are kept in a temporary file.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ssa_fast.io.atomic import Transaction
from ssa_fast.io.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ssa_fast.io.progress import OnProgress
    from ssa_fast.io.readers.base import SupportsWindows

    WindowOf = Callable[[int, int, int, int, int], np.ndarray]

__all__ = ["thumbnail", "write"]

MIN_SIDE = 1024  # halving stops once a copy's longer side is at most this
IN_MEMORY = 64 << 20  # bytes of reduced copies above which they are kept in a file
PAGE_NAME = 285
MAX_CLASSIC = 4_000_000_000  # bytes of pixels above which the 32-bit offsets of a classic TIFF may not suffice


def write(
    path: str | Path,
    window: WindowOf,
    *,
    shape: tuple[int, int, int],
    names: Sequence[str],
    tile: int = 512,
    kind: Literal["cam", "mask"] = "cam",
    metadata: Mapping[str, Any] | None = None,
    palette: Sequence[int] | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Write K maps (H, W) to a tiled TIFF (``.tif``, one page per map) or OME-Zarr (``.zarr``), atomically.

    Args:
        path: The file; a TIFF stores the reduced copies as sub-pages.
        window: ``window(k, y0, y1, x0, x1)`` returns uint8 (y1 − y0, x1 − x0); called map by map, row by row.
        shape: (K, H, W).
        names: One per map.
        tile: Side of the windows and of the file's tiles, in pixels; a multiple of 16.
        kind: Reduced copies are 2×2 means of a "cam", every second pixel of a "mask".
        metadata: Stored as JSON; in the first page of a TIFF.
        palette: Flat RGB values of 256 colours; TIFF only.
        on_progress: Called after each window.

    Raises:
        ValueError: The suffix is another one, or an argument or a window has the wrong size.
        OSError: The file cannot be written; what was at ``path`` is untouched.
    """
    path = Path(path)
    _check(shape, names, tile, kind, palette)
    source = _Pyramid(window, shape, tile, kind, on_progress)
    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        transaction = Transaction({path: lambda target: _write_tiff(target, source, names, metadata or {}, palette)})
    elif suffix == ".zarr":
        transaction = Transaction({path: lambda target: _write_zarr(target, source, names, metadata or {})})
    else:
        raise ValueError(f"path: expected a name that ends in .tif or .zarr, got {path.name!r}; rename it")
    transaction.commit()


def _check(
    shape: tuple[int, int, int], names: Sequence[str], tile: int, kind: str, palette: Sequence[int] | None
) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape: expected (K, H, W), each at least 1, got {shape}; omit empty maps")
    if len(names) != shape[0]:
        raise ValueError(f"names: expected {shape[0]}, one per map, got {len(names)}; pass a name for each")
    if tile < 16 or tile % 16:
        raise ValueError(f"tile: expected a multiple of 16, as TIFF requires, got {tile}; pass 256 or 512")
    if kind not in ("cam", "mask"):
        raise ValueError(f"kind: expected 'cam' or 'mask', got {kind!r}; pass one of the two")
    if palette is not None and len(palette) != 768:
        raise ValueError(f"palette: expected 768 values, R, G, B of 256 colours, got {len(palette)}; pad with zeros")


class _Pyramid:
    """The windows of K maps, and reduced copies of each map, each half the size of the one before."""

    def __init__(
        self, window: WindowOf, shape: tuple[int, int, int], tile: int, kind: str, on_progress: OnProgress | None
    ) -> None:
        self.window, self.shape, self.tile, self.kind, self.on_progress = window, shape, tile, kind, on_progress
        _, h, w = shape
        self.levels: list[tuple[int, int]] = []  # sizes of the reduced copies
        while max(h, w) > MIN_SIDE:
            h, w = -(-h // 2), -(-w // 2)
            self.levels.append((h, w))
        self.done = 0
        self.total = shape[0] * self._tile_count(shape[1:])

    def _tile_count(self, size: tuple[int, ...]) -> int:
        return -(-size[0] // self.tile) * -(-size[1] // self.tile)

    def uncompressed_bytes(self) -> int:
        """Return the bytes of all tiles before compression; tiles at the border count as whole ones."""
        tiles = sum(self._tile_count(size) for size in [self.shape[1:], *self.levels])
        return self.shape[0] * tiles * self.tile**2

    def windows(self, k: int, copies: list[np.ndarray]) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield (y0, x0, window) of map ``k``, row by row, and fill the first reduced copy on the way."""
        for y0, y1, x0, x1 in _grid(self.shape[1:], self.tile):
            block = self.window(k, y0, y1, x0, x1)
            if block.dtype != np.uint8 or block.shape != (y1 - y0, x1 - x0):
                raise ValueError(
                    f"window: expected uint8 {(y1 - y0, x1 - x0)}, got {block.dtype} {block.shape}; "
                    "return the requested window, in 8 bits"
                )
            if copies:
                self._reduce_into(copies[0], block, y0, x0)
            self.done += 1
            if self.on_progress is not None:
                self.on_progress(Progress(self.done, self.total))
            yield y0, x0, block

    def fill(self, copies: list[np.ndarray]) -> None:
        """Fill the copies after the first, each from the one before."""
        for larger, smaller in pairwise(copies):
            for y0, y1, x0, x1 in _grid(larger.shape, self.tile):
                self._reduce_into(smaller, larger[y0:y1, x0:x1], y0, x0)

    def _reduce_into(self, copy: np.ndarray, block: np.ndarray, y0: int, x0: int) -> None:
        half = block[::2, ::2] if self.kind == "mask" else _half_size_means(block)
        copy[y0 // 2 : y0 // 2 + half.shape[0], x0 // 2 : x0 // 2 + half.shape[1]] = half

    @contextlib.contextmanager
    def allocate_copies(self, folder: Path) -> Iterator[list[np.ndarray]]:
        """Yield arrays for one map's reduced copies, in memory or in a temporary file in ``folder``."""
        offsets = np.cumsum([0, *(h * w for h, w in self.levels)]).tolist()
        if offsets[-1] <= IN_MEMORY:
            yield [np.empty(size, dtype=np.uint8) for size in self.levels]
            return
        with tempfile.TemporaryFile(dir=folder, prefix=".ssa-fast-copies-") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, offsets[-1])  # a full disk is an error now, not a SIGBUS later
            else:
                file.truncate(offsets[-1])
            yield [
                np.memmap(file, np.uint8, "r+", offset=offset, shape=size)
                for offset, size in zip(offsets, self.levels, strict=False)
            ]


def _half_size_means(block: np.ndarray) -> np.ndarray:
    padded = np.pad(block, ((0, block.shape[0] % 2), (0, block.shape[1] % 2)), mode="edge").astype(np.uint16)
    sums = padded[::2, ::2] + padded[1::2, ::2] + padded[::2, 1::2] + padded[1::2, 1::2]
    means: np.ndarray = ((sums + 2) // 4).astype(np.uint8)
    return means


def _grid(size: tuple[int, ...], tile: int) -> Iterator[tuple[int, int, int, int]]:
    H, W = size
    for y0 in range(0, H, tile):
        for x0 in range(0, W, tile):
            yield y0, min(y0 + tile, H), x0, min(x0 + tile, W)


def _write_tiff(
    path: Path, pyramid: _Pyramid, names: Sequence[str], metadata: Mapping[str, Any], palette: Sequence[int] | None
) -> None:
    import tifffile

    _, H, W = pyramid.shape
    common: dict[str, Any] = {
        "dtype": np.uint8,
        "tile": (pyramid.tile, pyramid.tile),
        "compression": "zlib",
        "metadata": None,
        "maxworkers": 1,  # several would queue up to half a gigabyte of windows
        "software": "ssa_fast",
        "photometric": "minisblack",
    }
    if palette is not None:
        common |= {"photometric": "palette", "colormap": np.array(palette, np.uint16).reshape(256, 3).T * 257}
    with tifffile.TiffWriter(path, bigtiff=pyramid.uncompressed_bytes() > MAX_CLASSIC) as file:
        for k, name in enumerate(names):
            description = {"name": name, **(metadata if k == 0 else {})}
            with pyramid.allocate_copies(path.parent) as copies:
                file.write(
                    (_pad(block, pyramid.tile) for _, _, block in pyramid.windows(k, copies)),
                    shape=(H, W),
                    subifds=len(copies),
                    description=json.dumps(description),
                    extratags=[(PAGE_NAME, 2, 0, ascii(name)[1:-1], True)],
                    **common,
                )
                pyramid.fill(copies)
                for copy in copies:
                    tiles = (
                        _pad(copy[y0:y1, x0:x1], pyramid.tile) for y0, y1, x0, x1 in _grid(copy.shape, pyramid.tile)
                    )
                    file.write(tiles, shape=copy.shape, subfiletype=1, **common)


def _pad(block: np.ndarray, tile: int) -> np.ndarray:
    """Pad a block at the border to a whole tile, as TIFF stores it."""
    if block.shape == (tile, tile):
        return np.ascontiguousarray(block)
    return np.pad(np.asarray(block), ((0, tile - block.shape[0]), (0, tile - block.shape[1])))


def _write_zarr(path: Path, pyramid: _Pyramid, names: Sequence[str], metadata: Mapping[str, Any]) -> None:
    K, H, W = pyramid.shape
    sizes = [(H, W), *pyramid.levels]
    group, arrays = _zarr_arrays(path, [(K, *size) for size in sizes], pyramid.tile)
    for k in range(K):
        with pyramid.allocate_copies(path.parent) as copies:
            for y0, x0, block in pyramid.windows(k, copies):
                arrays[0][k, y0 : y0 + block.shape[0], x0 : x0 + block.shape[1]] = block
            pyramid.fill(copies)
            for array, copy in zip(arrays[1:], copies, strict=True):
                for y0, y1, x0, x1 in _grid(copy.shape, pyramid.tile):
                    array[k, y0:y1, x0:x1] = np.asarray(copy[y0:y1, x0:x1])
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    datasets = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [1.0, 2.0**n, 2.0**n]}]}
        for n in range(len(sizes))
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    group.attrs["ssa_fast"] = {"names": list(names), **metadata}


def _zarr_arrays(path: Path, shapes: list[tuple[int, int, int]], tile: int) -> tuple[Any, list[Any]]:
    """Create a group of zarr format 2, which OME-Zarr 0.4 requires and both zarr 2 and zarr 3 can write."""
    import zarr

    common: dict[str, Any] = {"chunks": (1, tile, tile), "dtype": "uint8", "fill_value": 0}
    if int(zarr.__version__.split(".")[0]) >= 3:
        group = zarr.open_group(str(path), mode="w", zarr_format=2)
        create = group.create_array
        common["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    else:
        group = zarr.open_group(str(path), mode="w", zarr_version=2)
        create = group.create_dataset
        common["dimension_separator"] = "/"
    return group, [create(str(n), shape=shape, **common) for n, shape in enumerate(shapes)]


def thumbnail(reader: SupportsWindows, longest: int = 1024, tile: int = 2048) -> np.ndarray:
    """Return the whole image as uint8 (h, w, 3), reduced by block means and read window by window.

    Args:
        reader: The image.
        longest: Longest side of the result, in pixels.
        tile: Longest side of a window, in pixels.

    Raises:
        ValueError: ``longest`` or ``tile`` is less than 1.
    """
    if longest < 1 or tile < 1:
        raise ValueError(f"longest, tile: expected at least 1 pixel, got {longest} and {tile}; pass 1024 and 2048")
    H, W = reader.size
    factor = max(1, -(-max(H, W) // longest))
    small = np.empty((-(-H // factor), -(-W // factor), 3), dtype=np.uint8)
    for y0, y1, x0, x1 in _grid((H, W), max(1, tile // factor) * factor):
        means = _block_means(reader.read(y0, y1, x0, x1), factor)
        top, left = y0 // factor, x0 // factor
        small[top : top + means.shape[0], left : left + means.shape[1]] = means
    return small


def _block_means(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Return the means of factor×factor blocks, smaller ones at the border; halves are rounded up."""
    starts = [np.arange(0, length, factor) for length in pixels.shape[:2]]
    rows, columns = (np.diff(start, append=length) for start, length in zip(starts, pixels.shape, strict=False))
    sums = np.add.reduceat(pixels, starts[0], axis=0, dtype=np.uint64)
    sums = np.add.reduceat(sums, starts[1], axis=1)
    areas = (rows[:, None] * columns).astype(np.uint64)[..., None]
    means: np.ndarray = ((sums + areas // 2) // areas).astype(np.uint8)
    return means
