"""The kernels on the GPU at hand: their tests, and their times beside other implementations.

``check`` runs the tests of ``tests/kernels`` with ``--device cuda``, and some under NVIDIA's compute-sanitizer.
``time`` is ``bench.gpu_timing``, the machine's roofline, and the time of each kernel of a call by PyTorch's profiler. A
suite plans its phases within a budget of seconds; its JSON is whole after every row.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench import gpu_timing, measure, tiles
from bench.gpu_timing import COMPILED, POSITIVE, SIGNED
from bench.measure import ROOT, Device, NotHere, summary, time_interleaved
from bench.workers import Workers, job, run_program
from ssa_fast.ops import gpu_info

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bench.problems import Problem
    from bench.workers import Job, Row

BUDGET_S = 540.0  # what is left of the 9.5 minutes in docs/kernels.md is the process's start and a last job's end
SIDE_BY_SIDE = 12  # processes, while nothing is timed: most of that time is compilation on the host
BAD = ("failed", "wrong", "over budget")
DRY_RUN = "dry run: no figure means anything"
NOT_SHOWN = (
    "not shown: compiled kernels, bfloat16 products, times, memory, the cache flush, host synchronisation, "
    "CUDA graphs, worker processes, compute-sanitizer, PyTorch's profiler; PyTorch polishes four stages in one call"
)
TESTS = {"shipped": 24, "invariants": 4, "prototypes": 24, "tiled": 24, "resident": 12, "fusion": 8, "prepare": 4}
TESTS |= {"moments": 1, "offsets": 2}  # parts that each file of tests is run in, the most important first
TOOLS = ("memcheck", "racecheck")
# Cases of test_watched in tests/kernels/test_invariants.py.
WATCHED = ["prototypes", "prototypes-sliced", "prototypes-shifted", "full", "symmetric", "symmetric-high"]
WATCHED += ["resident", "auto", "fusion"]
SANITIZER_S = 150.0
FOUND = 9  # exit code by which compute-sanitizer says that it found errors
# The two passes of prototypes, the symmetric kernel with what runs before and after it, and the resident kernel.
PROFILED: dict[str, Problem] = {
    "prototypes": replace(POSITIVE, B=16),
    "symmetric": SIGNED,
    "resident": replace(SIGNED, C=1024, H=14, W=14, h=7, w=7),
}


class Record:
    """Print rows as they come and keep them as JSON at ``path``, whole from the start and after every job."""

    def __init__(self, command: Sequence[str], path: Path | None, options: Any, device: Device) -> None:
        self.begin, self.path, self.rows, self.phases = time.monotonic(), path, list[Any](), dict[str, float]()
        self.dry_run = bool(options.dry_run)
        self._head: dict[str, Any] = {
            "command": measure.command_line(command),
            "machine": measure.machine(device, options.commit),
            "settings": {"dry_run": self.dry_run, "seed": options.seed, "budget_s": options.budget},
        } | ({"not_shown": NOT_SHOWN} if self.dry_run else {})
        print(*[DRY_RUN, NOT_SHOWN] * self.dry_run, f"To be done in {options.budget:g} s.", sep="\n", flush=True)
        self.add([])

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.rows.append(row)
            print(line(row)[:480], flush=True)
        if self.path:
            seconds = round(time.monotonic() - self.begin, 1)
            measure.save(self.path, self.rows, **self._head, seconds=seconds, phases=self.phases)

    def end(self) -> int:
        """Print at most 60 lines, what is wrong first; return 1 if anything was, not if a goal was missed."""
        bad = [row for row in self.rows if row["status"] in BAD]
        print("", *(f"WRONG {line(row)[:240]}" for row in bad[:20]), sep="\n")
        counts = Counter((row["part"], row["status"]) for row in self.rows)
        print(*(f"{part}: {number} {status}" for (part, status), number in counts.items()), sep="; ")
        for why, number in Counter(row["why"] for row in self.rows if row["status"] == "skipped").most_common(5):
            print(f"skipped: {number}: {why[:200]}")
        goals = Counter(goal["verdict"] for row in self.rows for goal in row.get("goals", ()))
        print(f"goals: {dict(goals)}" if goals else "", measure.describe(self._head["machine"]), sep="\n")
        print(*[DRY_RUN] * self.dry_run, flush=True)
        return int(bool(bad))


def line(row: Row) -> str:
    """Return a row in one line: how it ended, its figures, each implementation's times, and its goals."""
    words = [row["status"], f"{row['part']}:", row["what"].removeprefix(f"{row['part']}: ")]
    words += [f"error {row['error']:.2g}"] if row.get("error") is not None else []
    words += [f"{row['value']:g} {row['unit']}"] if "value" in row else []
    for each in row.get("providers", ()):
        host = [f"{name} {each[f'{name}_us']:.4g}" for name in ("eager", "graph") if f"{name}_us" in each]
        words.append(f"| {each['name']} {each.get('us', each['status'])}{f' ({chr(44).join(host)})' if host else ''}")
    for goal in row.get("goals", ()):
        value = "?" if goal["value"] is None else f"{goal['value']:.4g}"
        words.append(f"| {goal.get('baseline') or goal['what']} {value}{goal['unit']} {goal['verdict']}")
    return " ".join(words + ([f"({row['why']})"] if row.get("why") else []))


