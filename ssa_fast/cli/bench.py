"""``ssa-fast bench``: the repository's benchmarks, the same as ``python -m bench``."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

import ssa_fast

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}  # pass all arguments on, ``--help`` too


def command(context: typer.Context) -> None:
    """Time ssa_fast and its baselines on this machine; the same as: python -m bench."""
    folders = (Path.cwd(), Path(ssa_fast.__file__).resolve().parent.parent)
    checkouts = [path for path in folders if (path / "bench/__main__.py").is_file() and (path / "ssa_fast").is_dir()]
    if not checkouts:
        typer.echo(
            "error: the benchmarks are in the repository, which is not here; clone it, then "
            'pip install -e ".[dev]" and run python -m bench there',
            err=True,
        )
        raise typer.Exit(1)
    sys.path.insert(0, str(checkouts[0]))
    from bench.__main__ import main

    raise typer.Exit(main(context.args))
