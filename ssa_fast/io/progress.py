"""Report the progress of long operations, and show it as bars on a terminal."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

T = TypeVar("T")
LONG_S = 60.0  # an operation that takes less says nothing
EVERY_S = 30.0  # between two lines of a longer one


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


class Pace:
    """Say in lines about how long an operation takes, and then how far it is; nothing if it is short.

    Args:
        what: Name of the operation, which begins each line.
        seconds: What it is expected to take, said at once; None: as soon as its first part is done.
        say: Called with each line; default: print it on stderr.
        clock: Returns the time in seconds; default: ``time.monotonic``.
    """

    def __init__(
        self,
        what: str,
        seconds: float | None = None,
        *,
        say: Callable[[str], object] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.what, self._say, self._clock = what, say or _print, clock or time.monotonic
        self._begin = self._last = self._clock()
        self._told = False
        if seconds is not None and seconds >= LONG_S:
            self._tell(f"about {format_duration(seconds)}")

    def update(self, done: float, total: float) -> None:
        """Report how much of the work is done, in any unit."""
        now = self._clock()
        if not 0 < done < total or (self._told and now - self._last < EVERY_S):
            return
        left = (now - self._begin) * (total - done) / done
        if self._told:
            self._tell(f"{100 * done / total:.0f} % done, about {format_duration(left)} left")
        elif now - self._begin + left >= LONG_S:
            self._tell(f"about {format_duration(now - self._begin + left)} in all")

    def _tell(self, text: str) -> None:
        self._told, self._last = True, self._clock()
        self._say(f"{self.what}: {text}")


def paced(
    items: Iterable[T], what: str, *, costs: Sequence[float], seconds: float | None = None, console: Any = None
) -> Generator[T, None, None]:
    """Yield the items, one per cost; show the progress as a bar on a terminal, in the lines of ``Pace`` elsewhere.

    Args:
        items, costs: The items, and about how they share the time, in any unit.
        what, seconds: See ``Pace``.
        console: A rich console; default: stderr.
    """
    terminal = sys.stderr.isatty() if console is None else console.is_terminal
    pace, total, done = Pace(what, seconds), sum(costs), 0.0
    with progress_bars(console) if terminal else nullcontext() as show:
        for item, cost in zip(items, costs, strict=True):
            yield item
            done += cost
            if show is None:
                pace.update(done, total)
            elif total:
                show(Progress(round(1000 * done / total), 1000, phase=what))


def format_duration(seconds: float) -> str:
    """Return a duration in whole seconds, minutes, or tenths of hours, such as "40 s" or "3 min"."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
