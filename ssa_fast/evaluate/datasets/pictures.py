"""Draw a report: the threshold curve, and panels of the worst images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from ssa_fast.evaluate.contours import contour_boxes
from ssa_fast.evaluate.datasets.pixels import read_truth
from ssa_fast.evaluate.segmentation import IGNORE
from ssa_fast.io.cam_values import WSOL_SIZE
from ssa_fast.io.images import read_image
from ssa_fast.localize import drawing, overlay
from ssa_fast.localize.masks import voc_palette

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from ssa_fast.evaluate.datasets.base import LabelledImage, LocatedImage
    from ssa_fast.evaluate.datasets.boxes import BoxReport
    from ssa_fast.evaluate.datasets.pixels import PixelReport
    from ssa_fast.evaluate.datasets.segmentation import SegmentationReport

__all__ = ["check_matplotlib", "draw_boxes", "draw_pixels", "draw_segmentation", "save_curve"]

WRONG = (200, 30, 30)
TRUE, FOUND = (255, 255, 255), (255, 220, 0)
_REGION = np.array([drawing.INK, (90, 170, 255)], np.uint8)
VOID = (224, 224, 192)  # VOC's colour of label 255


def check_matplotlib() -> None:
    """Raise ModuleNotFoundError, with what to install, unless matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "out: the threshold curve needs matplotlib, which is not installed; pip install 'ssa_fast[eval]', or leave "
            "--out out",
            name="matplotlib",
        ) from error


def save_curve(
    path: Path,
    thresholds: ArrayLike,
    curves: Mapping[str, ArrayLike],
    *,
    title: str,
    measure: str,
    marks: Mapping[str, tuple[float, float]],
) -> None:
    """Write a PNG of measures over thresholds.

    Args:
        path: The file.
        thresholds: (T,).
        curves: Name -> (T,) fractions, drawn in per cent; up to four.
        title, measure: Of the figure and its vertical axis.
        marks: Name -> (threshold, fraction), each drawn as a point; up to four.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display and no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, values, style in zip(curves, curves.values(), ("-", "--", "-.", ":"), strict=False):  # some coincide
        axes.plot(np.asarray(thresholds), 100 * np.asarray(values), style, label=name, linewidth=1.6)
    for marker, (name, (threshold, value)) in zip("osD^", marks.items(), strict=False):
        axes.plot([threshold], [100 * value], marker, color="black", markersize=6, label=name)
    axes.set(xlabel="threshold", ylabel=f"{measure} [%]", title=title, xlim=(0, 1), ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=120, format="png")


def draw_segmentation(report: SegmentationReport, index: int) -> Image.Image:
    """Return the panel of one image: image, truth, highest CAM, prediction at the best threshold, and its errors."""
    image, path = report.images[index]
    maps, classes, truth = report.source.read(image, path)
    threshold = np.full((1, *truth.shape), report.sweep.best_threshold, np.float32)
    predicted = np.append(0, classes + 1)[np.concatenate([threshold, maps]).argmax(0)]
    errors = ((predicted != truth) & (truth != IGNORE)).astype(np.int64)
    shown = _picture(image, truth.shape)
    palette = np.array(voc_palette(), np.uint8).reshape(256, 3)
    palette[IGNORE] = VOID
    strongest = maps.max(0) if len(maps) else np.zeros(truth.shape, np.float32)
    cells = [
        shown,
        drawing.paint(shown, truth.astype(np.int64), palette),
        overlay(shown, strongest),
        drawing.paint(shown, predicted, palette),
        drawing.paint(shown, errors, np.array([drawing.PAPER, WRONG], np.uint8)),
    ]
    names = ("background", *report.source.dataset.class_names)
    score = report.image_mious[index, report.best]
    present = [names[label] for label in np.unique(truth) if 0 < label < IGNORE]
    titles = [
        image.id,
        f"truth: {', '.join(present) or 'background'}",
        f"CAMs: {', '.join(names[k + 1] for k in classes) or 'none'}",
        f"at {report.sweep.best_threshold:.2f}: mIoU {100 * score:.1f}",
        f"wrong: {100 * errors.mean():.1f} %",
    ]
    return drawing.sheet(titles, [cells])


def draw_boxes(report: BoxReport, index: int) -> Image.Image:
    """Return the panel of one image: its true boxes, its CAM, and the largest region's box at the best threshold."""
    image, path = report.images[index]
    cam, _ = report.source.read(image, path)
    pixels = (255 * cam).astype(np.uint8)  # as ``max_box_acc`` does
    region = pixels > int(report.best_threshold * pixels.max())
    W, H = image.size or (WSOL_SIZE, WSOL_SIZE)
    shown = _picture(image, (H, W))
    scale = np.array([shown.width, shown.height] * 2)
    found = contour_boxes(region, "largest") / WSOL_SIZE * scale
    truth = np.array(image.boxes) / np.array([W, H] * 2) * scale
    cells = [
        _outline(shown, truth, TRUE),
        overlay(shown, cam),
        _outline(_outline(drawing.paint(shown, region.astype(np.int64), _REGION), truth, TRUE), found, FOUND),
    ]
    column = int(np.argmax(report.found["largest"].thresholds == report.best_threshold))
    iou = report.found["largest"].overlaps[index, column]
    titles = [image.id, f"CAM of class {image.label}", f"at {report.best_threshold:.2f}: IoU {100 * iou:.1f}"]
    return drawing.sheet(titles, [cells])


def draw_pixels(report: PixelReport, index: int) -> Image.Image:
    """Return the panel of one image: image, truth, CAM, what exceeds the best threshold, and its errors."""
    image, path = report.images[index]
    cam, _ = report.source.read(image, path)
    truth = read_truth(image).astype(np.int64)
    region = (cam > report.best_threshold).astype(np.int64)
    errors = ((region != truth) & (truth != IGNORE)).astype(np.int64)
    shown = _picture(image, cam.shape)
    palette = np.array(voc_palette(), np.uint8).reshape(256, 3)
    palette[IGNORE] = VOID
    cells = [
        shown,
        drawing.paint(shown, truth, palette),
        overlay(shown, cam),
        drawing.paint(shown, region, palette),
        drawing.paint(shown, errors, np.array([drawing.PAPER, WRONG], np.uint8)),
    ]
    iou = report.image_ious[index, int(np.argmax(report.ious))]
    at_best = f"at {report.best_threshold:.2f}: IoU {100 * iou:.1f}"
    titles = [image.id, "truth", f"CAM of class {image.label}", at_best, f"wrong: {100 * errors.mean():.1f} %"]
    return drawing.sheet(titles, [cells])


def _outline(image: Image.Image, boxes: NDArray[np.float64], colour: tuple[int, int, int]) -> Image.Image:
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    for x0, y0, x1, y1 in boxes.round().astype(int).tolist():
        edges = (x0, y0, max(x0, min(x1, image.width) - 1), max(y0, min(y1, image.height) - 1))
        pen.rectangle(edges, outline=drawing.INK, width=4)
        pen.rectangle(edges, outline=colour, width=2)
    return drawn


def _picture(image: LabelledImage | LocatedImage, size: Sequence[int]) -> Image.Image:
    """Return an image at a panel's size, white where its file is not known."""
    if image.image is None:
        return drawing.fit(Image.new("RGB", (size[1], size[0]), drawing.PAPER))
    return drawing.fit(Image.fromarray(read_image(image.image).rgb))
