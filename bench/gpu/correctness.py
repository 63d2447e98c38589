"""Check every kernel on fresh random inputs, with guarded and poisoned outputs, against float64."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from bench.gpu import ours
from bench.gpu.goals import error_goal
from bench.problem import Problem, relative_error, resized, truth
from bench.stand import NotHere, poisoned
from bench.workers import Job, job
from ssa_fast import reference
from ssa_fast.ops import fusion, gpu_info, triton_backend
from ssa_fast.validation import FUSES, FusionOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from bench.stand import Device

FLOATS = ("float16", "bfloat16", "float32")
QUADRATIC = ("full", "symmetric", "resident")
PHIS = (
    "power=2",
    "power=3.5",
    "threshold=0.3",
    "threshold=0.2,power=2",
    "phi=exp,temperature=0.1",
    "center",
    "center,power=2",
    "steps=3",
    "norm_eps=0,sum_eps=0",
    "phi=shifted,power=3",
    "phi=shifted,shift=0.5",
)
BASE = Problem(B=1, K=20, C=256, H=56, W=56, h=7, w=7, values="relu")
SMALL = replace(BASE, H=28, W=28)
RAGGED = Problem(B=3, K=21, C=100, H=13, W=19, h=5, w=4, values="randn")


def jobs(seed: int, dry_run: bool) -> list[Job]:
    """Return one job per case, those that cover most first."""
    chosen = dict.fromkeys((method, problem.tiny() if dry_run else problem) for method, problem in cases())
    found = [
        job(
            "bench.gpu.correctness:case",
            f"correctness: {method} {problem.label()}",
            120,
            method=method,
            seed=seed,
            **problem.as_arguments(),
        )
        for method, problem in chosen
    ]
    fused = [
        job(
            "bench.gpu.correctness:fused",
            f"correctness: fusion {fuse} {stages} stages{' rescaled' if rescale else ''}",
            60,
            fuse=fuse,
            rescale=rescale,
            stages=stages,
            seed=seed,
        )
        for fuse in FUSES
        for rescale, stages in ((True, 4), (False, 5), (True, 5), (False, 4))[: 1 if dry_run else 4]
    ]
    return found + fused


def cases() -> Iterator[tuple[str, Problem]]:
    """Yield ``(method, problem)``: first one of everything, then the sweeps of each."""
    for dtype in FLOATS:
        yield "prototypes", replace(BASE, dtype=dtype)
        yield "prototypes", replace(BASE, dtype=dtype, values="randn", affinity="phi=shifted")
        for method in QUADRATIC:
            yield method, replace(SMALL if method == "resident" else BASE, dtype=dtype, values="randn")
    for values in ("mixed", "nan", "relu"):
        yield "auto", replace(SMALL, B=3, values=values)
    for method in QUADRATIC:
        yield method, replace(SMALL, values="randn", precision="high")
        yield method, RAGGED
    yield "prototypes", replace(RAGGED, values="relu")
    yield from _prototypes_sweep()
    for method in QUADRATIC:
        yield from _quadratic_sweep(method)


def _prototypes_sweep() -> Iterator[tuple[str, Problem]]:
    for dtype in FLOATS:
        for layout in ("nhwc", "sliced"):
            yield "prototypes", replace(BASE, dtype=dtype, layout=layout)
    for K in (1, 70, 1000):
        for dtype in ("float16", "float32"):
            yield "prototypes", replace(SMALL, K=K, dtype=dtype)
    for C in (64, 512, 1024, 2048):
        for dtype in ("float16", "float32"):
            yield "prototypes", replace(SMALL, C=C, dtype=dtype, layout="nhwc" if C == 1024 else "nchw")
    for affinity in ("steps=3", "norm_eps=0,sum_eps=0"):
        yield "prototypes", replace(SMALL, affinity=affinity, values="zeros")
    for affinity in ("center", "shift=0.5,steps=3", "center,steps=2", "norm_eps=0,sum_eps=0"):
        for C in (64, 256, 2048):
            for dtype in FLOATS:
                signed = replace(SMALL, C=C, dtype=dtype, values="randn", affinity=f"phi=shifted,{affinity}")
                yield "prototypes", signed
    yield "prototypes", replace(RAGGED, affinity="phi=shifted")
    for scale, cam_scale in ((1e-12, 1e-6), (1e12, 1e5)):
        affinity = "norm_eps=0,sum_eps=0"
        yield "prototypes", replace(SMALL, dtype="float32", scale=scale, cam_scale=cam_scale, affinity=affinity)
    yield "prototypes", replace(SMALL, B=3, layout="repeated", h=0, w=0)
    yield "prototypes", replace(SMALL, align_corners=False, scale=1e-6)
    yield "prototypes", replace(SMALL, H=1, W=1, h=1, w=1)
    yield "prototypes", replace(BASE, B=3, C=512, H=64, W=64, h=16, w=16)


def _quadratic_sweep(method: str) -> Iterator[tuple[str, Problem]]:
    base = replace(SMALL, values="randn")
    for affinity in PHIS:
        yield method, replace(base, affinity=affinity, values="relu" if "center" in affinity else "randn")
    for affinity in ("power=2", "phi=exp,temperature=0.1", "center", "steps=3"):
        yield method, replace(base, affinity=affinity, precision="high")
    for layout in ("nhwc", "sliced"):
        for dtype in FLOATS:
            yield method, replace(base, layout=layout, dtype=dtype)
    for K in (1, 70, 1000):
        yield method, replace(base, K=K)
    for C in (64, 1024, 2048):
        yield method, replace(base, C=C)
    yield method, replace(base, dtype="float32", precision="high")
    yield method, replace(base, values="zeros", affinity="norm_eps=0,sum_eps=0")
    yield method, replace(base, dtype="float32", scale=1e12, cam_scale=1e5)
    yield method, replace(base, B=3, layout="repeated", h=0, w=0, align_corners=False)
    yield method, replace(base, H=1, W=1, h=1, w=1)
    if method != "resident":
        yield method, replace(base, B=3, C=512, H=64, W=64, h=16, w=16)


def case(device: Device, *, method: str, seed: int, **arguments: Any) -> list[dict[str, Any]]:
    """Run one kernel on one problem; return its error, the goal, and what the project's own rule says."""
    problem = Problem(**arguments)
    if method == "resident" and problem.dtype == "bfloat16" and gpu_info.interpreting():
        raise NotHere("Triton's interpreter multiplies bfloat16 wrongly")
    cam, f = problem.draw(device.device, seed)
    right = truth(problem, cam, f)
    with poisoned():
        out = ours.polish(method, device, problem, cam, f)
    device.synchronize()
    own = _own_error(method, problem, cam, f, right)
    return [
        verdict(f"{method} {problem.label()}", error_goal(method, problem.precision), out, right, own)
        | {"method": method}
    ]


