"""Times of whole calls: small stages, where launches are what costs, and a network's stages against its forward."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.gpu import ours
from bench.gpu.goals import GOALS, error_goal
from bench.networks import Forward, build
from bench.problem import WRONG, Problem, relative_error, truth
from bench.stand import NotHere, summary
from bench.workers import Job, job
from ssa_fast import polish

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from bench.stand import Device

SMALL = Problem(B=1, K=20, C=1024, H=32, W=32, h=7, w=7)
# (method, problem): the package's own choice where f ≥ 0, and the kernel for small signed stages.
SMALL_STAGES = (
    ("auto", SMALL),
    ("auto", replace(SMALL, H=14, W=14)),
    ("auto", replace(SMALL, C=2048, H=7, W=7)),
    ("resident", replace(SMALL, C=512, H=28, W=28, values="randn")),
    ("resident", replace(SMALL, H=14, W=14, values="randn")),
    ("resident", replace(SMALL, C=2048, H=7, W=7, values="randn")),
    ("auto", replace(SMALL, values="randn")),
)


def small_jobs(seed: int, rehearse: bool) -> list[Job]:
    found = []
    for method, given in dict.fromkeys((method, each.tiny() if rehearse else each) for method, each in SMALL_STAGES):
        name = f"timing: small, {method} {given.label()}"
        found.append(job("bench.gpu.whole:small", name, 60, method=method, seed=seed, **given.as_arguments()))
    return found


def backbone_jobs(seed: int, rehearse: bool) -> list[Job]:
    return [
        job("bench.gpu.whole:backbone", f"timing: ResNet-50's four stages, K={K}", 120, K=K, seed=seed) for K in (20, 1)
    ]


def small(stand: Device, *, method: str, seed: int, **arguments: Any) -> list[dict[str, Any]]:
    """A small stage: the public call back to back, the kernels' launch alone, and both in a CUDA graph."""
    problem = Problem(**arguments)
    cam, f = problem.draw(stand.device, seed)
    positive = problem.values != "randn"

    def call() -> Tensor:
        return polish(cam, f, affinity=problem.phi, method=method, nonnegative=positive, backend="triton")

    error = relative_error(call().flatten(2), truth(problem, cam, f))
    times = {"eager": stand.eager_seconds(call)}
    if method != "auto":
        times["launch alone"] = stand.eager_seconds(lambda: ours.launched(method, problem, cam, f))
    device = stand.rounds({"eager, device time": call}, budget=0.5)
    row: dict[str, Any] = {
        "part": "timing",
        "what": f"small, {method} {problem.label()}",
        "status": "ok",
        "error": error,
    }
    try:
        replay, _ = stand.graphed(call)
    except NotHere as reason:
        row["why"] = str(reason)
    else:
        times["graph"] = stand.eager_seconds(replay)
        device |= stand.rounds({"graph, cold cache": replay}, budget=0.5)
    goals = [error_goal("prototypes" if method == "auto" and positive else method, "default").row(error)]
    goals += [GOALS[name].row(round(times[name] * 1e6, 2)) for name in ("graph", "eager") if name in times]
    providers: list[dict[str, Any]] = [{"name": name, "us": round(seconds * 1e6, 3)} for name, seconds in times.items()]
    providers += [{"name": name} | summary(found) for name, found in device.items()]
    if error > WRONG:
        row |= {"status": "failed", "why": f"relative error {error:.3g} against float64"}
    return [row | {"goals": goals, "providers": providers}]


def backbone(stand: Device, *, K: int, seed: int) -> list[dict[str, Any]]:
    """All four stages of a ResNet-50 polished and fused, against the network's own forward."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True  # the forward at its best
    net = _network(stand)
    images = net.images
    with torch.no_grad():
        stages = net.stages("channels_last")
        cam = torch.rand(images.shape[0], K, *stages[-1].shape[2:], device=stand.device)

        def polished() -> Tensor:
            return polish(cam, stages, nonnegative=True)

        calls: dict[str, Callable[[], object]] = {"ours": polished, "forward": net.run("channels_last")}
        times = stand.rounds(calls, budget=4.0, most=15)
        again = polish(cam.double(), [stage.double() for stage in stages], nonnegative=True, backend="torch")
    error = relative_error(polished(), again)
    share = float(np.median(np.array(times["ours"]) / np.array(times["forward"])))
    B, side = images.shape[0], images.shape[-1]
    row: dict[str, Any] = {
        "part": "timing",
        "what": f"ResNet-50's four stages, B={B} {side}×{side} K={K}, share of the forward",
    }
    row |= {"status": "ok" if error <= WRONG else "failed", "error": error}
    if error > WRONG:
        row["why"] = f"relative error {error:.3g} against float64"
    # No goal for the error: rescaling to [0, 1] magnifies what is there by as much as a map is flat.
    row["goals"] = [GOALS["backbone"].row(round(share, 5))]
    row["providers"] = [{"name": name} | summary(each) for name, each in times.items()]
    return [row]


def _network(stand: Device) -> Forward:
    """A ResNet-50 with random weights and its images; small for a rehearsal."""
    name, shape, dtype = "resnet50", (32, 3, 512, 512), torch.float16
    if stand.rehearse:
        name, shape, dtype = "resnet18", (1, 3, 64, 64), torch.float32
    return Forward(build(name).to(stand.device, dtype), torch.rand(shape, device=stand.device).to(dtype))
