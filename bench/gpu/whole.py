"""Time whole calls: small stages, four fused stages, and a network's stages against its forward."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.gpu import ours, timing
from bench.gpu.goals import GOALS, error_goal
from bench.networks import Forward, build
from bench.problem import WRONG, Problem, relative_error, truth
from bench.problems import WHOLE
from bench.stand import NotHere, summary
from bench.workers import Job, first_line, job
from ssa_fast import polish

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from bench.stand import Device

SMALL = Problem(B=1, K=20, C=1024, H=32, W=32, h=7, w=7)
DENSE: dict[str, str | None] = {"dense PCM": "small_dense", "dense PCM compiled": "small_compiled"}
# The package's own choice, and for small signed stages the kernel and what a user of PyTorch would run instead.
SMALL_STAGES: tuple[timing.Compared, ...] = (
    ("auto", SMALL, {}),
    ("auto", replace(SMALL, H=14, W=14), {}),
    ("auto", replace(SMALL, C=2048, H=7, W=7), {}),
    ("resident", replace(SMALL, C=512, H=28, W=28, values="randn"), DENSE),
    ("resident", replace(SMALL, H=14, W=14, values="randn"), DENSE),
    ("resident", replace(SMALL, C=2048, H=7, W=7, values="randn"), DENSE),
    ("auto", replace(SMALL, H=14, W=14, values="randn"), DENSE),
    ("auto", replace(SMALL, values="randn"), DENSE),
)
SHARES = ((32, 512, 20), (32, 512, 1))  # B, input size, K of the shares of a forward
FUSED = ((1, 224, 20), (1, 512, 20))  # the same of four stages timed alone


def small_jobs(seed: int, dry_run: bool) -> list[Job]:
    """Return the jobs of the small stages."""
    found = {}
    for method, each, versus in SMALL_STAGES:
        given = each.tiny() if dry_run else each
        name = f"timing: small, {method} {given.label()}"
        arguments = {"method": method, "versus": versus, "seed": seed} | given.as_arguments()
        found[name] = job("bench.gpu.whole:small", name, 90, **arguments)
    return list(found.values())


def stages_jobs(seed: int, dry_run: bool) -> list[Job]:
    """Return the jobs of four stages polished and fused, without a network."""
    return _jobs("stages", "four stages", FUSED[:1] if dry_run else FUSED, seed, dry_run)


def backbone_jobs(seed: int, dry_run: bool) -> list[Job]:
    """Return the jobs of the shares of a forward."""
    return _jobs("backbone", "ResNet-50's four stages", SHARES, seed, dry_run)


def _jobs(function: str, what: str, sizes: Any, seed: int, dry_run: bool) -> list[Job]:
    given = [(1, 64, K) if dry_run else (B, size, K) for B, size, K in sizes]
    return [
        job(
            f"bench.gpu.whole:{function}",
            f"timing: {what}, B={B} {size}×{size} K={K}",
            120,
            B=B,
            size=size,
            K=K,
            seed=seed,
        )
        for B, size, K in given
    ]


def warm(device: Device, *, name: str, seed: int, **arguments: Any) -> list[dict[str, Any]]:
    """Call once what a row of this module calls; what is wrong with it is reported where it is timed."""
    if "method" not in arguments:
        cam, stages = draw_stages(device, seed=seed, **arguments)
        polish(cam, stages, nonnegative=True)
    elif name == "ours":
        method, _ = arguments.pop("method"), arguments.pop("versus")
        problem = Problem(**arguments)
        polish_small(method, problem, *problem.draw(device.device, seed))
    else:
        timing.warm(device, name=name, seed=seed, **arguments)
    device.synchronize()
    return []


def polish_small(method: str, problem: Problem, cam: Tensor, f: Tensor) -> Tensor:
    """Make the public call with the features' sign promised."""
    positive = problem.values != "randn"
    out: Tensor = polish(cam, f, affinity=problem.phi, method=method, nonnegative=positive, backend="triton")
    return out


def small(
    device: Device, *, method: str, versus: Mapping[str, str], seed: int, **arguments: Any
) -> list[dict[str, Any]]:
    """Time a small stage and its baselines: back to back, in a CUDA graph, and on the device alone."""
    problem = Problem(**arguments)
    cam, f = problem.draw(device.device, seed)
    right = truth(problem, cam, f)

    def error_of(out: Tensor) -> float:
        return relative_error(out.flatten(2), right)

    calls: dict[str, Callable[[], object]] = {"ours": partial(polish_small, method, problem, cam, f)}
    error = error_of(polish_small(method, problem, cam, f))
    if method != "auto":
        calls["launch alone"] = partial(ours.launched, method, problem, cam, f)
    baselines = [timing.build(name, device, problem, cam, f, error_of) for name in versus]
    calls |= {each.name: each.call for each in baselines if each.call}
    rows, times, why = measure(device, calls)
    goals = [
        error_goal("prototypes" if method == "auto" and problem.values != "randn" else method, "default").row(error)
    ]
    goals += [
        GOALS[name].row(rows["ours"][f"{name}_us"]) for name in ("graph", "eager") if f"{name}_us" in rows["ours"]
    ]
    mine = timing.Provider("ours", times=times["ours"])
    for each in baselines:
        each.times = times.get(each.name)
        goals.append(timing.goals_row(versus[each.name], mine, each, problem))
    row = {"part": "timing", "what": f"small, {method} {problem.label()}", "status": "ok", "error": error}
    row |= {"goals": goals, "providers": [*rows.values(), *(each.row() for each in baselines if not each.call)]}
    return [_judged(row, error, why)]


