"""Draw maps as images: heat maps, painted label maps, and sheets that lay images out in a grid."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssa_fast.localize.colormaps import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

CELL = 224  # pixels of a cell's longer side
GAP, TITLE, SIDE = 6, 20, 24  # pixels between cells, above the columns, and left of labelled rows
INK, PAPER = (30, 30, 30), (255, 255, 255)
OPACITY = 0.55


def colour(values: np.ndarray) -> np.ndarray:
    """Return numbers in [0, 1] as viridis colours: (...) -> (..., 3) uint8; NaN becomes mid grey."""
    indices = (np.nan_to_num(values, nan=0.0).clip(0, 1) * 256).astype(int).clip(max=255)
    colours = table()[indices]
    colours[np.isnan(values)] = 128
    return colours


def heat(image: Image.Image, cam: Tensor) -> Image.Image:
    """Return the image blended with a CAM (h, w) in [0, 1] in viridis colours; NaN pixels are grey."""
    values = Image.fromarray(cam.detach().float().cpu().numpy()).resize(image.size, Image.Resampling.BILINEAR)
    return Image.blend(image, Image.fromarray(colour(np.asarray(values))), OPACITY)


def paint(image: Image.Image, labels: np.ndarray, colours: np.ndarray, opacity: float = OPACITY) -> Image.Image:
    """Return the image blended with a label map (h, w) in ``colours`` (n, 3) uint8, not smoothed."""
    layer = Image.fromarray(colours[labels]).resize(image.size, Image.Resampling.BOX)
    return Image.blend(image, layer, opacity)


def fit(image: Image.Image) -> Image.Image:
    """Return the image resized so that its longer side has ``CELL`` pixels."""
    factor = CELL / max(image.size)
    return image.resize([max(1, int(side * factor)) for side in image.size], Image.Resampling.LANCZOS)


def side_by_side(images: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Return the images in one row on white, ``gap`` pixels apart."""
    *lefts, end = accumulate((image.width + gap for image in images), initial=0)
    row = Image.new("RGB", (end - gap, max(image.height for image in images)), PAPER)
    for image, left in zip(images, lefts, strict=True):
        row.paste(image, (left, 0))
    return row


def sheet(
    titles: Sequence[str], rows: Sequence[Sequence[Image.Image]], labels: Sequence[str] = (), size: int = 12
) -> Image.Image:
    """Return a grid of cells of one size, a title above each column and any label left of its row.

    ``size`` is that of the letters, in pixels.
    """
    title_height = TITLE + size - 12
    width, height = rows[0][0].size
    left = SIDE if labels else GAP
    page = Image.new("RGB", (left + len(titles) * (width + GAP), title_height + len(rows) * (height + GAP)), PAPER)
    for column, title in enumerate(titles):
        _write(page, title, (left + column * (width + GAP), 3), width, size)
    for line, cells in enumerate(rows):
        top = title_height + line * (height + GAP)
        page.paste(side_by_side(cells, GAP), (left, top))
        if labels:
            strip = Image.new("RGB", (height, SIDE - GAP), PAPER)
            _write(strip, labels[line], (0, 1), height, size)
            page.paste(strip.rotate(90, expand=True), (4, top))
    return page


def _write(page: Image.Image, text: str, corner: tuple[int, int], width: int, size: int) -> None:
    """Write a line; if it is too wide, cut off its beginning, as module names differ at the end."""
    pen, face, line = ImageDraw.Draw(page), ImageFont.load_default(size), text
    while pen.textlength(line, font=face) > width and len(text) > 1:
        text = text[1:]
        line = f"…{text}"
    pen.text(corner, line, fill=INK, font=face)
