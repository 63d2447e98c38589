"""Windows of images that are too large to be read whole, from whatever holds them.

A reader is anything with ``size`` (H, W), ``read(y0, y1, x0, x1)`` -> uint8 RGB (h, w, 3) and ``close()``. Those here
read TIFF and BigTIFF (tifffile, else rasterio or openslide), zarr, NumPy arrays and files, and pictures that Pillow
decodes whole, as long as they are small.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ssa_fast import pictures
from ssa_fast.pictures import PictureError

__all__ = ["Reader", "open_image", "size_of"]

TIFF = (".tif", ".tiff", ".btf", ".tf8", ".bigtiff", ".svs", ".scn")
SLIDES = (".ndpi", ".mrxs", ".vms", ".vmu", ".bif", ".svslide", ".dcm")


class Reader(Protocol):
    """What ``large`` reads from."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """uint8 RGB (y1 − y0, x1 − x0, 3) of a window inside the image."""

    def close(self) -> None:
        """Let go of files."""

    def __enter__(self) -> Reader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class Windows:
    """The common part of the readers: the window's check, and ``with``. Subclasses have ``_size`` and ``_window``."""

    def __init__(self, size: tuple[int, int], backdrop: tuple[int, int, int] = pictures.WHITE) -> None:
        self._size, self.backdrop = size, backdrop

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self._size

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """uint8 RGB (y1 − y0, x1 − x0, 3) of a window inside the image.

        Raises:
            ValueError: the window is empty or leaves the image.
        """
        H, W = self._size
        if not (0 <= y0 < y1 <= H and 0 <= x0 < x1 <= W):
            raise ValueError(
                f"window: expected rows and columns inside {H}x{W}, got rows {y0} to {y1}, columns {x0} to {x1}"
            )
        return to_rgb(self._window(y0, y1, x0, x1), self.backdrop)

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of files."""

    def __enter__(self) -> Windows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_image(source: Any, *, memory: int, backdrop: tuple[int, int, int] = pictures.WHITE) -> Any:
    """A reader of ``source``.

    Args:
        source: a path; a NumPy array or memmap, or a zarr array, (H, W), (H, W, 3) or (H, W, 4), uint8 or uint16; an
            open rasterio dataset or OpenSlide; or a reader of one's own, which is taken as it is.
        memory: bytes that decoded parts of a file may take.
        backdrop: what transparent parts are laid on.

    Raises:
        ValueError: something else, with what to do (``PictureError`` for files).
    """
    if isinstance(source, str | Path):
        return _open_path(Path(source), memory, backdrop)
    if hasattr(source, "read_region") and hasattr(source, "dimensions"):
        return _Slide(source, backdrop)
    if hasattr(source, "height") and hasattr(source, "width") and hasattr(source, "read"):
        return _Raster(source, backdrop)
    if hasattr(source, "read") and hasattr(source, "size"):
        return source
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        return _Array(source, backdrop)
    raise ValueError(
        f"image: expected a path, an array, a rasterio dataset, an OpenSlide or a reader, got {type(source).__name__}; "
        "a reader has .size (H, W) and .read(y0, y1, x0, x1)"
    )


def size_of(path: str | Path) -> tuple[int, int]:
    """(H, W) of the image in a file, read off its header.

    Raises:
        PictureError: the file is missing or no image.
    """
    path = Path(path)
    if path.suffix.lower() in (*TIFF, *SLIDES, ".npy", ".zarr"):
        with _open_path(path, 1 << 62, pictures.WHITE) as reader:
            size: tuple[int, int] = reader.size
            return size
    return _header(path)


def _header(path: Path) -> tuple[int, int]:
    pictures.check_file(path)
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # a header decodes nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.height, image.width
    except Exception as error:  # headers can be damaged in any way
        raise PictureError(f"it is not a picture of any kind that Pillow can read ({type(error).__name__}).") from None
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _open_path(path: Path, memory: int, backdrop: tuple[int, int, int]) -> Windows:
    suffix = path.suffix.lower()
    if suffix == ".zarr":
        return _Array(_zarr_array(path), backdrop)
    pictures.check_file(path)
    if suffix == ".npy":
        try:
            return _Array(np.load(path, mmap_mode="r", allow_pickle=False), backdrop)
        except (OSError, ValueError) as error:
            raise PictureError(f"it is not an array that can be mapped ({error}).") from None
    if suffix in SLIDES:
        return _open_slide(path, backdrop)
    if suffix in TIFF:
        return _open_tiff(path, memory, backdrop)
    H, W = _header(path)
    if memory // 4 < H * W * 4 and memory < 1 << 62:
        raise PictureError(
            f"its {H * W:,} pixels can only be decoded whole, which takes more than a quarter of the memory allowed: "
            "raise memory, or save it as a tiled TIFF (vips tiffsave --tile, or gdal_translate -co TILED=YES)."
        )
    return _Array(pictures.read(path, max_pixels=H * W, backdrop=backdrop).rgb, backdrop)


def _open_tiff(path: Path, memory: int, backdrop: tuple[int, int, int]) -> Windows:
    """tifffile first; where it cannot decode what is inside, who else is here."""
    from ssa_fast.large import tiff

    reasons = []
    if importlib.util.find_spec("tifffile") is not None:
        try:
            return tiff.Tiff(path, memory, backdrop)
        except tiff.Undecodable as error:
            reasons.append(str(error))
    else:
        reasons.append("tifffile is not installed")
    for module, opener in (("rasterio", _open_raster), ("openslide", _open_slide)):
        if importlib.util.find_spec(module) is not None:
            try:
                return opener(path, backdrop)
            except PictureError as error:
                reasons.append(str(error))
    raise PictureError(f"it cannot be read in windows ({'; '.join(reasons)}): pip install tifffile imagecodecs.")


def _open_raster(path: Path, backdrop: tuple[int, int, int]) -> Windows:
    import rasterio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pictures without a place on Earth are no news here
            return _Raster(rasterio.open(path), backdrop)
    except rasterio.errors.RasterioIOError as error:
        raise PictureError(f"rasterio cannot open it ({error}).") from None


def _open_slide(path: Path, backdrop: tuple[int, int, int]) -> Windows:
    try:
        import openslide
    except ModuleNotFoundError:
        raise PictureError("it is a slide: pip install openslide-python openslide-bin.") from None
    try:
        return _Slide(openslide.OpenSlide(str(path)), backdrop)
    except openslide.OpenSlideError as error:
        raise PictureError(f"openslide cannot open it ({error}).") from None


def _zarr_array(path: Path) -> Any:
    try:
        import zarr
    except ModuleNotFoundError:
        raise PictureError("it is a zarr store: pip install zarr.") from None
    try:
        opened = zarr.open(str(path), mode="r")
    except Exception as error:  # stores can lack or spoil any part
        raise PictureError(f"it is not a zarr store that can be read ({type(error).__name__}).") from None
    if hasattr(opened, "dtype"):
        return opened
    levels = dict(opened.attrs).get("multiscales")
    name = levels[0]["datasets"][0]["path"] if levels else "0"
    if name not in opened:
        raise PictureError("it is a zarr group without an array called 0 or multiscales; give the array's own path.")
    return opened[name]


class _Array(Windows):
    """Anything that is sliced like an array: NumPy's, a memory map, zarr's."""

    def __init__(self, array: Any, backdrop: tuple[int, int, int]) -> None:
        shape = tuple(array.shape)
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
            raise ValueError(
                f"image: expected (H, W), (H, W, 3) or (H, W, 4), got {shape}; move the channels to the end"
            )
        check_dtype(array.dtype)
        super().__init__(shape[:2], backdrop)
        self.array = array

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return np.asarray(self.array[y0:y1, x0:x1])


class _Raster(Windows):
    """An open rasterio dataset."""

    def __init__(self, dataset: Any, backdrop: tuple[int, int, int]) -> None:
        super().__init__((dataset.height, dataset.width), backdrop)
        check_dtype(np.dtype(dataset.dtypes[0]))
        self.dataset = dataset
        self.bands = [1] if dataset.count < 3 else [1, 2, 3, 4][: dataset.count]

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        bands = self.dataset.read(self.bands, window=((y0, y1), (x0, x1)))
        return np.moveaxis(bands, 0, -1)

    def close(self) -> None:
        """Close the dataset."""
        self.dataset.close()


class _Slide(Windows):
    """An open OpenSlide, at its full resolution."""

    def __init__(self, slide: Any, backdrop: tuple[int, int, int]) -> None:
        width, height = slide.dimensions
        super().__init__((height, width), backdrop)
        self.slide = slide

    def _window(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return np.asarray(self.slide.read_region((x0, y0), 0, (x1 - x0, y1 - y0)))

    def close(self) -> None:
        """Close the slide."""
        self.slide.close()


def check_dtype(dtype: Any) -> None:
    """Raises ValueError unless pixels are of 8 or 16 bits."""
    if np.dtype(dtype) not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise ValueError(f"image: expected uint8 or uint16 pixels, got {dtype}; rescale them to one of the two first")


def to_rgb(pixels: np.ndarray, backdrop: tuple[int, int, int]) -> np.ndarray:
    """Grey, RGB or RGBA of 8 or 16 bits, (h, w) or (h, w, n), as uint8 (h, w, 3)."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype.itemsize == 2:
        pixels = ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:].astype(np.uint32)
        ground = np.asarray(backdrop, dtype=np.uint32)
        pixels = ((pixels[..., :-1] * alpha + ground * (255 - alpha) + 127) // 255).astype(np.uint8)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels)
