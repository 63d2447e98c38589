"""Time the kernels' tiles on the GPU at hand and write the best as a table for the package.

Kernel by kernel, in two rounds: the present tiles, known good ones and their neighbours, then the neighbours of the
best. In each round all candidates are first called once, many at a time, which compiles them: one that does not
compile, crashes or is wrong against float64 is dropped and counted. The others are timed alone, in interleaved rounds,
through the kernel's host function, beside the present tiles of the other kernels. The table is written after every
problem.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bench import measure
from bench.gpu import DRY_RUN, Record, options_of, refusal, side_by_side
from bench.gpu_timing import GOALS
from bench.measure import Device, poisoned, summary, time_interleaved
from bench.problems import Problem, relative_error, sampled_truth
from bench.tiles import MODULES, as_tiles, candidates, polish, tiles
from bench.workers import Job, Workers, job
from ssa_fast.ops import tile_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from bench.workers import Row
    from ssa_fast.ops.gpu_info import Gpu

BUDGET_S = 540.0  # see bench.gpu
CANDIDATES = (12, 6)  # of a kernel for one problem, round by round
CHECK_SHARE = 0.75  # of a round, at most, for calling every candidate once
SAMPLED = 256
# When each kernel is done at the latest, as a share of the budget; those on which most depends come first.
KERNELS = {"gather": 0.32, "apply": 0.60, "tiled": 0.80, "resident": 0.95, "prepare": 1.0}

# Kernels, (C, side) of their problems, and what is not as in float16 with 20 classes and signed features.
PROBLEMS: tuple[tuple[tuple[str, ...], tuple[tuple[int, int], ...], dict[str, Any]], ...] = (
    (
        ("gather", "apply"),
        ((256, 128), (512, 64), (1024, 32), (2048, 16), (256, 56), (512, 28), (1024, 14), (2048, 7), (2048, 128)),
        {"values": "rand"},
    ),
    (("gather", "apply"), ((256, 128), (2048, 128)), {"values": "rand", "dtype": "float32"}),
    (("gather", "apply"), ((256, 128),), {"values": "rand", "K": 80}),
    (("tiled",), ((256, 128), (1024, 32), (256, 56), (2048, 64), (512, 128), (256, 256)), {}),
    (("tiled",), ((256, 128), (1024, 32)), {"precision": "high"}),
    (("resident",), ((1024, 14), (512, 28), (2048, 7), (1024, 32)), {}),
    (("resident",), ((1024, 14), (2048, 7)), {"dtype": "float32"}),
    (("prepare",), ((256, 128), (2048, 64)), {}),
)


def problems() -> list[tuple[str, Problem]]:
    """Return ``(kernel, problem)``, those on which most depends first within each kernel."""
    signed = Problem(B=1, K=20, C=256, H=128, W=128, values="randn")
    return [
        (kernel, replace(signed, C=C, H=side, W=side, h=min(32, side), w=min(32, side), **more))
        for kernels, sizes, more in PROBLEMS
        for kernel in kernels
        for C, side in sizes
    ]


@dataclass
class Candidate:
    """Tiles that were tried: their error, how they failed or why they were not reached, and µs when last timed."""

    config: tile_tables.Config
    error: float | None = None
    why: str | None = None
    us: float | None = None


@dataclass
class Search:
    """One kernel on one problem: what was tried, what came of it, and the best so far.

    Attributes:
        beside: The tiles of the host function, of which the kernel's are replaced.
        ranked: The candidates of the last round that was timed, the fastest first.
    """

    kernel: str
    problem: Problem
    beside: dict[str, Any]
    tried: list[Candidate] = field(default_factory=list)
    ranked: list[Candidate] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.problem.label()}"

    @property
    def argument(self) -> str:
        """Return the name under which the host function takes the kernel's tiles."""
        return "config" if self.kernel in ("tiled", "resident") else self.kernel

    def propose(self, gpu: Gpu, most: int) -> list[int]:
        """Add candidates around the present tiles, then around the best; return the new ones' numbers."""
        around = self.ranked[0].config if self.ranked else self.beside[self.argument]
        found = candidates(self.kernel, self.problem, gpu, [around], [each.config for each in self.tried], most)
        self.tried += map(Candidate, found)
        return list(range(len(self.tried) - len(found), len(self.tried)))

    def to_time(self, numbers: Sequence[int]) -> list[int]:
        """Return the candidates to time: the present ones, the best so far, and the new ones that are right."""
        exact = MODULES[self.kernel] == "prototypes" or self.problem.precision == "high"
        allowed = max(GOALS["error_high" if exact else "error_default"].must, 2 * (self.tried[0].error or 0.0))
        wanted = {0, *(self.tried.index(each) for each in self.ranked[:1]), *numbers}
        errors = {number: self.tried[number].error for number in sorted(wanted)}
        return [number for number, error in errors.items() if error is not None and error <= allowed]

    def job(self, function: str, seed: int, **more: Any) -> Job:
        """Return a job on candidates of this search."""
        given = {"problem": self.problem, "beside": self.beside, "argument": self.argument, "seed": seed} | more
        return job(f"bench.tune:{function}", f"tune: {self.name}", 60, name=self.name, kernel=self.kernel, **given)

    def entry(self) -> dict[str, Any]:
        """Return the table's entry for the fastest candidate, with what it was compared with."""
        kernel, problem, (best, *others) = self.kernel, self.problem, self.ranked
        why = [f"{best.us:.1f} µs for the whole call, B={problem.B}"]
        before = [each for each in self.ranked if each is self.tried[0]]
        for label, each in (*(("next", each) for each in others[:1]), *(("before", each) for each in before)):
            why.append(f"{label} {json.dumps(as_tiles(each.config)['config'])} {each.us:.1f}")
        found = {"kernel": kernel, "C": problem.C, "L": problem.L, "K": problem.K}
        found |= as_tiles(best.config) | {"why": "; ".join(why)}
        if kernel in ("tiled", "resident"):
            found |= {"precision": problem.precision, "phi": problem.phi.phi}
        return found | ({"dtype": problem.dtype} if kernel in ("gather", "apply", "resident") else {})

    def row(self) -> Row:
        """Return what is kept of the search: every candidate, its error and its time."""
        counts = ", ".join(f"{number} {status}" for status, number in self.outcomes.items())
        tried = [as_tiles(each.config) | {"error": each.error, "us": each.us, "why": each.why} for each in self.tried]
        status = "ok" if self.ranked else "skipped"
        why = f"{self.entry()['why']} ({counts})" if self.ranked else f"nothing was timed ({counts or 'not reached'})"
        return {"part": "tune", "what": self.name, "status": status, "why": why, "tried": tried}


