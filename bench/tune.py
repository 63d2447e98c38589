"""Time the kernels' tiles on the GPU at hand and write the best as a table for the package.

Kernel by kernel, in two rounds: the present tiles, known good ones and their neighbours, then the neighbours of the
best. In each round all candidates are first called once, many at a time, which compiles them: one that does not
compile, crashes or is wrong against float64 is dropped and counted. The others are timed alone, in interleaved rounds,
through the kernel's host function, beside the present tiles of the other kernels. The table is written after every
problem.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from bench import roofline, workers
from bench.gpu import command, ours
from bench.gpu.goals import error_goal
from bench.gpu.report import DRY_RUN, NOT_SHOWN, Report
from bench.gpu.tiles import MODULES, as_tiles, candidates
from bench.problem import Problem, relative_error, sampled_truth
from bench.stand import Device, poisoned, summary
from ssa_fast.ops import tile_tables

if TYPE_CHECKING:
    from pathlib import Path

    from bench.gpu.tiles import Config
    from bench.workers import Job, Row
    from ssa_fast.ops.gpu_info import Gpu

BUDGET_S = 400.0  # with the counters' own, less than command.LIMIT_S
CANDIDATES = (12, 6)  # of a kernel for one problem, round by round
CHECK_SHARE = 0.75  # of a round, at most, for calling every candidate once
# Predicted seconds of checking one candidate and of timing one problem; nobody has timed them on a GPU.
CHECK_S, MEASURE_S = 4.0, 1.6
SAMPLED = 256
# When each kernel is done at the latest, as a share of the budget; those on which most depends come first.
KERNELS = {"gather": 0.32, "apply": 0.60, "tiled": 0.80, "resident": 0.95, "prepare": 1.0}

# (C, side) of the problems, or C, K and dtype for a side of 128.
LINEAR = ((256, 128), (512, 64), (1024, 32), (2048, 16), (256, 56), (512, 28), (1024, 14), (2048, 7), (2048, 128))
LINEAR_OTHERS = ((256, 20, "float32"), (2048, 20, "float32"), (256, 80, "float16"))
TILED = ((256, 128), (1024, 32), (256, 56), (2048, 64), (512, 128), (256, 256))
TILED_HIGH = ((256, 128), (1024, 32))
SMALL = ((1024, 14), (512, 28), (2048, 7), (1024, 32))
SMALL_FLOAT32 = ((1024, 14), (2048, 7))
PREPARE = ((256, 128), (2048, 64))


@dataclass
class Search:
    """One kernel on one problem: what was tried, what came of it, and the best so far."""

    kernel: str
    problem: Problem
    beside: dict[str, Any]  # the tiles of the host function, of which the kernel's are replaced
    tried: list[Config] = field(default_factory=list)
    errors: dict[int, float] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)  # how a candidate failed, or why it was not reached
    outcomes: Counter[str] = field(default_factory=Counter)
    times: dict[int, float] = field(default_factory=dict)  # µs in the last round that was timed
    all_times: dict[int, float] = field(default_factory=dict)  # µs in the last round that each took part in

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.problem.label()}"

    def propose(self, gpu: Gpu, most: int) -> list[int]:
        """Add candidates around the present tiles, then around the best; return the new ones' numbers."""
        present = self.beside[_argument(self.kernel)]
        around = [self.tried[min(self.times, key=self.times.__getitem__)]] if self.times else [present]
        found = candidates(self.kernel, self.problem, gpu, around, self.tried, most)
        self.tried += found
        return list(range(len(self.tried) - len(found), len(self.tried)))

    def timed(self, numbers: list[int]) -> list[int]:
        """Return the candidates to time: the present ones, the best so far, and the new ones that are right."""
        allowed = error_goal(MODULES[self.kernel], self.problem.precision).must
        allowed = max(allowed, 2 * self.errors.get(0, 0.0))  # or twice the error of the present ones
        best = [min(self.times, key=self.times.__getitem__)] if self.times else []
        return sorted({number for number in (0, *best, *numbers) if self.errors.get(number, float("inf")) <= allowed})

    def entry(self) -> dict[str, Any]:
        """Return the table's entry for the fastest candidate, with what it was compared with."""
        kernel, problem = self.kernel, self.problem
        order = sorted(self.times, key=self.times.__getitem__)
        why = [f"{self.times[order[0]]:.1f} µs for the whole call, B={problem.B}"]
        for label, number in (("next", order[1] if len(order) > 1 else None), ("before", 0)):
            if number in self.times:
                why.append(f"{label} {json.dumps(as_tiles(self.tried[number])['config'])} {self.times[number]:.1f}")
        found = {"kernel": kernel, "C": problem.C, "L": problem.L, "K": problem.K}
        found |= as_tiles(self.tried[order[0]]) | {"why": "; ".join(why)}
        if kernel in ("tiled", "resident"):
            found |= {"precision": problem.precision, "phi": problem.phi.phi}
        if kernel in ("gather", "apply", "resident"):
            found["dtype"] = problem.dtype
        return found

    def row(self) -> Row:
        """Return what is kept of the search: every candidate, its error and its time."""
        counts = ", ".join(f"{number} {status}" for status, number in self.outcomes.items())
        tried = [
            as_tiles(each) | {"error": self.errors.get(at), "us": self.all_times.get(at), "why": self.dropped.get(at)}
            for at, each in enumerate(self.tried)
        ]
        status = "ok" if self.times else "skipped"
        why = f"{self.entry()['why']} ({counts})" if self.times else f"nothing was timed ({counts or 'not reached'})"
        return {"part": "tune", "what": self.name, "status": status, "why": why, "tried": tried}


