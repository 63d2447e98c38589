"""Output of the commands: tables on stdout, progress and errors on stderr, errors on one line."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


notices: set[str] = set()
"""Notes that the command has printed."""


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


def _show_warning(otherwise: Callable[..., None], message: Warning | str, category: type, *rest: Any) -> None:
    if category.__name__ != "InputWarning":  # by name: to import it takes a second, which ``--help`` has not
        otherwise(message, category, *rest)
    elif str(message) not in notices:
        notices.add(str(message))
        err().print(f"notice: {message}")


@contextmanager
def usage_errors(*, debug: bool) -> Iterator[None]:
    """Turn errors of usage into one line on stderr and exit code 2, and Ctrl-C into exit code 130.

    A missing module counts as one: the line says what to install. ``debug`` prints the traceback before the line.
    Notes on how an input was read, ``InputWarning``, become one line each.
    """
    notices.clear()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            yield
    except (ValueError, TypeError, ModuleNotFoundError, OSError) as error:
        if debug:
            traceback.print_exc()
        line = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ModuleNotFoundError) and "pip install" not in line:
            line += "; pip install 'ssa_fast[app]'"
        err().print(Text("error: ", "bold red").append(line, "default"), soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        err().print("interrupted")
        raise typer.Exit(130) from None
