"""Windows of images that are too large to be read whole, from whatever holds them.

A reader is anything with ``size`` (H, W) and ``read(y0, y1, x0, x1)`` -> uint8 RGB (h, w, 3). Those here
read TIFF and BigTIFF (tifffile, else rasterio or openslide), zarr, NumPy arrays and files, and pictures that Pillow
decodes whole, as long as they are small.
"""

from __future__ import annotations

import importlib.util
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from ssa_fast.io import images
from ssa_fast.io.images import ImageError
from ssa_fast.io.readers.adapters import (
    ArrayReader,
    CustomReader,
    OmeZarrReader,
    OpenSlideReader,
    RasterioReader,
    WindowReader,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Reader", "open_image", "size_of"]

TIFF = (".tif", ".tiff", ".btf", ".tf8", ".bigtiff", ".svs")
SLIDES = (".ndpi", ".mrxs", ".vms", ".vmu", ".bif", ".svslide", ".scn", ".dcm")
STORES = (".zarray", ".zgroup", "zarr.json")  # one of these is in every folder that is a zarr array or group
ORIENTATION = 274
BYTES_PER_PIXEL = 4
OLD_OME_AXES = "tczyx"


class Reader(Protocol):
    """What ``large`` reads from."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """uint8 RGB (y1 − y0, x1 − x0, 3) of a window inside the image."""


def open_image(source: Any, *, memory: int, backdrop: tuple[int, int, int] = images.WHITE) -> WindowReader:
    """A reader of ``source``, which is a context manager. What came open stays open when the reader is closed.

    Args:
        source: a path; a NumPy array or memmap, or a zarr array, (H, W), (H, W, 3) or (H, W, 4), uint8 or uint16; an
            open rasterio dataset or OpenSlide; or a reader of one's own, with ``size`` and ``read``.
        memory: bytes that decoded parts of a file may take.
        backdrop: what transparent parts are laid on.

    Raises:
        ValueError: something else, with what to do (``ImageError`` for files).
    """
    if isinstance(source, str | Path):
        return _open_path(Path(source), memory, backdrop)
    if hasattr(source, "read_region") and hasattr(source, "dimensions"):
        return OpenSlideReader(source, backdrop)
    if hasattr(source, "colorinterp") and hasattr(source, "read"):
        return RasterioReader(source, memory, backdrop)
    if hasattr(source, "read") and hasattr(source, "size"):
        return CustomReader(source)
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        return ArrayReader(source, memory, backdrop)
    raise ValueError(
        f"image: expected a path, an array, a rasterio dataset, an OpenSlide or a reader, got {type(source).__name__}; "
        "a reader has .size (H, W) and .read(y0, y1, x0, x1)"
    )


def size_of(path: str | Path) -> tuple[int, int]:
    """(H, W) of the upright image in a file, read off its header.

    Raises:
        ImageError: the file is missing or no image.
    """
    path = Path(path)
    if path.suffix.lower() in (*TIFF, *SLIDES, ".npy") or _is_store(path):
        with _open_path(path, None, images.WHITE) as reader:
            return reader.size
    return _header(path)


def _header(path: Path) -> tuple[int, int]:
    images.check_file(path)
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # a header decodes nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                on_its_side = _orientation(image) >= 5
                return (image.width, image.height) if on_its_side else (image.height, image.width)
    except UnidentifiedImageError:
        raise ImageError("it is not a picture of any kind that Pillow can read.") from None
    except Exception as error:  # headers can be damaged in any way
        raise ImageError(f"it is damaged or cut short ({type(error).__name__}).") from None
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole picture to look for a tag behind it
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # an EXIF block can be damaged in any way, and `pictures.read` does not turn it then either
        return 1


def _open_path(path: Path, memory: int | None, backdrop: tuple[int, int, int]) -> WindowReader:
    """A file's reader; without ``memory``, one that only its size is asked of."""
    suffix = path.suffix.lower()
    if _is_store(path):
        with _as_file():
            return _open_zarr(path, memory, backdrop)
    images.check_file(path)
    if suffix == ".npy":
        with _as_file():
            return ArrayReader(_mapped(path), memory, backdrop)
    if suffix in SLIDES:
        return _open_slide(path, backdrop)
    if suffix in TIFF:
        return _open_tiff(path, memory, backdrop)
    H, W = _header(path)
    if memory is not None and memory // 4 < H * W * BYTES_PER_PIXEL:
        raise ImageError(
            f"its {H * W:,} pixels can only be decoded whole, which takes more than a quarter of the memory allowed: "
            "raise memory, or save it as a tiled TIFF (vips tiffsave --tile, or gdal_translate -co TILED=YES)."
        )
    return ArrayReader(images.read(path, max_pixels=H * W, backdrop=backdrop).rgb, memory, backdrop)


def _is_store(path: Path) -> bool:
    return path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in STORES)


