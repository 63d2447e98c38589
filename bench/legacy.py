"""The worker processes before ``bench.workers``, for what has not moved yet; goes with its last user.

Run jobs in processes of their own: a kernel that crashes or hangs costs its own row, not the run.

A job is plain data, ``{"name", "function", "arguments", "limit"}``, where ``function`` is ``"module:name"`` of a
function ``(device, **arguments)`` that returns rows. A worker does one job after another; one that dies, or exceeds a
job's limit, is replaced. Workers end when the process that started them ends, however that comes about.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bench.orphans import die_with
from bench.workers import perform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

Row: TypeAlias = "dict[str, Any]"
Job: TypeAlias = Any
SHOWN = 300
GRACE = 5.0  # seconds that a job under way has when the time is up
_CONTEXT = multiprocessing.get_context("spawn")
STICKY = ("cuda error", "illegal memory access", "device-side assert", "unspecified launch failure")


def ended(task: Job, code: int | None, output: str) -> Row:
    """Return the row of a job whose process ended before the job did."""
    if code == -signal.SIGALRM:
        return lost(task, "over budget", "a call took longer than its limit")
    if code == -signal.SIGKILL:
        return lost(task, "out of memory", "the system killed the process")
    return lost(task, "failed", f"the process died with exit code {code}: {' '.join(output.split())[-SHOWN:]}")


def lost(task: Job, status: str, why: str) -> Row:
    return {"part": part_of(task), "what": task["name"], "status": status, "why": why}


def part_of(task: Job) -> str:
    return str(task["name"]).partition(": ")[0]


class Pool:
    """Worker processes that are kept from one list of jobs to the next, since each takes seconds to start.

    A dry run has none: its jobs run in this process.
    """

    def __init__(self, dry_run: bool = False) -> None:
        self._dry_run = dry_run
        self._workers: list[_Worker] = []

    def run(self, jobs: Sequence[Job], *, count: int, until: float, report: Callable[[Job, list[Row]], None]) -> None:
        """Do the jobs in order, ``count`` at a time, and report each job's rows as they come.

        Args:
            count: 0 stands for this process.
            until: A time of ``time.monotonic``; what is not begun then is reported as "not reached", and what is under
                way has ``GRACE`` seconds more.
        """
        if count == 0:
            _run_here(jobs, until, report, self._dry_run)
            return
        waiting = list(jobs)
        while waiting or any(worker.task for worker in self._workers):
            if time.monotonic() > until:
                while waiting:
                    task = waiting.pop(0)
                    report(task, [lost(task, "not reached", "the time was up")])
            for worker in [each for each in self._workers if each.task is None and not each.process.is_alive()]:
                worker.end()
                self._workers.remove(worker)
            while len(self._workers) < min(count, len(waiting)):
                self._workers.append(_Worker(self._dry_run))
            free = count - sum(worker.task is not None for worker in self._workers)
            for worker in self._workers:
                if waiting and free > 0 and worker.task is None:
                    worker.begin(waiting.pop(0), until)
                    free -= 1
            _collect(self._workers, report)

    def end(self) -> None:
        """Kill the workers."""
        for worker in self._workers:
            worker.process.kill()  # all of them before any is waited for
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _run_here(jobs: Sequence[Job], until: float, report: Callable[[Job, list[Row]], None], dry_run: bool) -> None:
    from bench.stand import Device

    device = Device(dry_run)
    for task in jobs:
        late = time.monotonic() > until
        report(task, [lost(task, "not reached", "the time was up")] if late else perform(task, device))


def _collect(pool: list[_Worker], report: Callable[[Job, list[Row]], None]) -> None:
    """Wait until something happens, and report every job that is over."""
    busy = [worker for worker in pool if worker.task]
    wait([handle for worker in busy for handle in (worker.pipe, worker.process.sentinel)], timeout=0.5)
    for worker in busy:
        task = worker.task
        assert task is not None
        if (rows := worker.rows()) is None:
            continue
        worker.task = None
        report(task, rows)


class WorkerProcess:
    """Do one job after another in one process, which is replaced when a job ends it."""

    def __init__(self, dry_run: bool = False) -> None:
        self._dry_run = dry_run
        self._worker: _Worker | None = None

    def do(self, task: Job) -> list[Row]:
        """Return the job's rows, however it ends."""
        if self._worker is None or not self._worker.process.is_alive():
            self.end()
            self._worker = _Worker(self._dry_run)
        found: list[Row] = []
        self._worker.begin(task, float("inf"))
        while self._worker.task:
            _collect([self._worker], lambda _, rows: found.extend(rows))
        return found

    hold = do  # what a job caches is there for the next

    def end(self) -> None:
        if self._worker:
            self._worker.end()
            self._worker = None


@dataclass
class _Worker:
    """One process and the job it has."""

    dry_run: bool
    task: Job | None = None
    deadline: float = 0.0
    cut: bool = False  # whether the run ends before the job's own limit

    def __post_init__(self) -> None:
        self.log = Path(tempfile.mkstemp(prefix="bench-worker-", suffix=".log")[1])
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=serve, args=(theirs, self.dry_run, str(self.log), os.getpid()))
        self.process.start()
        theirs.close()

    def begin(self, task: Job, until: float) -> None:
        now = time.monotonic()
        self.task, self.deadline = task, now + task["limit"]
        self.cut = self.deadline > max(until, now) + GRACE
        if self.cut:
            self.deadline = max(until, now) + GRACE
        try:
            self.pipe.send(task)
        except OSError:
            self.deadline = 0.0  # died idle: seen by rows()

    def rows(self) -> list[Row] | None:
        """Return the job's rows, or None while it is under way."""
        assert self.task is not None
        try:
            if self.pipe.poll():
                answer: list[Row] = self.pipe.recv()
                if any(word in str(answer).lower() for word in STICKY):
                    self.process.kill()  # a CUDA context that met such an error answers every later call with it
                    self.process.join(10)
                return answer
        except (EOFError, OSError):
            self.process.join(5)
        if not self.process.is_alive():
            return [ended(self.task, self.process.exitcode, self.log.read_text(encoding="utf-8", errors="replace"))]
        if time.monotonic() > self.deadline:
            self.process.kill()
            self.process.join(10)
            if self.cut:
                return [lost(self.task, "not reached", "the time was up while it ran")]
            return [lost(self.task, "timed out", f"killed after {self.task['limit']:g} s")]
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.join(10)
        self.pipe.close()
        self.log.unlink(missing_ok=True)


def serve(pipe: Connection, dry_run: bool, log: str, parent: int) -> None:
    """Take jobs from the pipe and send their rows back; all other output goes to ``log``."""
    die_with(parent)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # many workers compile side by side already
    handle = os.open(log, os.O_WRONLY | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from bench.stand import Device

    device = Device(dry_run)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(perform(task, device))
        device.clean()
