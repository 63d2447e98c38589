"""Maps of whole images written window by window, with the smaller copies by which viewers zoom.

A writer asks for the windows it needs, in the order in which its file holds them; of the whole map it never holds more
than a band of windows and what it has of the smaller copies, which lie in a scratch file where they are large.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ssa_fast.large.readers import Reader

    WindowOf = Callable[[int, int, int, int, int], np.ndarray]
    Watch = Callable[[int, int], None]

__all__ = ["thumbnail", "write"]

SMALLEST = 1024  # a copy no longer than this is the last
IN_MEMORY = 64 << 20  # bytes of smaller copies beyond which they lie in a file
PAGE_NAME = 285
BIG = 1 << 31  # bytes from which on a classic TIFF's offsets may not reach


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

    Args:
        window: ``window(k, y0, y1, x0, x1)`` gives uint8 (y1 − y0, x1 − x0); asked for plane by plane, row by row.
        shape: (K, H, W). names: one per map.
        kind: copies are 2×2 means of a "cam", every other pixel of a "mask".
        metadata: kept as JSON. palette: flat RGB of 256 colours, for one map only.
        watch: called with how many of how many windows are written.

    Raises:
        ValueError: another suffix. OSError: no room, or no right to write.
    """
    path = Path(path)
    plan = _Plan(window, shape, tile, kind, watch)
    if path.suffix.lower() in (".tif", ".tiff"):
        _write_tiff(path, plan, names, metadata or {}, palette)
    elif path.suffix.lower() == ".zarr":
        _write_zarr(path, plan, names, metadata or {})
    else:
        raise ValueError(f"out: expected a name that ends in .tif or .zarr, got {path.name!r}")


