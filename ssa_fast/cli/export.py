"""``ssa-fast export``: make a training set of a run's images and pseudo-masks."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer evaluates the annotations
from typing import Annotated, Literal

import typer

from ssa_fast.cli import console
from ssa_fast.cli.options import Debug  # noqa: TC001 - typer reads it

SKIPPED_SHOWN = 3


def command(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="The images, as the run had them.")],
    results: Annotated[Path, typer.Option("--results", help="Output folder of ssa-fast run.")],
    to: Annotated[
        Literal["mmseg", "hf"], typer.Option("--to", help="Layout: MMSegmentation's, or Hugging Face's imagefolder.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the training set.")],
    validation: Annotated[float, typer.Option(help="Share of the images that are for validation.")] = 0.1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier training set.")] = False,
    debug: Debug = False,
) -> None:
    """Make a training set of a run's images and pseudo-masks: same labels in all masks, 0 background, 255 ignored.

    Exit code: 0 all done, 1 some images have no mask, 2 wrong usage, 130 after Ctrl-C.

    Example: ssa-fast export photos/ --results results --to mmseg --out train_set
    """
    with console.usage_errors(debug=debug):
        from ssa_fast.io.progress import progress_bars
        from ssa_fast.runs.training_set import export_training_set

        with progress_bars(console.err()) as show:
            made = export_training_set(
                paths, results, out, to, validation=validation, overwrite=overwrite, on_progress=show
            )
    for path, reason in made.skipped[:SKIPPED_SHOWN]:
        console.err().print(f"left out: {path}: {reason}", soft_wrap=True)
    if len(made.skipped) > SKIPPED_SHOWN:
        console.err().print(f"left out: {len(made.skipped) - SKIPPED_SHOWN} more")
    row = (len(made.training), len(made.validation), len(made.classes), made.out)
    columns = ("training", "validation", "classes", "out")
    console.out().print(console.table("training set", columns, [row], right=columns[:3]))
    raise typer.Exit(1 if made.skipped else 0)
