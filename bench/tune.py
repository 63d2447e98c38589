"""Times the kernels' tiles on the GPU at hand and writes the best as a table, which the package then takes.

Candidates are first called once each, many at a time: one that does not compile, crashes or is wrong against float64 is
dropped and counted. Those left are timed alone, in interleaved rounds, through the kernels' host functions; only one
kernel's tiles change at a time.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from bench import workers
from bench.ceilings import describe
from bench.gpu import command, ours
from bench.gpu.goals import error_goal
from bench.gpu.report import REHEARSAL
from bench.gpu.tiles import MODULES, as_config, candidates
from bench.problem import Problem, relative_error, sampled_truth
from bench.stand import Device, poisoned, summary
from ssa_fast.ops import gpu_info, tile_tables

if TYPE_CHECKING:
    from pathlib import Path

    from bench.workers import Job, Row

MOST = 14  # candidates of a kernel for one problem, the nearest to the present tiles
CHECK_SHARE = 0.6  # of the budget, at most, for calling every candidate once
SAMPLED = 256

# (C, side, K) of the problems, or C and side for K = 20; those on which most depends come first.
TILED = ((256, 128), (2048, 64), (1024, 32), (256, 56), (512, 128), (256, 256))
TILED_HIGH = ((256, 128), (1024, 32))
LINEAR = ((256, 256), (2048, 128), (1024, 128), (512, 128), (256, 56), (1024, 32), (2048, 16), (64, 256))
LINEAR_OTHERS = (
    (256, 20, "float32"),
    (2048, 20, "float32"),
    (256, 80, "float16"),
    (2048, 80, "float16"),
    (256, 1, "float16"),
)
SMALL = ((1024, 14), (512, 28), (2048, 7), (1024, 32))


def problems() -> list[tuple[str, Problem]]:
    """``(kernel, problem)``, those on which most depends first."""
    signed = Problem(B=1, K=20, C=256, H=128, W=128, h=32, w=32, values="randn")

    def stages(sizes: tuple[tuple[int, int], ...], **more: Any) -> list[Problem]:
        return [replace(signed, C=C, H=side, W=side, **more) for C, side in sizes]

    linear = stages(LINEAR, values="rand")
    linear += [replace(signed, C=C, K=K, dtype=dtype, values="rand") for C, K, dtype in LINEAR_OTHERS]
    found = [("tiled", problem) for problem in stages(TILED)]
    found += [(kernel, problem) for problem in linear for kernel in ("gather", "apply")]
    found += [("resident", problem) for dtype in ("float16", "float32") for problem in stages(SMALL, dtype=dtype)]
    found += [("tiled", problem) for problem in stages(TILED_HIGH, precision="high")]
    return found + [("prepare", problem) for problem in stages(((256, 128), (2048, 128)))]


def main(
    out: Path | None = None, budget: float = 540.0, rehearse: bool = False, only: str = "", seed: int | None = None
) -> int:
    """Check, time, write; 0: a table was written (or would be), 1: nothing was measured, 2: it cannot run here."""
    if why := command.refusal(rehearse):
        print(why, file=sys.stderr)
        return 2
    if rehearse:
        print(REHEARSAL)
    begin, stand = time.monotonic(), Device(rehearse)
    many = command.side_by_side(rehearse)
    chosen = _chosen(rehearse, only)
    lists = {name: _candidates(*of, stand.gpu, 3 if rehearse else MOST) for name, of in chosen.items()}
    checked: dict[str, list[Row]] = defaultdict(list)

    def keep(task: Job, rows: list[Row]) -> None:
        for row in rows:
            checked[task["arguments"]["name"]].append(row | {"at": task["arguments"]["at"]})

    checks = [
        _job("check", name, *chosen[name], seed or 0, tiles=tiles, at=at)
        for name in lists
        for at, tiles in enumerate(lists[name])
    ]
    workers.run(checks, count=many, until=begin + CHECK_SHARE * budget, report=keep, rehearse=rehearse)
    right = {name: _right(*chosen[name], checked[name]) for name in lists}
    timed: dict[str, Row] = {}
    jobs = [
        _job("measure", name, *chosen[name], seed or 0, tiles=[lists[name][at] for at in right[name]], at=right[name])
        for name in lists
        if right[name]
    ]
    workers.run(
        jobs,
        count=min(many, 1),
        until=begin + budget,
        report=lambda task, rows: timed.update({task["arguments"]["name"]: rows[0]}),
        rehearse=rehearse,
    )
    entries = []
    for name, (kernel, problem) in chosen.items():
        entry = _entry(kernel, problem, lists[name], timed.get(name, {}).get("times", {}))
        entries += [entry] if entry else []
        print(_line(name, entry, checked[name], timed.get(name)), flush=True)
    return _write(entries, stand, out, rehearse)


def _chosen(rehearse: bool, only: str) -> dict[str, tuple[str, Problem]]:
    """The problems by name, those whose name contains ``only``; in a rehearsal the tiny ones, each once."""
    every = [(kernel, problem.tiny() if rehearse else problem) for kernel, problem in problems()]
    named = {f"{kernel}, {problem.label()}": (kernel, problem) for kernel, problem in every}
    return {name: each for name, each in named.items() if only in name}


def _candidates(kernel: str, problem: Problem, gpu: gpu_info.Gpu, most: int) -> list[dict[str, Any]]:
    """The present tiles first, then others by how near they are."""
    try:
        present = ours.tiles(MODULES[kernel], gpu, problem)["config" if kernel in ("tiled", "resident") else kernel]
    except ValueError:  # no table has any
        present = None
    return candidates(kernel, problem, gpu, present, most)


def _job(function: str, name: str, kernel: str, problem: Problem, seed: int, **more: Any) -> Job:
    arguments = {"name": name, "kernel": kernel, "seed": seed} | more | problem.as_arguments()
    return workers.job(f"bench.tune:{function}", f"tune: {name}", 60, **arguments)


def _call(stand: Device, kernel: str, problem: Problem, cam: Any, f: Any, out: Any, tiles: dict[str, Any]) -> None:
    """The kernel's host function with ``tiles`` for it and the present ones for what runs beside it."""
    way = MODULES[kernel]
    given = ours.tiles(way, stand.gpu, problem)
    given["config" if kernel in ("tiled", "resident") else kernel] = as_config(kernel, tiles)
    ours.write(way, stand.gpu, problem, cam, f, out, given)


