"""Time the kernels and their baselines: interleaved rounds in one process, each answer checked first."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from bench import baselines
from bench.gpu import ours
from bench.gpu.goals import GOALS, error_goal
from bench.problem import SAMPLED, WRONG, Problem, relative_error, sampled_truth, square_error
from bench.stand import is_out_of_memory, summary
from bench.workers import Job, first_line, job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from bench.stand import Device

Compared: TypeAlias = "tuple[str, Problem, dict[str, str | None]]"  # method, problem, {baseline: goal}

COPIED = 1 << 29  # numbers of two bytes that the copy copies, to which bandwidth is compared
COMPILED = ("dense PCM compiled", "algebra compiled", "FlexAttention")

SIGNED = Problem(B=1, K=20, C=256, H=128, W=128, h=32, w=32, values="randn")
POSITIVE = replace(SIGNED, values="rand")
SHIFTED = replace(SIGNED, affinity="phi=shifted")
# The baseline "copy" asks for the share of the copy's bandwidth.
MAIN: tuple[Compared, ...] = (
    ("tiled", replace(SIGNED, C=512), {"xᵀx": "product"}),
    (
        "tiled",
        SIGNED,
        {
            "xᵀx": "product_256",
            "dense PCM": "dense_16",
            "dense PCM float32": "dense_float32",
            "dense PCM compiled": None,
            "chunked PCM": "chunked_256",
            "FlexAttention": "flex_256",
        },
    ),
    (
        "prototypes",
        POSITIVE,
        {"dense PCM": "prototypes_dense_16k", "algebra": "algebra_eager", "algebra compiled": "algebra_compiled"},
    ),
    (
        "prototypes",
        replace(POSITIVE, B=32),
        {"copy": "bandwidth", "algebra": "algebra_eager", "algebra compiled": "algebra_compiled"},
    ),
    ("prototypes", replace(POSITIVE, H=256, W=256), {"dense PCM": "prototypes_dense_65k", "algebra": "algebra_eager"}),
    ("prototypes", replace(SHIFTED, B=32), {"copy": "bandwidth"}),
    ("tiled", replace(SIGNED, C=2048), {"xᵀx": "product", "chunked PCM": "chunked_2048", "dense PCM": None}),
    ("tiled", replace(SIGNED, C=1024, W=64), {"xᵀx": "product", "FlexAttention": "flex_1024"}),
    ("prototypes", replace(POSITIVE, H=512, W=512), {"copy": "bandwidth", "algebra": "algebra_eager"}),
    ("prototypes", replace(POSITIVE, B=32, layout="nhwc"), {"copy": "bandwidth", "algebra": "algebra_eager"}),
)
MORE: tuple[Compared, ...] = (
    ("prototypes", replace(POSITIVE, B=2, C=2048), {"copy": "bandwidth", "algebra": "algebra_eager"}),
    ("prototypes", replace(POSITIVE, B=2, C=2048, layout="nhwc"), {"copy": "bandwidth"}),
    ("prototypes", replace(POSITIVE, B=32, dtype="float32"), {"copy": "bandwidth", "algebra": "algebra_eager"}),
    ("tiled", replace(SIGNED, H=256, W=256), {"xᵀx": "product_256", "dense PCM": None, "chunked PCM": "chunked_256"}),
    ("tiled", replace(SIGNED, dtype="bfloat16"), {"xᵀx": "product_256", "dense PCM": "dense_16"}),
    ("tiled", replace(SIGNED, precision="high"), {"dense PCM float32": None}),
    ("prototypes", replace(SHIFTED, B=32, affinity="phi=shifted,center"), {"copy": "bandwidth"}),
    ("prototypes", replace(SHIFTED, B=32, layout="nhwc"), {"copy": "bandwidth"}),
    ("tiled", replace(SIGNED, H=56, W=56), {"dense PCM": None, "dense PCM compiled": None}),
    ("tiled", replace(SIGNED, B=16, C=1024, H=32, W=32), {"dense PCM": None}),
    ("prototypes", replace(POSITIVE, H=1024, W=1024), {"copy": "bandwidth"}),
    ("prototypes", replace(POSITIVE, B=32, K=200), {"algebra": None}),
)


@dataclass
class Provider:
    """One provider: its call once it has been built and found right, or why it has none."""

    name: str
    status: str = "ok"
    why: str = ""
    variant: str = ""
    error: float | None = None
    call: Callable[[], object] | None = None
    best: float = float("inf")
    times: list[float] | None = None

    def row(self) -> dict[str, Any]:
        found = {"name": self.name, "status": self.status, "variant": self.variant, "error": self.error}
        return found | ({"why": self.why} if self.why else {}) | (summary(self.times) if self.times else {})


def jobs(seed: int, dry_run: bool, rows: Sequence[Compared]) -> list[Job]:
    """Return the timed comparisons of ``rows``."""
    return [
        job(
            "bench.gpu.timing:compare",
            f"timing: {method} {problem.label()}",
            100,
            method=method,
            versus=versus,
            seed=seed,
            **problem.as_arguments(),
        )
        for method, problem, versus in [(method, each.tiny() if dry_run else each, to) for method, each, to in rows]
    ]


def warmers(timed: Sequence[Job]) -> list[Job]:
    """Return jobs that compile what the ``timed`` jobs call, the slowest first.

    Each repeats its job's arguments: one per compiled baseline with ``name`` set to it, and one with ``name`` "ours".
    """
    found = []
    for task in timed:
        module, _, _ = task["function"].partition(":")
        arguments = task["arguments"]
        names = ["ours", *(name for name in arguments.get("versus", ()) if name in COMPILED)]
        found += [job(f"{module}:warm", f"warm: {task['name']}: {name}", 150, name=name, **arguments) for name in names]
    return sorted(found, key=lambda each: str(each["name"]).endswith("ours"))


def warm(
    device: Device, *, name: str, method: str, versus: dict[str, str | None], seed: int, **arguments: Any
) -> list[dict[str, Any]]:
    """Call one provider once in each of its variants; what is wrong with it is reported where it is timed."""
    problem = Problem(**arguments)
    cam, f = problem.draw(device.device, seed)
    if name == "ours":
        ours.launched(method, problem, cam, f)
    else:
        build(name, device, problem, cam, f, lambda _: 0.0)
    device.synchronize()
    return []


def compare(
    device: Device, *, method: str, versus: dict[str, str | None], seed: int, **arguments: Any
) -> list[dict[str, Any]]:
    """Check ours and every baseline, time them in turn, and judge the medians of the rounds' ratios."""
    problem = Problem(**arguments)
    cam, f = problem.draw(device.device, seed)
    generator = torch.Generator(device.device).manual_seed(seed)
    at = torch.randint(problem.L, (min(SAMPLED, problem.L),), device=device.device, generator=generator)
    right = sampled_truth(problem, cam, f, at)

    def error_of(out: Tensor) -> float:
        return relative_error(out[-1].flatten(1)[:, at], right)

    mine = Provider("ours", variant=describe(method, device, problem))
    _try(mine, lambda: ours.launched(method, problem, cam, f), error_of, device)
    found = [mine]
    for name in versus if mine.call else ():
        check = error_of if name != "xᵀx" else functools.partial(square_error, f, at)
        baseline = _copy(device) if name == "copy" else build(name, device, problem, cam, f, check)
        found.append(baseline)
    calls = {each.name: each.call for each in found if each.call}
    for name, times in device.rounds(calls, budget=2.0).items():
        next(each for each in found if each.name == name).times = times
    goal = error_goal(method, problem.precision)
    goals = [goal.row(mine.error, baseline=None)]
    goals += [
        goals_row(key, mine, baseline, problem) for baseline in found[1:] for key in [versus[baseline.name]] if key
    ]
    row = {"part": "timing", "what": f"{method} {problem.label()}", "status": mine.status, "goals": goals}
    row |= {"providers": [each.row() for each in found]}
    return [row | {"why": mine.why} if mine.why else row]


