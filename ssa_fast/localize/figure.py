"""Figures for papers: images, seeds and polished CAMs in a grid with one colour scale, by matplotlib."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isnan
from os import PathLike, fspath
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.functional import interpolate

from ssa_fast.localize.boxes import box_scores, boxes
from ssa_fast.localize.colormaps import table
from ssa_fast.localize.drawing import TAIL, overlap, shorten
from ssa_fast.localize.masks import masks
from ssa_fast.localize.options import PostprocessOptions
from ssa_fast.localize.overlay import OPACITY, overlay
from ssa_fast.localize.read import check_pixels

try:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "a figure needs matplotlib, which is not installed; pip install 'ssa_fast[figures]'", name="matplotlib"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from torch import Tensor

    Corner = tuple[float, float]
    Style = dict[str, Any]

FORMATS = ("png", "svg", "pdf")
DPI, SCREEN_DPI = 300, 150  # of a file, and of a notebook

WIDTH = 7.0  # inches: both columns of a paper
MARGIN, GAP, BLOCK_GAP = 0.02, 0.04, 0.2  # inches: at the left, between cells, and between images side by side
TITLE, NAME, SPACE = 0.17, 0.19, 0.07  # inches: the line of titles, a class's line, and below an image's last row
BAR_GAP, BAR, BAR_TEXT = 0.1, 0.09, 0.36  # inches: left of the colour bar, its width, and its numbers
BAR_HEIGHT, BASELINE = 2.0, 0.045  # inches: of the bar, and of a line above what is below it
TITLE_SIZE, NAME_SIZE = 7.0, 8.0  # points
GREY = "0.35"
DIMMED, LUMA = 0.35, (0.299, 0.587, 0.114)  # outside the mask: brightness, and grey (BT.601)
SMALLEST = 0.25  # inches: the width of a cell in which something can be seen
BOX: dict[str, Any] = {"fill": False, "edgecolor": "white", "linewidth": 0.8}
PLATE = {"facecolor": "black", "edgecolor": "none", "pad": 1.0}  # behind a box's score
LABEL: dict[str, Any] = {"fontsize": 6.0, "color": "white", "va": "top", "parse_math": False, "bbox": PLATE}

# Type 3 fonts, matplotlib's default, are refused by many publishers; a salt makes the names in an SVG file the same.
SAVE_SETTINGS: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "ssa_fast"}
DATES = {"svg": "Date", "pdf": "CreationDate"}
_saving = Lock()  # matplotlib's settings are those of all threads


class Result(Protocol):
    """What is read of an ``SSAResult``; shapes as there."""

    @property
    def cams(self) -> Tensor:
        """The fused CAMs."""

    @property
    def seed(self) -> Tensor:
        """The CAMs before polishing."""

    @property
    def stages(self) -> dict[str, Tensor]:
        """The polished CAMs of each stage."""

    @property
    def classes(self) -> Tensor:
        """The class of each CAM, -1 if unknown."""

    @property
    def valid(self) -> Tensor:
        """Which CAMs there are."""

    @property
    def scores(self) -> Tensor:
        """The probability of each class."""

    @property
    def names(self) -> list[list[str]]:
        """The name of each class."""


class PaperFigure(Figure):
    """A matplotlib figure that is saved at 300 dpi, with its text as text, and to the same bytes each time."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """Save the figure as ``Figure.savefig`` does, with other defaults.

        Text stays text: fonts are embedded in PDF as TrueType, and named in SVG. No date is written.
        """
        path = fspath(fname) if isinstance(fname, str | PathLike) else ""
        kind = str(options.get("format") or path.rpartition(".")[2]).lower()
        undated = {DATES[kind]: None} if kind in DATES else {}
        options = {"dpi": DPI, **options, "metadata": {**undated, **(options.get("metadata") or {})}}
        with _saving, rc_context(SAVE_SETTINGS):
            super().savefig(fname, **options)

    def _repr_png_(self) -> bytes:
        """Return the figure for a notebook, which shows others only once pyplot is imported."""
        from io import BytesIO

        file = BytesIO()
        self.savefig(file, format="png", dpi=SCREEN_DPI)
        return file.getvalue()


@dataclass(frozen=True, eq=False)
class Row:
    """One class of one image: its name with the probability, maps by title, boxes in the last map, and mask if drawn.

    Maps are (h, w) in [0, 1]; boxes (n, 4) with scores (n,), largest first; the mask is (H, W) bool.
    """

    name: str
    probability: float
    maps: dict[str, Tensor]
    boxes: Tensor
    box_scores: Tensor
    mask: Tensor | None

    def label(self, name: str) -> str:
        """Return ``name``, which may be shortened, and the probability if it is known."""
        return name if isnan(self.probability) else f"{name} ({self.probability:.2f})"


@dataclass(frozen=True, eq=False)
class Block:
    """One image (3, H, W) in [0, 1], and a row for each of its classes."""

    image: Tensor
    rows: list[Row]

    @property
    def aspect(self) -> float:
        """Height divided by width."""
        return self.image.shape[1] / self.image.shape[2]


def figure(
    images: Sequence[Tensor],
    results: Sequence[Result],
    *,
    names: Sequence[str] | None = None,
    classes: Sequence[int | str] | None = None,
    stages: bool = False,
    boxes: bool = True,
    mask: bool = False,
    columns: int | None = None,
    colormap: str = "viridis",
    opacity: float = OPACITY,
    width: float = WIDTH,
    options: PostprocessOptions | None = None,
    **overrides: Any,
) -> PaperFigure:
    """Return a figure of several results, whose images may differ in size: a row per image and class.

    A row has the image, the seed, and the polished CAM with its boxes, on request also the stages and the mask. Its
    title is the class with its probability. All maps have one colour scale, with a bar; where they are low, the image
    shows.

    Args:
        images: Per result its images (B, 3, H, W) or (B, 1, H, W), floating, in [0, 1], before normalisation.
        results: What ``SSA`` returned for them, all by the same stages.
        names: A name per output of the model, by default the results' own.
        classes: Indices or names of the classes to draw, in this order; by default all that the results have.
        stages: Whether to draw the polished CAM of each stage, between the seed and the fused one.
        boxes: Whether to draw boxes. A box that is large enough tells the mean of the CAM inside.
        mask: Whether to draw the pseudo-mask: the image in colour, the rest dimmed and grey.
        columns: Images side by side; by default 2 of four or more images with at most four cells each, else 1.
        colormap: See ``ssa_fast.overlay``.
        opacity: See ``ssa_fast.overlay``.
        width: Of the figure, in inches; the height follows.
        options: Of the boxes and the mask (``PostprocessOptions``); by default the largest region of each class.
        **overrides: Single fields of the options, for example ``box_threshold=0.3, components="all"``.

    Returns:
        A ``matplotlib.figure.Figure`` that pyplot does not know, and that need not be closed. Its ``savefig`` writes
        300 dpi, text as text, and the same bytes for the same figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra ``figures``).
        TypeError, ValueError: Images that do not fit their result, or another option that is wrong.
    """
    colours = table(colormap)
    settings = replace(options or PostprocessOptions(), **overrides)
    _check(images, results, names, columns, width)
    blocks = []
    for pixels, result in zip(images, results, strict=True):
        drawn = _select(result, names, classes)
        blocks += _make_blocks(pixels, result, drawn, settings, stages=stages, boxed=boxes, masked=mask)
    if classes is not None and not any(block.rows for block in blocks):
        there = sorted({name for result in results for image in result.names for name in image if name})
        raise ValueError(f"classes: expected some of the results' ({', '.join(there)}), got {list(classes)}")
    titles = _titles(blocks, mask)
    if columns is None:
        columns = 2 if len(blocks) >= 4 and len(titles) <= 4 else 1
    return _draw(blocks, titles, min(columns, len(blocks)), width, colours, {"colormap": colormap, "opacity": opacity})


def _check(
    images: Sequence[Tensor],
    results: Sequence[Result],
    names: Sequence[str] | None,
    columns: int | None,
    width: float,
) -> None:
    if len(images) != len(results) or not results:
        raise ValueError(f"images: expected a batch per result ({len(results)}), got {len(images)}; pass both as lists")
    for pixels, result in zip(images, results, strict=True):
        check_pixels(pixels, len(result.cams))
        highest = int(result.classes.max())
        if names is not None and len(names) <= highest:
            raise ValueError(
                f"names: expected a name per output of the model, at least {highest + 1}, got {len(names)}; "
                "pass the full list"
            )
    if columns is not None and columns < 1:
        raise ValueError(f"columns: expected a number >= 1, got {columns}; leave it out")
    if not width >= 1:
        raise ValueError(f"width: expected at least 1 inch, got {width}; a page is 7 wide, a column 3.5")


def _select(
    result: Result, names: Sequence[str] | None, classes: Sequence[int | str] | None
) -> list[list[tuple[int, str]]]:
    """Return per image the positions of the classes to draw, in order, and their names."""
    selected = []
    for own, indices, valid in zip(result.names, result.classes.tolist(), result.valid.tolist(), strict=True):
        called = [own[k] if names is None or index < 0 else names[index] for k, index in enumerate(indices)]
        there = [k for k in range(len(indices)) if valid[k]]
        if classes is not None:
            there = [k for wanted in classes for k in there if wanted in (indices[k], called[k], own[k])]
        selected.append([(k, called[k]) for k in there])
    return selected


def _make_blocks(
    images: Tensor,
    result: Result,
    selected: list[list[tuple[int, str]]],
    options: PostprocessOptions,
    *,
    stages: bool,
    boxed: bool,
    masked: bool,
) -> list[Block]:
    cams = result.cams.detach().float().cpu()
    maps = {"seed": result.seed, **(result.stages if stages else {}), "polished": cams}
    labels = masks(cams, options) if masked else None
    found = boxes(cams, options) if boxed else [[torch.zeros(0, 4)] * cams.shape[1]] * len(cams)
    scores = box_scores(cams, found)
    return [
        Block(
            image.expand(3, -1, -1),
            [
                Row(
                    name=name,
                    probability=float(result.scores[b, k]),
                    maps={title: each[b, k].detach().float().cpu() for title, each in maps.items()},
                    boxes=found[b][k],
                    box_scores=scores[b][k],
                    mask=None if labels is None else labels[b] == k + 1,
                )
                for k, name in selected[b]
            ],
        )
        for b, image in enumerate(images.detach().float().cpu().clamp(0, 1))
    ]


def _titles(blocks: list[Block], mask: bool) -> list[str]:
    """Return the titles of a row's cells; ValueError if results differ in their stages."""
    found = {tuple(row.maps) for block in blocks for row in block.rows} or {("seed", "polished")}
    if len(found) > 1:
        raise ValueError(f"results: expected the same stages in all, got {sorted(found)}; draw them apart")
    return ["image", *found.pop(), *(["mask"] if mask else [])]


