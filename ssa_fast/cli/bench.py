"""`ssa-fast bench`: the repository's benchmarks, `python -m bench` by another name."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

import ssa_fast

__all__ = ["PASSED_ON", "command"]

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Of the command's context: every argument is the benchmarks' own, `--help` too."""


def command(context: typer.Context) -> None:
    """Time ssa_fast against its peers on this machine; all arguments are those of `python -m bench`."""
    checkout = _checkout()
    if checkout is None:
        typer.echo(
            "error: the benchmarks are in the repository and no checkout of it is here; clone it, then "
            'pip install -e ".[dev]" and run python -m bench there',
            err=True,
        )
        raise typer.Exit(1)
    sys.path.insert(0, str(checkout))
    from bench.__main__ import main

    raise typer.Exit(main(context.args))


def _checkout() -> Path | None:
    """The repository's folder: the current one, else the one that this package is in."""
    for folder in (Path.cwd(), Path(ssa_fast.__file__).resolve().parent.parent):
        if (folder / "bench" / "__main__.py").is_file() and (folder / "ssa_fast").is_dir():
            return folder
    return None