def describe(method: str, device: Device, problem: Problem) -> str:
    """Return the tiles that ours runs with."""
    return ", ".join(str(config) for config in ours.tiles(method, device.gpu, problem).values())


def goals_row(key: str, mine: Provider, baseline: Provider, problem: Problem) -> dict[str, Any]:
    """Return the goal's figure: a time over the baseline's, a speedup, or a share of the copy's bandwidth."""
    goal = GOALS[key]
    if not (mine.times and baseline.times):
        return goal.row(None, baseline=baseline.name, why=f"{baseline.name}: {baseline.status}")
    speedups = np.array(baseline.times) / np.array(mine.times)
    if baseline.name == "copy":
        speedups = speedups * problem.feature_bytes / (2 * COPIED)
    value = float(np.median(1 / speedups if goal.at_most else speedups))
    return goal.row(round(value, 4), baseline=baseline.name)


def build(
    name: str, device: Device, problem: Problem, cam: Tensor, f: Tensor, error_of: Callable[[Tensor], float]
) -> Provider:
    """Return a baseline with its fastest variant that runs and is right."""
    best = Provider(name, "failed", "no variant was built")
    variants = baselines.variants(name, device, problem, cam, f)
    while True:
        tried = Provider(name)
        try:
            variant, call = next(variants)
        except StopIteration:
            return best
        except Exception as error:
            tried.status, tried.why = _status(error), first_line(error)
            return best if best.call else tried
        tried.variant = variant
        _try(tried, call, error_of, device)
        if tried.best < best.best or (not best.call and not best.variant):
            best = tried


def _try(provider: Provider, call: Callable[[], Tensor], error_of: Callable[[Tensor], float], device: Device) -> None:
    """Run once, check, and take a first time; record what goes wrong."""
    try:
        provider.error = error_of(call())
        device.synchronize()
        if provider.error > WRONG:
            provider.status, provider.why = "wrong", f"relative error {provider.error:.3g} against float64"
            return
        provider.best = min(device.seconds(call, 1e-3) for _ in range(2 if device.dry_run else 3))
        provider.call = call
    except Exception as error:
        provider.status, provider.why = _status(error), first_line(error)
    if provider.status == "out of memory":  # only here has the error let go of what it held
        device.clean()


def _status(error: Exception) -> str:
    return "out of memory" if is_out_of_memory(error) else "failed"


def _copy(device: Device) -> Provider:
    """Return a copy within the device, large enough to run at its full bandwidth."""
    source = torch.rand(COPIED if not device.dry_run else 1 << 10, device=device.device, dtype=torch.float16)
    target = torch.empty_like(source)
    return Provider("copy", variant=f"{source.numel() * 2 >> 20} MiB", call=lambda: target.copy_(source))
