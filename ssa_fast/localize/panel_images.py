"""Draw an image beside its seed, its polished CAMs, its boxes and its mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ssa_fast.localize import drawing
from ssa_fast.localize.boxes import box_scores, boxes
from ssa_fast.localize.masks import masks, voc_palette
from ssa_fast.localize.options import PostprocessOptions
from ssa_fast.localize.overlay import overlay
from ssa_fast.localize.read import check_pixels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, eq=False)
class PanelRow:
    """One class of one image, ready to be drawn.

    Attributes:
        label: The class's name.
        maps: Title -> map (h, w) in [0, 1] at any size, drawn between the image and the fused CAM.
        fused: The fused CAM (h, w) in [0, 1].
        boxes, scores: (n, 4) in the fused CAM's pixels, and (n,).
        region: (H, W) bool, the class's part of the mask.
        colour: The region's colour, RGB.
    """

    label: str
    maps: Mapping[str, Tensor]
    fused: Tensor
    boxes: Tensor
    scores: Tensor
    region: Tensor
    colour: Sequence[int]


def panels(
    images: Tensor,
    cams: Tensor,
    *,
    seed: Tensor | None = None,
    stages: Mapping[str, Tensor] | None = None,
    classes: Tensor | None = None,
    valid: Tensor | None = None,
    names: Sequence[str] | None = None,
    options: PostprocessOptions | None = None,
    **overrides: Any,
) -> list[Image.Image]:
    """Return a panel per image: image, seed, stages, fused CAM, boxes and mask; one row per class.

    Args:
        images: (B, 3, H, W) or (B, 1, H, W), floating, in [0, 1]: the images before normalisation.
        cams: (B, K, h, w) in [0, 1], the fused CAMs.
        seed: (B, K, h, w) in [0, 1] at any size, the CAMs before polishing; not drawn without it.
        stages: Stage name -> (B, K, h, w) in [0, 1] at any size, the polished CAMs per stage.
        classes: (B, K) integers, the class of each CAM, -1 if unknown; default 0 to K - 1.
        valid: (B, K) bool, False for CAMs that get no row; default all True.
        names: A name per output of the model; class numbers are drawn without them.
        options: Of the boxes and the mask; default ``PostprocessOptions(components="all")``.
        **overrides: Single fields of the options, for example ``box_threshold=0.3, background=0.4``.

    Raises:
        TypeError: ``images`` is not a floating-point tensor, or an option has another type.
        ValueError: ``images`` has another shape or range, there are too few names, or an option is out of range.
    """
    if classes is None:
        classes = torch.arange(cams.shape[1]).expand(len(cams), -1)
    shown = torch.ones_like(classes, dtype=torch.bool) if valid is None else valid
    _check(images, cams, classes, names)
    options = replace(options or PostprocessOptions(components="all"), **overrides)
    found, labels = boxes(cams, options), masks(cams, options)
    scores = box_scores(cams, found)
    maps = {**({} if seed is None else {"seed": seed}), **(stages or {})}
    palette, drawn = voc_palette(), []
    for b, image in enumerate(images.detach().float().cpu().clamp(0, 1)):
        rows = [
            PanelRow(
                label=_label(k, index, names),
                maps={title: values[b, k] for title, values in maps.items()},
                fused=cams[b, k],
                boxes=found[b][k],
                scores=scores[b][k],
                region=labels[b] == k + 1,
                colour=palette[3 * k + 3 : 3 * k + 6],
            )
            for k, index in enumerate(classes[b].tolist())
            if shown[b, k]
        ]
        drawn.append(panel(image, rows or [_empty_row(maps, cams[b, 0])]))
    return drawn


def _label(k: int, index: int, names: Sequence[str] | None) -> str:
    if index < 0:
        return f"map {k}"
    return f"class {index}" if names is None else f"{names[index]} ({index})"


def _empty_row(maps: Mapping[str, Tensor], cam: Tensor) -> PanelRow:
    """Return the row of an image without classes: zeros everywhere, no box and no region."""
    zeros = torch.zeros_like(cam)
    boxes, scores, region = torch.zeros(0, 4), torch.zeros(0), torch.zeros_like(zeros, dtype=torch.bool)
    return PanelRow("no class", dict.fromkeys(maps, zeros), zeros, boxes, scores, region, drawing.PAPER)


def panel(image: Tensor, rows: Sequence[PanelRow]) -> Image.Image:
    """Return the panel of one image, (3, H, W) or (1, H, W) in [0, 1], with one row of cells per class."""
    pixels = (image.expand(3, -1, -1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    background = drawing.fit(Image.fromarray(pixels))

    def cells(row: PanelRow) -> list[Image.Image]:
        cams = [overlay(background, cam.detach()) for cam in (*row.maps.values(), row.fused)]
        colours = np.array([drawing.INK, row.colour], dtype=np.uint8)
        mask = drawing.paint(background, row.region.cpu().numpy().astype(int), colours)
        return [background, *cams, _draw_boxes(background, row), mask]

    titles = ["image", *rows[0].maps, "fused", "boxes", "mask"]
    return drawing.sheet(titles, [cells(row) for row in rows], [row.label for row in rows])


def _draw_boxes(image: Image.Image, row: PanelRow) -> Image.Image:
    drawn = image.copy()
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(11)
    height, width = row.fused.shape
    scale = torch.tensor([drawn.width / width, drawn.height / height] * 2)
    corners = (row.boxes * scale).round().int().tolist()
    for x1, y1, x2, y2 in reversed(corners):  # the largest last, on top
        x2, y2 = max(x1, x2 - 1), max(y1, y2 - 1)
        pen.rectangle((x1, y1, x2, y2), outline=drawing.INK, width=4)
        if x2 - x1 > 2 and y2 - y1 > 2:  # a box of a few pixels has no inside
            pen.rectangle((x1 + 1, y1 + 1, x2 - 1, y2 - 1), outline=drawing.PAPER, width=2)
    labelled: list[tuple[float, ...]] = []
    for (x1, y1, x2, y2), score in zip(corners, row.scores.tolist(), strict=True):
        text = f"{score:.2f}"
        left, top, right, bottom = pen.textbbox((x1 + 4, y1 + 3), text, font=font)
        label = (left - 2, top - 2, right + 2, bottom + 2)
        if not (label[2] < x2 - 2 and label[3] < y2 - 2) or any(drawing.overlap(label, other) for other in labelled):
            continue  # a label that hides its box, or another label, tells nothing
        labelled.append(label)
        pen.rectangle(label, fill=drawing.INK)
        pen.text((x1 + 4, y1 + 3), text, fill=drawing.PAPER, font=font)
    return drawn


def _check(images: Tensor, cams: Tensor, classes: Tensor, names: Sequence[str] | None) -> None:
    check_pixels(images, len(cams))
    if names is not None and len(names) <= int(classes.max()):
        raise ValueError(
            f"names: expected a name per output of the model, at least {int(classes.max()) + 1}, got {len(names)}; "
            "pass the full list"
        )
