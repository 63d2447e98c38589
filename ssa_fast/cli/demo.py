"""`ssa-fast demo`: the shipped classifier on scenes it never saw, seed against polished CAM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssa_fast.cli import console
from ssa_fast.cli.setup import Debug  # noqa: TC001 - typer reads it

__all__ = ["command"]


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the panels.")] = Path("ssa-fast-demo"),
    images: Annotated[int | None, typer.Option(min=1, help="Scenes to generate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the scenes' generator.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    debug: Debug = False,
) -> None:
    """Run the shipped demo network on freshly generated scenes; needs no network connection and no data."""
    with console.usage_errors(debug=debug):
        from ssa_fast import demo

        given = {"images": images, "seed": seed, "threads": threads}
        with console.err().status("polishing generated scenes"):
            report = demo.run(out, **{name: value for name, value in given.items() if value is not None})
    rows = [
        ("mIoU, %", *_versus(report.seed_miou, report.polished_miou)),
        ("boxes right, %", *_versus(report.seed_box, report.polished_box)),
    ]
    screen = console.out()
    screen.print(console.table(f"{report.images} scenes never seen", ("", "seed", "polished", "gain"), rows))
