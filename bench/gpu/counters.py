"""Take each kernel's time with PyTorch's profiler, and its hardware counters with Nsight Compute.

The counters need ``ncu`` on the ``PATH``, and ``python -m bench.gpu.counters CASE SEED`` is what it watches: one warm
call between a start and a stop, so that neither compilation nor the drawing of inputs is counted. Whole sections of
counters are asked for: the names of single ones depend on the GPU. The clocks are left alone. Nsight Compute flushes
the caches before each kernel, so what a kernel finds there of the one before it is not seen.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bench.gpu import ours
from bench.gpu.sanitize import run_bounded
from bench.gpu.timing import POSITIVE, SIGNED
from bench.orphans import die_with
from bench.stand import Device, NotHere, summary
from bench.workers import Job, job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bench.problem import Problem

PROGRAM = "ncu"
LIMIT_S = 75.0
CALLS = 20
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
    """Return the jobs, to be run one at a time: kernels' times, which need no tool, then counters."""
    found = [job("bench.gpu.counters:kernel_times", f"kernels: {case}", 60, case=case, seed=seed) for case in CASES]
    return found + [
        job("bench.gpu.counters:count", f"counters: {case}", LIMIT_S + 15, case=case, seed=seed) for case in CASES
    ]


def warmers(seed: int) -> list[Job]:
    """Return jobs that compile what is profiled."""
    return [job("bench.gpu.counters:warm", f"warm: counters {case}", 120, case=case, seed=seed) for case in CASES]


def warm(device: Device, *, case: str, seed: int) -> list[dict[str, Any]]:
    """Call a case once; what is wrong with it is reported where it is profiled."""
    if not device.dry_run:
        _call(case, device, seed)()
    return []


def kernel_times(device: Device, *, case: str, seed: int) -> list[dict[str, Any]]:
    """Time the kernels of one case's call with PyTorch's profiler, on a cold cache; one row per kernel."""
    if device.dry_run:
        raise NotHere("a dry run on the CPU has no kernels to profile")
    call = _call(case, device, seed)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(CALLS):
            device.seconds(call, 1e-3)
    if not (found := grouped(profiler.events() or ())):
        raise NotHere("PyTorch's profiler saw no kernel here")
    label, rows = CASES[case][1].label(), []
    for name, times in found.items():
        row = {"part": "kernels", "what": f"{name}, {label}", "status": "ok", "launches": len(times) / CALLS}
        why = f"{np.median(times) * 1e6:.1f} µs, {row['launches']:g} a call, by PyTorch's profiler"
        rows.append(row | summary(times) | {"why": why})
    return rows


def grouped(events: Iterable[Any]) -> dict[str, list[float]]:
    """Return the seconds of every launch by kernel, of Triton's alone: PyTorch's have names of C++."""
    found: dict[str, list[float]] = {}
    for event in events:
        if event.device_type.name == "CUDA" and event.name.isidentifier():
            found.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e6)
    return found


def count(device: Device, *, case: str, seed: int) -> list[dict[str, Any]]:
    """Read the hardware counters of one case's call; one row per kernel that it launches."""
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
    if not kernels:
        raise NotHere(f"{PROGRAM} read no counter, exit code {code}: {' '.join(output.split())[-300:]}")
    label = CASES[case][1].label()
    return [
        {"part": "counters", "what": f"{name}, {label}", "status": "ok", "profiler": program, "counters": found}
        | {"why": shown(found)}
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
    die_with(os.getppid())
    device = Device()
    call = _call(case, device, seed)
    torch.cuda.profiler.start()
    call()
    device.synchronize()
    torch.cuda.profiler.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
