"""Jobs on the CPU, each in a fork of a process that has imported everything, drawn the inputs and started no thread.

A fork costs milliseconds and finds the inputs there. It is fresh, so that what a call adds to its memory is seen, and
bounded, so that an allocation beyond what is free raises an error instead of calling the kernel's OOM killer.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench import memory
from bench.orphans import die_with
from bench.stand import Device
from bench.workers import ended, lost, perform

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from bench.workers import Job, Row

_SPAWN, _FORK = multiprocessing.get_context("spawn"), multiprocessing.get_context("fork")


class ForkServer:
    """The process that is forked, as its parent sees it."""

    def __init__(self) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs, torch.get_num_threads(), os.getpid()))
        self._process.start()
        theirs.close()

    def hold(self, task: Job) -> list[Row]:
        """Do a job in the process itself, so that what it caches is there in every fork from now on."""
        return self._ask("hold", task)

    def do(self, task: Job) -> list[Row]:
        """Do a job in a fork; its rows, however it ends."""
        return self._ask("do", task)

    def _ask(self, how: str, task: Job) -> list[Row]:
        try:
            self._pipe.send((how, task))
            rows: list[Row] = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            code = self._process.exitcode
            self.__init__()  # type: ignore[misc]
            return [ended(task, code, "")]
        return rows

    def end(self) -> None:
        self._process.kill()
        self._process.join(10)
        self._pipe.close()


def _serve(pipe: Connection, threads: int, parent: int) -> None:
    """Take jobs from the pipe and answer with their rows, until the pipe is closed or the parent is gone."""
    die_with(parent)
    torch.set_num_threads(1)  # threads do not survive a fork, and the pool that lost them would wait for ever
    stand = Device(device="cpu")
    while True:
        try:
            how, task = pipe.recv()
        except EOFError:
            return
        memory.limit()
        pipe.send(perform(task, stand) if how == "hold" else _forked(task, threads))


def _forked(task: Job, threads: int) -> list[Row]:
    """The rows of a job done in a fork, which is ended at the job's limit."""
    log = Path(tempfile.mkstemp(prefix="bench-fork-", suffix=".log")[1])
    pipe, theirs = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_child, args=(theirs, task, threads, str(log), os.getpid()))
    process.start()
    theirs.close()
    try:
        wait([pipe, process.sentinel], timeout=task["limit"])
        if pipe.poll():
            try:
                rows: list[Row] = pipe.recv()
                return rows
            except EOFError:
                pass
        process.join(0.5)
        if process.is_alive():
            return [lost(task, "over budget", f"the whole of it took longer than {task['limit']:g} s")]
        return [ended(task, process.exitcode, log.read_text(encoding="utf-8", errors="replace"))]
    finally:
        _end(process)
        pipe.close()
        log.unlink(missing_ok=True)


def _end(process: Any) -> None:
    """End a fork and what it started, a compiler for instance."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.join(10)


def _child(pipe: Connection, task: Job, threads: int, log: str, parent: int) -> None:
    os.setsid()
    die_with(parent)
    handle = os.open(log, os.O_WRONLY | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(threads)
    memory.limit()
    pipe.send(perform(task, Device(device="cpu")))
    pipe.close()
    os._exit(0)  # no cleaning up that an interrupted compiler could make wait
