"""Paint label maps over images, and lay images out in titled sheets."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

CELL = 224  # pixels of a cell's longer side
GAP, TITLE, SIDE = 6, 20, 24  # pixels between cells, above the columns, and left of labelled rows
INK, PAPER = (30, 30, 30), (255, 255, 255)
OPACITY = 0.55
TAIL = 1 / 3


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
    pen, face = ImageDraw.Draw(page), ImageFont.load_default(size)
    line = shorten(text, lambda line: pen.textlength(line, font=face) <= width)
    pen.text(corner, line, fill=INK, font=face)


def shorten(text: str, fits: Callable[[str], bool], tail: float = TAIL) -> str:
    """Return the text, or the longest form of it that fits, "…" in place of what is left out.

    The front stays, as it tells classes apart, and ``tail``, a share of what is left of the text: the end of a module's
    name and a class's index.
    """
    if fits(text):
        return text
    for length in range(len(text) - 1, 1, -1):
        front = round((1 - tail) * length)
        line = f"{text[:front].rstrip()}…{text[len(text) - length + front :].lstrip()}"
        if fits(line):
            return line
    return f"{text[:1]}…"


def overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two rectangles x1, y1, x2, y2 share a point."""
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
