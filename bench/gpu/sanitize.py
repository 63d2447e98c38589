"""NVIDIA's compute-sanitizer over small problems; ``python -m bench.gpu.sanitize SEED`` is what runs under it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.gpu import correctness
from bench.measure import ROOT
from bench.stand import Device, NotHere
from bench.workers import Job, job

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.problem import Problem

PROGRAM = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck")
LIMIT = 130.0
FOUND = 9  # exit code that says "errors were found"
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: .*")


def jobs(seed: int, rehearse: bool) -> list[Job]:
    return [
        job("bench.gpu.sanitize:check", f"sanitizer: {tool}", LIMIT + 15, tool=tool, seed=seed, limit_s=LIMIT)
        for tool in TOOLS
    ]


def check(stand: Device, *, tool: str, seed: int, limit_s: float) -> list[dict[str, Any]]:
    """The small problems under one of the sanitizer's tools, in a process with a time limit."""
    if stand.rehearse:
        raise NotHere("a rehearsal on the CPU has nothing for it to watch")
    if not (program := shutil.which(PROGRAM)):
        raise NotHere(f"{PROGRAM} is not on the PATH")
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, "-m", "bench.gpu.sanitize"]
    # Without PyTorch's pool of memory every tensor is an allocation of its own, with bounds that can be watched.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    process = subprocess.Popen(
        [*command, str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
        start_new_session=True,  # what it starts has to end with it
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return [{"part": "sanitizer", "what": tool, "status": "not reached", "why": f"not done in {limit_s:g} s"}]
    return [read(tool, process.returncode, output)]


def read(tool: str, code: int, output: str) -> dict[str, Any]:
    """A row from what the sanitizer printed. Only its own errors are a failure: it may not work on a machine."""
    summary = " ".join(SUMMARY.findall(output)) or " ".join(output.split())[-300:]
    row = {"part": "sanitizer", "what": tool, "why": summary}
    if code == 0:
        return row | {"status": "ok"}
    if code == FOUND and SUMMARY.search(output):
        return row | {"status": "failed", "output": output[-6000:]}
    return row | {"status": "skipped", "why": f"it ended with exit code {code}: {summary}"}


def small() -> Iterator[tuple[str, Problem]]:
    """A ragged problem for each kernel."""
    ragged = correctness.RAGGED
    yield "prototypes", replace(ragged, values="relu")
    yield "prototypes", replace(ragged, values="relu", layout="sliced", dtype="float32")
    yield "full", ragged
    yield "symmetric", ragged
    yield "symmetric", replace(ragged, precision="high", layout="nhwc")
    yield "resident", ragged
    yield "auto", replace(ragged, values="mixed")


def main(seed: int) -> int:
    stand = Device(rehearse=False)
    rows = [
        row for way, problem in small() for row in correctness.case(stand, way=way, seed=seed, **problem.as_arguments())
    ]
    rows += correctness.fused(stand, fuse="mean", rescale=True, stages=4, seed=seed)
    wrong = [row["what"] for row in rows if row["status"] != "ok"]
    print(f"{len(rows) - len(wrong)} of {len(rows)} right", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
