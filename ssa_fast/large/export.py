"""Write the outputs of a large image: CAMs, mask and preview; find its boxes on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate, max_pool2d

from ssa_fast import localize
from ssa_fast.io import pyramid
from ssa_fast.io.atomic import Transaction
from ssa_fast.large.resample import Window
from ssa_fast.localize.drawing import paint, side_by_side
from ssa_fast.localize.masks import IGNORE, voc_palette

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ssa_fast.io.placement import Placement
    from ssa_fast.io.progress import OnProgress
    from ssa_fast.io.readers import WindowReader
    from ssa_fast.large.disk_map import FusedMap
    from ssa_fast.localize import PostprocessOptions

BOX_SIDE = 4096  # boxes are found on a map no larger than this, so that it fits in memory
PREVIEW_SIDE = 1024
STRIP = 16 << 20  # pixels of all classes together whose labels are computed at once


@dataclass(frozen=True)
class OutputPaths:
    """The files of one large image: CAMs, mask and preview (a PNG of image, heat map and mask).

    CAMs (K, H, W), 255 · CAM, and the mask's labels (H, W) are uint8, in ``.tif`` (tiled BigTIFF with a pyramid, a page
    per class) or ``.zarr``.
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
    """Return the names and mask labels of the selected classes, from those of all model outputs."""
    if len(classes) >= IGNORE:
        raise ValueError(
            f"classes: expected at most 254, as 255 means unsure in the mask, got {len(classes)}; take fewer"
        )
    chosen_names = [f"class {index}" if names is None else names[index] for index in classes]
    chosen = list(range(1, len(classes) + 1)) if labels is None else [int(labels[index]) for index in classes]
    if not all(1 <= label < IGNORE for label in chosen):
        raise ValueError(f"labels: expected numbers from 1 to 254, got {chosen}")
    return chosen_names, chosen


def lost_in(cams: Path, placement: Placement) -> tuple[str, ...]:
    """Return a note if the file's format has no place for a georeference."""
    if cams.suffix.lower() != ".zarr" or not placement.geo:
        return ()
    return ("OME-Zarr has no georeference: its tags are in the attribute ssa_fast; write .tif for QGIS.",)


def write_outputs(
    fused: FusedMap,
    reader: WindowReader,
    paths: OutputPaths,
    *,
    names: list[str],
    labels: list[int],
    metadata: dict[str, Any],
    placement: Placement,
    postprocess: PostprocessOptions,
    report: Callable[[int, int], None],
) -> tuple[list[Tensor], int, float | None]:
    """Write the three files or none; return boxes (n, 4) per class, the pixels to which they are exact, and the score.

    The score is the mask's background; one of "auto" is that of the preview, which is complete before the mask.
    """
    H, W = fused.size
    K = len(names)
    image = Image.fromarray(pyramid.thumbnail(reader, PREVIEW_SIDE))
    reduced = _ReducedCams(K, fused.size, (image.height, image.width), postprocess)
    described: dict[str, Any] = {"metadata": metadata, "placement": placement}
    table = np.arange(256, dtype=np.uint8)
    table[1 : K + 1] = labels

    def cam_window(k: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        values = _to_uint8(fused.cam(Window(y0, y1, x0, x1), slice(k, k + 1)))
        reduced.add(k, values, y0, x0)
        return values[0].numpy()

    def mask_window(_: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        def rows(lo: int, hi: int) -> Tensor:
            return _to_uint8(fused.cam(Window(y0 + lo, y0 + hi, x0, x1)))

        return table[_label_map(rows, (K, y1 - y0, x1 - x0), reduced.options)]

    def on_progress(first: int, count: int) -> OnProgress:
        return lambda step: report(round(1000 * (first + count * step.done / step.total)), 1000 * (K + 1))

    def write_cams(path: Path) -> None:
        pyramid.write(path, cam_window, shape=(K, H, W), names=names, on_progress=on_progress(0, K), **described)
        reduced.finish()

    def write_mask(path: Path) -> None:
        options: dict[str, Any] = {"kind": "mask", "palette": voc_palette(), **described}
        pyramid.write(path, mask_window, shape=(1, H, W), names=["mask"], on_progress=on_progress(K, 1), **options)

    def write_preview(path: Path) -> None:
        cams = reduced.previews
        labels = table[_label_map(lambda lo, hi: cams[:, lo:hi], cams.shape, reduced.options)]
        strongest = localize.overlay(image, cams.amax(dim=0) / 255.0)
        painted = paint(image, labels, np.array(voc_palette(), dtype=np.uint8).reshape(256, 3))
        side_by_side([image, strongest, painted]).save(path, format="PNG", optimize=True)

    Transaction({paths.cams: write_cams, paths.mask: write_mask, paths.preview: write_preview}).commit()
    return reduced.boxes, reduced.factor, reduced.background


class _ReducedCams:
    """CAMs reduced by the maximum of blocks of ``factor``² pixels while they are written, for boxes and preview."""

    def __init__(self, K: int, size: tuple[int, int], preview: tuple[int, int], options: PostprocessOptions) -> None:
        self.options, self.size, self.factor = options, size, 1
        while max(size) > BOX_SIDE * self.factor:
            self.factor *= 2
        self.plane = torch.zeros([-(-side // self.factor) for side in size])  # of the current class
        self.previews = torch.zeros((K, *preview), dtype=torch.uint8)
        self.boxes: list[Tensor] = []
        self.background: float | None = None  # of the mask, known at the end

    def add(self, k: int, values: Tensor, y0: int, x0: int) -> None:
        """Add a window ``(1, h, w)`` of class ``k``; classes come one after the other."""
        if k > len(self.boxes):
            self.finish_class()
        maxima = max_pool2d(values / 255.0, self.factor, ceil_mode=True)[0]
        y, x = y0 // self.factor, x0 // self.factor
        self.plane[y : y + maxima.shape[0], x : x + maxima.shape[1]] = maxima

    def finish_class(self) -> None:
        """Find the boxes and draw the preview of the class whose windows are complete."""
        H, W = self.size
        found = localize.boxes(self.plane, self.options)[0][0]
        small = interpolate(self.plane[None, None], self.previews.shape[1:], mode="area")[0, 0]
        self.previews[len(self.boxes)] = _to_uint8(small)
        self.boxes.append(torch.minimum(found * self.factor, torch.tensor([W, H, W, H])))

    def finish(self) -> None:
        """Finish the last class, and take the mask's background score from the previews if it is "auto"."""
        self.finish_class()
        self.background = localize.background_of(self.previews / 255.0, self.options)
        self.options = self.options.with_background(self.background)


def _to_uint8(cam: Tensor) -> Tensor:
    return (cam * 255.0).round_().to(torch.uint8)


def _label_map(rows: Callable[[int, int], Tensor], shape: Sequence[int], postprocess: PostprocessOptions) -> np.ndarray:
    """Return ``localize.masks`` (h, w) of uint8 CAMs (K, h, w), read in strips by ``rows(lo, hi)``."""
    K, h, w = shape
    step = max(1, STRIP // (K * w))
    strips = [localize.masks(rows(lo, min(lo + step, h)) / 255.0, postprocess)[0] for lo in range(0, h, step)]
    return torch.cat(strips).numpy()
