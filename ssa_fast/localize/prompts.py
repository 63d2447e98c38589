"""Boxes and points of class activation maps as prompts for SAM, the segment anything model, and its like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ssa_fast.localize.boxes import find_components, foreground
from ssa_fast.localize.options import PostprocessOptions
from ssa_fast.localize.read import read_cams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    Size = tuple[int, int]

OBJECT, BACKGROUND, NO_POINT = 1, 0, -1  # SAM's labels


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of one image: a box and points for each of n objects, class by class, the largest region first.

    ``len()`` is n. All tensors are on the CPU.

    Attributes:
        boxes: (n, 4) float32 x1 y1 x2 y2 in the image's pixels, x2 and y2 exclusive.
        points: (n, P + N, 2) float32 (x, y): P points on the object, the CAM's maximum first, then N beside it. Whole
            numbers are the centres of pixels, as for SAM.
        labels: (n, P + N) int64: 1 on the object, 0 on the background, -1 for no point, which SAM leaves out: a region
            may have fewer than P pixels.
        k: (n,) int64, the position of each object's class among the K of the CAMs: its name is ``result.names[b][k]``.
    """

    boxes: Tensor
    points: Tensor
    labels: Tensor
    k: Tensor

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.k)

    def segment_anything(self) -> Iterator[dict[str, NDArray[Any] | None]]:
        """Yield, object by object, the arguments of ``SamPredictor.predict``, and of SAM 2's ``SAM2ImagePredictor``.

        They are NumPy arrays: ``point_coords`` (m, 2) and ``point_labels`` (m,), both None if m is 0, and ``box`` (4,).
        """
        for box, points, labels in zip(self.boxes.numpy(), self.points.numpy(), self.labels.numpy(), strict=True):
            given = labels != NO_POINT
            yield {
                "point_coords": points[given] if given.any() else None,
                "point_labels": labels[given] if given.any() else None,
                "box": box,
            }

    def transformers(self) -> dict[str, list[Any]]:
        """Return the prompts as arguments of Hugging Face's ``SamProcessor`` and ``Sam2Processor``, for one image.

        They are nested lists: ``input_boxes`` (1, n, 4) and, if there are points, ``input_points`` (1, n, P + N, 2) and
        ``input_labels`` (1, n, P + N). Images have different numbers of objects, which a processor does not take in one
        call: make one per image.

        Raises:
            ValueError: There is no object; a processor does not take an empty list.
        """
        if not len(self):
            raise ValueError("prompts: expected an object, but no CAM of this image has a region; leave the image out")
        arguments = {"input_boxes": [self.boxes.tolist()]}
        if self.points.shape[1]:
            arguments |= {"input_points": [self.points.tolist()], "input_labels": [self.labels.tolist()]}
        return arguments


def prompts(
    cams: Tensor,
    options: PostprocessOptions | None = None,
    *,
    points: int = 1,
    negative: int = 0,
    size: Size | Sequence[Size] | None = None,
    **overrides: Any,
) -> list[Prompts]:
    """Return a box and points for each object that ``boxes`` finds, per image.

    The points on an object are pixels of its region: the CAM's maximum, then the next largest values, each outside
    squares around those before. The squares' area is at most the region's by the number of points, so there are as many
    points as asked for unless the region has fewer pixels, and they do not crowd around the maximum. Those beside it
    are, likewise, where the CAM of its class is lowest outside the box, and not above the box's threshold.

    Args:
        cams: (B, K, H, W), (K, H, W) or (H, W), floating.
        options: ``box_threshold`` and ``components``, as in ``boxes``.
        points: Points on each object, P >= 0; with 0 there are boxes alone.
        negative: Points beside each object, N >= 0. SAM takes them as background; an object that another class marks
            may be among them.
        size: (H, W) of the images that the prompts are for, or one per image; default: the CAMs' own size.
        **overrides: Single fields of the options, for example ``components="all"``.

    Returns:
        Per image the prompts of all classes; a class without a region has none.

    Raises:
        TypeError: ``cams`` is not a floating-point tensor, or an argument has another type.
        ValueError: ``cams`` has another rank, or an argument is out of range.
    """
    maps = read_cams(cams).numpy()
    options = replace(options or PostprocessOptions(), **overrides)
    for argument, count in (("points", points), ("negative", negative)):
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{argument}: expected a whole number, got {type(count).__name__}; pass an int")
        if count < 0:
            raise ValueError(f"{argument}: expected a number >= 0, got {count}; 0 means none")
    sizes = _sizes(size, len(maps), maps.shape[2:])
    return [_of_image(image, options, points, negative, each) for image, each in zip(maps, sizes, strict=True)]


