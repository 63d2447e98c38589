"""Run jobs in processes of their own: a call that crashes, hangs or takes all memory costs its own row, not the run.

Processes are forked from a server that has imported PyTorch and computed nothing, so each costs milliseconds and is
fresh. They end when the process that asked for them ends, however that comes about, with all that they started.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from concurrent import futures
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing import util
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from bench.measure import Device, NotHere, first_line, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection

Row: TypeAlias = "dict[str, Any]"
GRACE_S = 5.0  # that a job under way has when the time is up
ENDS = {
    -signal.SIGALRM: ("over budget", "a call took longer than its limit"),
    -signal.SIGKILL: ("out of memory", "the system killed the process"),
}
# A CUDA context that met one of these answers every later call with it.
STICKY = ("cuda error", "illegal memory access", "device-side assert", "unspecified launch failure")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["numpy", "torch"])
_ALONE = threading.Lock()  # who starts a process looks after all others, too, and an exit code can be read only once


@dataclass(frozen=True)
class Job:
    """Call ``function``, ``"module:name"``, with a ``Device`` and the arguments; it returns rows.

    ``name``, ``"<part>: <what>"``, stands in the row of what goes wrong; after ``limit`` seconds its process is killed.
    """

    function: str
    name: str
    limit: float
    arguments: dict[str, Any]

    @property
    def part(self) -> str:
        return self.name.partition(": ")[0]

    def lost(self, status: str, why: str) -> list[Row]:
        """Return the row that stands for those that the job did not return."""
        return [{"part": self.part, "what": self.name, "status": status, "why": why}]


def job(function: str, name: str, limit: float, /, **arguments: Any) -> Job:
    return Job(function, name, limit, arguments)


def perform(task: Job, device: Device) -> list[Row]:
    """Return the job's rows; an error becomes a row that says so."""
    module, _, name = task.function.partition(":")
    try:
        rows: list[Row] = getattr(importlib.import_module(module), name)(device, **task.arguments)
        return rows
    except NotHere as reason:
        return task.lost("skipped", str(reason))
    except Exception as error:
        (row,) = task.lost("out of memory" if is_out_of_memory(error) else "failed", first_line(error))
        return [row | {"traceback": traceback.format_exc()[-3000:]}]


@dataclass
class Workers(contextlib.AbstractContextManager["Workers"]):
    """Processes that do jobs, one after the other or several side by side. Use as a context manager.

    Attributes:
        fresh: A process does one job; otherwise it is kept for the next until a job ends it.
        device: ``"cpu"`` or ``"cuda"``.
        threads: PyTorch's on the processor; by default its own choice.
        tree: Folder whose ``ssa_fast`` is imported in place of this tree's.
        environment: Variables to set; None takes one away. For what is read after the start of the process.
    """

    fresh: bool = False
    device: str = "cpu"
    dry_run: bool = False
    threads: int | None = None
    tree: Path | None = None
    environment: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._all: list[_Process] = []
        self._idle: list[_Process] = []

    def do(self, task: Job) -> list[Row]:
        """Return the rows of one job, however it ends."""
        return next(rows for _, rows in self.run([task]))

    def run(
        self, jobs: Sequence[Job], *, count: int = 1, until: float = float("inf")
    ) -> Iterator[tuple[Job, list[Row]]]:
        """Do the jobs in order, ``count`` at a time; yield each with its rows as they come.

        Args:
            jobs: What to do.
            count: 0 stands for this process, for a dry run.
            until: A time of ``time.monotonic``: what is not begun then is "not reached", and what is under way has
                ``GRACE_S`` more.
        """
        if count == 0:
            here = Device(self.device, self.dry_run)
            yield from ((task, _too_late(task, until) or perform(task, here)) for task in jobs)
            return
        waiting, under_way = iter(jobs), set[Any]()
        going, stop = _CONTEXT.Pipe()
        # Threads start the processes: no Ctrl-C interrupts them half-way. They end with the block, as `going` closes.
        with futures.ThreadPoolExecutor(count) as threads, going:
            while True:
                for task in islice(waiting, count - len(under_way)):
                    under_way.add(threads.submit(self._do, task, until, stop))
                if not under_way:
                    return
                # Not for ever: a Ctrl-C that comes just before a wait does not end it, but prevents the next.
                done, under_way = futures.wait(under_way, timeout=1.0, return_when=futures.FIRST_COMPLETED)
                yield from (each.result() for each in done)

    def _do(self, task: Job, until: float, stop: Connection) -> tuple[Job, list[Row]]:
        try:
            process = self._idle.pop()  # the last one: with one job at a time always the same
        except IndexError:
            self._all.append(process := _Process(replace(self)))
        rows = _too_late(task, until) or process.do(task, until, stop)
        if self.fresh:
            process.end()
        self._idle.append(process)
        return task, rows

    def end(self) -> None:
        """Kill the processes and what they started."""
        for each in self._all:
            each.end()

    def __exit__(self, *_: object) -> None:
        self.end()