def check(
    stand: Device, *, name: str, kernel: str, seed: int, tiles: dict[str, Any], at: int, **arguments: Any
) -> list[Row]:
    """One candidate called once, into poisoned memory, against float64."""
    problem = Problem(**arguments)
    cam, f = problem.draw(stand.device, seed)
    sampled = torch.arange(0, problem.L, max(1, problem.L // SAMPLED), device=stand.device)
    with poisoned():
        out = torch.empty(problem.B, problem.K, problem.L, device=stand.device)
        _call(stand, kernel, problem, cam, f, out, tiles)
    error = relative_error(out[-1][:, sampled], sampled_truth(problem, cam, f, sampled))
    return [{"part": "tune", "what": name, "status": "ok", "error": error}]


def measure(
    stand: Device, *, name: str, kernel: str, seed: int, tiles: list[dict[str, Any]], at: list[int], **arguments: Any
) -> list[Row]:
    """µs of whole calls with each candidate, by its number."""
    problem = Problem(**arguments)
    cam, f = problem.draw(stand.device, seed)
    out = torch.empty(problem.B, problem.K, problem.L, device=stand.device)

    def call(given: dict[str, Any]) -> Any:
        return lambda: _call(stand, kernel, problem, cam, f, out, given)

    found = stand.rounds({str(number): call(given) for number, given in zip(at, tiles, strict=True)}, budget=2.0)
    return [
        {"part": "tune", "what": name, "status": "ok", "times": {n: summary(each)["us"] for n, each in found.items()}}
    ]


def _right(kernel: str, problem: Problem, rows: list[Row]) -> list[int]:
    """Numbers of the candidates within the goal, or as near to the truth as the present tiles are, twice over."""
    errors = {row["at"]: row["error"] for row in rows if row["status"] == "ok"}
    most = max(error_goal(MODULES[kernel], problem.precision).must, 2 * errors.get(0, 0.0))
    return sorted(at for at, error in errors.items() if error <= most)


def _entry(
    kernel: str, problem: Problem, tried: list[dict[str, Any]], times: dict[str, float]
) -> dict[str, Any] | None:
    """The table's line for the fastest candidate, with what it was compared with; None if nothing was timed."""
    if not times:
        return None
    order = sorted(times, key=lambda number: times[number])
    best = tried[int(order[0])]
    why = [f"{times[order[0]]:.1f} µs for the whole call, B={problem.B}"]
    if len(order) > 1:
        why.append(f"next {json.dumps(tried[int(order[1])]['config'])} {times[order[1]]:.1f}")
    if "0" in times:
        why.append(f"before {json.dumps(tried[0]['config'])} {times['0']:.1f}")
    entry = {"kernel": kernel, "C": problem.C, "L": problem.L, "K": problem.K} | best | {"why": "; ".join(why)}
    if kernel in ("tiled", "resident"):
        entry |= {"precision": problem.precision, "phi": problem.phi.phi}
    if kernel in ("gather", "apply", "resident"):
        entry["dtype"] = problem.dtype
    return entry


def _line(name: str, entry: dict[str, Any] | None, checks: list[Row], timed: Row | None) -> str:
    """One problem in one line: what was picked and why, what was dropped."""
    count = Counter(row["status"] for row in checks)
    tried = ", ".join(f"{number} {status}" for status, number in count.items())
    if entry is None:
        return f"{name}: nothing timed ({tried}; {(timed or {}).get('why', 'not reached')})"
    return f"{name}: {json.dumps(entry['config'])}, {entry['why']} ({tried})"


def _write(entries: list[dict[str, Any]], stand: Device, out: Path | None, rehearse: bool) -> int:
    """The table, with lines of an older one that this run has no answer to."""
    if not entries:
        print("nothing was measured; no table was written", file=sys.stderr)
        return 1
    gpu, found = stand.gpu, describe(stand)
    path = out or tile_tables.user_directory() / f"{tile_tables.slug(gpu.name)}.json"
    if rehearse and out is None:
        print(REHEARSAL)
        return 0

    def key(entry: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(entry.get(name) for name in ("kernel", "C", "L", "K", "dtype", "precision", "phi"))

    new = {key(entry) for entry in entries}
    old = tile_tables.read(path)["entries"] if path.is_file() else []
    source = "measured by python -m bench tune" + (f" ({REHEARSAL})" if rehearse else "")
    table = {
        "gpu": gpu.name,
        "arch": gpu.arch,
        "source": f"{source}, commit {found.get('commit') or 'unknown'}",
        "versions": {
            name: str(found[name]) for name in ("python", "torch", "triton", "cuda", "hip") if found.get(name)
        },
        "entries": entries + [entry for entry in old if key(entry) not in new],
    }
    tile_tables.write(table, path)
    print(f"{len(entries)} of {len(table['entries'])} entries measured now, written to {path}")
    return 0
