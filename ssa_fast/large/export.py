"""Write the outputs of a large image: CAMs, mask and preview; find its boxes on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from ssa_fast import localize
from ssa_fast.io import pyramid
from ssa_fast.io.atomic import Transaction
from ssa_fast.large.resample import Window
from ssa_fast.localize.masks import IGNORE, voc_palette
from ssa_fast.localize.panels import heat, side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ssa_fast.io.readers import WindowReader
    from ssa_fast.large.disk_map import FusedMap
    from ssa_fast.localize import PostprocessOptions

BOX_SIDE = 4096  # boxes are found on a map no larger than this, so that it fits in memory
PREVIEW_SIDE = 1024
STRIP = 16 << 20  # pixels of all classes together whose labels are computed at once
MASK_OPACITY = 0.55


@dataclass(frozen=True)
class OutputPaths:
    """The files of one large image.

    Attributes:
        cams: ``.tif`` (tiled BigTIFF with a pyramid, a page per class) or ``.zarr``; (K, H, W) uint8, 255 ·
            CAM.
        mask: As ``cams``; labels (H, W) uint8.
        preview: A PNG of image, heat map and mask.
    """

    cams: Path
    mask: Path
    preview: Path

    @classmethod
    def beside(cls, cams: str | Path) -> OutputPaths:
        """Return ``NAME.tif``, ``NAME.mask.tif`` and ``NAME.preview.png`` for ``cams`` (or ``.zarr``).

        Raises:
            ValueError: Another suffix.
        """
        cams = Path(cams)
        if cams.suffix.lower() not in (".tif", ".tiff", ".zarr"):
            raise ValueError(f"out: expected a name that ends in .tif or .zarr, got {cams.name!r}")
        return cls(cams, cams.with_name(f"{cams.stem}.mask{cams.suffix}"), cams.with_name(f"{cams.stem}.preview.png"))

    def check(self, image: object, overwrite: bool) -> None:
        """Raise ValueError if a file is the image's own, or exists and must not be overwritten."""
        existing = [path for path in (self.cams, self.mask, self.preview) if path.exists()]
        if isinstance(image, str | Path) and any(path.samefile(image) for path in existing):
            raise ValueError(f"out: expected another name than the image's, got {image}")
        if existing and not overwrite:
            raise ValueError(f"out: {existing[0]} exists; pass overwrite=True, or another name")


def names_and_labels(
    classes: Sequence[int], names: Sequence[str] | None, labels: Sequence[int] | None
) -> tuple[list[str], list[int]]:
    """Return the names and mask labels of the selected classes, from those of all model outputs.

    Raises:
        ValueError: Too many classes for a mask, or labels outside 1 to 254.
    """
    if len(classes) >= IGNORE:
        raise ValueError(
            f"classes: expected at most 254, as 255 means unsure in the mask, got {len(classes)}; take fewer"
        )
    chosen_names = [f"class {index}" if names is None else names[index] for index in classes]
    chosen = list(range(1, len(classes) + 1)) if labels is None else [int(labels[index]) for index in classes]
    if not all(1 <= label < IGNORE for label in chosen):
        raise ValueError(f"labels: expected numbers from 1 to 254, got {chosen}")
    return chosen_names, chosen


