"""Output of the commands: tables on stdout, progress and errors on stderr, errors on one line."""

from __future__ import annotations

import io
import os
import sys
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def out(*, stderr: bool = False) -> Console:
    """Return the console for results; it prints text literally, brackets in file names included."""
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # file names need not be valid text
    has_width = stream.isatty() or "COLUMNS" in os.environ  # else a file, where a table is as wide as its contents
    return Console(stderr=stderr, width=None if has_width else 1000, markup=False, highlight=False)


def err() -> Console:
    """Return the console for progress, notices and errors; it prints text literally."""
    return out(stderr=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """Return a table whose text wraps in a narrow terminal, except numbers: the columns in ``right``."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        number = column in right
        result.add_column(column, overflow="fold", justify="right" if number else "left", no_wrap=number)
    for row in rows:
        result.add_row(*(Text(str(cell)) for cell in row))
    return result


@contextmanager
def usage_errors(*, debug: bool) -> Iterator[None]:
    """Turn errors of usage into one line on stderr and exit code 2, and Ctrl-C into exit code 130.

    A missing module counts as one: the line says what to install. ``debug`` prints the traceback before the line.
    """
    try:
        yield
    except (ValueError, TypeError, ModuleNotFoundError, OSError) as error:
        if debug:
            traceback.print_exc()
        line = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ModuleNotFoundError):
            line += "; pip install 'ssa_fast[app]'"
        err().print(Text("error: ", "bold red").append(line, "default"), soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        err().print("interrupted")
        raise typer.Exit(130) from None
