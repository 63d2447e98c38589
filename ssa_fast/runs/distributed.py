"""Distribute one run over several processes: assignment, progress, failure detection.

The processes meet by torch.distributed (``torchrun``, or anything that sets RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT). After that they use a key-value store at rank 0: a collective would block all when one process dies.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch.distributed as dist

from ssa_fast.runs.report import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

Group: TypeAlias = "SingleProcess | Distributed"
HEARTBEAT_S = 2.0  # between two heartbeats of a process
TIMEOUT_S = 60.0  # without a heartbeat, after which a process on another machine counts as dead
POLL_S = 0.2


def world_size() -> int:
    """Return how many processes do the run."""
    if not dist.is_available():
        return 1
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


class SingleProcess:
    """The run's only process, with the interface of ``Distributed``."""

    rank = 0

    def owns(self, window: int) -> bool:
        return True

    def wait_for_rank0(self, error: str | None) -> None:
        if error is not None:
            raise ValueError(error)

    def report(self, done: int, failed: int, resumed: int) -> tuple[int, int]:
        return done + failed, resumed

    def finish(self, content: dict[str, Any]) -> None:
        pass

    def gather(self, timeout: float = 0.0) -> tuple[list[Process], list[dict[str, Any]]]:
        return [], []


class Distributed:
    """One process of a run by several, with the host and process id of each rank in ``members``."""

    def __init__(self, store: dist.TCPStore, rank: int, members: list[dict[str, Any]]) -> None:
        self.store, self.rank, self.members = store, rank, members
        self._heartbeats: dict[int, tuple[int, float]] = {}  # rank -> last heartbeat, and when it was first seen
        self._reported: dict[str, int] = {}  # what ``report`` has added to the store

    def owns(self, window: int) -> bool:
        """Return True if a window of images is this process's to do."""
        return window % len(self.members) == self.rank

    def wait_for_rank0(self, error: str | None) -> None:
        """Wait until rank 0 has opened the run; raise its ``error``, if any, as ValueError on every rank."""
        if self.rank == 0:
            self.store.set("open", json.dumps(error))
        while not self.store.check(["open"]):
            time.sleep(POLL_S)
        error = json.loads(self.store.get("open"))
        if error is None:
            return
        self.store.add("acknowledged", 1)
        end = time.monotonic() + TIMEOUT_S
        while self.rank == 0 and self.store.add("acknowledged", 0) < len(self.members) and time.monotonic() < end:
            time.sleep(POLL_S)  # the store ends with rank 0, so the others must have read the error first
        raise ValueError(error)

    def report(self, done: int, failed: int, resumed: int) -> tuple[int, int]:
        """Publish this process's counts; return how many images all processes finished, and resumed of them."""
        before, own = self._reported, {f"done/{self.rank}": done, f"failed/{self.rank}": failed}
        self._reported = {**own, "finished": done + failed, "resumed": resumed}
        try:
            totals = {key: int(self.store.add(key, n - before.get(key, 0))) for key, n in self._reported.items()}
        except (RuntimeError, dist.DistError):
            return done + failed, resumed  # rank 0 exited; this process finishes its share all the same
        return totals["finished"], totals["resumed"]

    def finish(self, content: dict[str, Any]) -> None:
        """Publish this process's report for ``gather``; raise RuntimeError if rank 0 exited."""
        try:
            self.store.set(f"report/{self.rank}", json.dumps(content))
        except (RuntimeError, dist.DistError):
            raise RuntimeError(
                "Rank 0 exited, so no combined report was written. This rank's results are saved; run the same "
                "command again to finish the rest."
            ) from None

    def gather(self, timeout: float = float("inf")) -> tuple[list[Process], list[dict[str, Any]]]:
        """Wait on rank 0 for the others, up to ``timeout`` s; return all processes and the others' reports."""
        waiting, end = set(range(1, len(self.members))), time.monotonic() + timeout
        states, reports = {0: "finished"}, {}
        while waiting:
            for rank in sorted(waiting):
                if self.store.check([f"report/{rank}"]):
                    reports[rank], states[rank] = json.loads(self.store.get(f"report/{rank}")), "finished"
                elif self._is_dead(rank):
                    states[rank] = "died"
                elif time.monotonic() > end:
                    states[rank] = "stopped"
            waiting -= set(states)
            if waiting:
                time.sleep(POLL_S)
        processes = []
        for rank, member in enumerate(self.members):
            done, failed = (int(self.store.add(f"{kind}/{rank}", 0)) for kind in ("done", "failed"))
            processes.append(Process(rank, member["host"], done, failed, states[rank]))
        return processes, [reports[rank] for rank in sorted(reports)]

    def _is_dead(self, rank: int) -> bool:
        member = self.members[rank]
        if member["host"] == self.members[self.rank]["host"]:
            return not _is_running(member["pid"])
        heartbeat, now = int(self.store.add(f"heartbeat/{rank}", 0)), time.monotonic()
        if self._heartbeats.get(rank, (-1, 0.0))[0] != heartbeat:
            self._heartbeats[rank] = (heartbeat, now)
        return now - self._heartbeats[rank][1] > TIMEOUT_S


def _is_running(pid: int) -> bool:
    """Return True if a process of this machine runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@contextmanager
def join() -> Iterator[Group]:
    """Yield this process's place in the run: a single process without WORLD_SIZE, else connected on gloo.

    A process group that the caller has already made is used, and kept.
    """
    if world_size() == 1 and not (dist.is_available() and dist.is_initialized()):
        yield SingleProcess()
        return
    owned = not dist.is_initialized()
    if owned:
        dist.init_process_group("gloo")
    stop = threading.Event()
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        timeout = timedelta(seconds=TIMEOUT_S)
        connect = partial(dist.TCPStore, world_size=world, timeout=timeout, wait_for_workers=False)
        address: list[Any] = [None, None]
        if rank == 0:
            host = os.environ.get("MASTER_ADDR") or socket.getfqdn()
            store = connect(host, 0, is_master=True)
            address = [host, store.port]
        dist.broadcast_object_list(address, src=0)
        if rank != 0:
            store = connect(*address)
        launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        heartbeats = (connect(*address), rank, stop, launcher)
        threading.Thread(target=_send_heartbeats, args=heartbeats, daemon=True).start()
        members: list[Any] = [None] * world
        dist.all_gather_object(members, {"host": socket.gethostname(), "pid": os.getpid()})
        yield Distributed(store, rank, members)
    finally:
        stop.set()
        if owned:
            dist.destroy_process_group()


def _send_heartbeats(store: dist.TCPStore, rank: int, stop: threading.Event, launcher: int | None) -> None:
    """Send heartbeats until this process stops; if torchrun was killed, stop it as torchrun does when it ends."""
    heard = True
    while not stop.is_set():
        if launcher is not None and os.getppid() != launcher:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        try:
            if heard:
                store.add(f"heartbeat/{rank}", 1)
        except (RuntimeError, dist.DistError):
            heard = False  # rank 0 exited; this process finishes its share all the same
        stop.wait(HEARTBEAT_S)
