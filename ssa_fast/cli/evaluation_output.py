"""What ``ssa-fast eval`` shows and writes: tables, JSON, the threshold curve and panels of the worst images."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ssa_fast.cli import console
from ssa_fast.evaluate import iou_per_class
from ssa_fast.evaluate.datasets import BoxReport, PixelReport, SegmentationReport, pictures
from ssa_fast.evaluate.datasets.segmentation import mean_known
from ssa_fast.io.atomic import write_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import ArrayLike
    from PIL.Image import Image

    Report = SegmentationReport | BoxReport | PixelReport

CURVE, WORST, REPORT = "curve.png", "worst", "report.json"
WORST_COUNT, CLASSES_SHOWN = 10, 30
ESTIMATED = "threshold that sees no truth"


@dataclass(frozen=True)
class View:
    """A report as it is shown.

    Attributes:
        rows: (measure, per cent or "-", threshold) of the table.
        measure, score: Titles of the curve's vertical axis, and of an image's score.
        curves: Name -> (T,) fractions over ``thresholds``.
        thresholds: (T,).
        marks: Name -> (threshold, fraction), points on the curve.
        draw: Returns the panel of the image at a position.
        classes: Title, columns and rows of a table of classes; () for none.
    """

    rows: list[tuple[str, str, str]]
    measure: str
    score: str
    curves: Mapping[str, ArrayLike]
    thresholds: ArrayLike
    marks: Mapping[str, tuple[float, float]]
    draw: Callable[[int], Image]
    classes: tuple[str, tuple[str, str], list[tuple[str, str]]] | tuple[()] = ()


def show(report: Report, *, panels: bool) -> None:
    """Print the notes on stderr, with one on ``panels`` without photographs, and the tables on stdout."""
    notes = list(report.notes)
    if panels and not any(image.image for image, _ in report.images):
        notes.append("the panels are without the images, which were not found: pass --images")
    for note in notes:
        console.err().print(f"notice: {note}", soft_wrap=True)
    out, shown, dataset = console.out(), view(report), report.source.dataset
    title = f"{dataset.name}: {len(report.images)} images"
    columns = ("measure", "%", "threshold")
    out.print(console.table(title, columns, shown.rows, right=columns[1:]))
    if shown.classes:
        out.print(console.table(*shown.classes, right=("%",)))
    worst = [(report.images[i][0].id, _percent(score)) for i, score in report.worst(WORST_COUNT)]
    out.print(console.table("lowest", ("image", f"{shown.score} %"), worst, right=(f"{shown.score} %",)))


def write(report: Report, *, save: Path | None, out: Path | None, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Write the report as JSON to ``save``, and JSON, curve and panels to the folder ``out``; all of them or none.

    Raises:
        FileExistsError: A file exists and ``overwrite`` is not set.
        OSError: A file could not be written.
    """
    content = json.dumps({**report.to_json(), **settings}, indent=1) + "\n"
    writers: dict[Path, Callable[[Path], object]] = {}
    for target in [path for path in (save, out and out / REPORT) if path is not None]:
        writers[target] = lambda path: path.write_text(content, encoding="utf-8")
    if out is not None:
        shown = view(report)
        title = f"{report.source.dataset.name}, {len(report.images)} images"
        writers[out / CURVE] = lambda path: pictures.save_curve(
            path, shown.thresholds, shown.curves, title=title, measure=shown.measure, marks=shown.marks
        )
        writers[out / WORST] = lambda folder: _draw_worst(report, shown, folder)
    write_files(writers, overwrite=overwrite)


def check_targets(save: Path | None, out: Path | None, *, overwrite: bool) -> None:
    """Raise, before any work, what ``write`` would raise after it.

    Raises:
        FileExistsError: A file exists and ``overwrite`` is not set.
        ModuleNotFoundError: ``out`` is given and matplotlib is not installed.
    """
    targets = [save] if save is not None else []
    if out is not None:
        pictures.check_matplotlib()
        targets += [out / REPORT, out / CURVE, out / WORST]
    if not overwrite and (existing := [path for path in targets if path.exists()]):
        raise FileExistsError(f"{existing[0]} exists; pass --overwrite to replace it.")


def view(report: Report) -> View:
    """Return how a report is shown."""
    if isinstance(report, SegmentationReport):
        return _segmentation_view(report)
    return _box_view(report) if isinstance(report, BoxReport) else _pixel_view(report)


