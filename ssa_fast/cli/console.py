"""Where the commands speak: tables on stdout, progress and errors on stderr, and errors as one line."""

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

__all__ = ["err", "out", "table", "usage_errors"]

UNBOUNDED = 1000
"""Columns where there is no terminal: a table written to a file is as wide as its contents."""


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a file's name need not be text
    told = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, width=None if told else UNBOUNDED, markup=False, highlight=False)


def out() -> Console:
    """For results. Text is shown as it is: brackets in a file's name are no markup."""
    return _console(stderr=False)


def err() -> Console:
    """For everything that is not a result."""
    return _console(stderr=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """A table whose cells are shown whole, folded where the terminal is too narrow; `right` names numbers' columns."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        result.add_column(column, overflow="fold", justify="right" if column in right else "left")
    for row in rows:
        result.add_row(*(Text(str(cell)) for cell in row))
    return result


@contextmanager
def usage_errors(*, debug: bool) -> Iterator[None]:
    """A ValueError or TypeError inside ends the command with one line on stderr and exit code 2.

    So does a missing module, with what to install. With `debug` the traceback comes first.
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
