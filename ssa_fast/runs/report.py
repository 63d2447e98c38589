"""Report how a run ended: as an object, as ``report.json``, and as one sentence per failure."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Set
    from pathlib import Path

LIMITS = {
    "reading": "reading",
    "network": "the network",
    "polishing": "polishing",
    "masks": "making masks",
    "writing": "writing",
    "other": "other work",
}
"""What the time of a run goes on, and how the report says that it is most of it."""
OUT_OF_MEMORY = "not enough memory|can't allocate memory|Storage size calculation overflowed"


@dataclass(frozen=True)
class Failure:
    """An image without outputs: its name, the reason in one sentence, and the error if it is known."""

    name: str
    reason: str
    error: Exception | None = None

    @classmethod
    def from_error(cls, path: str | Path, error: Exception) -> Failure:
        """Return the failure of the image at ``path``."""
        return cls(str(path), describe_error(error), error)

    @property
    def disk_full(self) -> bool:
        """Return True if nothing more can be written, so that every further image would fail too."""
        return isinstance(self.error, OSError) and self.error.errno in (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Process:
    """One of several processes of a run: its images done and failed, and "finished", "died" or "stopped"."""

    rank: int
    host: str
    done: int
    failed: int
    state: str


@dataclass
class RunReport:
    """Outcome of a run.

    Attributes:
        done, resumed: Names of the images whose outputs are complete; how many of them an earlier start completed.
        remade: How many images were done again, as their file, labels or weights have changed; ``notes`` say which.
        leftovers: Names of outputs that an earlier start made of images that are not among those given now.
        failures, skipped: Images that failed, and files and folders that were not read, with the reason.
        notes: Remark -> names of the images that it is about.
        boxes: The ``boxes.json`` written; None if no image is complete.
        seconds: Wall-clock time of reading, computing and writing.
        activities: What the time went on, in seconds over all processes: "reading", "network", "polishing", "masks",
            "writing" and "other". Reading and writing run beside the rest, and count where the rest waits for them.
        waited: Seconds spent waiting for images that come later; not part of ``seconds``.
        idle: Whether the run ended while waiting for such images, with none left to do.
        signal, stopped: 2 after Ctrl-C, 15 after SIGTERM, else 0; why the run ended early, in one sentence.
        rank: The process that this report is about; rank 0's covers all processes.
        processes: The single processes, if there were several (rank 0 only).
    """

    done: list[str] = field(default_factory=list)
    resumed: int = 0
    remade: int = 0
    leftovers: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    skipped: tuple[tuple[Path, str], ...] = ()
    boxes: Path | None = None
    seconds: float = 0.0
    activities: dict[str, float] = field(default_factory=dict)
    waited: float = 0.0
    idle: bool = False
    signal: int = 0
    stopped: str | None = None
    rank: int = 0
    processes: list[Process] = field(default_factory=list)

    def forget(self, names: Set[str]) -> None:
        """Remove images that are done again."""
        self.done = [name for name in self.done if name not in names]
        self.failures = [failure for failure in self.failures if failure.name not in names]
        kept = {note: [name for name in about if name not in names] for note, about in self.notes.items()}
        self.notes = {note: about for note, about in kept.items() if about}

    @property
    def interrupted(self) -> bool:
        """Return True if a signal ended the run."""
        return self.signal != 0

    @property
    def images_per_second(self) -> float:
        """Return the rate at which this start completed images."""
        return (len(self.done) - self.resumed) / self.seconds if self.seconds else 0.0

    @property
    def limit(self) -> str | None:
        """Return what took most of the time, and the shares of the rest; None if nothing was done."""
        total = sum(self.activities.values())
        if not total or len(self.done) <= self.resumed:
            return None
        percent = {name: round(100 * spent / total) for name, spent in self.activities.items()}
        first, *rest = sorted(percent, key=lambda name: percent[name], reverse=True)
        shares = [f"{percent[first]} % of the time", *(f"{name} {percent[name]} %" for name in rest if percent[name])]
        return f"limited by {LIMITS[first]} ({', '.join(shares)})"

    @property
    def complete(self) -> bool:
        """Return True if every image is done."""
        lost = any(process.state != "finished" for process in self.processes)
        early = (self.signal or self.stopped) and not self.idle
        return not (self.failures or early or lost)

    @property
    def exit_code(self) -> int:
        """Return 0 if every image is done, 1 if something failed, 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal if self.signal else int(not self.complete)

    def to_json(self) -> str:
        """Return the text of ``report.json``; images that are done are only counted."""
        content: dict[str, Any] = {
            "done": len(self.done),
            "resumed": self.resumed,
            "remade": self.remade,
            "leftovers": self.leftovers,
            "failed": [{"image": failure.name, "reason": failure.reason} for failure in self.failures],
            "skipped": [{"path": str(path), "reason": reason} for path, reason in self.skipped],
            "notes": self.notes,
            "stopped": self.stopped,
            "seconds": round(self.seconds, 3),
            "waited_seconds": round(self.waited, 3),
            "images_per_second": round(self.images_per_second, 3),
            "limit": self.limit,
            "activity_seconds": {name: round(spent, 3) for name, spent in self.activities.items()},
            "processes": [asdict(process) for process in self.processes],
        }
        return json.dumps(content, indent=1)


def describe_error(error: Exception) -> str:
    """Return what went wrong in one line, with what to do about it where something can be done."""
    line = str(error).strip().split("\n")[0] or type(error).__name__
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU ran out of memory; pass a smaller --size, fewer --scales, no --flip, or --device cpu."
    if isinstance(error, MemoryError) or re.search(OUT_OF_MEMORY, str(error)):
        return "the machine ran out of memory; pass a smaller --size or fewer --scales."
    if isinstance(error, OSError) and error.strerror:
        where = f" to {error.filename}" if error.filename else ""  # write() on a full disk gives no file name
        return f"its output cannot be written{where} ({error.strerror})."
    if isinstance(error, ValueError | OSError | RuntimeError):
        return line
    return f"{type(error).__name__}: {line}"
