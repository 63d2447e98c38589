"""Write maps of large images window by window, with the reduced copies that viewers zoom with.

A writer requests windows in the order in which the file stores them. In memory are one window and the reduced copies of
one map; large copies are kept in a temporary file.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from ssa_fast.io.atomic import atomic_write
from ssa_fast.io.ome import ome_xml, ome_zarr_levels, omero
from ssa_fast.io.placement import Placement
from ssa_fast.io.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ssa_fast.io.progress import OnProgress
    from ssa_fast.io.readers.base import SupportsWindows

    Block = tuple[int, int, np.ndarray]  # y0, x0, pixels

__all__ = ["thumbnail", "write"]

MIN_SIDE = 1024  # halving stops once a copy's longer side is at most this
IN_MEMORY = 64 << 20  # bytes of reduced copies above which they are kept in a file
PAGE_NAME = 285
MAX_CLASSIC = 4_000_000_000  # bytes of pixels above which the 32-bit offsets of a classic TIFF may not suffice


def write(
    path: str | Path,
    window: Callable[[int, int, int, int, int], np.ndarray],
    *,
    shape: tuple[int, int, int],
    names: Sequence[str],
    tile: int = 512,
    kind: Literal["cam", "mask"] = "cam",
    metadata: Mapping[str, Any] | None = None,
    palette: Sequence[int] | None = None,
    placement: Placement | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Write K maps (H, W) atomically to a tiled TIFF (``.tif``, one page each) or OME-Zarr (``.zarr``).

    Args:
        path: The file; a TIFF stores the reduced copies as sub-pages.
        window: ``window(k, y0, y1, x0, x1)`` returns uint8 (y1 − y0, x1 − x0); called map by map, row by row.
        shape, names: (K, H, W), and K names.
        tile: Side of the windows and of the file's tiles, in pixels; a multiple of 16.
        kind: Reduced copies are 2×2 means of a "cam", every second pixel of a "mask".
        metadata: Stored as JSON; in the first page of a TIFF. With a pixel size, that page describes the maps in
            OME-XML instead, and the JSON values are its annotation.
        palette: Flat RGB values of 256 colours; TIFF only.
        placement: Where the pixels lie, stored as TIFF, GeoTIFF, OME-XML or OME-Zarr say it.
        on_progress: Called after each window.

    Raises:
        ValueError: The suffix is another one, or an argument or a window has the wrong size.
        OSError: The file cannot be written; what was at ``path`` is untouched.
    """
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
    path, placement = Path(path), placement or Placement()
    pyramid = _Pyramid(window, shape, tile, kind, on_progress)
    if path.suffix.lower() in (".tif", ".tiff"):
        atomic_write(path, lambda target: _write_tiff(target, pyramid, names, metadata or {}, palette, placement))
    elif path.suffix.lower() == ".zarr":
        atomic_write(path, lambda target: _write_zarr(target, pyramid, names, metadata or {}, placement))
    else:
        raise ValueError(f"path: expected a name that ends in .tif or .zarr, got {path.name!r}; rename it")


