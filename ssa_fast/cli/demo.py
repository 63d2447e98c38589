"""``ssa-fast demo``: the shipped classifier's seed and polished CAMs on newly generated scenes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssa_fast.cli import console
from ssa_fast.cli.options import EXECUTION, Debug

if TYPE_CHECKING:
    from ssa_fast.demo import DemoReport

COLUMNS = ("CAM", "mIoU, %", "box accuracy, %", "mask threshold", "box threshold")
NAMES = {"seed": "seed", "polished": "polished", "default": "SSA(model), no option"}


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the panels.")] = Path("ssa-fast-demo"),
    images: Annotated[int | None, typer.Option(min=1, help="Number of scenes.  [default: 200]")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the scenes.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", rich_help_panel=EXECUTION)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace panels that exist.")] = False,
    debug: Debug = False,
) -> None:
    """Run the shipped demo network on newly generated scenes; needs no network connection and no data."""
    with console.usage_errors(debug=debug):
        from ssa_fast import demo

        options: dict[str, Any] = {"images": images, "seed": seed, "threads": threads, "overwrite": overwrite}
        with console.err().status("polishing generated scenes"):
            report = demo.run(out, **{name: value for name, value in options.items() if value is not None})
    _print(report, out)


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
