"""What a large image leaves on disk: its CAMs and its mask in windows, and a picture to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from ssa_fast import localize
from ssa_fast.large import writers
from ssa_fast.large.windows import Window
from ssa_fast.localize.masks import voc_palette
from ssa_fast.localize.overlay import heat
from ssa_fast.outputs import stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from ssa_fast.large.maps import Fused
    from ssa_fast.large.readers import Reader

BOX_SIDE = 4096  # boxes are found on a map no larger than this, so that it fits in memory
PREVIEW_SIDE = 1024
GAP = 8
REGION = 0.55


@dataclass(frozen=True)
class Look:
    """How CAMs become a mask and boxes, and what they are called.

    Attributes:
        background, alpha, ignore: of the mask, see ``localize.masks``.
        box_threshold, components: of the boxes, see ``localize.boxes``.
        labels: the classes' values in the mask, from their indices; default 1 to K.
        names: the classes' names, from their indices.
        metadata: goes into the files, as JSON.
    """

    background: float | None = None
    alpha: float | None = None
    ignore: float | None = None
    box_threshold: float = 0.2
    components: Literal["largest", "all"] = "largest"
    labels: Callable[[list[int]], Sequence[int]] = lambda classes: range(1, len(classes) + 1)
    names: Callable[[list[int]], Sequence[str]] = lambda classes: [f"class {index}" for index in classes]
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Written:
    """The boxes found on the way, per class (n, 4), and to how many pixels they are right."""

    boxes: list[Tensor]
    box_precision: int


def write(
    fused: Fused,
    reader: Reader,
    classes: list[int],
    *,
    cams: Path,
    mask: Path,
    preview: Path,
    look: Look,
    watch: Callable[[int, int], None],
) -> Written:
    """Write the three files, all of them or none; CAMs as 255 times their value, rounded."""
    H, W = fused.size
    K = len(classes)
    names, labels = list(look.names(classes)), list(look.labels(classes))
    factor = 1
    while max(H, W) > BOX_SIDE * factor:
        factor *= 2
    small = np.zeros((K, -(-H // factor), -(-W // factor)), dtype=np.uint8)

    def cam_window(k: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        values = _eight_bits(fused.cam(Window(y0, y1, x0, x1), slice(k, k + 1)))[0]
        _shrink_into(small[k], values, y0, x0, factor)
        return values

    table = np.arange(256, dtype=np.uint8)
    table[1 : K + 1] = labels

    def mask_window(_: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        values = torch.from_numpy(_eight_bits(fused.cam(Window(y0, y1, x0, x1)))).float() / 255.0
        found = localize.masks(values[None], look.background, alpha=look.alpha, ignore=look.ignore)[0].numpy()
        relabelled: np.ndarray = table[found]
        return relabelled

    planes = K + 1

    def part(first: int, count: int) -> Callable[[int, int], None]:
        return lambda through, total: watch(round(1000 * (first + count * through / total)), 1000 * planes)

    content = {**(look.metadata or {}), "classes": classes, "names": names, "labels": labels}
    staged = stage(
        {
            cams: lambda path: writers.write(
                path, cam_window, shape=(K, H, W), names=names, metadata=content, watch=part(0, K)
            ),
            mask: lambda path: writers.write(
                path,
                mask_window,
                shape=(1, H, W),
                names=["mask"],
                kind="mask",
                palette=voc_palette(),
                metadata=content,
                watch=part(K, 1),
            ),
            preview: lambda path: _preview(path, reader, small, look, labels),
        }
    )
    staged.place()
    watch(1000 * planes, 1000 * planes)
    reduced = torch.from_numpy(small).float() / 255.0
    found = localize.boxes(reduced, look.box_threshold, look.components)[0]
    limit = torch.tensor([W, H, W, H], dtype=torch.float32)
    return Written([torch.minimum(each * factor, limit) for each in found], factor)


def _eight_bits(cam: Tensor) -> np.ndarray:
    values: np.ndarray = (cam * 255.0).round_().to(torch.uint8).numpy()
    return values


def _shrink_into(small: np.ndarray, values: np.ndarray, y0: int, x0: int, factor: int) -> None:
    """The maxima of blocks of ``factor`` pixels, so that no region is lost."""
    h, w = (-(-side // factor) for side in values.shape)
    padded = np.zeros((h * factor, w * factor), dtype=np.uint8)
    padded[: values.shape[0], : values.shape[1]] = values
    maxima = padded.reshape(h, factor, w, factor).max(axis=(1, 3))
    small[y0 // factor : y0 // factor + h, x0 // factor : x0 // factor + w] = maxima


def _preview(path: Path, reader: Reader, small: np.ndarray, look: Look, labels: list[int]) -> None:
    """Side by side: the picture, the strongest class's heat, and the mask."""
    picture = Image.fromarray(writers.thumbnail(reader, PREVIEW_SIDE))
    size = (picture.height, picture.width)
    maps = interpolate(torch.from_numpy(small)[None].float() / 255.0, size, mode="area")[0]
    found = localize.masks(maps[None], look.background, alpha=look.alpha, ignore=look.ignore)[0].numpy()
    colours = np.array(voc_palette(), dtype=np.uint8).reshape(256, 3)
    table = np.arange(256)
    table[1 : len(labels) + 1] = labels
    painted = Image.blend(picture, Image.fromarray(colours[table[found]]), REGION)
    parts = [picture, heat(picture, maps.amax(dim=0)), painted]
    sheet = Image.new("RGB", (3 * picture.width + 2 * GAP, picture.height), (255, 255, 255))
    for n, each in enumerate(parts):
        sheet.paste(each, (n * (picture.width + GAP), 0))
    sheet.save(path, format="PNG", optimize=True)
