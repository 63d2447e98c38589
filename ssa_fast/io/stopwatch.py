"""Share a thread's time among what it does, to tell what limits a run: reading, the network, polishing, writing."""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
MOST_LAPS = 1000  # between two waits for a GPU, whose events are kept until then

_current: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


class Stopwatch:
    """Measure each ``activity`` inside ``with stopwatch.running()``, in this thread alone.

    An inner activity interrupts the outer one, so that no second counts twice. What a thread starts on a GPU is timed
    there, by events: they cost no wait, and show the GPU's time where it is the slower one, else the thread's.

    Args:
        device: The device that the thread computes on.
        clock: Returns the time in seconds; default: ``time.perf_counter``, on a GPU its events.

    Attributes:
        seconds: Activity -> time in it.
    """

    def __init__(self, device: torch.device, *, clock: Callable[[], float] | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.device = device if clock is None and device.type == "cuda" else None
        self._clock = clock or time.perf_counter
        self._open: list[str] = []  # the innermost last
        self._laps: list[tuple[str, Any, Any]] = []  # activity, start, end: seconds, or events
        self._last: Any = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure the activities of this thread."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Measure one activity; see ``activity``."""
        self._lap()
        self._open.append(name)
        try:
            yield
        finally:
            self._lap()
            self._open.pop()
            if not self._open or len(self._laps) >= MOST_LAPS:
                self._settle()

    def _lap(self) -> None:
        """Book the time since the last lap to the innermost activity."""
        now = self._now()
        if self._open:
            self._laps.append((self._open[-1], self._last, now))
        self._last = now

    def _now(self) -> Any:
        if self.device is None:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _settle(self) -> None:
        """Add the laps up; on a GPU this waits for it, which the end of a batch does anyway."""
        if self.device is not None:
            self._last.synchronize()
        for name, start, end in self._laps:
            spent = end - start if self.device is None else start.elapsed_time(end) / 1000
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
        self._laps.clear()


@contextmanager
def activity(name: str) -> Iterator[None]:
    """Measure what is done inside by the thread's running stopwatch; without one, do nothing."""
    stopwatch = _current.get()
    if stopwatch is None:
        yield
        return
    with stopwatch.during(name):
        yield


def timed(items: Iterable[T], name: str) -> Iterator[T]:
    """Yield the items; what each takes to come counts as the activity."""
    iterator = iter(items)
    while True:
        with activity(name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
