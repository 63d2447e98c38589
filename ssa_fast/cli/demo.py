"""`ssa-fast demo`: the shipped classifier on scenes it never saw, seed against polished CAM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssa_fast.cli import console
from ssa_fast.cli.options import Debug  # noqa: TC001 - typer reads it

if TYPE_CHECKING:
    from ssa_fast.demo import DemoReport

__all__ = ["command"]

COLUMNS = ("CAM", "mIoU, %", "box accuracy, %", "mask threshold", "box threshold")
NAMES = {"seed": "seed", "polished": "polished", "default": "SSA(model), no option"}


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the panels.")] = Path("ssa-fast-demo"),
    images: Annotated[int | None, typer.Option(min=1, help="Scenes to generate.  [default: 200]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the scenes' generator.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace panels that exist.")] = False,
    debug: Debug = False,
) -> None:
    """Run the shipped demo network on freshly generated scenes; needs no network connection and no data."""
    with console.usage_errors(debug=debug):
        from ssa_fast import demo

        wishes: dict[str, Any] = {"images": images, "seed": seed, "threads": threads, "overwrite": overwrite}
        with console.err().status("polishing generated scenes"):
            report = demo.run(out, **{name: wish for name, wish in wishes.items() if wish is not None})
    _tell(report, out)


def _tell(report: DemoReport, out: Path) -> None:
    rows = [_row(kind, report) for kind in report.scores]
    screen = console.out()
    title = f"{report.images} generated scenes that the classifier never saw (seed {report.seed})"
    screen.print(console.table(title, COLUMNS, rows, right=COLUMNS[1:]))
    gain = 100 * (report.polished_miou - report.seed_miou)
    lines = (
        f"polished - seed: {gain:+.1f} mIoU points, {100 * (report.polished_box - report.seed_box):+.1f} box points",
        f"per image on {report.threads} threads: backbone {report.backbone_ms:.1f} ms, SSA {report.polish_ms:.1f} ms",
        f"thresholds chosen on {report.validation_images} other scenes (seed {report.validation_seed}); "
        f"the classifier's average precision {100 * report.average_precision:.1f} %",
        f"panels: {report.panels[0]} and {len(report.panels) - 1} more in {out}; {report.seconds:.0f} s in all",
    )
    for line in lines:
        screen.print(line, soft_wrap=True)


def _row(kind: str, report: DemoReport) -> tuple[str, ...]:
    score = report.scores[kind]
    name = NAMES.get(kind, f"stage {kind} alone (PCM)")
    return (
        name,
        f"{100 * score.miou:.1f}",
        f"{100 * score.box:.1f}",
        f"{score.background:.2f}",
        f"{score.box_threshold:.2f}",
    )
