"""What the commands share that print figures and save them with ``--save``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import measure

if TYPE_CHECKING:
    from collections.abc import Sequence


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of ``python -m bench NAME``, which takes ``--save FILE``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write the figures and the machine")
    return parser


def save(options: argparse.Namespace, words: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Print the machine; write rows, machine and the command's words to the file that ``--save`` names, if any."""
    print(measure.describe(measure.machine()))
    if options.save:
        measure.save(options.save, rows, command=measure.command_line(words))
