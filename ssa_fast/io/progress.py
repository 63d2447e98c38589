"""Report the progress of long operations, and show it as bars on a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Progress:
    """Progress of an operation, handed to ``on_progress`` after each item.

    Attributes:
        done, total: Items finished so far, failed ones included; items in all.
        phase: Name of the current phase if an operation has several; ``done`` and ``total`` count its items.
        name: The item just finished; empty for the first report.
        error: Why that item failed, in one sentence; None if it did not.
        resumed: Items of ``done`` that an earlier start had finished; they do not count towards the speed.
    """

    done: int
    total: int
    phase: str = ""
    name: str = ""
    error: str | None = None
    resumed: int = 0


OnProgress: TypeAlias = "Callable[[Progress], None]"


@contextmanager
def progress_bars(console: Any = None) -> Iterator[OnProgress]:
    """Yield a callback that shows one bar per phase, with the time left, on a rich ``console`` (default: stderr).

    Raises:
        ModuleNotFoundError: rich is not installed.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("progress: needs rich; pip install 'ssa_fast[app]'", name="rich") from error
    columns = (TextColumn("{task.description:>8}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    tasks: dict[str, Any] = {}
    with RichProgress(*columns, console=console or Console(stderr=True)) as bars:

        def show(progress: Progress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bars.add_task(progress.phase)
            bars.update(tasks[progress.phase], completed=progress.done, total=progress.total)

        yield show
