"""Time what SSA adds to a network, on a number of CPU threads, and check the arguments of a demo."""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from ssa_fast import SSA
    from ssa_fast.models.class_spec import Classes

RUNS = 6  # of which the first is not counted


def check_new(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Raise FileExistsError if one of the files exists and may not be replaced."""
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"out: {existing[0]} exists; choose another folder or set overwrite")


def check_threads(threads: int | None) -> None:
    """Raise ValueError for fewer threads than 1; None stands for torch's own number."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}; leave it out to keep torch's own number")


@contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Set torch's CPU threads, None leaves them as they are; yield their number and restore it afterwards.

    Raises:
        ValueError: ``threads`` is less than 1.
    """
    check_threads(threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield threads or before
    finally:
        torch.set_num_threads(before)


def measure_added(ssa: SSA, images: Tensor, classes: Classes) -> tuple[float, float]:
    """Return milliseconds per image of the network and of what SSA adds to it: medians of alternating runs."""
    times = []
    with torch.no_grad():
        for _ in range(RUNS):
            start = time.perf_counter()
            ssa.model(images)
            middle = time.perf_counter()
            ssa(images, classes)
            times.append((middle - start, time.perf_counter() - middle))
    backbone, both = (1000 * statistics.median(column) / len(images) for column in zip(*times[1:], strict=True))
    return backbone, both - backbone
