"""``python -m bench gpu``: plan the phases of a suite within its budget, run them, and report."""

from __future__ import annotations

import os
import secrets
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from bench import roofline, workers
from bench.gpu import correctness, counters, invariants, sanitize, timing, whole
from bench.gpu.report import DRY_RUN, NOT_SHOWN, Report
from ssa_fast.ops import gpu_info

if TYPE_CHECKING:
    from pathlib import Path

    from bench.workers import Job, Row

LIMIT_S = 570.0  # what one of the commands of docs/kernels.md may take
# What each suite plans with; the rest is the start of the process and the end of a job under way. "all" is two commands
# in one, and the counters follow the tuning in the same command.
BUDGETS_S = {"all": 1080.0, "check": 540.0, "counters": 105.0, "time": 540.0}
SIDE_BY_SIDE = 12  # workers, while nothing is timed: most of that time is compilation on the host
ALWAYS = ("machine", "warm")  # parts that ``only`` leaves in
# Predicted seconds of one job by part, and of starting the workers; nobody has timed them on a GPU.
EXPECTED_S = {
    "correctness": 4.0,
    "counters": 20.0,
    "invariant": 8.0,
    "kernels": 8.0,
    "machine": 1.0,
    "roofline": 4.0,
    "sanitizer": 75.0,
    "timing": 12.0,
    "warm": 12.0,
}
START_S = 15.0


@dataclass(frozen=True)
class Phase:
    """Jobs that run ``count`` at a time (0: in this process) until a share ``end`` of the budget.

    With ``retry``, those not reached are tried again in the suite's last phase.
    """

    name: str
    jobs: list[Job]
    count: int
    end: float
    retry: bool = False

    def expected_s(self) -> float:
        """Return the predicted time of the phase, in seconds."""
        return sum(EXPECTED_S[workers.part_of(task)] for task in self.jobs) / max(1, self.count)


def refusal(dry_run: bool) -> str:
    """Return why the command cannot run here, in one sentence; empty if it can."""
    if dry_run:
        return "" if gpu_info.interpreting() else "--dry-run needs TRITON_INTERPRET=1, set before Triton is imported."
    if not torch.cuda.is_available():
        return "There is no GPU here: run this where PyTorch sees one, or try every step on the CPU with --dry-run."
    if gpu_info.interpreting():
        return "TRITON_INTERPRET is set, so Triton would interpret the kernels: unset it to measure a GPU."
    return gpu_info.query(torch.device("cuda", torch.cuda.current_device()))[1]


def side_by_side(dry_run: bool) -> int:
    """Return the number of workers for what is not timed; 0, this process, in a dry run."""
    return 0 if dry_run else max(1, min(SIDE_BY_SIDE, (os.cpu_count() or 2) - 2))


def main(
    suite: str = "all",
    save: Path | None = None,
    out: Path | None = None,
    budget: float | None = None,
    dry_run: bool = False,
    only: str = "",
    commit: str = "",
    seed: int | None = None,
) -> int:
    """Run what ``budget`` seconds allow; 0: all is right, 1: something is wrong, 2: it cannot run here."""
    budget = BUDGETS_S[suite] if budget is None else budget
    if why := refusal(dry_run):
        print(why, file=sys.stderr)
        return 2
    begin = time.monotonic()
    seed = secrets.randbelow(1 << 30) if seed is None else seed
    name = "gpu" if suite == "all" else f"gpu-{suite}"
    head = {"command": f"python -m bench gpu {suite}", "dry_run": dry_run, "seed": seed, "budget_s": budget}
    head |= {"commit": commit, "seconds": 0.0, "phases": {}} | ({"not_shown": NOT_SHOWN} if dry_run else {})
    report = Report(head, None if out is None else out / f"{name}.json")
    if dry_run:
        print(DRY_RUN, NOT_SHOWN, sep="\n", flush=True)
    print(f"To be done in {budget:g} s.", file=sys.stderr, flush=True)
    phases = plan(suite, seed, dry_run, only, side_by_side(dry_run))
    with workers.Pool(dry_run) as pool:
        run(phases, pool, report, begin, budget)
    for path in {save, report.path} - {None}:
        assert path is not None
        report.save(path)
    print("", *report.table(), sep="\n", flush=True)
    return report.exit_code()


def run(phases: list[Phase], pool: workers.Pool, report: Report, begin: float, budget: float) -> None:
    """Run the phases one after the other; each ends when its share of the budget is spent."""
    late: list[Job] = []
    for phase in phases:

        def keep(task: Job, rows: list[Row], retry: bool = phase.retry) -> None:
            report.head["seconds"] = round(time.monotonic() - begin, 1)
            if retry and any(row["status"] == "not reached" for row in rows):
                late.append(task)
            elif workers.part_of(task) != "warm":
                report.add(rows)

        jobs = [*phase.jobs, *(late if phase is phases[-1] else ())]
        pool.run(jobs, count=phase.count, until=begin + phase.end * budget, report=keep)
        report.head["phases"][phase.name] = round(time.monotonic() - begin, 1)


def plan(suite: str, seed: int, dry_run: bool, only: str, many: int) -> list[Phase]:
    """Return the phases of a suite, with ``many`` jobs at a time where nothing is timed.

    ``only`` selects jobs whose name contains it; what compiles their kernels is never dropped.
    """

    def chosen(jobs: list[Job]) -> list[Job]:
        return [task for task in jobs if only in task["name"] or workers.part_of(task) in ALWAYS]

    def check() -> list[Phase]:
        tests, watched = chosen(correctness.jobs(seed, dry_run)), chosen(sanitize.jobs(seed))
        compiling = [] if dry_run or not watched else sanitize.warmers(seed)
        first = [roofline.machine_job(), *tests[:24], *compiling, *tests[24:]]
        return [
            Phase("correctness", first, many, 0.40, retry=True),
            Phase("invariants", chosen(invariants.jobs(seed, dry_run)), many, 0.50),
            Phase("sanitizer", watched, many, 0.95),
            Phase("what was not reached", [], many, 1.0),
        ]

    def timed() -> list[Phase]:
        one = min(many, 1)
        small = chosen([*whole.small_jobs(seed, dry_run), *whole.stages_jobs(seed, dry_run)])
        main_rows = chosen(timing.jobs(seed, dry_run, timing.MAIN))
        more_rows = chosen(timing.jobs(seed, dry_run, timing.MORE))
        networks = chosen(whole.backbone_jobs(seed, dry_run))
        compiling = [] if dry_run else timing.warmers([*main_rows, *small, *networks, *more_rows])
        measured = [*chosen(roofline.jobs(seed, dry_run)), *main_rows, *small, *networks]
        return [
            Phase("compile", [roofline.machine_job(), *compiling], many, 0.27),
            Phase("main rows", measured, one, 0.88),
            Phase("more rows", more_rows, one, 1.0),
        ]

    def profiled() -> list[Phase]:
        cases = chosen(counters.jobs(seed))
        compiling = [] if dry_run or not cases else counters.warmers(seed)
        return [
            Phase("compile", [roofline.machine_job(), *compiling], many, 0.4),
            Phase("counters", cases, min(many, 1), 1.0),
        ]

    if suite == "all":
        halves = [replace(phase, end=phase.end / 2) for phase in check()]
        return halves + [replace(phase, end=0.5 + phase.end / 2) for phase in timed()]
    return {"check": check, "counters": profiled, "time": timed}[suite]()
