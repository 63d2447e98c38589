"""Find records of an earlier start that no longer hold: other images, labels or weights under the same names."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from ssa_fast.io.datasets import labels_of
from ssa_fast.io.identity import is_same

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ssa_fast.io.datasets import ImageSource
    from ssa_fast.runs.manifest import ImageRecord, Manifest

Batch: TypeAlias = "tuple[Path, float, list[ImageRecord]]"
Resolve: TypeAlias = "Callable[[ImageSource, Sequence[str]], list[int]]"  # labels -> class indices

THREADS = 16  # a network's file system takes a millisecond per file, whatever waits for it
AT_ONCE, TASKS = 32, 64  # batches of a thread's task, and tasks: millions of records are never in memory together


@dataclass(frozen=True)
class Changes:
    """What is different from an earlier start.

    Attributes:
        reasons: Output name -> why its record no longer holds.
        leftovers: Output names with a record that no image given now has.
        done: Output names with a record that holds, leftovers among them.
    """

    reasons: dict[str, str] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)


def forget_changes(manifest: Manifest, given: Mapping[str, ImageSource], resolve: Resolve | None) -> Changes:
    """Remove the batches with a record that no longer holds; outputs stay until they are replaced.

    Args:
        manifest: The run, opened.
        given: Output name -> image, of all images given now. Records of others are neither checked nor removed: they
            may be another part of the same dataset.
        resolve: With the dataset's own labels as classes, function from labels to class indices.
    """
    changes, batches = Changes(), manifest.batches()

    def check(some: list[Batch]) -> list[dict[str, str]]:
        weights = manifest.weights
        return [
            {record["output"]: _reason(record, noted, given, weights, resolve) for record in records}
            for _, noted, records in some
        ]

    with ThreadPoolExecutor(THREADS, thread_name_prefix="ssa_fast-changes") as pool:
        while tasks := [some for _ in range(TASKS) if (some := list(islice(batches, AT_ONCE)))]:
            for some, found in zip(tasks, pool.map(check, tasks), strict=True):
                for (path, _, _), reasons in zip(some, found, strict=True):
                    changes.leftovers.extend(name for name in reasons if name not in given)
                    broken = {name: reason for name, reason in reasons.items() if reason}
                    changes.reasons.update(broken)
                    if broken:
                        path.unlink()
                    else:
                        changes.done.update(reasons)
    return changes


def _reason(
    record: ImageRecord, noted: float, given: Mapping[str, ImageSource], weights: str, resolve: Resolve | None
) -> str:
    """Return why a record no longer holds, as a clause; empty if it does."""
    source = given.get(record["output"])
    if source is None:
        return ""
    if record["file_name"] != source.file_name:
        return "its output name was another image's"
    if record.get("weights") != weights:
        return "the weights have changed"
    try:
        if not is_same(source.path, record["identity"], noted):
            return "the image has changed"
        if resolve is not None and set(resolve(source, labels_of(source))) != set(record["classes"]):
            return "its labels have changed"
    except (OSError, ValueError, KeyError) as error:  # doing it again raises the proper error
        return f"it cannot be compared with the earlier start ({error})"
    return ""
