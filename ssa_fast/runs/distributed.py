"""One run by several processes, on one machine or many: who does what, how far they are, and who is gone.

The processes meet by torch.distributed (`torchrun`, or anything that sets RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT). No collective is called once they have met, since a process that died would hold up all others: they tell
each other by a key-value store at rank 0.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from ssa_fast.runs.report import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

BEAT = 2.0
"""Seconds between a process's signs of life."""
SILENCE = 60.0
"""Seconds without one after which a process on another machine counts as gone."""
POLL = 0.2


class Alone:
    """The run's only process: the same face as `Shards`, with nobody to talk to."""

    rank, world = 0, 1

    def mine(self, window: int) -> bool:
        """Whether a window of pictures is this process's to do."""
        return True

    def agree(self, error: str | None) -> None:
        """Nobody else has to hear it."""

    def tell(self, done: int, failed: int) -> int:
        """How many pictures are through in all processes."""
        return done + failed

    def finish(self, content: dict[str, Any]) -> None:
        """Nobody waits for it."""

    def gather(self, patience: float = 0.0) -> tuple[list[Process], list[dict[str, Any]]]:
        """There are no others."""
        return [], []


class Shards:
    """This process among the `world` of a run."""

    def __init__(self, store: dist.TCPStore, rank: int, whos: list[dict[str, Any]]) -> None:
        self.store, self.rank, self.world, self.whos = store, rank, len(whos), whos
        self.host = whos[rank]["host"]
        self._beats: dict[int, tuple[int, float]] = {}
        self._count = (0, 0)

    def mine(self, window: int) -> bool:
        """Whether a window of pictures is this process's to do."""
        return window % self.world == self.rank

    def agree(self, error: str | None) -> None:
        """Wait for rank 0, which has opened the run or says why not.

        Raises:
            ValueError: what rank 0 said.
        """
        if self.rank == 0:
            self._set("open", {"error": error})
        while not self.store.check(["open"]):
            time.sleep(POLL)
        said = json.loads(self.store.get("open"))["error"]
        if said is None:
            return
        self.store.add("heard", 1)
        end = time.monotonic() + SILENCE
        while self.rank == 0 and self.store.add("heard", 0) < self.world and time.monotonic() < end:
            time.sleep(POLL)  # the store goes with rank 0, and with it what it has to say
        raise ValueError(said)

    def tell(self, done: int, failed: int) -> int:
        """Say how many pictures this process is through with, and hear (on rank 0) how many all are."""
        mine, before = done + failed, sum(self._count)
        self._count = (done, failed)
        try:
            self.store.set(f"count/{self.rank}", f"{done} {failed}")
            return int(self.store.add("through", mine - before))
        except (RuntimeError, dist.DistError):
            return mine  # rank 0 is gone: this shard is done all the same

    def finish(self, content: dict[str, Any]) -> None:
        """Leave what this process has to report; `gather` collects it."""
        try:
            self._set(f"report/{self.rank}", content)
        except (RuntimeError, dist.DistError):
            raise RuntimeError(
                "process 0 is gone, and with it the common report; what this one did is complete on disk. "
                "Start the same command again for the rest."
            ) from None

    def gather(self, patience: float = float("inf")) -> tuple[list[Process], list[dict[str, Any]]]:
        """On rank 0: wait until every other process has finished or is gone; what each of them did, and its report.

        With `patience` (seconds) over, those still at work are "stopped".
        """
        waiting, end = set(range(1, self.world)), time.monotonic() + patience
        states, reports = {}, {}
        while waiting:
            for rank in sorted(waiting):
                if self.store.check([f"report/{rank}"]):
                    reports[rank], states[rank] = json.loads(self.store.get(f"report/{rank}")), "finished"
                elif self._gone(rank):
                    states[rank] = "died"
                elif time.monotonic() > end:
                    states[rank] = "stopped"
            waiting -= set(states)
            if waiting:
                time.sleep(POLL)
        processes = [Process(0, self.host, *self._count, "finished")]
        processes += [
            Process(rank, self.whos[rank]["host"], *self._counted(rank), states[rank]) for rank in range(1, self.world)
        ]
        return processes, [reports[rank] for rank in sorted(reports)]

    def _gone(self, rank: int) -> bool:
        who = self.whos[rank]
        if who["host"] == self.host:
            return not _alive(who["pid"])
        beat, now = int(self.store.add(f"beat/{rank}", 0)), time.monotonic()
        if self._beats.get(rank, (-1, 0.0))[0] != beat:
            self._beats[rank] = (beat, now)
        return now - self._beats[rank][1] > SILENCE

    def _counted(self, rank: int) -> tuple[int, int]:
        if not self.store.check([f"count/{rank}"]):
            return 0, 0
        done, failed = self.store.get(f"count/{rank}").split()
        return int(done), int(failed)

    def _set(self, key: str, value: dict[str, Any]) -> None:
        self.store.set(key, json.dumps(value))


def _alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that ended and was not waited for yet does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@contextmanager
def join() -> Iterator[Alone | Shards]:
    """This process's place among those of the run: alone without WORLD_SIZE, else met by torch.distributed on gloo.

    A process group that the caller has made already is used, and left as it is.
    """
    if not dist.is_available() or (not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) == 1):
        yield Alone()
        return
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo")
    stop = threading.Event()
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        host = os.environ.get("MASTER_ADDR") or socket.getfqdn()
        place: list[Any] = [None]
        if rank == 0:
            store = dist.TCPStore(host, 0, world, is_master=True, wait_for_workers=False)
            place = [(host, store.port)]
        dist.broadcast_object_list(place, src=0)
        host, port = place[0]
        if rank != 0:
            store = _client(host, port, world)
        threading.Thread(target=_beat, args=(_client(host, port, world), rank, stop), daemon=True).start()
        whos: list[Any] = [None] * world
        dist.all_gather_object(whos, {"host": socket.gethostname(), "pid": os.getpid()})
        yield Shards(store, rank, whos)
    finally:
        stop.set()
        if own:
            dist.destroy_process_group()


def _client(host: str, port: int, world: int) -> dist.TCPStore:
    return dist.TCPStore(host, port, world, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=SILENCE))


def _beat(store: dist.TCPStore, rank: int, stop: threading.Event) -> None:
    """Give signs of life until the end, this process's or rank 0's."""
    while not stop.is_set():
        try:
            store.add(f"beat/{rank}", 1)
        except (RuntimeError, dist.DistError):
            return
        stop.wait(BEAT)