def verdict(what: str, goal: Any, out: Tensor, right: Tensor, own: float) -> dict[str, Any]:
    """Return a row: ``ok`` within the goal, or within twice the reference's error plus one rounding."""
    error = relative_error(out, right)
    rule = 2 * own + torch.finfo(torch.float32).eps
    status = "ok" if error <= max(goal.must, rule) else "failed"
    row = {"part": "correctness", "what": what, "status": status, "error": error, "rule": rule}
    if status == "failed":
        row["why"] = f"error {error:.3g}, the goal is {goal.must:g} and the rule {rule:.3g}"
    return row | {"goals": [goal.row(error)]}


def _own_error(method: str, problem: Problem, cam: Tensor, f: Tensor, right: Tensor) -> float:
    """Return the error of the reference itself in the computation's dtype; 0 if it fails.

    ``"auto"`` may take a quadratic method, whose operands are float16: the range of features and CAM does not count.
    """
    exact = method == "prototypes" or problem.precision == "high"
    dtype = f.dtype if exact else torch.float16
    scale, cam_scale = (1.0, 1.0) if exact else (max(problem.scale, 1.0), problem.cam_scale)
    rows = (resized(problem, cam) / cam_scale).to(dtype)
    each = [
        reference.polish_stage(rows[b : b + 1], (f[b : b + 1] / scale).to(dtype).flatten(2), problem.phi)
        for b in range(problem.B)
    ]
    error = relative_error(torch.cat(each).double() * cam_scale, right)
    return error if error < 0.1 else 0.0


def fused(device: Device, *, fuse: str, rescale: bool, stages: int, seed: int) -> list[dict[str, Any]]:
    """Check the fusion kernels against the same in PyTorch and float64."""
    sides = ((7, 5), (14, 9), (4, 4), (1, 3), (7, 5)) if device.dry_run else ((128, 96), (64, 48), (32, 24), (1, 7))
    sides = (*sides, (32, 24))[:stages]
    generator = torch.Generator(device.device).manual_seed(seed)
    maps = {
        str(number): torch.rand(2, 3, H, W, device=device.device, generator=generator) + 0.1
        for number, (H, W) in enumerate(sides)
    }
    weights = [1.0, 2.0, 0.5, 1.0, 0.0][:stages]
    size = (2 * sides[0][0] + 1, 2 * sides[0][1])
    options = FusionOptions(fuse, tuple(weights), rescale, size)  # type: ignore[arg-type]
    right = fusion.fuse({name: each.double() for name, each in maps.items()}, replace(options, backend="torch"))
    with poisoned():
        out = triton_backend.fuse(list(maps.values()), options, size)
    device.synchronize()
    what = f"fusion {fuse} {stages} stages{' rescaled' if rescale else ''}"
    # One division by a small span magnifies a rounding: 16 of them are allowed for.
    own = 8 * torch.finfo(torch.float32).eps
    return [verdict(what, error_goal("prototypes", "high"), out, right, own) | {"method": "fusion"}]
