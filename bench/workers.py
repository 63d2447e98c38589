"""Run jobs in processes of their own: a call that crashes, hangs or takes all memory costs its own row, not the run.

Processes are forked from a server that has imported PyTorch and computed nothing, so each costs milliseconds and is
fresh. They end when the process that asked for them ends, however that comes about, with all that they started.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import util
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from bench.measure import ROOT, Device, NotHere, first_line, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection

Row: TypeAlias = "dict[str, Any]"
GRACE_S = 5.0  # that a job under way has when the time is up
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["numpy", "torch"])
STICKY = ("cuda error", "illegal memory access", "device-side assert", "unspecified launch failure")


@dataclass(frozen=True)
class Job:
    """Call ``function``, ``"module:name"``, with a ``Device`` and the arguments; it returns rows.

    Attributes:
        name: Says what it is in its rows, ``"<part>: <what>"``.
        limit: Seconds after which its process is killed.
    """

    function: str
    name: str
    limit: float
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def part(self) -> str:
        return self.name.partition(": ")[0]

    def lost(self, status: str, why: str) -> list[Row]:
        """Return the row that stands for those that the job did not return."""
        return [{"part": self.part, "what": self.name, "status": status, "why": why}]


def job(function: str, name: str, limit: float, /, **arguments: Any) -> Job:
    return Job(function, name, limit, arguments)


def perform(task: Job, device: Device, tree: Path | None = None) -> list[Row]:
    """Return the job's rows; an error becomes a row that says so, as does a module that is not the ``tree``'s."""
    module, _, name = task.function.partition(":")
    try:
        found: list[Row] = getattr(importlib.import_module(module), name)(device, **task.arguments)
        if tree:
            assert_unmixed(tree)
        return found
    except NotHere as reason:
        return task.lost("skipped", str(reason))
    except Exception as error:
        if is_out_of_memory(error):
            return task.lost("out of memory", first_line(error))
        (row,) = task.lost("failed", first_line(error))
        return [row | {"traceback": traceback.format_exc()[-3000:]}]


@dataclass(frozen=True)
class Settings:
    """What a worker is like.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        threads: PyTorch's on the processor; by default its own choice.
        tree: Folder whose ``ssa_fast`` is imported in place of this tree's.
        environment: Variables to set; None takes one away. For what is read after the start of the process.
    """

    device: str = "cpu"
    dry_run: bool = False
    threads: int | None = None
    tree: Path | None = None
    environment: Mapping[str, str | None] = field(default_factory=dict)


class Workers(contextlib.AbstractContextManager["Workers"]):
    """Processes that do jobs, one after the other or several side by side.

    A process is kept for the next job until a job ends it, or is ``fresh`` for every job. Use as a context manager.
    """

    def __init__(self, *, fresh: bool = False, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self._fresh = fresh
        self._processes: list[_Process] = []
        atexit.register(self.end)

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
        waiting, here = list(jobs), Device(self.settings.device, self.settings.dry_run) if count == 0 else None
        while waiting or any(each.task for each in self._processes):
            if time.monotonic() > until:
                yield from ((task, task.lost("not reached", "the time was up")) for task in waiting)
                waiting = []
            elif here:
                task = waiting.pop(0)
                yield task, perform(task, here)
                continue
            for each in [each for each in self._processes if not each.task and not each.process.is_alive()]:
                each.end()
                self._processes.remove(each)
            while len(self._processes) < min(count, len(waiting)):
                with _uninterrupted():
                    self._processes.append(_Process(self.settings))
            free = count - sum(each.task is not None for each in self._processes)
            for each in [each for each in self._processes if not each.task][:free]:
                if waiting:
                    each.begin(waiting.pop(0), until)
            busy = [each for each in self._processes if each.task]
            wait([handle for each in busy for handle in (each.pipe, each.process.sentinel)], timeout=0.5)
            for each in busy:
                if (rows := each.rows()) is not None:
                    task, each.task = each.task, None  # type: ignore[assignment]
                    if self._fresh:
                        each.end()
                    yield task, rows

    def end(self) -> None:
        """Kill the processes and what they started."""
        for each in self._processes:
            each.kill()  # all of them before any is waited for
        for each in self._processes:
            each.end()
        self._processes.clear()

    def __exit__(self, *_: object) -> None:
        self.end()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM: half started, a process or its folder would be in no list of what is to go."""
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals, and may handle them
        yield
        return
    came: list[int] = []
    before: dict[int, Any] = {
        each: signal.signal(each, lambda number, _: came.append(number)) for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for number in came:
            signal.raise_signal(number)


class _Process:
    """One process and the job it has."""

    def __init__(self, settings: Settings) -> None:
        self.task: Job | None = None
        self.output = tempfile.NamedTemporaryFile(dir=util.get_temp_dir())  # noqa: SIM115 - closed by end()
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(theirs, self.output.name, settings))
        self.process.start()
        theirs.close()

    def begin(self, task: Job, until: float) -> None:
        now = time.monotonic()
        self.task, self.deadline = task, now + task.limit
        self.cut = self.deadline > max(until, now) + GRACE_S  # whether the run ends before the job's own limit
        if self.cut:
            self.deadline = max(until, now) + GRACE_S
        with contextlib.suppress(OSError):  # it died idle, which rows() sees
            self.pipe.send(task)

    def rows(self) -> list[Row] | None:
        """Return the job's rows, or None while it is under way."""
        assert self.task is not None
        try:
            if self.pipe.poll():
                answer: list[Row] = self.pipe.recv()
                if self.process.is_alive() and any(word in str(answer).lower() for word in STICKY):
                    self.kill()  # a CUDA context that met such an error answers every later call with it
                return answer
        except (EOFError, OSError):
            self.process.join(5)
        if not self.process.is_alive():
            return self._died(self.task)
        if time.monotonic() > self.deadline:
            self.kill()
            if self.cut:
                return self.task.lost("not reached", "the time was up while it ran")
            return self.task.lost("over budget", f"the whole of it took longer than {self.task.limit:g} s")
        return None

    def _died(self, task: Job) -> list[Row]:
        code = self.process.exitcode
        if code == -signal.SIGALRM:
            return task.lost("over budget", "a call took longer than its limit")
        if code == -signal.SIGKILL:
            return task.lost("out of memory", "the system killed the process")
        self.output.seek(0)
        said = " ".join(self.output.read().decode(errors="replace").split())[-300:]
        return task.lost("failed", f"the process died with exit code {code}: {said}")

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # before it leads a group of its own
            self.process.kill()
        self.process.join(10)

    def end(self) -> None:
        self.kill()
        self.pipe.close()
        self.output.close()