def _draw(
    blocks: list[Block], titles: list[str], columns: int, width: float, colours: NDArray[np.uint8], style: Style
) -> PaperFigure:
    """Lay the blocks out, ``columns`` side by side; measures are in inches, from the top left corner."""
    across = width - MARGIN - BAR_GAP - BAR - BAR_TEXT
    block_width = (across - (columns - 1) * BLOCK_GAP) / columns
    cell = (block_width - (len(titles) - 1) * GAP) / len(titles)
    if cell < SMALLEST:
        count = f"{columns * len(titles)} cells side by side"
        raise ValueError(f"width: expected more than {width:g} inches for {count}; raise it, or take fewer columns")
    tallest = max(1.0, min(block.aspect for block in blocks))  # among others a portrait is as high as a square
    lines = [blocks[first : first + columns] for first in range(0, len(blocks), columns)]
    heights = [cell * min(tallest, max(block.aspect for block in line)) for line in lines]
    counts = [max(1, *(len(block.rows) for block in line)) for line in lines]
    depths = [count * (NAME + height) + SPACE for count, height in zip(counts, heights, strict=True)]
    page = _Page(width, TITLE + sum(depths), style)
    lefts = [MARGIN + column * (block_width + BLOCK_GAP) for column in range(columns)]
    for column in range(columns):
        for n, title in enumerate(titles):
            page.write(title, (lefts[column] + n * (cell + GAP), TITLE), cell, TITLE_SIZE, GREY)
    top = TITLE
    for line, height, depth in zip(lines, heights, depths, strict=True):
        for column, block in enumerate(line):
            page.draw_block(block, (lefts[column], top), block_width, (cell, height))
        top += depth
    page.draw_bar(colours, (MARGIN + across + BAR_GAP, TITLE + NAME), top - SPACE - TITLE - NAME)
    return page.figure


