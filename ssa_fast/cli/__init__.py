"""The command line: `ssa-fast run`, `demo`, `explain` and `models`."""

from __future__ import annotations

from ssa_fast.cli.app import app, main

__all__ = ["app", "main"]
