"""A process that has one tree: it imports the package from there, calls cases, and tells results and times.

Workers are forked from a server that has imported PyTorch and computed nothing: each costs milliseconds. The one thread
there is OpenBLAS's own, which it ends itself before a fork.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import statistics
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.guard.trees import assert_unmixed, import_from

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from types import TracebackType

    from bench.guard.cases import Case

LIMIT = 120.0  # seconds that an answer may take
WARM = 2  # calls before the first sample of a case: thread pool, pages, caches
SETTLE = 0.004  # seconds before a sample, for which another worker's threads may still spin after their last product
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["numpy", "torch"])


@dataclass(frozen=True)
class Device:
    """Where cases run: a device, and PyTorch's threads on the processor."""

    device: str
    threads: int


class Failed(Exception):
    """What was asked of a worker went wrong there; the text says how."""


class Worker:
    """One tree's process, as its parent sees it."""

    def __init__(self, tree: Path, stand: Device) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=serve, args=(theirs, str(tree), stand), daemon=True)
        self.process.start()
        theirs.close()

    def answer(self, case: Case) -> dict[str, Any]:
        """A case's result; see ``Case.answer``."""
        return self._ask("answer", case)  # type: ignore[no-any-return]

    def begin(self, case: Case) -> None:
        """Make a case ready and call it until it is warm."""
        self._ask("begin", case)

    def sample(self, bursts: int, calls: int) -> tuple[float, int]:
        """Seconds per call, the median of ``bursts`` of ``calls`` calls of the case that was begun; switches.

        A switch is a time that the process lost a processor for which it had more work. With short bursts the median
        leaves out those that it happened in.
        """
        return self._ask("sample", (bursts, calls))  # type: ignore[no-any-return]

    def _ask(self, *question: object) -> Any:
        try:
            self.pipe.send(question)
            if not self.pipe.poll(LIMIT):
                self.end()
                raise Failed(f"no answer within {LIMIT:g} s")
            well, told = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            raise Failed(f"the process died with exit code {self.process.exitcode}") from None
        if not well:
            raise Failed(told)
        return told

    def end(self) -> None:
        self.process.kill()
        self.process.join(10)
        self.pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()


def serve(pipe: Connection, tree: str, stand: Device) -> None:
    """A worker's life: questions from the pipe, ``(True, answer)`` or ``(False, what went wrong)`` into it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.pop("TRITON_INTERPRET", None)  # what is interpreted is not what users run
    served, why = None, ""
    try:
        served = _Served(Path(tree), stand)
    except Exception as error:
        why = f"the package does not import: {told(error)}"
    while True:
        try:
            name, argument = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, getattr(served, name)(argument)) if served else (False, why))
        except Exception as error:
            pipe.send((False, told(error)))


def _end_with_parent() -> None:
    """Wait for the end of the process that asked for this one, which the fork server's signal does not tell."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def told(error: Exception) -> str:
    """An error in one line of bounded length, with its type."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


class _Served:
    """The questions that a worker answers."""

    def __init__(self, tree: Path, stand: Device) -> None:
        self.tree, self.device = tree, stand.device
        torch.set_num_threads(stand.threads)
        self.package = import_from(tree)
        self.call: Callable[[], Any] = lambda: None

    def answer(self, case: Case) -> dict[str, Any]:
        found = case.answer(self.package, self.device)
        assert_unmixed(self.tree)
        return found

    def begin(self, case: Case) -> None:
        self.call = lambda: None  # the memory of the case before goes first
        self.call = case.call(self.package, self.device)
        for _ in range(WARM):
            self.call()
        gc.collect()
        gc.disable()

    def sample(self, size: tuple[int, int]) -> tuple[float, int]:
        bursts, calls = size
        self._synchronize()
        time.sleep(SETTLE)
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        times = [self._burst(calls) for _ in range(bursts)]
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches
        return statistics.median(times) / calls, switches

    def _burst(self, calls: int) -> float:
        """Seconds of so many calls."""
        begin = time.perf_counter()
        for _ in range(calls):
            self.call()
        self._synchronize()
        return time.perf_counter() - begin

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
