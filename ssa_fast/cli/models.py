"""`ssa-fast models`: what SSA finds in torchvision's classification networks."""

from __future__ import annotations

from typing import Annotated

import typer

from ssa_fast.cli import console
from ssa_fast.cli.setup import Debug

__all__ = ["command"]


def command(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Models; else the light ones.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every classification model of torchvision.")] = False,
    debug: Debug = False,
) -> None:
    """Try networks with random weights: stages, their sizes and sign, the kind of seed, and the path taken."""
