"""Pictures to look at: an image beside its seed, its polished CAMs, its boxes and its mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ssa_fast.localize.boxes import box_scores, boxes
from ssa_fast.localize.masks import masks, voc_palette

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ssa_fast.ssa import SSAResult

CELL = 224  # pixels of a cell's longer side
GAP, TITLE, SIDE = 6, 20, 24
INK, PAPER, BOX = (30, 30, 30), (255, 255, 255), (255, 255, 255)
HEAT_SHARE = 0.55

# Turbo's polynomial approximation: one row per channel, coefficients of t^0 .. t^5 (A. Mikhailov, "Turbo, an improved
# rainbow colormap", Google Research 2019; Apache-2.0, gist 0d177465a8151eb6ede1768d51d476c7).
TURBO = np.array(
    [
        [0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943],
        [0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604],
        [0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973],
    ]
)


@dataclass(frozen=True, eq=False)
class Row:
    """One class of one image, ready to be drawn; maps are (h, w) in [0, 1] at any size.

    ``label`` names the class; ``boxes`` (n, 4) are in pixels of ``fused``, with a score each; ``region`` (H, W) bool is
    the class's part of the mask, drawn in ``colour``.
    """

    label: str
    maps: Mapping[str, Tensor]
    fused: Tensor
    boxes: Tensor
    scores: Tensor
    region: Tensor
    colour: tuple[int, int, int]


def overlay(
    images: Tensor,
    result: SSAResult,
    *,
    names: Sequence[str] | None = None,
    threshold: float = 0.2,
    background: float = 0.25,
) -> list[Image.Image]:
    """A labelled panel per image: image, seed, each stage, fused CAM, boxes and mask; one row per class.

    Args:
        images: (B, 3, H, W) or (B, 1, H, W), floating, in [0, 1]: the pictures, not normalised.
        result: what ``SSA`` gave for them.
        names: a name per output of the model; class numbers are drawn without them.
        threshold: of the boxes, see ``boxes``. background: of the mask, see ``masks``.

    Raises:
        TypeError, ValueError: images of another kind or number, too few names, settings out of range.
    """
    _check_images(images, result, names)
    found = boxes(result.cams, box_threshold=threshold, components="all")
    scores = box_scores(result.cams, found)
    labels = masks(result.cams, background=background)
    palette = np.array(voc_palette()).reshape(256, 3)
    panels = []
    for b, image in enumerate(images.detach().float().cpu().clamp(0, 1)):
        rows = []
        for k, index in enumerate(result.classes[b].tolist()):
            red, green, blue = palette[k + 1].tolist()
            rows.append(
                Row(
                    label=f"class {index}" if names is None else f"{names[index]} ({index})",
                    maps={"seed": result.seed[b, k], **{name: maps[b, k] for name, maps in result.stages.items()}},
                    fused=result.cams[b, k],
                    boxes=found[b][k],
                    scores=scores[b][k],
                    region=labels[b] == k + 1,
                    colour=(red, green, blue),
                )
            )
        panels.append(panel(image, rows))
    return panels


def panel(image: Tensor, rows: Sequence[Row]) -> Image.Image:
    """Draws one image, (3, H, W) or (1, H, W) in [0, 1], with one row of cells per class."""
    picture = _fit(_to_picture(image))
    cells = [_cells(picture, row) for row in rows]
    titles = list(cells[0])
    width, height = picture.size
    sheet = Image.new("RGB", (SIDE + len(titles) * (width + GAP), TITLE + len(rows) * (height + GAP)), PAPER)
    for column, title in enumerate(titles):
        _write(sheet, title, (SIDE + column * (width + GAP), 3), width)
    for line, (row, drawn) in enumerate(zip(rows, cells, strict=True)):
        top = TITLE + line * (height + GAP)
        _write_upright(sheet, row.label, (4, top), height)
        for column, cell in enumerate(drawn.values()):
            sheet.paste(cell, (SIDE + column * (width + GAP), top))
    return sheet


def heat(picture: Image.Image, plane: Tensor) -> Image.Image:
    """The picture under a map (h, w) in [0, 1], in turbo colours; NaN pixels stay grey."""
    values = Image.fromarray(plane.detach().float().cpu().numpy()).resize(picture.size, Image.Resampling.BILINEAR)
    coloured = turbo(np.asarray(values))
    return Image.blend(picture, Image.fromarray(coloured), HEAT_SHARE)


def turbo(values: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] as turbo colours: (...) -> (..., 3) uint8; NaN becomes mid grey."""
    t = np.nan_to_num(values, nan=0.0).clip(0, 1)
    powers = np.stack([t**n for n in range(6)], axis=-1)
    colours = (powers @ TURBO.T).clip(0, 1)
    colours[np.isnan(values)] = 0.5
    pixels: np.ndarray = np.round(colours * 255).astype(np.uint8)
    return pixels


