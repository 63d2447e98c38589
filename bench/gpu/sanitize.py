"""Run each kernel under NVIDIA's compute-sanitizer.

The watched process, ``python -m bench.gpu.sanitize CASE SEED``, runs few kernels beside ours, for each of them is
instrumented: inputs are drawn and results are checked on the CPU. The same runs unwatched before, so that nothing is
compiled under the sanitizer.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bench.gpu import correctness, ours
from bench.measure import ROOT
from bench.orphans import die_with
from bench.problem import WRONG, Problem, relative_error, truth
from bench.stand import Device, NotHere
from bench.workers import Job, job
from ssa_fast.ops import fusion, triton_backend
from ssa_fast.validation import FusionOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

PROGRAM = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck")
LIMIT_S = 150.0
FOUND = 9  # exit code that says "errors were found"
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: .*")
# A ragged problem for each kernel.
CASES: dict[str, tuple[str, Problem]] = {
    "prototypes": ("prototypes", replace(correctness.RAGGED, values="relu")),
    "prototypes-sliced": ("prototypes", replace(correctness.RAGGED, values="relu", layout="sliced", dtype="float32")),
    "prototypes-shifted": ("prototypes", replace(correctness.RAGGED, affinity="phi=shifted,center")),
    "full": ("full", correctness.RAGGED),
    "symmetric": ("symmetric", correctness.RAGGED),
    "symmetric-high": ("symmetric", replace(correctness.RAGGED, precision="high", layout="nhwc")),
    "resident": ("resident", correctness.RAGGED),
    "auto": ("auto", replace(correctness.RAGGED, values="mixed")),
}
FUSION = "fusion"


def jobs(seed: int) -> list[Job]:
    """Return a job per case and tool, the tool that finds wrong addresses first."""
    return [
        job("bench.gpu.sanitize:check", f"sanitizer: {tool} {case}", LIMIT_S + 15, tool=tool, case=case, seed=seed)
        for tool in TOOLS
        for case in (*CASES, FUSION)
    ]


def warmers(seed: int) -> list[Job]:
    """Return jobs that run every case unwatched, which compiles its kernels."""
    return [
        job("bench.gpu.sanitize:warm", f"warm: sanitizer {case}", 120, case=case, seed=seed)
        for case in (*CASES, FUSION)
    ]


def warm(device: Device, *, case: str, seed: int) -> list[dict[str, Any]]:
    """Run a case unwatched; what is wrong with it is reported where it is watched."""
    run(case, device, seed)
    return []


def check(device: Device, *, tool: str, case: str, seed: int) -> list[dict[str, Any]]:
    """Run one case under one of the sanitizer's tools, in a process with a time limit."""
    if device.dry_run:
        raise NotHere("a dry run on the CPU has nothing for compute-sanitizer to watch")
    if not (program := shutil.which(PROGRAM)):
        raise NotHere(f"{PROGRAM} is not on the PATH")
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, "-m", "bench.gpu.sanitize"]
    # Without PyTorch's pool of memory every tensor is an allocation of its own, with bounds that can be watched.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    code, output = run_bounded([*command, case, str(seed)], environment, LIMIT_S)
    if code is None:
        row = {"part": "sanitizer", "what": f"{tool} {case}", "status": "not reached"}
        return [row | {"why": f"not done in {LIMIT_S:g} s"}]
    return [read(f"{tool} {case}", code, output)]


def run_bounded(command: Sequence[str], environment: dict[str, str], limit_s: float) -> tuple[int | None, str]:
    """Run a program that ends with this process; return its exit code, None at the limit, and its output."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
        start_new_session=True,  # what it starts has to end with it
        preexec_fn=partial(die_with, os.getpid()),
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None, ""
    return process.returncode, output


def read(what: str, code: int, output: str) -> dict[str, Any]:
    """Return a row from what the sanitizer printed; that it does not work here is no failure."""
    summary = " ".join(SUMMARY.findall(output)) or " ".join(output.split())[-300:]
    row = {"part": "sanitizer", "what": what, "why": summary}
    if code == 0:
        return row | {"status": "ok"}
    if code == FOUND and SUMMARY.search(output):
        return row | {"status": "failed", "output": output[-6000:]}
    return row | {"status": "skipped", "why": f"it ended with exit code {code}: {summary}"}


def run(case: str, device: Device, seed: int) -> float:
    """Run one case, with all but our kernels on the CPU; return its relative error."""
    cpu = torch.device("cpu")
    if case == FUSION:
        generator = torch.Generator(cpu).manual_seed(seed)
        maps = [torch.rand(2, 3, H, W, generator=generator) + 0.1 for H, W in ((28, 21), (14, 10), (7, 5), (1, 3))]
        options = FusionOptions("mean", (1.0, 2.0, 0.5, 1.0), True, (29, 23))
        wide = {str(at): each.double() for at, each in enumerate(maps)}
        right = fusion.fuse(wide, replace(options, backend="torch"))
        out = triton_backend.fuse([each.to(device.device) for each in maps], options, (29, 23))
        return relative_error(out.cpu(), right)
    method, problem = CASES[case]
    cam, f = problem.draw(cpu, seed)
    return relative_error(_polish(method, device, problem, cam, f).cpu(), truth(problem, cam, f))


def _polish(method: str, device: Device, problem: Problem, cam: Tensor, f: Tensor) -> Tensor:
    """Return ``(B, K, L)`` as the kernels wrote it over NaN."""
    cam, features = cam.to(device.device), torch.empty_strided(f.shape, f.stride(), dtype=f.dtype, device=device.device)
    features.copy_(f)
    if method == "auto":
        return ours.launched("prototypes", problem, cam, features, fallback="tiled").flatten(2)
    out = torch.full((problem.B, problem.K, problem.L), float("nan")).to(device.device)
    ours.write(method, device.gpu, problem, cam, features, out, ours.tiles(method, device.gpu, problem))
    return out


def main(case: str, seed: int) -> int:
    """Run one case on the GPU; 1 if its result is wrong."""
    die_with(os.getppid())
    error = run(case, Device(), seed)
    print(f"{case}: error {error:.3g}")
    return int(error > WRONG)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