def write_outputs(
    fused: FusedMap,
    reader: WindowReader,
    paths: OutputPaths,
    *,
    names: list[str],
    labels: list[int],
    metadata: dict[str, Any],
    postprocess: PostprocessOptions,
    report: Callable[[int, int], None],
) -> tuple[list[Tensor], int]:
    """Write the three files, all of them or none, replacing what is there.

    Returns:
        Boxes per class, (n, 4) float32 x1 y1 x2 y2, and the pixels to which they are exact.
    """
    H, W = fused.size
    K = len(names)
    image = Image.fromarray(pyramid.thumbnail(reader, PREVIEW_SIDE))
    reduced = _ReducedCams(K, fused.size, (image.height, image.width), postprocess)
    table = np.arange(256, dtype=np.uint8)
    table[1 : K + 1] = labels

    def cam_window(k: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        values = _to_uint8(fused.cam(Window(y0, y1, x0, x1), slice(k, k + 1)))[0]
        reduced.add(k, values, y0, x0)
        return values

    def mask_window(_: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        def rows(lo: int, hi: int) -> np.ndarray:
            return _to_uint8(fused.cam(Window(y0 + lo, y0 + hi, x0, x1)))

        return table[_label_map(rows, (K, y1 - y0, x1 - x0), postprocess)]

    def part(first: int, count: int) -> Callable[[int, int], None]:
        return lambda done, total: report(round(1000 * (first + count * done / total)), 1000 * (K + 1))

    cam_options: dict[str, Any] = {"shape": (K, H, W), "names": names, "metadata": metadata, "watch": part(0, K)}
    mask_options: dict[str, Any] = {"shape": (1, H, W), "names": ["mask"], "metadata": metadata, "watch": part(K, 1)}
    mask_options |= {"kind": "mask", "palette": voc_palette()}

    def write_preview(path: Path) -> None:
        reduced.finish_class()
        _preview(image, reduced.previews, postprocess, table).save(path, format="PNG", optimize=True)

    Transaction(
        {
            paths.cams: lambda path: pyramid.write(path, cam_window, **cam_options),
            paths.mask: lambda path: pyramid.write(path, mask_window, **mask_options),
            paths.preview: write_preview,
        }
    ).commit()
    return reduced.boxes, reduced.factor


class _ReducedCams:
    """Reduced CAMs, collected while the windows are written, for the boxes and the preview.

    Blocks of ``factor`` × ``factor`` pixels keep their maximum, so that no region is lost.
    """

    def __init__(
        self, K: int, size: tuple[int, int], preview: tuple[int, int], postprocess: PostprocessOptions
    ) -> None:
        self.postprocess, self.size, self.factor = postprocess, size, 1
        while max(size) > BOX_SIDE * self.factor:
            self.factor *= 2
        self.plane = np.zeros([-(-side // self.factor) for side in size], dtype=np.uint8)  # of the current class
        self.previews = np.zeros((K, *preview), dtype=np.uint8)
        self.boxes: list[Tensor] = []

    def add(self, k: int, values: np.ndarray, y0: int, x0: int) -> None:
        """Add a window of class ``k``; classes come one after the other."""
        if k > len(self.boxes):
            self.finish_class()
        factor = self.factor
        h, w = (-(-side // factor) for side in values.shape)
        padded = np.zeros((h * factor, w * factor), dtype=np.uint8)
        padded[: values.shape[0], : values.shape[1]] = values
        maxima = padded.reshape(h, factor, w, factor).max(axis=(1, 3))
        self.plane[y0 // factor : y0 // factor + h, x0 // factor : x0 // factor + w] = maxima

    def finish_class(self) -> None:
        """Find the boxes and draw the preview of the class whose windows are complete."""
        H, W = self.size
        plane = torch.from_numpy(self.plane).float() / 255.0
        found = localize.boxes(plane, self.postprocess)[0][0]
        limit = torch.tensor([W, H, W, H], dtype=torch.float32)
        small = interpolate(plane[None, None], self.previews.shape[1:], mode="area")[0]
        self.previews[len(self.boxes)] = _to_uint8(small)[0]
        self.boxes.append(torch.minimum(found * self.factor, limit))


def _to_uint8(cam: Tensor) -> np.ndarray:
    values: np.ndarray = (cam * 255.0).round_().to(torch.uint8).numpy()
    return values


def _label_map(
    rows: Callable[[int, int], np.ndarray], shape: tuple[int, int, int], postprocess: PostprocessOptions
) -> np.ndarray:
    """Return ``localize.masks`` (h, w) of uint8 CAMs (K, h, w), read in strips by ``rows(lo, hi)``."""
    K, h, w = shape
    labels = np.empty((h, w), dtype=np.uint8)
    count = max(1, STRIP // (K * w))
    for lo in range(0, h, count):
        maps = torch.from_numpy(rows(lo, min(lo + count, h))).float() / 255.0
        labels[lo : lo + count] = localize.masks(maps, postprocess)[0]
    return labels


def _preview(image: Image.Image, cams: np.ndarray, postprocess: PostprocessOptions, table: np.ndarray) -> Image.Image:
    """Draw the image, the strongest class's heat map, and the mask side by side."""
    labels = table[_label_map(lambda lo, hi: cams[:, lo:hi], cams.shape, postprocess)]
    colours = np.array(voc_palette(), dtype=np.uint8).reshape(256, 3)
    painted = Image.blend(image, Image.fromarray(colours[labels]), MASK_OPACITY)
    strongest = torch.from_numpy(cams.max(axis=0)).float() / 255.0
    return side_by_side([image, heat(image, strongest), painted])