class _Plan:
    """The windows of one file, and its copies, each half as large as the one before."""

    def __init__(
        self, window: WindowOf, shape: tuple[int, int, int], tile: int, kind: str, watch: Watch | None
    ) -> None:
        self.window, self.shape, self.tile, self.kind, self.watch = window, shape, tile, kind, watch
        _, H, W = shape
        self.levels: list[tuple[int, int]] = []
        h, w = H, W
        while max(h, w) > SMALLEST:
            h, w = -(-h // 2), -(-w // 2)
            self.levels.append((h, w))
        self.through = 0
        self.total = shape[0] * -(-H // tile) * -(-W // tile)

    def tiles(self, k: int, copies: list[np.ndarray]) -> Iterator[tuple[int, int, np.ndarray]]:
        """A map's windows, row by row; the first copy is filled on the way and the others at the end."""
        _, H, W = self.shape
        for y0 in range(0, H, self.tile):
            for x0 in range(0, W, self.tile):
                block = self.window(k, y0, min(y0 + self.tile, H), x0, min(x0 + self.tile, W))
                if copies:
                    small = self._halved(block)
                    copies[0][y0 // 2 : y0 // 2 + small.shape[0], x0 // 2 : x0 // 2 + small.shape[1]] = small
                self.through += 1
                if self.watch is not None:
                    self.watch(self.through, self.total)
                yield y0, x0, block
        for larger, smaller in pairwise(copies):
            for y0 in range(0, larger.shape[0], self.tile):
                small = self._halved(larger[y0 : y0 + self.tile])
                smaller[y0 // 2 : y0 // 2 + small.shape[0]] = small

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
        if sum(h * w for h, w in self.levels) <= IN_MEMORY:
            yield [np.empty(size, dtype=np.uint8) for size in self.levels]
            return
        with tempfile.TemporaryFile(dir=folder, prefix=".ssa-fast-copies-") as file:
            places = np.cumsum([0, *(h * w for h, w in self.levels)]).tolist()
            file.truncate(places[-1])
            yield [
                np.memmap(file, np.uint8, "r+", offset=place, shape=size)
                for place, size in zip(places, self.levels, strict=False)
            ]


def _write_tiff(
    path: Path, plan: _Plan, names: Sequence[str], metadata: Mapping[str, Any], palette: Sequence[int] | None
) -> None:
    import tifffile

    K, H, W = plan.shape
    tile = (plan.tile, plan.tile)
    look: dict[str, Any] = {"photometric": "minisblack"}
    if palette is not None:
        look = {"photometric": "palette", "colormap": np.array(palette, np.uint16).reshape(256, 3).T * 257}
    common: dict[str, Any] = {"dtype": np.uint8, "tile": tile, "compression": "zlib", "metadata": None, **look}

    def padded(blocks: Iterator[tuple[int, int, np.ndarray]]) -> Iterator[np.ndarray]:
        for _, _, block in blocks:
            yield _filled(block, plan.tile)

    with tifffile.TiffWriter(path, bigtiff=K * H * W * 4 // 3 > BIG) as file:
        for k, name in enumerate(names):
            with plan.copies(path.parent) as copies:
                file.write(
                    padded(plan.tiles(k, copies)),
                    shape=(H, W),
                    subifds=len(copies),
                    description=json.dumps({"name": name, **metadata}),
                    extratags=[(PAGE_NAME, 2, 0, ascii(name)[1:-1], True)],
                    **common,
                )
                for copy in copies:
                    file.write(_tiles_of(copy, plan.tile), shape=copy.shape, subfiletype=1, **common)


def _tiles_of(array: np.ndarray, tile: int) -> Iterator[np.ndarray]:
    for y0 in range(0, array.shape[0], tile):
        for x0 in range(0, array.shape[1], tile):
            yield _filled(np.asarray(array[y0 : y0 + tile, x0 : x0 + tile]), tile)


def _filled(block: np.ndarray, tile: int) -> np.ndarray:
    """A block at the map's end as a whole tile, which is what TIFF stores."""
    if block.shape == (tile, tile):
        return np.ascontiguousarray(block)
    return np.pad(block, ((0, tile - block.shape[0]), (0, tile - block.shape[1])))


def _write_zarr(path: Path, plan: _Plan, names: Sequence[str], metadata: Mapping[str, Any]) -> None:
    import zarr

    K, H, W = plan.shape
    group = zarr.open_group(str(path), mode="w")
    create = group.create_array if hasattr(group, "create_array") else group.create_dataset
    sizes = [(H, W), *plan.levels]
    arrays = [
        create(str(n), shape=(K, *size), chunks=(1, plan.tile, plan.tile), dtype="uint8")
        for n, size in enumerate(sizes)
    ]
    for k in range(K):
        with plan.copies(path.parent) as copies:
            for y0, x0, block in plan.tiles(k, copies):
                arrays[0][k, y0 : y0 + block.shape[0], x0 : x0 + block.shape[1]] = block
            for array, copy in zip(arrays[1:], copies, strict=True):
                for y0 in range(0, copy.shape[0], plan.tile):
                    array[k, y0 : y0 + plan.tile] = np.asarray(copy[y0 : y0 + plan.tile])
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    datasets = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [1.0, 2.0**n, 2.0**n]}]}
        for n in range(len(sizes))
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    group.attrs["ssa_fast"] = {"names": list(names), **metadata}


def thumbnail(reader: Reader, longest: int = 1024, tile: int = 2048) -> np.ndarray:
    """The whole image as uint8 (h, w, 3), no side longer than ``longest``: means of blocks, read window by window."""
    H, W = reader.size
    factor = max(1, -(-max(H, W) // longest))
    side = max(1, tile // factor) * factor
    small = np.empty((-(-H // factor), -(-W // factor), 3), dtype=np.uint8)
    for y0 in range(0, H, side):
        for x0 in range(0, W, side):
            block = reader.read(y0, min(y0 + side, H), x0, min(x0 + side, W))
            pads = [(0, -length % factor) for length in block.shape[:2]]
            whole = np.pad(block, (*pads, (0, 0)), mode="edge")
            h, w = whole.shape[0] // factor, whole.shape[1] // factor
            means = whole.reshape(h, factor, w, factor, 3).mean(axis=(1, 3), dtype=np.float32)
            small[y0 // factor : y0 // factor + h, x0 // factor : x0 // factor + w] = np.rint(means).astype(np.uint8)
    return small
