"""Turn termination signals into exceptions, so that a run can finish what it has begun to write."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Stopped(KeyboardInterrupt):
    """A signal asked the run to end; the only argument is the signal's number."""


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Raise ``Stopped`` on the first SIGTERM or SIGINT, and on every further SIGINT.

    Further SIGTERMs are ignored: launchers send several, which must not keep written outputs from being completed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if not stopping or number == signal.SIGINT:
            stopping = True
            raise Stopped(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