def problems() -> list[tuple[str, Problem]]:
    """Return ``(kernel, problem)``, those on which most depends first within each kernel."""
    signed = Problem(B=1, K=20, C=256, H=128, W=128, h=32, w=32, values="randn")

    def stages(sizes: tuple[tuple[int, int], ...], **more: Any) -> list[Problem]:
        return [replace(signed, C=C, H=side, W=side, h=min(32, side), w=min(32, side), **more) for C, side in sizes]

    linear = stages(LINEAR, values="rand")
    linear += [replace(signed, C=C, K=K, dtype=dtype, values="rand") for C, K, dtype in LINEAR_OTHERS]
    found = [(kernel, problem) for kernel in ("gather", "apply") for problem in linear]
    found += [("tiled", problem) for problem in [*stages(TILED), *stages(TILED_HIGH, precision="high")]]
    found += [("resident", problem) for problem in [*stages(SMALL), *stages(SMALL_FLOAT32, dtype="float32")]]
    return found + [("prepare", problem) for problem in stages(PREPARE)]


def main(
    out: Path | None = None,
    budget: float = BUDGET_S,
    dry_run: bool = False,
    only: str = "",
    commit: str = "",
    seed: int | None = None,
) -> int:
    """Tune kernel after kernel; 0: something was timed, 1: nothing was, 2: it cannot run here."""
    if why := command.refusal(dry_run):
        print(why, file=sys.stderr)
        return 2
    if dry_run:
        print(DRY_RUN, NOT_SHOWN, sep="\n", flush=True)
    print(f"To be done in {budget:g} s.", file=sys.stderr, flush=True)
    begin, device = time.monotonic(), Device(dry_run)
    seed = secrets.randbelow(1 << 30) if seed is None else seed
    table = Table(device, out, dry_run, commit)
    head = {"command": "python -m bench tune", "dry_run": dry_run, "seed": seed, "budget_s": budget}
    head |= {"commit": commit, "seconds": 0.0} | ({"not_shown": NOT_SHOWN} if dry_run else {})
    report = Report(head, out / "tune.json" if out else None)
    report.add(roofline.machine(device))
    with workers.Pool(dry_run) as pool:
        for kernel, end in KERNELS.items():
            found = {each.name: each for each in _searches(kernel, device.gpu, dry_run, only)}
            _tune(found, pool, device, table, seed, begin, budget * end)
            report.head["seconds"] = round(time.monotonic() - begin, 1)
            report.add(each.row() for each in found.values())
    return table.told()


def _searches(kernel: str, gpu: Gpu, dry_run: bool, only: str) -> list[Search]:
    """Return a kernel's searches whose name contains ``only``; in a dry run the tiny problems, each once."""
    every = [problem.tiny() if dry_run else problem for name, problem in problems() if name == kernel]
    found = [Search(kernel, each, ours.tiles(MODULES[kernel], gpu, each)) for each in dict.fromkeys(every)]
    return [each for each in found if only in each.name]


def _tune(
    found: dict[str, Search], pool: workers.Pool, device: Device, table: Table, seed: int, begin: float, end_s: float
) -> None:
    """Search for the tiles of one kernel on all its problems until ``end_s`` seconds after ``begin``."""
    many = command.side_by_side(device.dry_run)

    def checked(task: Job, rows: list[Row]) -> None:
        search, at = found[task["arguments"]["name"]], task["arguments"]["at"]
        search.outcomes[rows[0]["status"]] += 1
        if rows[0]["status"] == "ok":
            search.errors[at] = rows[0]["error"]
        else:
            search.dropped[at] = rows[0]["why"]

    def timed(task: Job, rows: list[Row]) -> None:
        if rows[0]["status"] == "ok":
            search = found[task["arguments"]["name"]]
            search.times = {int(number): us for number, us in rows[0]["times"].items()}
            search.all_times |= search.times
            table.add(search.entry())

    for turn, most in enumerate(CANDIDATES):
        now = time.monotonic() - begin
        left = (end_s - now) * most / sum(CANDIDATES[turn:])
        new = {name: each.propose(device.gpu, min(most, 2) if device.dry_run else most) for name, each in found.items()}
        jobs = [
            _job("check", found[name], seed, config=found[name].tried[at], at=at) for name in new for at in new[name]
        ]
        jobs.sort(key=lambda task: int(task["arguments"]["at"]))  # the first candidates of every problem come first
        pool.run(jobs, count=many, until=begin + now + CHECK_SHARE * left, report=checked)
        jobs = [
            _job("measure", each, seed, configs=[each.tried[at] for at in numbers], at=numbers)
            for name, each in found.items()
            if (numbers := each.timed(new[name]))
        ]
        pool.run(jobs, count=min(many, 1), until=begin + now + left, report=timed)