def _segmentation_view(report: SegmentationReport) -> View:
    sweep, free = report.sweep, report.truth_free
    estimate = mean_known(free.backgrounds)
    rows = [
        (f"mIoU (absent classes: {report.absent})", _percent(sweep.best_miou), f"{sweep.best_threshold:.3g}, the best"),
        ("mIoU, " + ESTIMATED, _percent(free.miou), f"{estimate:.2f} on average"),
    ]
    classes: Any = ()
    if not report.source.dataset.has_classes:
        ious, level = sweep.ious[:, 1], sweep.thresholds[int(np.argmax(sweep.ious[:, 1]))]
        rows += [
            ("foreground IoU", _percent(ious.max()), f"{level:.3g}, the best"),
            ("foreground IoU, " + ESTIMATED, _percent(iou_per_class(free.confusion)[1]), f"{estimate:.2f} on average"),
        ]
    elif len(report.class_ious) <= CLASSES_SHOWN:
        shares = [(name, _percent(iou)) for name, iou in report.class_ious.items()]
        classes = (f"IoU at {sweep.best_threshold:.3g}", ("class", "%"), shares)
    marks = {"best": (sweep.best_threshold, sweep.best_miou), f"{ESTIMATED} (mean)": (estimate, free.miou)}

    def draw(index: int) -> Image:
        return pictures.draw_segmentation(report, index)

    return View(rows, "mIoU", "mIoU", {"mIoU": sweep.mious}, sweep.thresholds, marks, draw, classes)


def _box_view(report: BoxReport) -> View:
    largest, every, estimate = report.found["largest"], report.found["all"], mean_known(report.backgrounds)
    free, best = report.truth_free, f"{report.best_threshold:.3g}, the best"
    rows = [("MaxBoxAcc, IoU 50 (GT-known localisation)", _percent(largest.max_box_acc[0.5]), best)]
    top = {k: report.top(k) for k in (1, 5)}
    rows += [(f"top-{k} localisation", _percent(share), "-" if share is None else best) for k, share in top.items()]
    rows += [
        (f"MaxBoxAcc of all regions, IoU {100 * iou:g}", _percent(accuracy), _best_of(every, iou))
        for iou, accuracy in every.max_box_acc.items()
    ]
    rows += [
        ("MaxBoxAccV2 (their mean)", _percent(every.max_box_acc_v2), "each its best"),
        ("MaxBoxAcc, IoU 50, " + ESTIMATED, _percent(free["largest"].max_box_acc[0.5]), f"{estimate:.2f} on average"),
        ("MaxBoxAccV2, " + ESTIMATED, _percent(free["all"].max_box_acc_v2), f"{estimate:.2f} on average"),
    ]
    curves = {"largest region, IoU 50": (largest.overlaps >= 0.5).mean(0)}
    curves |= {f"all regions, IoU {100 * iou:g}": row for iou, row in zip(every.ious, every.accuracies, strict=True)}
    marks = {
        "best": (report.best_threshold, largest.max_box_acc[0.5]),
        f"{ESTIMATED} (mean), IoU 50": (estimate, free["largest"].max_box_acc[0.5]),
    }

    def draw(index: int) -> Image:
        return pictures.draw_boxes(report, index)

    return View(rows, "box accuracy", "IoU", curves, largest.thresholds, marks, draw)


def _pixel_view(report: PixelReport) -> View:
    estimate, peak = mean_known(report.backgrounds), float(report.ious.max())
    rows = [
        ("PxAP", _percent(report.pxap), "all 1,000"),
        ("pixel IoU, peak", _percent(peak), f"{report.best_threshold:.3g}, the best"),
        ("pixel IoU, " + ESTIMATED, _percent(report.truth_free), f"{estimate:.2f} on average"),
    ]
    marks = {"best": (report.best_threshold, peak), f"{ESTIMATED} (mean)": (estimate, report.truth_free)}

    def draw(index: int) -> Image:
        return pictures.draw_pixels(report, index)

    return View(rows, "pixel IoU", "IoU", {"pixel IoU": report.ious}, report.thresholds, marks, draw)


def _draw_worst(report: Report, shown: View, folder: Path) -> None:
    folder.mkdir()
    for number, (index, _) in enumerate(report.worst(WORST_COUNT), 1):
        name = re.sub(r"[^\w.-]+", "_", report.images[index][0].id)
        shown.draw(index).save(folder / f"{number:02d}_{name}.png", format="PNG")


def _best_of(found: Any, iou: float) -> str:
    row = found.accuracies[found.ious.index(iou)]
    return f"{found.thresholds[int(np.argmax(row))]:.3g}, the best"


def _percent(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{100 * value:.2f}"
