"""``ssa-fast demo``: seed and polished CAMs of photographs, and their quality on newly generated scenes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssa_fast.cli import console
from ssa_fast.cli.options import EXECUTION, Debug

if TYPE_CHECKING:
    from ssa_fast.demo import DemoReport
    from ssa_fast.demo.photographs import PhotosReport

PHOTO_COLUMNS = ("photograph", "what the network sees", "network, ms", "SSA, ms")
COLUMNS = ("CAM", "mIoU, %", "box accuracy, %", "mask threshold", "box threshold")
NAMES = {
    "seed": "seed",
    "polished": "polished",
    "refined": "polished, refined (PAMR)",
    "default": "SSA(model), no option",
}


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the panels.")] = Path("ssa-fast-demo"),
    images: Annotated[int | None, typer.Option(min=1, help="Number of scenes.  [default: 200]")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the scenes.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", rich_help_panel=EXECUTION)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace panels that exist.")] = False,
    debug: Debug = False,
) -> None:
    """Polish photographs with an ImageNet network, then measure the shipped demo network on newly generated scenes.

    Needs no network connection and no data. The photographs and their network come with the extra photos.
    """
    with console.usage_errors(debug=debug):
        from ssa_fast import demo

        given: dict[str, Any] = {"images": images, "seed": seed, "threads": threads, "overwrite": overwrite}
        options = {name: value for name, value in given.items() if value is not None}
        demo.check(out, **options)
        missing = demo.photographs.missing_package()
        if missing is None:
            with console.err().status("polishing photographs"):
                photos = demo.photographs.run(out, threads=threads, overwrite=overwrite)
            _print_photos(photos)
        else:
            reason = f"{missing} is not installed; pip install 'ssa_fast[photos]'"
            console.err().print(f"notice: the demo leaves out its photographs: {reason}", soft_wrap=True)
        with console.err().status("polishing generated scenes"):
            report = demo.run(out, **options)
    _print(report, out)


def _print_photos(report: PhotosReport) -> None:
    rows = []
    for sighting in report.sightings:
        guesses = ", ".join(f"{name} {100 * score:.0f} %" for name, score in sighting.guesses)
        rows.append((sighting.title, guesses, f"{sighting.backbone_ms:.0f}", f"{sighting.polish_ms:.0f}"))
    screen = console.out()
    how = f"shorter side {report.side}, seed {report.seed_kind}, {report.threads} threads"
    title = f"photographs through {report.model} ({how})"
    screen.print(console.table(title, PHOTO_COLUMNS, rows, right=PHOTO_COLUMNS[2:]))
    others = len(report.panels) - 1
    screen.print(f"panels of each first guess: {report.panels[0]} and {others} more beside it\n", soft_wrap=True)


def _print(report: DemoReport, out: Path) -> None:
    rows = []
    for kind, score in report.scores.items():
        percent = [f"{100 * value:.1f}" for value in (score.miou, score.box)]
        thresholds = [f"{value:.2f}" for value in (score.background, score.box_threshold)]
        rows.append((NAMES.get(kind, f"stage {kind} alone (PCM)"), *percent, *thresholds))
    screen = console.out()
    title = f"{report.images} generated scenes not used for training (seed {report.seed})"
    screen.print(console.table(title, COLUMNS, rows, right=COLUMNS[1:]))
    seed, polished = report.scores["seed"], report.scores["polished"]
    lines = (
        f"polished - seed: {100 * (polished.miou - seed.miou):+.1f} mIoU points, "
        f"{100 * (polished.box - seed.box):+.1f} box points",
        f"per image on {report.threads} threads: backbone {report.backbone_ms:.1f} ms, SSA {report.polish_ms:.1f} ms",
        f"thresholds chosen on {report.validation_images} other scenes (seed {report.validation_seed}); "
        f"the classifier's average precision {100 * report.average_precision:.1f} %",
        f"panels: {report.panels[0]} and {len(report.panels) - 1} more in {out}; {report.seconds:.0f} s in total",
    )
    screen.print("\n".join(lines), soft_wrap=True)