def refusal(dry_run: bool) -> str:
    """Return why the command cannot run here, in one sentence; empty if it can."""
    if dry_run:
        return "" if gpu_info.interpreting() else "--dry-run needs TRITON_INTERPRET=1, set before Triton is imported."
    if not torch.cuda.is_available():
        return "There is no GPU here: run this where PyTorch sees one, or try every step on the CPU with --dry-run."
    if gpu_info.interpreting():
        return "TRITON_INTERPRET is set, so Triton would interpret the kernels: unset it to measure a GPU."
    return gpu_info.query(torch.device("cuda", torch.cuda.current_device()))[1]


def options_of(parser: argparse.ArgumentParser, given: Sequence[str]) -> argparse.Namespace:
    """Return the parsed options, with those that this command and ``tune`` share."""
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the JSON goes, which is whole at any time")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="to be done in")
    parser.add_argument("--dry-run", action="store_true", help="every step on the CPU; no figure means anything")
    parser.add_argument("--only", default="", metavar="TEXT", help="only jobs whose name contains this")
    parser.add_argument("--seed", type=int, help="of the random inputs; by default another every time")
    parser.add_argument("--commit", default="", help="what to name as the commit where git cannot tell")
    options = parser.parse_args(given)
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    options.seed = secrets.randbelow(1 << 30) if options.seed is None else options.seed
    return options


