"""Read windows of zarr stores and OME-Zarr images (0.1 to 0.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.io.images import ImageError
from ssa_fast.io.readers.array import ArrayReader
from ssa_fast.io.readers.base import Color, WindowReader, check_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

METADATA = (".zarray", ".zgroup", "zarr.json")  # every zarr array or group has one of these
OLD_OME_AXES = "tczyx"  # of all images before OME-Zarr 0.3


class OmeZarrReader(WindowReader):
    """An OME-Zarr array with named axes: 1, 3 or 4 channels on any axis, one time point, one plane."""

    def __init__(self, array: Any, axes: Sequence[str], memory: int | None, backdrop: Color) -> None:
        sizes = dict(zip(axes, array.shape, strict=False))
        extra = [axis for axis in sizes if axis not in ("c", "y", "x") and sizes[axis] != 1]
        planar = len(axes) == len(array.shape) and "y" in sizes and "x" in sizes and not extra
        if not planar or sizes.get("c", 1) not in (1, 3, 4):
            raise ImageError(
                f"its axes {', '.join(axes)} of {tuple(array.shape)} are not a single grey, RGB or RGBA image: "
                "open the array and pass the part that is one."
            )
        check_pixels(array.dtype, getattr(array, "chunks", None), memory)
        super().__init__((sizes["y"], sizes["x"]), backdrop)
        self.array, self.axes = array, list(axes)

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        slices = {"y": slice(y0, y1), "x": slice(x0, x1), "c": slice(None)}
        pixels = np.asarray(self.array[tuple(slices.get(axis, 0) for axis in self.axes)])
        left = [axis for axis in self.axes if axis in slices]
        return pixels.transpose([left.index(axis) for axis in ("y", "x", "c") if axis in left])


def is_zarr(path: Path) -> bool:
    """Return whether a path is a zarr store."""
    return path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in METADATA)


def open_zarr(path: Path, memory: int | None, backdrop: Color) -> WindowReader:
    """Open an array, the full resolution of an OME-Zarr, or the array named 0 of another group."""
    if not path.exists():
        raise ImageError("it cannot be opened (No such file or directory).")
    try:
        import zarr
    except ModuleNotFoundError:
        raise ImageError("it is a zarr store: pip install zarr.") from None
    try:
        opened = zarr.open(str(path), mode="r")
        array, axes = (opened, None) if hasattr(opened, "dtype") else _full_resolution(opened)
    except Exception as error:  # any part of a store can be missing or damaged
        raise ImageError(
            f"it is not a zarr store that can be read ({type(error).__name__}: {error}): give an array's own path, "
            "or a group with multiscales or with an array named 0."
        ) from None
    if not hasattr(array, "dtype"):
        raise ImageError("it is a zarr group of groups: give an array's own path.")
    return ArrayReader(array, memory, backdrop) if axes is None else OmeZarrReader(array, axes, memory, backdrop)


def _full_resolution(group: Any) -> tuple[Any, list[str] | None]:
    attributes = dict(group.attrs)
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        return group["0"], None
    array = group[multiscales[0]["datasets"][0]["path"]]
    axes = multiscales[0].get("axes", OLD_OME_AXES if len(array.shape) == len(OLD_OME_AXES) else None)
    return array, axes and [axis if isinstance(axis, str) else axis["name"] for axis in axes]
