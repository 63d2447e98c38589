"""Read the hardware counters of the four main kernels with Nsight Compute, where it is installed.

``python -m bench.gpu.counters CASE SEED`` is what ``ncu`` watches: one warm call between a start and a stop, so
that neither compilation nor the drawing of inputs is counted. Whole sections of counters are asked for: the names of
single ones depend on the GPU. The clocks are left alone. The profiler flushes the caches before each kernel, so what a
kernel finds there of the one before it is not seen.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from bench.gpu import ours
from bench.gpu.sanitize import run_bounded
from bench.gpu.timing import POSITIVE, SIGNED
from bench.stand import Device, NotHere
from bench.workers import Job, job

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.problem import Problem

PROGRAM = "ncu"
LIMIT_S = 75.0
SECTIONS = (
    "SpeedOfLight",
    "LaunchStats",
    "Occupancy",
    "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
    "InstructionStats",
    "WarpStateStats",
)
# The two passes of prototypes, the symmetric kernel with what runs before and after it, and the resident kernel.
CASES: dict[str, tuple[str, Problem]] = {
    "prototypes": ("prototypes", replace(POSITIVE, B=16)),
    "symmetric": ("symmetric", SIGNED),
    "resident": ("resident", replace(SIGNED, C=1024, H=14, W=14, h=7, w=7)),
}
# What a line shows of a kernel: metric in Nsight Compute's words, and ours.
SHOWN = (
    ("Duration", "time"),
    ("DRAM Throughput", "DRAM"),
    ("L2 Cache Throughput", "L2"),
    ("Compute (SM) Throughput", "SM"),
    ("Registers Per Thread", "registers"),
    ("Achieved Occupancy", "occupancy"),
)


def jobs(seed: int) -> list[Job]:
    """Return a job per case; one at a time, since profilers wait for each other."""
    return [
        job("bench.gpu.counters:profile", f"counters: {case}", LIMIT_S + 15, case=case, seed=seed) for case in CASES
    ]


def warmers(seed: int) -> list[Job]:
    """Return jobs that compile what is profiled."""
    return [job("bench.gpu.counters:warm", f"warm: counters {case}", 120, case=case, seed=seed) for case in CASES]


def warm(device: Device, *, case: str, seed: int) -> list[dict[str, Any]]:
    """Call a case once; what is wrong with it is reported where it is profiled."""
    if not device.dry_run:
        _call(case, device, seed)()
    return []


def profile(device: Device, *, case: str, seed: int) -> list[dict[str, Any]]:
    """Profile one case's call; one row per kernel that it launches."""
    if device.dry_run:
        raise NotHere("a dry run on the CPU has no hardware counters")
    if not (program := shutil.which(PROGRAM)):
        raise NotHere(f"hardware counters need Nsight Compute, and {PROGRAM} is not on the PATH")
    command = [program, "--csv", "--page", "details", "--profile-from-start", "off", "--clock-control", "none"]
    command += [word for section in SECTIONS for word in ("--section", section)]
    code, output = run_bounded(
        [*command, sys.executable, "-m", "bench.gpu.counters", case, str(seed)], {**os.environ}, LIMIT_S
    )
    if code is None:
        raise NotHere(f"{PROGRAM} was not done in {LIMIT_S:g} s")
    kernels = read(output)
    if code or not kernels:
        raise NotHere(f"{PROGRAM} read no counter, exit code {code}: {' '.join(output.split())[-300:]}")
    label = CASES[case][1].label()
    return [
        {"part": "counters", "what": f"{name}, {label}", "status": "ok", "counters": found, "why": shown(found)}
        for name, found in kernels
    ]


def read(output: str) -> list[tuple[str, dict[str, str]]]:
    """Return ``(kernel, {metric: value with unit})`` per launch from what the profiler printed as CSV."""
    lines = output.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(line for line in lines[start:] if line.startswith('"')))):
        if row.get("Metric Name") and row.get("Metric Value"):
            _, metrics = found.setdefault(row["ID"], (row["Kernel Name"], {}))
            metrics[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(found.values())


def shown(metrics: dict[str, str]) -> str:
    """Return the metrics by which a kernel is judged first, in one line."""
    return ", ".join(f"{name} {metrics[metric]}" for metric, name in SHOWN if metric in metrics)


def _call(case: str, device: Device, seed: int) -> Callable[[], None]:
    """Return a case's call of the kernels' host function, after it has run once."""
    method, problem = CASES[case]
    cam, f = problem.draw(device.device, seed)
    out = torch.empty(problem.B, problem.K, problem.L, device=device.device)
    given = ours.tiles(method, device.gpu, problem)

    def call() -> None:
        ours.write(method, device.gpu, problem, cam, f, out, given)

    call()
    device.synchronize()
    return call


def main(case: str, seed: int) -> int:
    """Make one warm call between the profiler's start and stop."""
    device = Device()
    call = _call(case, device, seed)
    torch.cuda.profiler.start()
    call()
    device.synchronize()
    torch.cuda.profiler.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