@contextmanager
def _as_file() -> Iterator[None]:
    """What is wrong with an array is wrong with the file that holds it."""
    try:
        yield
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(f"{error}.") from None


def _mapped(path: Path) -> np.ndarray:
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # headers can be damaged in any way
        raise ImageError(f"it is not an array that can be mapped ({error}).") from None
    return mapped


def _open_tiff(path: Path, memory: int | None, backdrop: tuple[int, int, int]) -> WindowReader:
    """tifffile first; where it cannot decode what is inside, who else is here."""
    from ssa_fast.io.readers import tiff

    reasons, remedy = ["tifffile is not installed"], "pip install tifffile imagecodecs"
    if importlib.util.find_spec("tifffile") is not None:
        try:
            return tiff.TiffReader(path, memory, backdrop)
        except tiff.Undecodable as error:
            reasons, remedy = [str(error)], error.remedy
    if importlib.util.find_spec("rasterio") is not None:
        try:
            return _open_raster(path, memory, backdrop)
        except ImageError as error:
            reasons.append(str(error).rstrip("."))
    if importlib.util.find_spec("openslide") is not None:
        try:
            return _open_slide(path, backdrop)
        except ImageError as error:
            reasons.append(str(error).rstrip("."))
    raise ImageError(f"it cannot be read in windows ({'; '.join(reasons)}): {remedy}.")


def _open_raster(path: Path, memory: int | None, backdrop: tuple[int, int, int]) -> WindowReader:
    import rasterio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pictures without a place on Earth are no news here
            dataset = rasterio.open(path)
    except rasterio.errors.RasterioError as error:
        raise ImageError(f"rasterio cannot open it ({error}).") from None
    try:
        _check_upright(path)
        with _as_file():
            return RasterioReader(dataset, memory, backdrop, owns=True)
    except BaseException:
        dataset.close()
        raise


def _check_upright(path: Path) -> None:
    """GDAL passes over the tag that turns a picture."""
    try:
        with Image.open(path) as image:
            turned = _orientation(image) != 1
    except (OSError, Image.DecompressionBombError):
        return  # not of Pillow's kinds, so no tag that Pillow reads and GDAL does not
    if turned:
        raise ImageError("its orientation tag turns it: save it upright.")


def _open_slide(path: Path, backdrop: tuple[int, int, int]) -> WindowReader:
    try:
        import openslide
    except ModuleNotFoundError:
        raise ImageError("it is a slide: pip install openslide-python openslide-bin.") from None
    try:
        return OpenSlideReader(openslide.OpenSlide(str(path)), backdrop, owns=True)
    except openslide.OpenSlideError as error:
        raise ImageError(f"openslide cannot open it ({error}).") from None


def _open_zarr(path: Path, memory: int | None, backdrop: tuple[int, int, int]) -> WindowReader:
    if not path.exists():
        raise ImageError("it cannot be opened (No such file or directory).")
    try:
        import zarr
    except ModuleNotFoundError:
        raise ImageError("it is a zarr store: pip install zarr.") from None
    try:
        opened = zarr.open(str(path), mode="r")
        array, axes = (opened, None) if hasattr(opened, "dtype") else _level_zero(opened)
    except Exception as error:  # stores can lack or spoil any part
        raise ImageError(
            f"it is not a zarr store that can be read ({type(error).__name__}: {error}): give an array's own path, "
            "or a group whose multiscales name one or which has an array called 0."
        ) from None
    if not hasattr(array, "dtype"):
        raise ImageError("it is a zarr group of groups: give an array's own path.")
    return ArrayReader(array, memory, backdrop) if axes is None else OmeZarrReader(array, axes, memory, backdrop)


def _level_zero(group: Any) -> tuple[Any, list[str] | None]:
    """The full resolution of an OME-Zarr (0.1 to 0.5) and its axes, or the array called 0 of another group."""
    attributes = dict(group.attrs)
    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        return group["0"], None
    array = group[scales[0]["datasets"][0]["path"]]
    axes = scales[0].get("axes", OLD_OME_AXES if len(array.shape) == len(OLD_OME_AXES) else None)
    return array, axes and [axis if isinstance(axis, str) else axis["name"] for axis in axes]