def _of_image(
    image: NDArray[np.float32], options: PostprocessOptions, points: int, negative: int, size: Size
) -> Prompts:
    """Return the prompts of CAMs (K, h, w), rescaled to ``size``."""
    boxes: list[NDArray[np.int64]] = []
    pixels: list[NDArray[np.float64]] = []  # per object (P + N, 2), NaN for no point
    classes: list[int] = []
    for k, plane in enumerate(image):
        above = foreground(plane, options)
        labels, numbers, corners = find_components(above, options.components)
        for number, (x1, y1, x2, y2) in zip(numbers, corners, strict=True):
            window = np.s_[y1:y2, x1:x2]
            found = np.full((points + negative, 2), np.nan)
            on = _spread(plane[window], labels[window] == number, points)
            found[: len(on)] = on + np.array([x1, y1])
            if negative:
                beside = ~above
                beside[window] = False
                off = _spread(-plane, beside, negative)
                found[points : points + len(off)] = off
            pixels.append(found)
        boxes.append(corners)
        classes += [k] * len(numbers)

    scale = np.array([size[1] / image.shape[2], size[0] / image.shape[1]])
    unscaled = np.array(pixels).reshape(len(pixels), points + negative, 2)
    centres = (unscaled + 0.5) * scale - 0.5  # centres of pixels stay centres
    labels = np.where(np.isnan(centres[..., 0]), NO_POINT, np.repeat((OBJECT, BACKGROUND), (points, negative)))
    return Prompts(
        boxes=torch.from_numpy(np.concatenate(boxes) * np.tile(scale, 2)).float(),
        points=torch.from_numpy(np.nan_to_num(centres)).float(),
        labels=torch.from_numpy(labels),
        k=torch.tensor(classes, dtype=torch.int64),
    )


def _spread(values: NDArray[np.float32], allowed: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Return up to ``count`` allowed pixels (n, 2) x y, largest value first, each outside squares around those before.

    A square has ``(2·reach - 1)²`` pixels, at most a ``count``-th of the allowed ones: something is left for each.
    """
    area = int(np.count_nonzero(allowed))
    found = np.zeros((min(count, area), 2), dtype=np.int64)
    reach = max(1, (math.isqrt(area // max(1, count)) + 1) // 2)
    left = np.where(allowed, values, -np.inf)
    for pixel in found:
        y, x = np.unravel_index(left.argmax(), left.shape)
        pixel[:] = x, y
        left[max(0, y - reach + 1) : y + reach, max(0, x - reach + 1) : x + reach] = -np.inf
    return found


def _sizes(size: Size | Sequence[Size] | None, B: int, own: tuple[int, ...]) -> list[Size]:
    """Return (H, W) per image."""
    if size is None:
        return [(own[0], own[1])] * B
    sides = np.asarray(size) if isinstance(size, Sequence) else np.zeros(0)
    if sides.dtype.kind not in "iu" or sides.shape not in ((2,), (B, 2)) or sides.min() < 1:
        raise ValueError(f"size: expected (H, W) in pixels, or one for each of {B} images, got {size!r}")
    return [(int(height), int(width)) for height, width in np.broadcast_to(sides, (B, 2))]