def main(arguments: list[str]) -> int:
    """Tune kernel after kernel; 0: something was timed, 1: nothing was, 2: it cannot run here."""
    parser = argparse.ArgumentParser(prog="python -m bench tune", description=(__doc__ or "").partition("\n")[0])
    options = options_of(parser, arguments)
    options.budget = BUDGET_S if options.budget is None else options.budget
    if why := refusal(options.dry_run):
        print(why, file=sys.stderr)
        return 2
    device = Device("cuda", options.dry_run)
    table = Table(device, options.out, options.dry_run, options.commit)
    record = Record(["tune", *arguments], options.out / "tune.json" if options.out else None, options, device)
    with Workers(device="cuda", dry_run=options.dry_run) as pool:
        for kernel, end in KERNELS.items():
            every = [each.tiny() if options.dry_run else each for name, each in problems() if name == kernel]
            searches = [Search(kernel, each, tiles(MODULES[kernel], device.gpu, each)) for each in dict.fromkeys(every)]
            found = {each.name: each for each in searches if options.only in each.name}
            tune(found, pool, device, table, options.seed, record.begin, options.budget * end)
            record.add(each.row() for each in found.values())
    return table.told()


def tune(
    found: dict[str, Search], pool: Workers, device: Device, table: Table, seed: int, begin: float, end_s: float
) -> None:
    """Search for the tiles of one kernel on all its problems until ``end_s`` seconds after ``begin``."""
    many = side_by_side(device.dry_run)
    for turn, most in enumerate(CANDIDATES):
        now = time.monotonic() - begin
        left = (end_s - now) * most / sum(CANDIDATES[turn:])
        new = {name: each.propose(device.gpu, min(most, 2) if device.dry_run else most) for name, each in found.items()}
        jobs = [
            found[name].job("check", seed, config=found[name].tried[at].config, at=at)
            for name in new
            for at in new[name]
        ]
        jobs.sort(key=lambda task: int(task.arguments["at"]))  # the first candidates of every problem come first
        for task, (row, *_) in pool.run(jobs, count=many, until=begin + now + CHECK_SHARE * left):
            search = found[task.arguments["name"]]
            search.outcomes[row["status"]] += 1
            candidate = search.tried[task.arguments["at"]]
            candidate.error, candidate.why = row.get("error"), row.get("why")
        jobs = [
            each.job("compare", seed, configs=[each.tried[at].config for at in numbers], at=numbers)
            for name, each in found.items()
            if (numbers := each.to_time(new[name]))
        ]
        for task, (row, *_) in pool.run(jobs, count=min(many, 1), until=begin + now + left):
            if row["status"] == "ok" and row["times"]:
                search = found[task.arguments["name"]]
                for at, us in row["times"].items():
                    search.tried[at].us = us
                search.ranked = sorted((search.tried[at] for at in row["times"]), key=lambda each: each.us or 0.0)
                table.add(search.entry())