def _cells(picture: Image.Image, row: Row) -> dict[str, Image.Image]:
    return {
        "image": picture,
        **{title: heat(picture, plane) for title, plane in row.maps.items()},
        "fused": heat(picture, row.fused),
        "boxes": _draw_boxes(picture, row),
        "mask": _draw_region(picture, row),
    }


def _draw_boxes(picture: Image.Image, row: Row) -> Image.Image:
    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    height, width = row.fused.shape
    scale = torch.tensor([drawn.width / width, drawn.height / height] * 2)
    for n in reversed(range(len(row.boxes))):  # the largest last, on top
        x1, y1, x2, y2 = (row.boxes[n] * scale).round().int().tolist()
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        pen.rectangle(corners, outline=INK, width=4)
        if corners[2] - corners[0] > 2 and corners[3] - corners[1] > 2:  # a box of a few pixels has no inside
            pen.rectangle(tuple(c + d for c, d in zip(corners, (1, 1, -1, -1), strict=True)), outline=BOX, width=2)
        text = f"{row.scores[n]:.2f}"
        spot = pen.textbbox((x1 + 4, y1 + 3), text, font=_font(11))
        pen.rectangle((spot[0] - 2, spot[1] - 2, spot[2] + 2, spot[3] + 2), fill=INK)
        pen.text((x1 + 4, y1 + 3), text, fill=BOX, font=_font(11))
    return drawn


def _draw_region(picture: Image.Image, row: Row) -> Image.Image:
    region = Image.fromarray(row.region.cpu().numpy().astype(np.uint8) * 255).resize(picture.size)
    painted = Image.blend(picture, Image.new("RGB", picture.size, row.colour), HEAT_SHARE)
    faded = Image.blend(picture, Image.new("RGB", picture.size, INK), HEAT_SHARE)
    return Image.composite(painted, faded, region)


def _to_picture(image: Tensor) -> Image.Image:
    pixels = (image.expand(3, -1, -1).permute(1, 2, 0) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.numpy())


def _fit(picture: Image.Image) -> Image.Image:
    factor = CELL / max(picture.size)
    size = (max(1, math.floor(picture.width * factor)), max(1, math.floor(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _write(sheet: Image.Image, text: str, corner: tuple[int, int], width: int) -> None:
    """Writes a line, shortened in front (the end of a module's name tells most) where it is too long."""
    font = _font(12)
    pen = ImageDraw.Draw(sheet)
    shown = text
    while pen.textlength(shown, font=font) > width and len(text) > 1:
        text = text[1:]
        shown = f"…{text}"
    pen.text(corner, shown, fill=INK, font=font)


def _write_upright(sheet: Image.Image, text: str, corner: tuple[int, int], height: int) -> None:
    strip = Image.new("RGB", (height, SIDE - 6), PAPER)
    _write(strip, text, (0, 1), height)
    sheet.paste(strip.rotate(90, expand=True), corner)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _check_images(images: Tensor, result: SSAResult, names: Sequence[str] | None) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images: expected a floating-point tensor in [0, 1], got {kind}; divide 8-bit pictures by 255")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) != len(result.cams):
        raise ValueError(
            f"images: expected ({len(result.cams)}, 3, H, W), the pictures of this result, got {tuple(images.shape)}; "
            "pass the batch that SSA was given, before normalisation"
        )
    low, high = images.detach().aminmax()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"images: expected values in [0, 1], got {low:.3g} to {high:.3g}; undo the normalisation")
    if names is not None and len(names) <= int(result.classes.max()):
        raise ValueError(
            f"names: expected a name per output of the model ({result.logits.shape[1]}), got {len(names)}; "
            "pass the full list"
        )
