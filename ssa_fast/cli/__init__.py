"""The command line: `ssa-fast run`, `convert`, `demo`, `explain`, `models` and `bench`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the console script `ssa-fast`; says what to install where the extra `app` is missing."""
    try:
        from ssa_fast.cli.app import app
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        sys.exit(f"error: the command line needs {missing}, which is not here; pip install 'ssa_fast[app]'")
    app()
