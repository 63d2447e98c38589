"""`ssa-fast models`: what SSA finds in torchvision's classification networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import track

from ssa_fast.cli import console
from ssa_fast.cli.options import Debug  # noqa: TC001 - typer reads it

if TYPE_CHECKING:
    from ssa_fast.models import SweepRow

__all__ = ["command"]

COLUMNS = ("model", "input", "stages", "C x h x w", "features", "path at K = 20", "seed", "seconds")


def command(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Models; else the light half.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every classification model of torchvision.")] = False,
    debug: Debug = False,
) -> None:
    """Try networks with random weights: stages, their sizes and sign, the kind of seed, and the path taken.

    Exit code: 0 if SSA works on all of them, 1 if it failed on some, 2 for wrong usage.
    """
    with console.usage_errors(debug=debug):
        from ssa_fast.models import light_half, sweep

        if names and everything:
            raise ValueError("names: expected either names or --all, got both; leave one out")
        wanted = names or (None if everything else light_half())
        screen = console.err()
        quiet = not screen.is_terminal
        rows = list(track(sweep(wanted), "trying networks", _count(wanted), console=screen, disable=quiet))
    working = [row for row in rows if row.description is not None]
    if working:
        console.out().print(console.table("networks", COLUMNS, [_cells(row) for row in working], right=("seconds",)))
    for row in rows:
        if row.error is not None:
            screen.print(f"failed: {row.name}: {row.error}", soft_wrap=True)
    console.out().print(f"SSA works on {len(working)} of {len(rows)} networks")
    raise typer.Exit(int(len(working) < len(rows)))


def _count(names: list[str] | None) -> int:
    from torchvision import models

    return len(names if names is not None else models.list_models(module=models))


def _cells(row: SweepRow) -> tuple[str, ...]:
    found = row.description
    assert found is not None
    names = "\n".join(stage.name for stage in found.stages)
    shapes = "\n".join(" x ".join(map(str, stage.shape)) for stage in found.stages)
    signs = "\n".join(stage.sign for stage in found.stages)
    paths = "\n".join(stage.method for stage in found.stages)
    size = "{} x {}".format(*found.input_size)
    return row.name, size, names, shapes, signs, paths, f"{found.seed_kind}\n{found.seed_layer}", f"{row.seconds:.1f}"
