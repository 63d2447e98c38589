"""Read windows of zarr stores and OME-Zarr images (0.1 to 0.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ssa_fast.io.readers.array import ArrayReader
from ssa_fast.io.samples import ImageError

if TYPE_CHECKING:
    from pathlib import Path

    from ssa_fast.io.samples import ReadOptions

METADATA = (".zarray", ".zgroup", "zarr.json")  # every zarr array or group has one of these
OLD_OME_AXES = "tczyx"  # of all images before OME-Zarr 0.3


def is_zarr(path: Path) -> bool:
    """Return whether a path is a zarr store."""
    return path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in METADATA)


def open_zarr(path: Path, memory: int | None, options: ReadOptions) -> ArrayReader:
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
    return ArrayReader(array, memory, options, axes=axes)


def _full_resolution(group: Any) -> tuple[Any, list[str] | None]:
    attributes = dict(group.attrs)
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        return group["0"], None
    array = group[multiscales[0]["datasets"][0]["path"]]
    axes = multiscales[0].get("axes", OLD_OME_AXES if len(array.shape) == len(OLD_OME_AXES) else None)
    return array, axes and [axis if isinstance(axis, str) else axis["name"] for axis in axes]