def main(arguments: list[str]) -> int:
    """Run what the budget allows; 0: all is right, 1: something is wrong, 2: it cannot run here."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", choices=("check", "time"))
    options = options_of(parser, arguments)
    options.budget = BUDGET_S if options.budget is None else options.budget
    if why := refusal(options.dry_run):
        print(why, file=sys.stderr)
        return 2
    path = options.out / f"gpu-{options.suite}.json" if options.out else None
    record = Record(["gpu", *arguments], path, options, Device("cuda", options.dry_run))
    with Workers(device="cuda", dry_run=options.dry_run, environment={"OMP_NUM_THREADS": "1"}) as pool:
        for phase in plan(options.suite, options.seed, options.dry_run, options.only, side_by_side(options.dry_run)):
            end = record.begin + phase.end * options.budget
            for task, rows in pool.run(phase.jobs, count=phase.count, until=end):
                if task.part != "warm":
                    record.add(rows)
            record.phases[phase.name] = round(time.monotonic() - record.begin, 1)
    record.add([])
    return record.end()


@dataclass(frozen=True)
class Phase:
    """Jobs that run ``count`` at a time (0: in this process) until a share ``end`` of the budget."""

    name: str
    jobs: list[Job]
    count: int
    end: float


def side_by_side(dry_run: bool) -> int:
    """Return the number of processes for what is not timed; 0, this process, in a dry run."""
    return 0 if dry_run else max(1, min(SIDE_BY_SIDE, (os.cpu_count() or 2) - 2))


def plan(suite: str, seed: int, dry_run: bool, only: str, many: int) -> list[Phase]:
    """Return the phases of a suite, with ``many`` jobs at a time where nothing is timed.

    ``only`` selects jobs whose name contains it; what compiles their kernels is never dropped.
    """

    def chosen(jobs: Iterable[Job]) -> list[Job]:
        return [task for task in jobs if only in task.name]

    if suite == "check":
        parts = [(file, f"{at}/{count}") for file, count in TESTS.items() for at in range(1, count + 1)]
        parts = [("shipped", "1/12"), ("invariants", "1/2")] if dry_run else parts
        tests = [job("bench.gpu:run_tests", f"tests: {file} {at}", 150, file=file, part=at) for file, at in parts]
        pairs = product(TOOLS, WATCHED)
        limit = SANITIZER_S + 15
        watched = [job("bench.gpu:sanitize", f"sanitizer: {a} {b}", limit, tool=a, case=b) for a, b in pairs]
        return [Phase("tests", chosen(tests), many, 0.65), Phase("sanitizer", chosen(watched), many, 1.0)]
    rates = [job("bench.gpu:roofline", f"roofline: {each}", 60, what=each, seed=seed) for each in ("copy", *PRODUCTS)]
    profiled = [job("bench.gpu:kernel_times", f"kernels: {each}", 60, case=each, seed=seed) for each in PROFILED]
    every = dict.fromkeys(each.tiny() if dry_run else each for each in gpu_timing.CASES)
    cases = [each for each in every if only in each.name]
    timed = [job("bench.gpu_timing:compare", each.name, 120, case=each, seed=seed) for each in cases]
    compiled = [(case, name) for case in cases for name in case.versus if name in COMPILED]  # the slowest first
    warmers = [
        job("bench.gpu_timing:warm", f"warm: {case.name}: {name}", 150, case=case, name=name, seed=seed)
        for case, name in (*compiled, *((case, "ours") for case in cases))
    ]
    return [
        Phase("compile", [] if dry_run else warmers, many, 0.27),
        Phase("timing", chosen(rates + profiled) + timed, min(many, 1), 1.0),
    ]


class Results:
    """A plugin of pytest that keeps a row per test."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep how a test ended; of one that passed, its call."""
        if report.when != "call" and report.passed:
            return
        status = {"passed": "ok", "failed": "failed", "skipped": "skipped"}[report.outcome]
        row = {"part": "tests", "what": report.nodeid.removeprefix("tests/kernels/"), "status": status}
        row |= {"seconds": round(report.duration, 2)}
        if report.skipped:
            row["why"] = str(report.longrepr[2])
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            row |= {
                "why": str(crash.message if crash else report.longrepr)[:300],
                "traceback": str(report.longrepr)[-3000:],
            }
        self.rows.append(row)


def run_tests(device: Device, *, file: str, part: str) -> list[Row]:
    """Run a part of a file of the kernels' tests in this process; return a row per test."""
    import pytest

    results, path = Results(), ROOT / "tests" / "kernels" / f"test_{file}.py"
    options = ["--device", device.device.type, "--shard", part, "-o", "addopts=", "-p", "no:cacheprovider", "-v"]
    code = pytest.main([str(path), "--rootdir", str(ROOT), *options], plugins=[results])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest ended with {code!r}")
    return results.rows


