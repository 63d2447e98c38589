"""How a run went: told picture by picture, at the end, and to machines."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

NO_MEMORY = "not enough memory|can't allocate memory|Storage size calculation overflowed"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Failure:
    """A picture that came to nothing: its name, why in one sentence, and the error where there was one."""

    name: str
    reason: str
    error: Exception | None = None

    @classmethod
    def of(cls, name: str, error: Exception) -> Failure:
        """The failure that an error means."""
        return cls(name, reason(error), error)

    @property
    def no_space(self) -> bool:
        """Whether nothing more can be written, so that going on would make every picture fail."""
        return isinstance(self.error, OSError) and self.error.errno in NO_SPACE


@dataclass(frozen=True)
class Step:
    """Handed to a run's watcher as pictures are done: how many are through, of how many, and which was the last."""

    through: int
    total: int
    name: str
    failure: Failure | None


@dataclass(frozen=True)
class Process:
    """What one of several processes did: its rank and host, pictures done and failed, and "finished" or what else."""

    rank: int
    host: str
    done: int
    failed: int
    state: str


@dataclass
class RunReport:
    """How a run ended.

    Attributes:
        done: names of the pictures whose outputs are complete.
        resumed: how many of them were complete before this start.
        failures: the others, with the reason.
        notes: what happened to pictures on the way, with their names.
        skipped: files in folders that were passed over, with the reason.
        boxes: the `boxes.json` written, None if no picture was completed.
        seconds: wall-clock time of reading, computing and writing.
        signal: 2 where Ctrl-C ended it, 15 where SIGTERM did, else 0.
        stopped: what ended it before its time, in a sentence.
        processes: where there were several, what each of them did.
    """

    done: list[str] = field(default_factory=list)
    resumed: int = 0
    failures: list[Failure] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    skipped: tuple[tuple[Path, str], ...] = ()
    boxes: Path | None = None
    seconds: float = 0.0
    signal: int = 0
    stopped: str | None = None
    processes: list[Process] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it."""
        return self.signal != 0

    @property
    def images_per_second(self) -> float:
        """Pictures completed in this start per second of it."""
        return (len(self.done) - self.resumed) / self.seconds if self.seconds else 0.0

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        lost = any(process.state != "finished" for process in self.processes)
        return not (self.failures or self.signal or self.stopped or lost)

    @property
    def exit_code(self) -> int:
        """0 if nothing is left to do, 1 if something failed, 130 after Ctrl-C and 143 after SIGTERM."""
        return 128 + self.signal if self.signal else int(not self.complete)

    def as_json(self) -> str:
        """The report as the text of a `report.json`: everything but the pictures that are done, which are counted."""
        content: dict[str, Any] = {
            "done": len(self.done),
            "resumed": self.resumed,
            "failed": [{"picture": failure.name, "reason": failure.reason} for failure in self.failures],
            "skipped": [{"path": str(path), "reason": reason} for path, reason in self.skipped],
            "notes": self.notes,
            "stopped": self.stopped,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 3),
            "processes": [asdict(process) for process in self.processes],
        }
        return json.dumps(content, indent=1)


def reason(error: Exception) -> str:
    """One line for the closing table: what went wrong and, where something can be done, what."""
    line = str(error).strip().split("\n")[0] or type(error).__name__
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU ran out of memory; pass a smaller --size, fewer --scales, no --flip, or --device cpu."
    if isinstance(error, MemoryError) or re.search(NO_MEMORY, str(error)):
        return "the machine ran out of memory; pass a smaller --size or fewer --scales."
    if isinstance(error, OSError) and error.strerror:
        where = f" to {error.filename}" if error.filename else ""  # a full disk shows in write(), which knows no name
        return f"its output cannot be written{where} ({error.strerror})."
    if isinstance(error, ValueError | OSError | RuntimeError):
        return line
    return f"{type(error).__name__}: {line}"
