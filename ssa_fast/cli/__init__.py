"""The command line: ``ssa-fast run``, ``convert``, ``demo``, ``eval``, ``explain``, ``models`` and ``bench``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run ``ssa-fast``; without the extra ``app``, exit with the command that installs it."""
    try:
        from ssa_fast.cli.app import app
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        sys.exit(f"error: the command line needs {missing}, which is not installed; pip install 'ssa_fast[app]'")
    app(prog_name="ssa-fast")