@dataclass(frozen=True)
class _Pyramid:
    """K maps, and reduced copies of each map, each half the size of the one before."""

    window: Callable[[int, int, int, int, int], np.ndarray]
    shape: tuple[int, int, int]
    tile: int
    kind: str
    on_progress: OnProgress | None

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of a map and of its copies."""
        sizes = [self.shape[1:]]
        while max(sizes[-1]) > MIN_SIDE:
            H, W = sizes[-1]
            sizes.append((-(-H // 2), -(-W // 2)))
        return sizes

    def uncompressed_bytes(self) -> int:
        """Return the bytes of all tiles before compression, as if those at the border were whole."""
        tiles = sum(-(-H // self.tile) * -(-W // self.tile) for H, W in self.sizes)
        return self.shape[0] * tiles * self.tile**2

    def levels(self, k: int, folder: Path) -> Iterator[Iterator[Block]]:
        """Yield the blocks of map ``k``, then those of each copy; read all of one level before the next.

        Copies above ``IN_MEMORY`` are kept in a temporary file in ``folder``.
        """
        *ends, total = itertools.accumulate((H * W for H, W in self.sizes[1:]), initial=0)
        pixels = np.empty(total, np.uint8) if total <= IN_MEMORY else _temporary_map(folder, total)
        parts = zip(np.split(pixels, ends)[1:], self.sizes[1:], strict=True)
        copies = [part.reshape(size) for part, size in parts]
        yield self._windows(k, copies)
        for larger, smaller in itertools.pairwise(copies):
            for y0, x0, block in self._blocks(larger):
                self._reduce_into(smaller, block, y0, x0)
        yield from map(self._blocks, copies)

    def _windows(self, k: int, copies: list[np.ndarray]) -> Iterator[Block]:
        """Yield the windows of map ``k``, and fill the first copy on the way."""
        grid = list(_grid(self.shape[1:], self.tile))
        for done, (y0, y1, x0, x1) in enumerate(grid, k * len(grid) + 1):
            block = self.window(k, y0, y1, x0, x1)
            if block.dtype != np.uint8 or block.shape != (y1 - y0, x1 - x0):
                raise ValueError(
                    f"window: expected uint8 {(y1 - y0, x1 - x0)}, got {block.dtype} {block.shape}; "
                    "return the requested window, in 8 bits"
                )
            if copies:
                self._reduce_into(copies[0], block, y0, x0)
            if self.on_progress is not None:
                self.on_progress(Progress(done, self.shape[0] * len(grid)))
            yield y0, x0, block

    def _blocks(self, pixels: np.ndarray) -> Iterator[Block]:
        return ((y0, x0, pixels[y0:y1, x0:x1]) for y0, y1, x0, x1 in _grid(pixels.shape, self.tile))

    def _reduce_into(self, copy: np.ndarray, block: np.ndarray, y0: int, x0: int) -> None:
        half = block[::2, ::2] if self.kind == "mask" else np.asarray(Image.fromarray(block).reduce(2))
        copy[y0 // 2 : y0 // 2 + half.shape[0], x0 // 2 : x0 // 2 + half.shape[1]] = half


def _temporary_map(folder: Path, size: int) -> np.ndarray:
    """Return ``size`` bytes of a temporary file, which is deleted when they are freed."""
    with tempfile.TemporaryFile(dir=folder, prefix=".ssa-fast-copies-") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, not a SIGBUS later
        return np.memmap(file, np.uint8, "w+", shape=size)


def _grid(size: tuple[int, ...], tile: int) -> Iterator[tuple[int, int, int, int]]:
    H, W = size
    for y0 in range(0, H, tile):
        for x0 in range(0, W, tile):
            yield y0, min(y0 + tile, H), x0, min(x0 + tile, W)


def _write_tiff(
    path: Path,
    pyramid: _Pyramid,
    names: Sequence[str],
    metadata: Mapping[str, Any],
    palette: Sequence[int] | None,
    placement: Placement,
) -> None:
    import tifffile

    common: dict[str, Any] = {"dtype": np.uint8, "tile": (pyramid.tile, pyramid.tile), "compression": "zlib"}
    common |= {"metadata": None, "software": "ssa_fast", "photometric": "minisblack"}
    common["maxworkers"] = 1  # several would queue up to half a gigabyte of windows
    if palette is not None:
        common |= {"photometric": "palette", "colormap": np.array(palette, np.uint16).reshape(256, 3).T * 257}
    sizes = pyramid.sizes
    with tifffile.TiffWriter(path, bigtiff=pyramid.uncompressed_bytes() > MAX_CLASSIC) as file:
        for k, name in enumerate(names):
            described = json.dumps({"name": name, **(metadata if k == 0 else {})})
            if k == 0 and placement.pixel_size is not None and placement.unit:
                described = ome_xml(pyramid.shape, names, placement.pixel_size, described)
            tags = [(PAGE_NAME, 2, 0, ascii(name)[1:-1], True), *((*tag, True) for tag in placement.geo)]
            page = {"subifds": len(sizes) - 1, "description": described.encode(), "extratags": tags}
            for n, (size, blocks) in enumerate(zip(sizes, pyramid.levels(k, path.parent), strict=True)):
                tiles = (_pad(block, pyramid.tile) for _, _, block in blocks)
                file.write(tiles, shape=size, **common, **page, **placement.tiff_resolution(2**n))
                page = {"subfiletype": 1}  # of the copies, which follow


def _pad(block: np.ndarray, tile: int) -> np.ndarray:
    """Pad a block at the border to a whole tile, as TIFF stores it."""
    return np.ascontiguousarray(np.pad(block, ((0, tile - block.shape[0]), (0, tile - block.shape[1]))))


def _write_zarr(
    path: Path, pyramid: _Pyramid, names: Sequence[str], metadata: Mapping[str, Any], placement: Placement
) -> None:
    group, arrays = _zarr_arrays(path, [(pyramid.shape[0], *size) for size in pyramid.sizes], pyramid.tile)
    for k in range(pyramid.shape[0]):
        for array, blocks in zip(arrays, pyramid.levels(k, path.parent), strict=True):
            for y0, x0, block in blocks:
                array[k, y0 : y0 + block.shape[0], x0 : x0 + block.shape[1]] = np.asarray(block)
    axes, levels = ome_zarr_levels(len(arrays), placement, means=pyramid.kind == "cam")
    datasets = [{"path": str(n), "coordinateTransformations": steps} for n, steps in enumerate(levels)]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    if placement.pixel_size is not None and pyramid.kind == "cam":
        group.attrs["omero"] = omero(names)
    geo = {"geotiff_tags": {str(code): value for code, _, _, value in placement.geo}} if placement.geo else {}
    group.attrs["ssa_fast"] = {"names": list(names), **metadata, **geo}


def _zarr_arrays(path: Path, shapes: list[tuple[int, int, int]], tile: int) -> tuple[Any, list[Any]]:
    """Create a group of zarr format 2, which OME-Zarr 0.4 requires and both zarr 2 and zarr 3 can write."""
    import zarr

    common: dict[str, Any] = {"chunks": (1, tile, tile), "dtype": "uint8", "fill_value": 0}
    if zarr.__version__.startswith("2."):
        group = zarr.open_group(str(path), mode="w", zarr_version=2)
        create, common["dimension_separator"] = group.create_dataset, "/"
    else:
        group = zarr.open_group(str(path), mode="w", zarr_format=2)
        create, common["chunk_key_encoding"] = group.create_array, {"name": "v2", "separator": "/"}
    return group, [create(str(n), shape=shape, **common) for n, shape in enumerate(shapes)]


def thumbnail(reader: SupportsWindows, longest: int = 1024, tile: int = 2048) -> np.ndarray:
    """Return the whole image as uint8 (h, w, 3), reduced by block means and read window by window.

    Args:
        reader: The image.
        longest, tile: Longest sides of the result and of a window, in pixels.

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
    return ((sums + areas // 2) // areas).astype(np.uint8)
