"""Open CAM files in napari: a plugin's reader, which needs no napari itself."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ssa_fast.io.cam_files import read_cam
from ssa_fast.io.ome import read_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ssa_fast.io.cam_files import CamFile

Layer: TypeAlias = "tuple[Any, dict[str, Any], str]"  # data, options and kind of a napari layer

COLORMAPS = (
    "magenta",
    "green",
    "cyan",
    "yellow",
    "red",
    "blue",
)  # all black at 0, where additive blending adds nothing
SINGLE = "magma"
PAGE_NAME = 285
PALETTE = 3  # a TIFF's photometric interpretation: that of masks


def get_reader(path: str | Path | Sequence[str | Path]) -> Callable[[Any], list[Layer]] | None:
    """Return ``read_layers`` if all files are CAM files of this project, else None, as napari asks for."""
    paths = _paths(path)
    return read_layers if paths and all(map(_is_own, paths)) else None


def read_layers(path: str | Path | Sequence[str | Path]) -> list[Layer]:
    """Return an image layer per class that lies over the image, and a labels layer per mask.

    The layers' coordinates are the image's pixels: CAMs of a ``.npz`` keep the size that they are stored at, and are
    scaled. Those of a TIFF are read when they are shown, from the pyramid in the file.

    Args:
        path: One or more ``.npz`` files of ``ssa_fast run``, or TIFFs of ``run`` and ``LargeImageSSA``.

    Returns:
        Per layer its data (h, w), or a list of them from fine to coarse, its options and its kind. CAMs are float32 in
        [0, 1] in a ``.npz``, and uint8, 255 times the CAM, in a TIFF.

    Raises:
        ValueError: A file is damaged.
        ModuleNotFoundError: tifffile or zarr is not installed, which TIFFs need.
    """
    return [layer for each in _paths(path) for layer in (_npz if each.suffix.lower() == ".npz" else _tiff)(each)]


def _paths(path: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(path)] if isinstance(path, str | Path) else [Path(each) for each in path]


def _is_own(path: Path) -> bool:
    if path.suffix.lower() == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                return "cams.npy" in archive.namelist()
        except (OSError, zipfile.BadZipFile):
            return False
    tifffile, _ = _libraries()
    try:
        with tifffile.TiffFile(path) as file:
            return bool(file.pages.first.software == "ssa_fast")
    except (OSError, tifffile.TiffFileError):
        return False


def _npz(path: Path) -> list[Layer]:
    cam = read_cam(path, format="ssa")
    scale, translate = _over_image(cam)
    layers = []
    for k, values in enumerate(np.asarray(cam.cams, dtype=np.float32)):
        about = {"image": cam.image, "class": None if cam.classes is None else int(cam.classes[k])}
        name = f"{path.stem} {k}" if cam.names is None else cam.names[k]
        place = {"scale": scale, "translate": translate, "interpolation2d": "linear"}
        layers.append(_cam_layer(values, name, k, len(cam.cams), 1.0, {**about, "settings": cam.settings}, **place))
    return layers


def _over_image(cam: CamFile) -> tuple[list[float], list[float]]:
    """Return scale and translation (y, x) from a CAM's pixels to the image's, as resizing has them.

    The corners of both lie on each other, or with ``align_corners`` the centres of their corner pixels; napari counts
    from the centre of the first pixel.
    """
    shape = cam.cams.shape[1:]
    size = shape if cam.size is None else cam.size
    if cam.align_corners:
        return [(to - 1) / (n - 1) if n > 1 else float(to) for n, to in zip(shape, size, strict=True)], [0.0, 0.0]
    scale = [to / n for n, to in zip(shape, size, strict=True)]
    return scale, [(each - 1) / 2 for each in scale]


def _tiff(path: Path) -> list[Layer]:
    tifffile, zarr = _libraries()
    file = tifffile.TiffFile(path)  # open while napari shows it: its tiles are read when they are needed
    layers = []
    for k, page in enumerate(file.pages):
        levels = [zarr.open(level.aszarr(), mode="r") for level in (page, *(page.pages or ()))]
        data = levels if len(levels) > 1 else levels[0]
        name, about = page.tags.valueof(PAGE_NAME, path.stem), read_metadata(page.description) if k == 0 else {}
        if page.photometric == PALETTE:
            layers.append((data, {"name": f"{path.stem} mask", "opacity": 0.5, "metadata": about}, "labels"))
        else:
            layers.append(_cam_layer(data, name, k, len(file.pages), 255.0, about, multiscale=len(levels) > 1))
    return layers


def _cam_layer(data: Any, name: str, k: int, K: int, most: float, metadata: dict[str, Any], **rest: Any) -> Layer:
    colormap = SINGLE if K == 1 else COLORMAPS[k % len(COLORMAPS)]
    shown = {"colormap": colormap, "contrast_limits": (0.0, most), "blending": "additive", "opacity": 0.7}
    return data, {"name": name, **shown, "metadata": metadata, **rest}, "image"


def _libraries() -> tuple[Any, Any]:
    """Return the modules tifffile and zarr."""
    try:
        import tifffile
        import zarr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"path: TIFFs need {error.name}; pip install 'ssa_fast[large]'", name=error.name
        ) from None
    return tifffile, zarr
