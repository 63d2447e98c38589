"""``ssa-fast bench``: the repository's benchmarks, the same as ``python -m bench``."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

import ssa_fast

__all__ = ["CONTEXT", "command"]

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of the command's context: every argument, ``--help`` too, is passed to the benchmarks."""


def command(context: typer.Context) -> None:
    """Time ssa_fast and its baselines on this machine; the same as: python -m bench."""
    checkout = _find_checkout()
    if checkout is None:
        typer.echo(
            "error: the benchmarks are in the repository, which is not here; clone it, then "
            'pip install -e ".[dev]" and run python -m bench there',
            err=True,
        )
        raise typer.Exit(1)
    sys.path.insert(0, str(checkout))
    from bench.__main__ import main

    raise typer.Exit(main(context.args))


def _find_checkout() -> Path | None:
    """Return the repository's folder: the current one, or the one that holds this package."""
    for folder in (Path.cwd(), Path(ssa_fast.__file__).resolve().parent.parent):
        if (folder / "bench" / "__main__.py").is_file() and (folder / "ssa_fast").is_dir():
            return folder
    return None
