"""The kernels against their peers: interleaved rounds in one process, ratios per round, each answer checked first."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench import peers
from bench.gpu import ours
from bench.gpu.goals import GOALS, error_goal
from bench.problem import SAMPLED, WRONG, Problem, relative_error, sampled_truth, square_error
from bench.stand import is_out_of_memory, summary
from bench.workers import Job, first_line, job

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from bench.stand import Device

COPIED = 1 << 29  # numbers of two bytes that the copy copies, to which bandwidth is compared
COMPILED = ("dense PCM compiled", "algebra compiled", "FlexAttention")

SIGNED = Problem(B=1, K=20, C=256, H=128, W=128, h=32, w=32, values="randn")
POSITIVE = replace(SIGNED, values="rand")
SHIFTED = replace(SIGNED, affinity="phi=shifted")
# (method, problem, {peer: goal}); the peer "copy" asks for the share of the copy's bandwidth.
MAIN: tuple[tuple[str, Problem, dict[str, str | None]], ...] = (
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
MORE: tuple[tuple[str, Problem, dict[str, str | None]], ...] = (
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
    """One contestant: its call once it has been built and found right, or why there is none."""

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


def jobs(seed: int, rehearse: bool, rows: Any) -> list[Job]:
    """The timed comparisons of ``rows``."""
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
        for method, problem, versus in sized(rows, rehearse)
    ]


def warmers(seed: int, rehearse: bool) -> list[Job]:
    """Jobs that compile what will be timed, so that it lies in the compilers' caches; run beside each other."""
    found = []
    for method, problem, versus in sized((*MAIN, *MORE), rehearse):
        for name in ["ours", *(name for name in versus if name in COMPILED)]:
            what = f"warm: {method} {problem.label()}: {name}"
            given = {"method": method, "name": name, "seed": seed} | problem.as_arguments()
            found.append({"name": what, "function": "bench.gpu.timing:warm", "arguments": given, "limit": 150})
    return sorted(found, key=lambda each: str(each["name"]).endswith("ours"))  # compilers take longest: first


def sized(rows: Any, rehearse: bool) -> list[tuple[str, Problem, dict[str, str | None]]]:
    return [(method, problem.tiny() if rehearse else problem, versus) for method, problem, versus in rows]


def warm(stand: Device, *, method: str, name: str, seed: int, **arguments: Any) -> list[dict[str, Any]]:
    """Call one contestant once in each of its variants; whatever comes of it is told when it is timed."""
    problem = Problem(**arguments)
    cam, f = problem.draw(stand.device, seed)
    if name == "ours":
        ours.launched(method, problem, cam, f)
    else:
        build(name, stand, problem, cam, f, lambda _: 0.0)
    stand.synchronize()
    return []


def compare(
    stand: Device, *, method: str, versus: dict[str, str | None], seed: int, **arguments: Any
) -> list[dict[str, Any]]:
    """One row: ours and every peer, checked, timed in turn; the goals on the medians of the rounds' ratios."""
    problem = Problem(**arguments)
    cam, f = problem.draw(stand.device, seed)
    generator = torch.Generator(stand.device).manual_seed(seed)
    at = torch.randint(problem.L, (min(SAMPLED, problem.L),), device=stand.device, generator=generator)
    right = sampled_truth(problem, cam, f, at)

    def error_of(out: Tensor) -> float:
        return relative_error(out[-1].flatten(1)[:, at], right)

    mine = Provider("ours", variant=describe(method, stand, problem))
    _try(mine, lambda: ours.launched(method, problem, cam, f), error_of, stand)
    found = [mine]
    for name in versus if mine.call else ():
        check = error_of if name != "xᵀx" else functools.partial(square_error, f, at)
        peer = _copy(stand) if name == "copy" else build(name, stand, problem, cam, f, check)
        found.append(peer)
    calls = {each.name: each.call for each in found if each.call}
    for name, times in stand.rounds(calls, budget=2.0).items():
        next(each for each in found if each.name == name).times = times
    goal = error_goal(method, problem.precision)
    goals = [goal.row(mine.error, peer=None)]
    goals += [goals_row(key, mine, peer, problem) for peer in found[1:] for key in [versus[peer.name]] if key]
    row = {"part": "timing", "what": f"{method} {problem.label()}", "status": mine.status, "goals": goals}
    row |= {"providers": [each.row() for each in found]}
    return [row | {"why": mine.why} if mine.why else row]


def describe(method: str, stand: Device, problem: Problem) -> str:
    """The tiles that ours runs with."""
    return ", ".join(str(config) for config in ours.tiles(method, stand.gpu, problem).values())


def goals_row(key: str, mine: Provider, peer: Provider, problem: Problem) -> dict[str, Any]:
    """The goal's figure: a time over the peer's, a speedup, or a share of the copy's bandwidth."""
    goal = GOALS[key]
    if not (mine.times and peer.times):
        return goal.row(None, peer=peer.name, why=f"{peer.name}: {peer.status}")
    speedups = np.array(peer.times) / np.array(mine.times)
    if peer.name == "copy":
        speedups = speedups * problem.feature_bytes / (2 * COPIED)
    value = float(np.median(1 / speedups if goal.at_most else speedups))
    return goal.row(round(value, 4), peer=peer.name)


def build(
    name: str, stand: Device, problem: Problem, cam: Tensor, f: Tensor, error_of: Callable[[Tensor], float]
) -> Provider:
    """A peer by its fastest variant that runs and is right."""
    best = Provider(name, "failed", "no variant was built")
    variants = peers.variants(name, stand, problem, cam, f)
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
        _try(tried, call, error_of, stand)
        if tried.best < best.best or (not best.call and not best.variant):
            best = tried


def _try(provider: Provider, call: Callable[[], Tensor], error_of: Callable[[Tensor], float], stand: Device) -> None:
    """Run once, check, and take a first time; what goes wrong is written down."""
    try:
        provider.error = error_of(call())
        stand.synchronize()
        if provider.error > WRONG:
            provider.status, provider.why = "wrong", f"relative error {provider.error:.3g} against float64"
            return
        provider.best = min(stand.seconds(call, 1e-3) for _ in range(2 if stand.rehearse else 3))
        provider.call = call
    except Exception as error:
        provider.status, provider.why = _status(error), first_line(error)
    if provider.status == "out of memory":  # only here has the error let go of what it held
        stand.clean()


def _status(error: Exception) -> str:
    return "out of memory" if is_out_of_memory(error) else "failed"


def _copy(stand: Device) -> Provider:
    """A copy within the device, large enough to run at its full bandwidth."""
    source = torch.rand(COPIED if not stand.rehearse else 1 << 10, device=stand.device, dtype=torch.float16)
    target = torch.empty_like(source)
    return Provider("copy", variant=f"{source.numel() * 2 >> 20} MiB", call=lambda: target.copy_(source))
