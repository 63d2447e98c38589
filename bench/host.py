"""``python -m bench host``: CPU time per call before a GPU has anything to do, and kernels launched per call.

Kernels are compiled for an H100 and launched on a driver that does nothing (``bench.empty_driver``), on one core, with
tensors in the CPU's memory: what is timed is PyTorch's and Triton's host code and ours, and not CUDA's. Each call is
also timed without replaying the launches of the call before it, in interleaved rounds. Exit code 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench import empty_driver, measure
from bench.measure import paced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

RESNET50 = ((256, 128), (512, 64), (1024, 32), (2048, 16))  # channels and side of its stages at 512 pixels
CALLS, ROUNDS = 100, 25
ONE, FOUR = 40.0, 150.0  # µs


@dataclass(frozen=True)
class Case:
    """A call of ``polish`` with float16 features, K = 20 and a CAM of 16 × 16."""

    name: str
    stages: tuple[tuple[int, int], ...]
    options: dict[str, Any]
    goal_us: float


CASES = (
    Case("one stage, prototypes", RESNET50[2:3], {"method": "prototypes", "nonnegative": True}, ONE),
    Case("one stage, sign unknown", RESNET50[:1], {}, ONE),
    Case("one stage, resident", RESNET50[2:3], {"method": "resident"}, ONE),
    Case("one stage, tiled", RESNET50[1:2], {"method": "tiled"}, ONE),
    Case("four stages fused", RESNET50, {"nonnegative": True}, FOUR),
    Case("four stages fused, sign unknown", RESNET50, {}, FOUR),
)


@dataclass(frozen=True)
class Row:
    """One case: launches per call, and the least CPU time per call, in µs."""

    case: str
    launches: int
    us: float
    anew_us: float | None
    goal_us: float


def call_of(case: Case) -> Callable[[], Any]:
    """Return the call that is timed."""
    from ssa_fast import polish

    cam = torch.rand(1, 20, 16, 16)
    stages = [torch.rand(1, C, side, side).half() for C, side in case.stages]
    feats = stages if len(stages) > 1 else stages[0]
    return lambda: polish(cam, feats, backend="triton", **case.options)


def measured(case: Case) -> Row:
    """Call a case until it is warm, count its launches, and time it."""
    call = call_of(case)
    call()
    before = empty_driver.launches()
    call()
    launches = empty_driver.launches() - before
    replayed, anew = [], []
    for _ in range(ROUNDS):
        replayed.append(cpu_us(call, CALLS))
        with nothing_replayed() as possible:
            anew += [cpu_us(call, CALLS // 10)] if possible else []
    return Row(case.name, launches, min(replayed), min(anew, default=None), case.goal_us)


@contextmanager
def nothing_replayed() -> Iterator[bool]:
    """Let every call decide and launch anew; yield whether this tree of the package replays at all."""
    if importlib.util.find_spec("ssa_fast.ops.launch_plan") is None:
        yield False
        return
    from ssa_fast.ops import launch_plan

    key_of = launch_plan.call_key
    launch_plan.call_key = lambda *_: None
    try:
        yield True
    finally:
        launch_plan.call_key = key_of


def keep_freed_memory() -> None:
    """Let this process keep what it frees, as PyTorch's allocator does on a GPU: no call then waits for fresh pages."""
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, HUGE = -1, -3, 1 << 30  # of malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's
        libc.mallopt(M_MMAP_THRESHOLD, HUGE)
        libc.mallopt(M_TRIM_THRESHOLD, HUGE)


def cpu_us(call: Callable[[], Any], calls: int) -> float:
    """Return the CPU time of one of ``calls`` calls, in µs."""
    begin = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - begin) / calls * 1e6


def main(given: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if every goal is met, 1 if not, 2 if nothing can be measured here."""
    parser = argparse.ArgumentParser(prog="python -m bench host", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--case", default="", help="only the cases whose name contains this")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the figures and the machine to a JSON file")
    options = parser.parse_args(given)
    missing = "" if importlib.util.find_spec("triton") else "needs Triton, which is not installed"
    if missing := missing or empty_driver.no_compiler():
        print(f"python -m bench host {missing}", file=sys.stderr)
        return 2
    empty_driver.install()
    keep_freed_memory()
    import triton

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore", "no tiles were measured")
    print(f"{'case':<34} {'launches':>8} {'µs':>7} {'goal':>6}  not replayed")
    rows = []
    cases = [case for case in CASES if options.case in case.name]
    for case in paced(cases, "host"):
        row = measured(case)
        rows.append(asdict(row))
        anew = f"{row.anew_us:.0f} µs, {row.anew_us / row.us:.1f}×" if row.anew_us else "–"
        print(f"{row.case:<34} {row.launches:>8} {row.us:>7.1f} {row.goal_us:>6.0f}  {anew}", flush=True)
    print(f"Triton {triton.__version__}, {measure.describe(measure.machine())}")
    if options.save:
        measure.save(options.save, rows)
    return int(any(row["us"] > row["goal_us"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
