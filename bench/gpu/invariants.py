"""Check repeatability, CUDA graphs, the absence of host synchronisation, and memory."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from bench.gpu import ours
from bench.gpu.goals import GOALS
from bench.problem import Problem, relative_error
from bench.stand import NotHere, poisoned
from bench.workers import Job, job
from ssa_fast import polish

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from bench.stand import Device

BASE = Problem(B=3, K=20, C=256, H=40, W=40, h=10, w=10, values="randn")
# (C, side, step between sizes) of ResNet-50's stages for an input of 224
RESNET = ((256, 56), (512, 28), (1024, 14), (2048, 7))
MIB = 1 << 20


def jobs(seed: int, dry_run: bool) -> list[Job]:
    """Return the jobs, repeatability and graphs first, memory last."""

    def named(function: str, what: str, **arguments: Any) -> Job:
        return job(f"bench.gpu.invariants:{function}", f"invariant: {what}", 120, seed=seed, **arguments)

    def sized(problem: Problem) -> dict[str, Any]:
        return (problem.tiny() if dry_run else problem).as_arguments()

    found = [
        named("repeat", f"{method}, three runs, the same bits", method=method, **sized(problem))
        for method, problem in (
            ("prototypes", replace(BASE, values="rand", H=64, W=64)),
            ("full", BASE),
            ("symmetric", BASE),
            ("resident", replace(BASE, H=20, W=20)),
            ("auto", replace(BASE, values="mixed")),
        )
    ]
    found += [
        named("captured", f"a CUDA graph of {kind}, replayed on new inputs", kind=kind)
        for kind in ("one stage", "unknown signs", "four stages fused")
    ]
    found += [named("unsynchronised", "no call synchronises the host")]
    for method, problem in memory_problems():
        given = problem.tiny() if dry_run else problem
        found.append(named("memory", f"extra memory, {method} {given.label()}", method=method, **given.as_arguments()))
    return found


def memory_problems() -> list[tuple[str, Problem]]:
    base = Problem(B=1, K=20, C=256, H=128, W=128, h=16, w=16)
    return [
        ("prototypes", base),
        ("prototypes", replace(base, H=512, W=512)),
        ("prototypes", replace(base, H=1024, W=1024)),
        ("prototypes", replace(base, B=32, C=2048, H=16, W=16)),
        ("tiled", replace(base, values="randn")),
        ("tiled", replace(base, H=256, W=256, values="randn")),
        ("tiled", replace(base, C=2048, values="randn")),
    ]


def repeat(device: Device, *, method: str, seed: int, **arguments: Any) -> list[dict[str, Any]]:
    """Run three times into poisoned memory and compare all bits."""
    problem = Problem(**arguments)
    cam, f = problem.draw(device.device, seed)
    with poisoned():
        runs = [ours.polish(method, device, problem, cam, f) for _ in range(3)]
    same = all(torch.equal(run, runs[0]) for run in runs[1:]) and bool(runs[0].isfinite().all())
    return [_row(f"{method} {problem.label()}, three runs, the same bits", same, "the runs differ, or hold NaN")]


def captured(device: Device, *, kind: str, seed: int) -> list[dict[str, Any]]:
    """Capture ``polish`` in a graph, replay it on new inputs, and compare with an eager call on them."""
    call, draw = _capturable(device, kind)
    fixed = draw(seed)
    replay, out = device.graphed(lambda: call(*fixed))
    worst, same = 0.0, True
    for turn in range(1, 4):
        for old, new in zip(fixed, draw(seed + turn), strict=True):
            old.copy_(new)
        replay()
        device.synchronize()
        eager = call(*fixed)
        same &= torch.equal(out, eager)
        worst = max(worst, relative_error(out, eager.double()))
    row = _row(f"a CUDA graph of {kind}, replayed on new inputs", same, f"replays differ from eager by {worst:.3g}")
    return [row | {"error": worst}]


def _capturable(device: Device, kind: str) -> tuple[Callable[..., Tensor], Callable[[int], list[Tensor]]]:
    """Return the call and what draws its inputs; of unknown signs, other images' in every draw."""
    if kind == "four stages fused":

        def draw(seed: int) -> list[Tensor]:
            drawn = [Problem(2, 20, C, side, side, 7, 7).draw(device.device, seed + C) for C, side in RESNET]
            return [drawn[0][0], *(f for _, f in drawn)]

        return lambda cam, *stages: polish(cam, list(stages), nonnegative=True), draw
    problem = replace(BASE, values="rand" if kind == "one stage" else "mixed")

    def draw_one(seed: int) -> list[Tensor]:
        cam, f = problem.draw(device.device, seed)
        return [cam, f.roll(seed, 0)]

    sign = True if kind == "one stage" else None
    return lambda cam, f: polish(cam, f, nonnegative=sign), draw_one


def unsynchronised(device: Device, *, seed: int) -> list[dict[str, Any]]:
    """Call with PyTorch set to raise an error if anything waits for the device."""
    if device.dry_run:
        raise NotHere("a CPU call has nothing to wait for")
    rows = []
    for what, options in (("", {}), (", promised", {"nonnegative": True}), (", tiled", {"method": "tiled"})):
        cam, f = replace(BASE, values="rand").draw(device.device, seed)
        polish(cam, [f, f], **options)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        why = ""
        try:
            polish(cam, f, **options)
            polish(cam, [f, f], **options)
        except RuntimeError as error:
            why = str(error)[:300]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        rows.append(_row(f"no call synchronises the host{what}", not why, why))
    return rows


def memory(device: Device, *, method: str, seed: int, **arguments: Any) -> list[dict[str, Any]]:
    """Measure the peak memory beyond features, CAM and result; of tiled also beyond its operands."""
    problem = Problem(**arguments)
    cam, f = problem.draw(device.device, seed)
    bytes_found = device.peak_extra_bytes(lambda: ours.launched(method, problem, cam, f))
    row = {"part": "invariant", "what": f"extra memory, {method} {problem.label()}", "status": "ok"}
    if method == "prototypes":
        return [row | {"goals": [GOALS["memory_prototypes"].row(round(bytes_found / MIB, 2))]}]
    operands = operand_bytes(problem, ours.tiles(method, device.gpu, problem)["config"])
    value = round((bytes_found - operands) / MIB, 2)
    return [row | {"goals": [GOALS["memory_tiled"].row(value, all_mib=round(bytes_found / MIB, 2))]}]


def operand_bytes(problem: Problem, config: Any) -> int:
    """Return the bytes of unit features, v, peaks and denominators as the tiled kernels lay them out."""
    align = config.block * config.bands if hasattr(config, "bands") else max(config.block_i, config.block_j)
    L_pad = math.ceil(problem.L / align) * align
    whole = config.block_c >= problem.C
    C_pad = max(16, 1 << (problem.C - 1).bit_length()) if whole else -(-problem.C // config.block_c) * config.block_c
    chunks = math.ceil(problem.K / (config.rows - 1))
    halves = 2 if problem.precision == "high" else 1
    return problem.B * L_pad * (2 * halves * (C_pad + chunks * config.rows) + 4 * chunks)


def _row(what: str, kept: bool, why: str) -> dict[str, Any]:
    row = {"part": "invariant", "what": what, "status": "ok" if kept else "failed"}
    return row if kept else row | {"why": why}