def _serve(pipe: Connection, output: str, settings: Settings) -> None:
    """Take jobs from the pipe and send their rows back, until the parent ends."""
    os.setsid()  # a group of its own, with what it starts
    threading.Thread(target=_end_with_parent, args=(Path(output).parent,), daemon=True).start()
    with open(output, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # many workers compile side by side already
    for name, value in settings.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.tree:
        import_from(settings.tree)
    device = Device(settings.device, settings.dry_run)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        device.limit_memory()
        pipe.send(perform(task, device, settings.tree))
        if not settings.tree:  # what is compared in small samples has nothing to free, and no 0.1 s
            device.clean()


def _end_with_parent(folder: Path) -> None:
    """Wait for the end of the process that asked for this one; remove its folder, where the server's socket is."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends; for ``preexec_fn`` of a program."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def run_program(
    command: Sequence[str | Path], limit: float | None = None, **environment: str
) -> tuple[int | None, str]:
    """Run a program in the repository, which ends with this process; return its exit code and its output.

    The code is None where it was killed after ``limit`` seconds.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
        cwd=ROOT,
        start_new_session=True,  # what it starts has to end with it
        preexec_fn=partial(die_with, os.getpid()),
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return None, output
    return process.returncode, output


def import_from(tree: Path) -> Any:
    """Import ``ssa_fast`` of ``tree``, which has the kernels in it, in a process that has not imported any yet."""
    if already := _package_modules():
        raise RuntimeError(f"expected a process without ssa_fast, found {min(already)} imported")
    sys.path.insert(0, str(tree))
    package = importlib.import_module("ssa_fast")
    assert_unmixed(tree)
    return package


def assert_unmixed(tree: Path) -> None:
    """Raise RuntimeError if a module of the package was loaded from anywhere but ``tree``."""
    for name, module in _package_modules().items():
        places = [module.__file__] if getattr(module, "__file__", None) else list(getattr(module, "__path__", []))
        if not places or not all(Path(place).resolve().is_relative_to(tree.resolve()) for place in places):
            raise RuntimeError(f"{name}: expected it from the tree {tree}, it came from {places or 'nowhere'}")


def _package_modules() -> dict[str, Any]:
    return {name: each for name, each in sys.modules.items() if name.partition(".")[0] == "ssa_fast"}
