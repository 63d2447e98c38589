"""``python -m bench gpu``: the order of the work, the budget, the exit code."""

from __future__ import annotations

import os
import secrets
import sys
import time
from typing import TYPE_CHECKING

import torch

from bench import ceilings, workers
from bench.gpu import correctness, promises, sanitize, timing, whole
from bench.gpu.report import REHEARSAL, Report
from ssa_fast.ops import gpu_info

if TYPE_CHECKING:
    from pathlib import Path

    from bench.workers import Job, Row

SIDE_BY_SIDE = 12  # workers, while nothing is timed: most of that time is compilation on the host
FIRST_SHARE = 0.45  # of the budget, at most, for correctness and compilation before anything is timed


def refusal(rehearse: bool) -> str:
    """Why the command cannot run here, in one sentence; empty if it can."""
    if rehearse:
        return "" if gpu_info.interpreting() else "--rehearse needs TRITON_INTERPRET=1, set before Triton is imported."
    if not torch.cuda.is_available():
        return "There is no GPU here: run this where PyTorch sees one, or try every step on the CPU with --rehearse."
    if gpu_info.interpreting():
        return "TRITON_INTERPRET is set, so Triton would interpret the kernels: unset it to measure a GPU."
    return gpu_info.query(torch.device("cuda", torch.cuda.current_device()))[1]


def side_by_side(rehearse: bool) -> int:
    """Workers for work that is not timed; 0 in a rehearsal: it all runs in this process."""
    return 0 if rehearse else max(1, min(SIDE_BY_SIDE, (os.cpu_count() or 2) - 2))


def main(
    save: Path | None = None,
    out: Path | None = None,
    budget: float = 540.0,
    rehearse: bool = False,
    only: str = "",
    commit: str = "",
    seed: int | None = None,
) -> int:
    """Run everything that ``budget`` seconds allow; 0: all right, 1: something is wrong, 2: it cannot run here."""
    if why := refusal(rehearse):
        print(why, file=sys.stderr)
        return 2
    begin = time.monotonic()
    seed = secrets.randbelow(1 << 30) if seed is None else seed
    head = {"command": "python -m bench gpu", "rehearsal": rehearse, "seed": seed, "budget_s": budget, "commit": commit}
    report = Report(head | {"seconds": 0.0}, None if rehearse or out is None else out / "gpu.json")
    if rehearse:
        print(REHEARSAL)
    work(report, seed, rehearse, only, begin, budget)
    for path in {save, report.path} - {None}:
        assert path is not None
        report.save(path)
    print("", *report.table(), sep="\n")
    return report.exit_code()


def work(report: Report, seed: int, rehearse: bool, only: str, begin: float, budget: float) -> None:
    """Every job, the most important first: what is right, the main rows of times, then the rest."""
    many = side_by_side(rehearse)
    late: list[Job] = []

    def phase(jobs: list[Job], count: int, share: float, again: bool = False) -> None:
        """One list of jobs until ``share`` of the budget; with ``again`` those not reached wait for a later phase."""

        def keep(task: Job, rows: list[Row]) -> None:
            report.head["seconds"] = round(time.monotonic() - begin, 1)
            if again and any(row["status"] == "not reached" for row in rows):
                late.append(task)
            elif workers.part_of(task) != "warm":
                report.add(rows)

        chosen = [task for task in jobs if only in task["name"]]
        workers.run(chosen, count=count, until=begin + share * budget, report=keep, rehearse=rehearse)

    one = min(many, 1)
    checks = correctness.jobs(seed, rehearse)
    compiling = [] if rehearse else timing.warmers(seed, rehearse)
    phase([*checks[:24], *compiling, *checks[24:]], many, FIRST_SHARE, again=True)
    first = [*ceilings.jobs(seed, rehearse), *promises.jobs(seed, rehearse)]
    first += timing.jobs(seed, rehearse, timing.MAIN)
    first += [*whole.small_jobs(seed, rehearse), *whole.backbone_jobs(seed, rehearse)]
    phase(first, one, 0.88)
    rest = [task for task in late if workers.part_of(task) != "warm"]
    phase([*sanitize.jobs(seed, rehearse), *rest], many, 0.95)
    phase(timing.jobs(seed, rehearse, timing.MORE), one, 0.98)
