"""Maps of whole images written window by window, with the smaller copies by which viewers zoom.

A writer asks for the windows it needs, in the order in which its file holds them; of the whole map it never holds more
than a band of windows and what it has of the smaller copies, which lie in a scratch file where they are large.
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ssa_fast.io.readers.open import Reader

    WindowOf = Callable[[int, int, int, int, int], np.ndarray]
    Watch = Callable[[int, int], None]

__all__ = ["thumbnail", "write"]

SMALLEST = 1024  # a copy no longer than this is the last
IN_MEMORY = 64 << 20  # bytes of smaller copies beyond which they lie in a file
PAGE_NAME = 285
CLASSIC = 4_000_000_000  # bytes of pixels from which on a classic TIFF's offsets might not reach


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
    watch: Watch | None = None,
) -> None:
    """Write K maps of H×W pixels as a tiled TIFF (``.tif``: a page each, copies as sub-pages) or OME-Zarr (``.zarr``).

    The file appears whole or not at all: until it is complete, what is at ``path`` stays as it was.

    Args:
        window: ``window(k, y0, y1, x0, x1)`` gives uint8 (y1 − y0, x1 − x0); asked for plane by plane, row by row.
        shape: (K, H, W). names: one per map.
        tile: side of the windows and of the file's tiles, pixels; a multiple of 16.
        kind: copies are 2×2 means of a "cam", every other pixel of a "mask".
        metadata: kept as JSON, by TIFF in its first page. palette: flat RGB of 256 colours; kept by TIFF alone.
        watch: called with how many of how many windows are written.

    Raises:
        ValueError: another suffix, or arguments or windows of the wrong size. OSError: no room, or no right to write.
    """
    path = Path(path)
    _check(shape, names, tile, kind, palette)
    plan = _Plan(window, shape, tile, kind, watch)
    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        transaction = Transaction({path: lambda draft: _write_tiff(draft, plan, names, metadata or {}, palette)})
    elif suffix == ".zarr":
        transaction = Transaction({path: lambda draft: _write_zarr(draft, plan, names, metadata or {})})
    else:
        raise ValueError(f"path: expected a name that ends in .tif or .zarr, got {path.name!r}; rename it")
    transaction.commit()


def _check(
    shape: tuple[int, int, int], names: Sequence[str], tile: int, kind: str, palette: Sequence[int] | None
) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape: expected (K, H, W), each at least 1, got {shape}; leave out what is empty")
    if len(names) != shape[0]:
        raise ValueError(f"names: expected {shape[0]}, one per map, got {len(names)}; pass a name for each")
    if tile < 16 or tile % 16:
        raise ValueError(f"tile: expected a multiple of 16, as TIFF asks for, got {tile}; pass 256 or 512")
    if kind not in ("cam", "mask"):
        raise ValueError(f"kind: expected 'cam' or 'mask', got {kind!r}; pass one of the two")
    if palette is not None and len(palette) != 768:
        raise ValueError(f"palette: expected 768 values, R, G, B of 256 colours, got {len(palette)}; pad with zeros")


class _Plan:
    """The windows of one file, and its copies, each half as large as the one before."""

    def __init__(
        self, window: WindowOf, shape: tuple[int, int, int], tile: int, kind: str, watch: Watch | None
    ) -> None:
        self.window, self.shape, self.tile, self.kind, self.watch = window, shape, tile, kind, watch
        _, h, w = shape
        self.levels: list[tuple[int, int]] = []
        while max(h, w) > SMALLEST:
            h, w = -(-h // 2), -(-w // 2)
            self.levels.append((h, w))
        self.through = 0
        self.total = shape[0] * self._count(shape[1:])

    def _count(self, size: tuple[int, ...]) -> int:
        return -(-size[0] // self.tile) * -(-size[1] // self.tile)

    def stored(self) -> int:
        """Bytes of all tiles, whole ones at the borders too, before compression."""
        tiles = sum(self._count(size) for size in [self.shape[1:], *self.levels])
        return self.shape[0] * tiles * self.tile**2

    def tiles(self, k: int, copies: list[np.ndarray]) -> Iterator[tuple[int, int, np.ndarray]]:
        """A map's windows, row by row; the first copy is filled on the way."""
        _, H, W = self.shape
        for y0, y1, x0, x1 in _grid((H, W), self.tile):
            block = self.window(k, y0, y1, x0, x1)
            if block.dtype != np.uint8 or block.shape != (y1 - y0, x1 - x0):
                raise ValueError(
                    f"window: expected uint8 {(y1 - y0, x1 - x0)}, got {block.dtype} {block.shape}; "
                    "give what was asked for, in 8 bits"
                )
            if copies:
                self._shrink(block, copies[0], y0, x0)
            self.through += 1
            if self.watch is not None:
                self.watch(self.through, self.total)
            yield y0, x0, block

    def fill(self, copies: list[np.ndarray]) -> None:
        """The copies after the first, each from the one before."""
        for larger, smaller in pairwise(copies):
            for y0, y1, x0, x1 in _grid(larger.shape, self.tile):
                self._shrink(larger[y0:y1, x0:x1], smaller, y0, x0)

    def _shrink(self, block: np.ndarray, copy: np.ndarray, y0: int, x0: int) -> None:
        small = self._halved(block)
        copy[y0 // 2 : y0 // 2 + small.shape[0], x0 // 2 : x0 // 2 + small.shape[1]] = small

    def _halved(self, block: np.ndarray) -> np.ndarray:
        if self.kind == "mask":
            return block[::2, ::2]
        padded = np.pad(block, ((0, block.shape[0] % 2), (0, block.shape[1] % 2)), mode="edge").astype(np.uint16)
        sums = padded[::2, ::2] + padded[1::2, ::2] + padded[::2, 1::2] + padded[1::2, 1::2]
        halved: np.ndarray = ((sums + 2) // 4).astype(np.uint8)
        return halved

    @contextlib.contextmanager
    def copies(self, folder: Path) -> Iterator[list[np.ndarray]]:
        """Room for one map's smaller copies."""
        places = np.cumsum([0, *(h * w for h, w in self.levels)]).tolist()
        if places[-1] <= IN_MEMORY:
            yield [np.empty(size, dtype=np.uint8) for size in self.levels]
            return
        with tempfile.TemporaryFile(dir=folder, prefix=".ssa-fast-copies-") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, places[-1])  # a full disk is an error now, not a signal later
            else:
                file.truncate(places[-1])
            yield [
                np.memmap(file, np.uint8, "r+", offset=place, shape=size)
                for place, size in zip(places, self.levels, strict=False)
            ]


def _grid(size: tuple[int, ...], tile: int) -> Iterator[tuple[int, int, int, int]]:
    H, W = size
    for y0 in range(0, H, tile):
        for x0 in range(0, W, tile):
            yield y0, min(y0 + tile, H), x0, min(x0 + tile, W)


def _write_tiff(
    path: Path, plan: _Plan, names: Sequence[str], metadata: Mapping[str, Any], palette: Sequence[int] | None
) -> None:
    import tifffile

    _, H, W = plan.shape
    look: dict[str, Any] = {"photometric": "minisblack"}
    if palette is not None:
        look = {"photometric": "palette", "colormap": np.array(palette, np.uint16).reshape(256, 3).T * 257}
    tile = (plan.tile, plan.tile)
    common: dict[str, Any] = {
        "dtype": np.uint8,
        "tile": tile,
        "compression": "zlib",
        "metadata": None,
        "maxworkers": 1,  # more would have half a gigabyte of windows wait for them
        "software": "ssa_fast",
        **look,
    }
    with tifffile.TiffWriter(path, bigtiff=plan.stored() > CLASSIC) as file:
        for k, name in enumerate(names):
            described = {"name": name, **(metadata if k == 0 else {})}  # or a thousand maps had it a thousand times
            with plan.copies(path.parent) as copies:
                file.write(
                    (_filled(block, plan.tile) for _, _, block in plan.tiles(k, copies)),
                    shape=(H, W),
                    subifds=len(copies),
                    description=json.dumps(described),
                    extratags=[(PAGE_NAME, 2, 0, ascii(name)[1:-1], True)],
                    **common,
                )
                plan.fill(copies)
                for copy in copies:
                    file.write(_tiles_of(copy, plan.tile), shape=copy.shape, subfiletype=1, **common)


def _tiles_of(array: np.ndarray, tile: int) -> Iterator[np.ndarray]:
    for y0, y1, x0, x1 in _grid(array.shape, tile):
        yield _filled(np.asarray(array[y0:y1, x0:x1]), tile)


def _filled(block: np.ndarray, tile: int) -> np.ndarray:
    """A block at the map's end as a whole tile, which is what TIFF stores."""
    if block.shape == (tile, tile):
        return np.ascontiguousarray(block)
    return np.pad(block, ((0, tile - block.shape[0]), (0, tile - block.shape[1])))


def _write_zarr(path: Path, plan: _Plan, names: Sequence[str], metadata: Mapping[str, Any]) -> None:
    K, H, W = plan.shape
    sizes = [(H, W), *plan.levels]
    group, arrays = _zarr_arrays(path, [(K, *size) for size in sizes], plan.tile)
    for k in range(K):
        with plan.copies(path.parent) as copies:
            for y0, x0, block in plan.tiles(k, copies):
                arrays[0][k, y0 : y0 + block.shape[0], x0 : x0 + block.shape[1]] = block
            plan.fill(copies)
            for array, copy in zip(arrays[1:], copies, strict=True):
                for y0, y1, x0, x1 in _grid(copy.shape, plan.tile):
                    array[k, y0:y1, x0:x1] = np.asarray(copy[y0:y1, x0:x1])
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    datasets = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [1.0, 2.0**n, 2.0**n]}]}
        for n in range(len(sizes))
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    group.attrs["ssa_fast"] = {"names": list(names), **metadata}


def _zarr_arrays(path: Path, shapes: list[tuple[int, int, int]], tile: int) -> tuple[Any, list[Any]]:
    """A group of zarr format 2, which OME-Zarr 0.4 is made of and both zarr 2 and zarr 3 write."""
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


def thumbnail(reader: Reader, longest: int = 1024, tile: int = 2048) -> np.ndarray:
    """The whole image as uint8 (h, w, 3), no side longer than ``longest``: means of blocks, read window by window.

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
    """Means of factor×factor blocks, those at the end of what is there; halves are rounded up."""
    starts = [np.arange(0, length, factor) for length in pixels.shape[:2]]
    rows, columns = (np.diff(start, append=length) for start, length in zip(starts, pixels.shape, strict=False))
    sums = np.add.reduceat(pixels, starts[0], axis=0, dtype=np.uint64)
    sums = np.add.reduceat(sums, starts[1], axis=1)
    areas = (rows[:, None] * columns).astype(np.uint64)[..., None]
    means: np.ndarray = ((sums + areas // 2) // areas).astype(np.uint8)
    return means