def sanitize(device: Device, *, tool: str, case: str) -> list[Row]:
    """Run a case of ``test_watched`` under one of compute-sanitizer's tools; its kernels were compiled by the tests."""
    if device.dry_run:
        raise NotHere("a dry run on the CPU has nothing for compute-sanitizer to watch")
    if not (program := shutil.which("compute-sanitizer")):
        raise NotHere("compute-sanitizer is not on the PATH")
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable]
    test = f"tests/kernels/test_invariants.py::test_watched[{case}]"
    command += ["-m", "pytest", test, "--device", "cuda", "-o", "addopts=", "-p", "no:cacheprovider"]
    # Without PyTorch's pool of memory every tensor is an allocation of its own, with bounds that can be watched.
    code, output = run_program(command, SANITIZER_S, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return [{"part": "sanitizer", "what": f"{tool} {case}"} | said(code, output)]


def said(code: int | None, output: str) -> Row:
    """Return what the sanitizer found; that it does not work here is no failure."""
    if code is None:
        return {"status": "not reached", "why": f"not done in {SANITIZER_S:g} s"}
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output)
    why = " ".join(found) or " ".join(output.split())[-300:]
    if code == FOUND and found:
        return {"status": "failed", "why": why, "output": output[-6000:]}
    return (
        {"status": "skipped", "why": f"it ended with exit code {code}: {why}"} if code else {"status": "ok", "why": why}
    )


def kernel_times(device: Device, *, case: str, seed: int, calls: int = 20) -> list[Row]:
    """Time the kernels of one case's call with PyTorch's profiler, on a cold cache; one row per kernel."""
    from torch.profiler import ProfilerActivity, profile

    if device.dry_run:
        raise NotHere("a dry run on the CPU has no kernels to profile")
    problem = PROFILED[case]
    cam, f = problem.draw(device.device, seed)
    out = torch.empty(problem.B, problem.K, problem.L, device=device.device)
    call = partial(tiles.polish, case, device.gpu, problem, cam, f, out, tiles.tiles(case, device.gpu, problem))
    call()
    device.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            device.seconds(call, 1e-3)
    found: dict[str, list[float]] = {}
    for event in profiler.events() or ():
        if event.device_type.name == "CUDA" and event.name.isidentifier():  # PyTorch's own have names of C++
            found.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e6)
    if not found:
        raise NotHere("PyTorch's profiler saw no kernel here")
    rows = []
    for name, times in found.items():
        row = {"part": "kernels", "what": f"{name}, {problem.label()}", "status": "ok"}
        why = f"{np.median(times) * 1e6:.1f} µs, {len(times) / calls:g} a call, by PyTorch's profiler"
        rows.append(row | {"launches": len(times) / calls, "why": why} | summary(times))
    return rows


PRODUCTS = {"float16": 8192, "bfloat16": 8192, "float32": 4096}  # sides


def roofline(device: Device, *, what: str, seed: int) -> list[Row]:
    """Measure how fast the machine copies, or multiplies in a dtype, on random data."""
    generator = torch.Generator(device.device).manual_seed(seed)
    make: dict[str, Any] = {"device": device.device, "generator": generator}
    if what == "copy":
        source = torch.rand(1 << 10 if device.dry_run else 1 << 30, **make).half()
        target = torch.empty_like(source)
        amount, unit, name = 2 * source.nbytes, "TB/s", f"copy of {source.nbytes >> 20} MiB, bytes read and written"
        call: Callable[[], object] = lambda: target.copy_(source)  # noqa: E731
    else:
        side = 64 if device.dry_run else PRODUCTS[what]
        a, b = (torch.randn(side, side, **make).to(getattr(torch, what)) for _ in range(2))
        amount, unit, name = 2 * side**3, "TFLOP/s", f"{what} product of {side}×{side} matrices"
        call = lambda: a @ b  # noqa: E731
    times = summary(time_interleaved(device, {"call": call})["call"].cold)
    row = {"part": "roofline", "what": name, "status": "ok", "unit": unit}
    return [row | {"value": round(amount / times["us"] / 1e6, 3)} | times]