def stages(device: Device, *, B: int, size: int, K: int, seed: int) -> list[dict[str, Any]]:
    """Time four stages of a ResNet-50's shapes, polished and fused, eagerly and in a CUDA graph."""
    cam, maps = draw_stages(device, B=B, size=size, K=K, seed=seed)
    known = partial(polish, cam, maps, nonnegative=True)
    right = polish(cam.double(), [each.double() for each in maps], nonnegative=True, backend="torch")
    error = relative_error(known(), right)
    rows, _, why = measure(device, {"ours": known, "sign unknown": partial(polish, cam, maps)})
    row = {"part": "timing", "what": f"four stages polished and fused, B={B} {size}×{size} K={K}", "status": "ok"}
    return [_judged(row | {"error": error, "goals": [], "providers": list(rows.values())}, error, why)]


def draw_stages(device: Device, *, B: int, size: int, K: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Return a CAM and non-negative float16 features of a ResNet-50's four stages, channels last."""
    dtype = torch.float32 if device.dry_run else torch.float16
    generator = torch.Generator(device.device).manual_seed(seed)
    make: dict[str, Any] = {"device": device.device, "generator": generator}
    maps = [
        torch.rand(B, C, size // step, size // step, **make).to(dtype, memory_format=torch.channels_last)
        for C, step in ((C // 16 if device.dry_run else C, step) for C, step in WHOLE["resnet50"].values())
    ]
    return torch.rand(B, K, *maps[-1].shape[2:], **make), maps


def backbone(device: Device, *, B: int, size: int, K: int, seed: int) -> list[dict[str, Any]]:
    """Time a ResNet-50's stages, polished and fused, against its forward, both also in CUDA graphs."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True  # the forward at its best
    net = _network(device, B, size)
    with torch.no_grad():
        maps = net.stages("channels_last")
        cam = torch.rand(B, K, *maps[-1].shape[2:], device=device.device)
        polished = partial(polish, cam, maps, nonnegative=True)
        right = polish(cam.double(), [each.double() for each in maps], nonnegative=True, backend="torch")
        error = relative_error(polished(), right)
        del right
        device.clean()
        rows, times, why = measure(device, {"ours": polished, "forward": net.run("channels_last")}, calls_per_run=20)
    goals = [GOALS["backbone"].row(_share(times["ours"], times["forward"]))]
    if {"ours, graph", "forward, graph"} <= times.keys():
        goals.append(GOALS["backbone_graph"].row(_share(times["ours, graph"], times["forward, graph"])))
    # No goal for the error: rescaling to [0, 1] magnifies what is there by as much as a map is flat.
    what = f"ResNet-50's four stages, B={B} {size}×{size} K={K}, share of the forward"
    row = {"part": "timing", "what": what, "status": "ok", "error": error, "goals": goals}
    return [_judged(row | {"providers": list(rows.values())}, error, why)]


def measure(
    device: Device, calls: Mapping[str, Callable[[], object]], calls_per_run: int = 300
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]], str]:
    """Time calls back to back, in CUDA graphs, and on the device alone on a cold cache.

    Returns:
        A row per call (``us`` on the device, ``eager_us``, ``graph_us``), the seconds of each round by name, those of
        graphs under ``"<name>, graph"``, and why there is no graph, if so.
    """
    rows: dict[str, dict[str, Any]] = {name: {"name": name, "status": "ok"} for name in calls}
    replays: dict[str, Callable[[], object]] = {}
    why = ""
    for name, call in calls.items():
        rows[name]["eager_us"] = round(device.eager_seconds(call, calls_per_run) * 1e6, 2)
        try:
            replay, _ = device.graphed(call)
        except (NotHere, RuntimeError) as error:
            why = why or (str(error) if isinstance(error, NotHere) else f"{name}: {first_line(error)}")
            continue
        rows[name]["graph_us"] = round(device.eager_seconds(replay, calls_per_run) * 1e6, 2)
        replays[f"{name}, graph"] = replay
    times = device.rounds({**calls, **replays}, budget=0.5 * len(calls))
    for name in calls:
        rows[name] |= summary(times[name])
    return rows, times, why


def _share(mine: list[float], whole: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return round(float(np.median(np.array(mine) / np.array(whole))), 5)


def _judged(row: dict[str, Any], error: float, why: str) -> dict[str, Any]:
    """Return the row, failed if its error is that of a wrong answer."""
    if error > WRONG:
        return row | {"status": "failed", "why": f"relative error {error:.3g} against float64"}
    return row | ({"why": why} if why else {})


def _network(device: Device, B: int, size: int) -> Forward:
    """Return a ResNet-50 with random weights and its images; a small one in a dry run."""
    name, dtype = ("resnet18", torch.float32) if device.dry_run else ("resnet50", torch.float16)
    images = torch.rand(B, 3, size, size, device=device.device).to(dtype)
    return Forward(build(name).to(device.device, dtype), images)