def _too_late(task: Job, until: float) -> list[Row]:
    return task.lost("not reached", "the time was up") if time.monotonic() > until else []


class _Process:
    """A process that does one job after the other; where it has ended, the next job starts another."""

    def __init__(self, settings: Workers) -> None:
        self.settings = settings
        self.process: Any = None

    def do(self, task: Job, until: float, stop: Connection) -> list[Row]:
        """Return the job's rows, or one that says how it ended: early, too, when the other end of ``stop`` closes."""
        with _ALONE:
            if not self.process or not self.process.is_alive():
                self.end()
                self.start()
        left = max(until + GRACE_S - time.monotonic(), 0.0)
        with contextlib.suppress(EOFError, OSError):  # it dies, which is looked into below
            self.pipe.send(task)
            ready = wait([self.pipe, self.process.sentinel, stop], min(task.limit, left))
            if not ready or stop in ready:
                self.end()
                if ready or left < task.limit:
                    return task.lost("not reached", "the time was up while it ran")
                return task.lost("over budget", f"the whole of it took longer than {task.limit:g} s")
            if self.pipe.poll():
                rows: list[Row] = self.pipe.recv()
                if any(word in str(rows).lower() for word in STICKY):
                    self.end()
                return rows
        wait([self.process.sentinel], 5)
        with _ALONE:
            code = self.process.exitcode
        self.end()
        said = " ".join(self.output.read_text(errors="replace").split())[-300:]
        return task.lost(*ENDS.get(code, ("failed", f"the process died with exit code {code}: {said}")))

    def start(self) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self.output = Path(util.get_temp_dir(), f"{id(self)}.log")
        self.output.write_text("")
        process = _CONTEXT.Process(target=_serve, args=(theirs, self.output, self.settings))
        process.start()
        theirs.close()
        self.process = process

    def end(self) -> None:
        """Kill the process and what it started."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):  # it may not lead its group yet
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join(10)
            self.pipe.close()


def _serve(pipe: Connection, output: Path, settings: Workers) -> None:
    """Take jobs from the pipe and send their rows back, until the parent ends."""
    os.setsid()  # a group of its own, with what it starts
    watch = threading.Thread(target=_end_with_parent, args=(output.parent,), daemon=True)
    watch.start()
    with output.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # many workers compile side by side already
    for name, value in settings.environment.items():
        os.environ.pop(name, None)
        os.environ |= {name: value} if value is not None else {}
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.tree:
        import_from(settings.tree)
    device = Device(settings.device, settings.dry_run)
    with contextlib.suppress(EOFError):
        while True:
            task = pipe.recv()
            device.limit_memory()
            rows = perform(task, device)
            if settings.tree:
                assert_unmixed(settings.tree)
            pipe.send(rows)
            if not settings.tree:  # what is compared in small samples has nothing to free, and no 0.1 s
                device.clean()
    watch.join()  # which removes the folder before it ends this process


def _end_with_parent(folder: Path) -> None:
    """Wait for the end of the process that asked for this one; remove its folder, where the server's socket is."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends; the initializer of a pool."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def import_from(tree: Path) -> None:
    """Import ``ssa_fast`` of ``tree``, which has the kernels in it, in a process that has not imported any yet."""
    if "ssa_fast" in sys.modules:
        raise RuntimeError("expected a process without ssa_fast, found ssa_fast imported")
    sys.path.insert(0, str(tree))
    importlib.import_module("ssa_fast")
    assert_unmixed(tree)


def assert_unmixed(tree: Path) -> None:
    """Raise RuntimeError if a module of the package was loaded from anywhere but ``tree``."""
    for name, module in sys.modules.copy().items():
        if name.partition(".")[0] == "ssa_fast":
            file = getattr(module, "__file__", None)
            places = [file] if file else list(getattr(module, "__path__", ["nowhere"]))
            if not all(Path(place).resolve().is_relative_to(tree.resolve()) for place in places):
                raise RuntimeError(f"{name}: expected it from the tree {tree}, it came from {places}")