def calls_of(
    device: Device, kernel: str, problem: Problem, beside: dict[str, Any], argument: str, seed: int
) -> tuple[Callable[[tile_tables.Config], None], Tensor, Tensor, Tensor]:
    """Return a call of the host function with given tiles for one kernel, its CAM, its features and its output."""
    cam, f = problem.draw(device.device, seed)
    out = torch.empty(problem.B, problem.K, problem.L, device=device.device)

    def call(config: tile_tables.Config) -> None:
        polish(MODULES[kernel], device.gpu, problem, cam, f, out, beside | {argument: config})

    return call, cam, f, out


def check(device: Device, *, name: str, config: tile_tables.Config, at: int, **given: Any) -> list[Row]:
    """Call one candidate once, into poisoned memory, and compare it with float64."""
    problem = given["problem"]
    sampled = torch.arange(0, problem.L, max(1, problem.L // SAMPLED), device=device.device)
    with poisoned():
        call, cam, f, out = calls_of(device, **given)
        call(config)
    error = relative_error(out[-1][:, sampled], sampled_truth(problem, cam, f, sampled))
    return [{"part": "tune", "what": name, "status": "ok", "error": error}]


def compare(
    device: Device, *, name: str, configs: Sequence[tile_tables.Config], at: Sequence[int], **given: Any
) -> list[Row]:
    """Time whole calls with each candidate; return µs by the candidates' numbers."""
    call, *_ = calls_of(device, **given)
    calls = {str(number): partial(call, config) for number, config in zip(at, configs, strict=True)}
    found = time_interleaved(device, calls, budget=1.0)
    times = {int(number): summary(each.cold)["us"] for number, each in found.items() if each.status == "ok"}
    return [{"part": "tune", "what": name, "status": "ok", "times": times}]


class Table:
    """Merge measured entries into the GPU's table, which is written anew, whole, with every entry."""

    def __init__(self, device: Device, folder: Path | None, dry_run: bool, commit: str) -> None:
        found = measure.machine(device, commit)
        source = "measured by python -m bench tune" + (f" ({DRY_RUN})" if dry_run else "")
        self.path = (folder or tile_tables.user_directory()) / f"{tile_tables.slug(device.gpu.name)}.json"
        self._kept = not dry_run or folder is not None
        if self._kept:
            os.environ["SSA_FAST_CONFIGS"] = str(self.path.parent)  # what was tuned serves the kernels tuned after it
        self._head = {
            "gpu": device.gpu.name,
            "arch": device.gpu.arch,
            "source": f"{source}, commit {commit or found['commit'] or 'unknown'}",
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