class _Page:
    """A figure, drawn on in inches from its top left corner."""

    def __init__(self, width: float, height: float, style: Style) -> None:
        self.figure = PaperFigure(figsize=(width, height), dpi=SCREEN_DPI, facecolor="white")
        self.width, self.height, self.style = width, height, style

    def draw_block(self, block: Block, corner: Corner, width: float, cell: tuple[float, float]) -> None:
        """Draw an image's rows, each in cells (width, height); the image itself is in the first."""
        left, top = corner
        if not block.rows:
            self.write("no class", (left, top + NAME), width, NAME_SIZE, GREY)
        fitted = min(cell[0], cell[1] / block.aspect)  # the image's width
        size = max(1, round(fitted * block.aspect * DPI)), max(1, round(fitted * DPI))
        image = interpolate(block.image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
        inset, step = (cell[0] - fitted) / 2, cell[0] + GAP
        self.show(image, (left + inset, top + NAME), fitted)
        for n, row in enumerate(block.rows):
            y = top + n * (NAME + cell[1]) + NAME
            self.write(row.name, (left, y), width, NAME_SIZE, "black", row.label, tail=0)
            axes = [
                self.show(overlay(image, cam, **self.style), (left + inset + column * step, y), fitted)
                for column, cam in enumerate(row.maps.values(), start=1)
            ]
            self.draw_boxes(axes[-1], row)
            if row.mask is not None:
                self.show(_cut_out(image, row.mask), (left + inset + (len(axes) + 1) * step, y), fitted)

    def show(self, image: Tensor, corner: Corner, width: float) -> Axes:
        """Draw an image (3, H, W); the axes' units are its width and height."""
        height = width * image.shape[1] / image.shape[2]
        axes = self.add_axes(corner, width, height)
        axes.set_axis_off()
        pixels = image.mul(255).round_().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        axes.imshow(pixels, extent=(0, 1, 1, 0), aspect="auto", origin="upper", interpolation="antialiased")
        return axes

    def add_axes(self, corner: Corner, width: float, height: float) -> Axes:
        x, y = corner[0] / self.width, 1 - (corner[1] + height) / self.height
        return self.figure.add_axes((x, y, width / self.width, height / self.height))

    def write(
        self,
        text: str,
        corner: Corner,
        width: float,
        size: float,
        colour: str,
        form: Callable[[str], str] = str,
        tail: float = TAIL,
    ) -> None:
        """Write ``form(text)`` just above the corner; ``text`` is shortened to fit the width."""
        x, y = corner[0] / self.width, 1 - (corner[1] - BASELINE) / self.height
        written = self.figure.text(x, y, form(text), fontsize=size, color=colour, parse_math=False)

        def fits(line: str) -> bool:
            written.set_text(form(line))
            return written.get_window_extent().width <= width * self.figure.dpi

        written.set_text(form(shorten(text, fits, tail)))

    def draw_boxes(self, axes: Axes, row: Row) -> None:
        """Draw the boxes, and the scores of those that have room for theirs."""
        height, width = list(row.maps.values())[-1].shape
        corners = row.boxes / torch.tensor([width, height] * 2)
        taken: list[tuple[float, ...]] = []
        for (x1, y1, x2, y2), score in zip(corners.tolist(), row.box_scores.tolist(), strict=True):
            frame = Rectangle((x1, y1), x2 - x1, y2 - y1, **BOX)
            frame.set_path_effects([withStroke(linewidth=1.8, foreground="black")])
            axes.add_patch(frame)
            label = axes.annotate(f"{score:.2f}", (x1, y1), (3, -3), textcoords="offset points", **LABEL)
            around, room = label.get_window_extent().padded(2).extents, frame.get_window_extent().extents
            inside = around[0] >= room[0] and around[1] >= room[1] and around[2] <= room[2] and around[3] <= room[3]
            if inside and not any(overlap(around, other) for other in taken):
                taken.append(tuple(around))
            else:
                label.remove()

    def draw_bar(self, colours: NDArray[np.uint8], corner: Corner, height: float) -> None:
        """Draw the colour scale, at most ``BAR_HEIGHT`` high."""
        axes = self.add_axes(corner, BAR, min(height, BAR_HEIGHT))
        axes.imshow(colours[:, None], origin="lower", extent=(0, 1, 0, 1), aspect="auto")
        axes.grid(False)
        axes.set_xticks([])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=TITLE_SIZE)
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
        axes.set_ylabel("CAM", fontsize=TITLE_SIZE, labelpad=2)
        axes.tick_params(length=2, width=0.5, pad=2)
        for spine in axes.spines.values():
            spine.set_linewidth(0.5)


def _cut_out(image: Tensor, mask: Tensor) -> Tensor:
    """Return the image (3, H, W), dimmed and grey outside the mask (h, w)."""
    inside = interpolate(mask[None, None].float(), image.shape[1:], mode="nearest-exact")[0]
    grey = DIMMED * (image * image.new_tensor(LUMA)[:, None, None]).sum(dim=0, keepdim=True)
    return torch.where(inside > 0, image, grey)
