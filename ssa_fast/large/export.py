"""What a large image leaves on disk: its CAMs and its mask in windows, and a picture to look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from ssa_fast import localize
from ssa_fast.io import pyramid
from ssa_fast.io.atomic import Transaction
from ssa_fast.large.resample import Window
from ssa_fast.localize.masks import IGNORE, voc_palette
from ssa_fast.localize.overlay import heat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from ssa_fast.io.progress import OnProgress, Progress
    from ssa_fast.io.readers import WindowReader
    from ssa_fast.large.disk_map import Fused

BOX_SIDE = 4096  # boxes are found on a map no larger than this, so that it fits in memory
PREVIEW_SIDE = 1024
STRIP = 16 << 20  # pixels of all classes together whose labels are found at once
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

    def __post_init__(self) -> None:
        dry = torch.zeros(1, 1)  # wrong options are told before any work
        localize.masks(dry, background=self.background, alpha=self.alpha, ignore=self.ignore)
        localize.boxes(dry, box_threshold=self.box_threshold, components=self.components)
        json.dumps(self.metadata)

    def called(self, classes: list[int]) -> tuple[list[str], list[int]]:
        """The classes' names and labels.

        Raises:
            ValueError: too many classes for a mask, other than one name and one label each, labels beyond 1 to 254.
        """
        K = len(classes)
        if K >= IGNORE:
            raise ValueError(f"classes: expected at most 254, as 255 means unsure in the mask, got {K}; take fewer")
        names, labels = list(self.names(classes)), [int(label) for label in self.labels(classes)]
        if len(names) != K or len(labels) != K:
            raise ValueError(f"look: expected {K} names and labels, got {len(names)} and {len(labels)}")
        if not all(1 <= label < IGNORE for label in labels):
            raise ValueError(f"look: expected labels from 1 to 254, got {labels}")
        return names, labels


@dataclass(frozen=True, eq=False)
class Written:
    """The boxes found on the way, per class (n, 4), and to how many pixels they are right."""

    boxes: list[Tensor]
    box_precision: int


def write(
    fused: Fused,
    reader: WindowReader,
    classes: list[int],
    names: list[str],
    labels: list[int],
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
    picture = Image.fromarray(pyramid.thumbnail(reader, PREVIEW_SIDE))
    reduced = _Reduced(K, fused.size, (picture.height, picture.width), look)
    table = np.arange(256, dtype=np.uint8)
    table[1 : K + 1] = labels

    def cam_window(k: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        values = _eight_bits(fused.cam(Window(y0, y1, x0, x1), slice(k, k + 1)))[0]
        reduced.add(k, values, y0, x0)
        return values

    def mask_window(_: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        def rows(lo: int, hi: int) -> np.ndarray:
            return _eight_bits(fused.cam(Window(y0 + lo, y0 + hi, x0, x1)))

        return table[_labelled(rows, (K, y1 - y0, x1 - x0), look)]

    def part(first: int, count: int) -> OnProgress:
        def report(progress: Progress) -> None:
            watch(round(1000 * (first + count * progress.done / progress.total)), 1000 * (K + 1))

        return report

    common: dict[str, Any] = {
        "metadata": {**(look.metadata or {}), "classes": classes, "names": names, "labels": labels}
    }
    masks: dict[str, Any] = {"names": ["mask"], "kind": "mask", "palette": voc_palette()}

    def draw(path: Path) -> None:
        reduced.finish()
        _preview(picture, reduced.planes, look, table).save(path, format="PNG", optimize=True)

    Transaction(
        {
            cams: lambda path: pyramid.write(
                path, cam_window, shape=(K, H, W), names=names, on_progress=part(0, K), **common
            ),
            mask: lambda path: pyramid.write(
                path, mask_window, shape=(1, H, W), on_progress=part(K, 1), **masks, **common
            ),
            preview: draw,
        }
    ).commit()
    return Written(reduced.boxes, reduced.factor)


class _Reduced:
    """Each class's CAM in small, of which one is held while its windows are written: its boxes, and its preview.

    Blocks of ``factor`` pixels keep their maximum, so that no region is lost.
    """

    def __init__(self, K: int, size: tuple[int, int], preview: tuple[int, int], look: Look) -> None:
        self.look, self.size, self.factor = look, size, 1
        while max(size) > BOX_SIDE * self.factor:
            self.factor *= 2
        self.plane = np.zeros([-(-side // self.factor) for side in size], dtype=np.uint8)
        self.planes = np.zeros((K, *preview), dtype=np.uint8)
        self.boxes: list[Tensor] = []

    def add(self, k: int, values: np.ndarray, y0: int, x0: int) -> None:
        """A window of class ``k``; classes come one after the other."""
        if k > len(self.boxes):
            self.finish()
        factor = self.factor
        h, w = (-(-side // factor) for side in values.shape)
        padded = np.zeros((h * factor, w * factor), dtype=np.uint8)
        padded[: values.shape[0], : values.shape[1]] = values
        maxima = padded.reshape(h, factor, w, factor).max(axis=(1, 3))
        self.plane[y0 // factor : y0 // factor + h, x0 // factor : x0 // factor + w] = maxima

    def finish(self) -> None:
        """The class at hand is whole."""
        H, W = self.size
        plane = torch.from_numpy(self.plane).float() / 255.0
        found = localize.boxes(plane, box_threshold=self.look.box_threshold, components=self.look.components)[0][0]
        limit = torch.tensor([W, H, W, H], dtype=torch.float32)
        small = interpolate(plane[None, None], self.planes.shape[1:], mode="area")[0]
        self.planes[len(self.boxes)] = _eight_bits(small)[0]
        self.boxes.append(torch.minimum(found * self.factor, limit))


def _eight_bits(cam: Tensor) -> np.ndarray:
    values: np.ndarray = (cam * 255.0).round_().to(torch.uint8).numpy()
    return values


def _labelled(rows: Callable[[int, int], np.ndarray], shape: tuple[int, int, int], look: Look) -> np.ndarray:
    """``localize.masks`` (h, w) of CAMs (K, h, w) uint8, of which ``rows(lo, hi)`` gives few at once."""
    K, h, w = shape
    found = np.empty((h, w), dtype=np.uint8)
    count = max(1, STRIP // (K * w))
    for lo in range(0, h, count):
        maps = torch.from_numpy(rows(lo, min(lo + count, h))).float() / 255.0
        found[lo : lo + count] = localize.masks(maps, background=look.background, alpha=look.alpha, ignore=look.ignore)[
            0
        ]
    return found


def _preview(picture: Image.Image, planes: np.ndarray, look: Look, table: np.ndarray) -> Image.Image:
    """Side by side: the picture, the strongest class's heat, and the mask."""
    labels = table[_labelled(lambda lo, hi: planes[:, lo:hi], planes.shape, look)]
    colours = np.array(voc_palette(), dtype=np.uint8).reshape(256, 3)
    painted = Image.blend(picture, Image.fromarray(colours[labels]), REGION)
    parts = [picture, heat(picture, torch.from_numpy(planes.max(axis=0)).float() / 255.0), painted]
    sheet = Image.new("RGB", (3 * picture.width + 2 * GAP, picture.height), (255, 255, 255))
    for n, each in enumerate(parts):
        sheet.paste(each, (n * (picture.width + GAP), 0))
    return sheet