def expected_s(many: int) -> dict[str, float]:
    """Return when each kernel is predicted to be done with ``many`` workers, in seconds from the start."""
    count = Counter(kernel for kernel, _ in problems())
    each = sum(CANDIDATES) * CHECK_S / many + len(CANDIDATES) * MEASURE_S
    ends = accumulate((count[kernel] * each for kernel in KERNELS), initial=command.START_S)
    return dict(zip(KERNELS, [*ends][1:], strict=True))


def _job(function: str, search: Search, seed: int, **more: Any) -> Job:
    arguments = {"name": search.name, "kernel": search.kernel, "beside": search.beside, "seed": seed}
    arguments |= more | search.problem.as_arguments()
    return workers.job(f"bench.tune:{function}", f"tune: {search.name}", 60, **arguments)


def _argument(kernel: str) -> str:
    """Return the name under which a host function takes a kernel's tiles."""
    return "config" if kernel in ("tiled", "resident") else kernel


def _call(
    device: Device, kernel: str, beside: dict[str, Any], config: Config, problem: Problem, cam: Any, f: Any, out: Any
) -> None:
    """Call the kernel's host function with ``config`` for it and the tiles ``beside`` for the others."""
    ours.write(MODULES[kernel], device.gpu, problem, cam, f, out, beside | {_argument(kernel): config})


def check(
    device: Device,
    *,
    name: str,
    kernel: str,
    beside: dict[str, Any],
    seed: int,
    config: Config,
    at: int,
    **arguments: Any,
) -> list[Row]:
    """Call one candidate once, into poisoned memory, and compare it with float64."""
    problem = Problem(**arguments)
    cam, f = problem.draw(device.device, seed)
    sampled = torch.arange(0, problem.L, max(1, problem.L // SAMPLED), device=device.device)
    with poisoned():
        out = torch.empty(problem.B, problem.K, problem.L, device=device.device)
        _call(device, kernel, beside, config, problem, cam, f, out)
    error = relative_error(out[-1][:, sampled], sampled_truth(problem, cam, f, sampled))
    return [{"part": "tune", "what": name, "status": "ok", "error": error}]


def measure(
    device: Device,
    *,
    name: str,
    kernel: str,
    beside: dict[str, Any],
    seed: int,
    configs: list[Config],
    at: list[int],
    **arguments: Any,
) -> list[Row]:
    """Time whole calls with each candidate; return µs by the candidates' numbers."""
    problem = Problem(**arguments)
    cam, f = problem.draw(device.device, seed)
    out = torch.empty(problem.B, problem.K, problem.L, device=device.device)

    def call(config: Config) -> Any:
        return lambda: _call(device, kernel, beside, config, problem, cam, f, out)

    found = device.rounds({str(number): call(each) for number, each in zip(at, configs, strict=True)}, budget=1.0)
    times = {number: summary(each)["us"] for number, each in found.items()}
    return [{"part": "tune", "what": name, "status": "ok", "times": times}]


class Table:
    """Merge measured entries into the GPU's table, which is written anew, whole, with every entry."""

    def __init__(self, device: Device, folder: Path | None, dry_run: bool, commit: str) -> None:
        found = roofline.describe(device)
        source = "measured by python -m bench tune" + (f" ({DRY_RUN})" if dry_run else "")
        self.path = (folder or tile_tables.user_directory()) / f"{tile_tables.slug(device.gpu.name)}.json"
        self._kept = not dry_run or folder is not None
        if self._kept:
            os.environ["SSA_FAST_CONFIGS"] = str(self.path.parent)  # what was tuned serves the kernels tuned after it
        self._head = {
            "gpu": device.gpu.name,
            "arch": device.gpu.arch,
            "source": f"{source}, commit {commit or found.get('commit') or 'unknown'}",
            "versions": {
                name: str(found[name]) for name in ("python", "torch", "triton", "cuda", "hip") if found.get(name)
            },
        }
        self._old = tile_tables.read(self.path)["entries"] if self._kept and self.path.is_file() else []
        self._new: dict[tuple[Any, ...], dict[str, Any]] = {}

    def add(self, entry: dict[str, Any]) -> None:
        """Put an entry in the place of an older one for the same problem, and write the table."""
        self._new[_key(entry)] = entry
        if self._kept:
            old = [each for each in self._old if _key(each) not in self._new]
            tile_tables.write(self._head | {"entries": [*self._new.values(), *old]}, self.path)

    def told(self) -> int:
        """Print what was written; return the exit code."""
        if not self._new:
            print("nothing was timed; no table was written", file=sys.stderr)
            return 1
        print(f"{len(self._new)} entries measured now, written to {self.path}" if self._kept else DRY_RUN, flush=True)
        return 0


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    """Return what two entries for the same problem share."""
    return tuple(entry.get(name) for name in ("kernel", "C", "L", "K", "dtype", "precision", "phi"))
