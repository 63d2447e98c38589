"""What ``python -m bench compare`` calls in both trees, and the plain formula that the results are held against.

Only the package's public face is called, so that older commits can be measured, too. ``answer``, ``begin`` and
``sample`` are jobs of workers that have one tree's ``ssa_fast``; all else runs beside this tree's.
"""

from __future__ import annotations

import functools
import gc
import importlib
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from bench.problems import STAGES, Problem, sampled_truth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from bench.measure import Device

SEED = 20
CHECKED, BLOCK = 4096, 2048  # targets of a lone stage that are checked, all or as many evenly spread; at a time
WARM = 2  # calls before the first sample of a case: thread pool, pages, caches
SETTLE_S = 0.004  # before a sample, for which another worker's threads may still spin after their last product
ROUNDINGS = 5  # see tests/accuracy.py


@dataclass(frozen=True)
class Case:
    """``polish`` of stages by the first one's CAM, fused if they are several; without any, the demo's network.

    Nobody says that features are ≥ 0. A network's images are ``(B, 3, side, side)``, and ``K`` its classes.
    """

    name: str
    stages: tuple[Problem, ...] = ()
    method: str = "auto"
    B: int = 1
    K: int = 5
    side: int = 128

    @property
    def targets(self) -> Tensor | None:
        """The pixels whose results are checked, None for all."""
        if len(self.stages) != 1:
            return None
        L = self.stages[0].L
        return torch.linspace(0, L - 1, min(L, CHECKED), dtype=torch.float64).long()


def stage(name: str, C: int, side: int, method: str = "auto", K: int = 20, B: int = 1, **more: Any) -> Case:
    """Return a lone stage; its CAM has a quarter of its sides, as one of stride 16 beside features of stride 4."""
    cam = max(side // 4, 2)
    return Case(name, (Problem(B, K, C, side, side, cam, cam, dtype="float32", **more),), method)


def resnet50(side: int, B: int = 1) -> Case:
    """Return the four stages of a ResNet-50 on images of ``side`` pixels, polished and fused."""
    sizes = [(C, side // stride) for C, stride in STAGES.values()]
    stages = tuple(Problem(B, 20, C, at, at, side // 16, side // 16, dtype="float32") for C, at in sizes)
    return Case(f"resnet50/{side}" + (f"/B{B}" if B > 1 else ""), stages)


SMALL = (
    stage("tiny/49", 64, 7, K=1),
    stage("dense/196/signed", 1024, 14, values="randn"),
    stage("prototypes/3136", 256, 56, "prototypes"),
    stage("prototypes/3136/nhwc", 256, 56, "prototypes", layout="nhwc"),
    stage("prototypes/16384", 256, 128, "prototypes"),
    stage("prototypes/16384/nhwc", 256, 128, "prototypes", layout="nhwc"),
    stage("second_order/3136", 128, 56, "second_order", K=3, affinity="power=2"),
    stage("tiled/4096/signed", 256, 64, "tiled", values="randn"),
    stage("tiled/1024/centred", 512, 32, "tiled", affinity="center,power=2"),
    resnet50(224),
    Case("ssa/demo"),
)
FULL = (
    *SMALL,
    stage("prototypes/65536", 256, 256, "prototypes"),
    stage("prototypes/3136/B8", 256, 56, "prototypes", B=8),
    stage("prototypes/16384/K1000", 256, 128, "prototypes", K=1000),
    stage("tiled/16384/signed", 256, 128, "tiled", values="randn"),
    stage("auto/784/signed/B8", 512, 28, values="randn", B=8),
    resnet50(512),
    resnet50(224, B=8),
    Case("ssa/demo/B8", B=8),
)
SETS = {"small": SMALL, "full": FULL}


def draw(case: Case, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Return the same CAM and features in every process."""
    drawn = [each.draw(device, SEED) for each in case.stages]
    return drawn[0][0], [features for _, features in drawn]


# ---- In a worker ----

_call: Callable[[], Any] = lambda: None  # noqa: E731 - the case that was begun


def answer(device: Device, case: Case) -> list[Any]:
    """Return a case's result as arrays; of a network also the features and weights that are its own business."""
    if case.stages:
        return [{"out": _made(device, case)().cpu().numpy()}]
    ssa, images = _network(device, case)
    kept: dict[str, Any] = {"weight": ssa.model.fc.weight.detach().cpu().numpy()}
    for name in (ssa.seed_layer, *ssa.stage_names):
        hook = lambda _, __, out, name=name: kept.__setitem__(name, out.cpu().numpy())  # noqa: E731
        ssa.model.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        out = ssa(images, classes=list(range(case.K))).cams.cpu().numpy()
    return [kept | {"out": out, "seed": kept[ssa.seed_layer], "names": ssa.stage_names}]


def begin(device: Device, case: Case) -> list[Any]:
    """Make a case ready and call it until it is warm."""
    global _call
    _call = lambda: None  # noqa: E731 - the memory of the case before goes first
    _call = _made(device, case)
    for _ in range(WARM):
        _call()
    gc.collect()
    gc.disable()
    return [{}]


def sample(device: Device, case: Case, bursts: int, calls: int) -> list[Any]:
    """Return seconds per call, the median of ``bursts`` of ``calls`` calls of the case that was begun.

    With short bursts the median leaves out those in which the process lost its processor.
    """
    device.synchronize()
    time.sleep(SETTLE_S)
    times = []
    for _ in range(bursts):
        start = time.perf_counter()
        for _ in range(calls):
            _call()
        device.synchronize()
        times.append((time.perf_counter() - start) / calls)
    return [{"seconds": statistics.median(times)}]


def _made(device: Device, case: Case) -> Callable[[], Any]:
    """Return the call that is timed."""
    if not case.stages:
        ssa, images = _network(device, case)
        return lambda: ssa(images, classes=list(range(case.K)))
    cam, features = draw(case, device.device)
    given = features if len(features) > 1 else features[0]
    polish = importlib.import_module("ssa_fast").polish
    return functools.partial(polish, cam, given, affinity=case.stages[0].phi, method=case.method)


def _network(device: Device, case: Case) -> tuple[Any, Tensor]:
    """Return SSA of the demo's network, and images normalised for it."""
    network = importlib.import_module("ssa_fast.models.demo_net").load_classifier().to(device.device)
    generator = torch.Generator().manual_seed(SEED)
    images = 4 * torch.rand(case.B, 3, case.side, case.side, generator=generator) - 2
    return importlib.import_module("ssa_fast").SSA(network, align_corners=True), images.to(device.device)


# ---- Beside this tree's package: is it right? ----


def mistake(case: Case, answer: dict[str, Any], device: str) -> str:
    """Return what is wrong with an answer by the rule of ``tests/accuracy.py``, or nothing.

    The formula's own error is that in float32; on a GPU also of inputs rounded as its matrix units round them.
    """
    out = torch.from_numpy(answer["out"])
    if case.stages:
        cam, features = draw(case, torch.device(device))
        plain = functools.partial(formula, case.stages, cam, features, features[0].shape[2:], case.targets)
    else:
        weight, seed, *features = (torch.from_numpy(answer[name]) for name in ("weight", "seed", *answer["names"]))
        cam = torch.einsum("kc,bchw->bkhw", weight[: case.K].double(), seed.double()).relu()
        sizes = [each.shape[1:] for each in features]
        stages = [Problem(case.B, case.K, C, H, W, dtype="float32") for C, H, W in sizes]
        plain = functools.partial(formula, stages, cam, features, (case.side, case.side), None)
    truth, own = plain(torch.float64), plain(torch.float32, rounded=device == "cuda")
    if not case.stages:
        truth, own = minmax(truth), minmax(own)
    truth, own = truth.cpu(), own.cpu()
    if case.targets is not None:
        out = out.flatten(2)[:, :, case.targets]
    if out.shape != truth.shape or out.dtype != torch.float32:
        return f"expected float32 {tuple(truth.shape)}, got {out.dtype} {tuple(out.shape)}"
    errors = [float((each.double() - truth).abs().max() / truth.abs().max()) for each in (out, own)]
    most = 2 * errors[1] + ROUNDINGS * torch.finfo(torch.float32).eps / 2
    return f"error {errors[0]:.3g}, expected at most {most:.3g}" if not errors[0] <= most else ""


def formula(
    stages: Sequence[Problem],
    cam: Tensor,
    features: Sequence[Tensor],
    size: Sequence[int],
    targets: Tensor | None,
    dtype: torch.dtype,
    rounded: bool = False,
) -> Tensor:
    """Return the definition in ``dtype``: at the targets of one stage ``(B, K, targets)``, or fused at ``size``."""
    if rounded:
        cam, features = cam.half().to(cam.dtype), [each.half() for each in features]
    maps = []
    for problem, f in zip(stages, features, strict=True):
        at = (torch.arange(problem.L) if targets is None else targets).to(f.device).split(BLOCK)
        images = [(cam[b : b + 1], f[b : b + 1]) for b in range(problem.B)]
        maps.append(torch.stack([torch.cat([sampled_truth(problem, *one, j, dtype) for j in at], 1) for one in images]))
    if targets is not None:
        return maps[0]
    shaped = [minmax(each.unflatten(2, f.shape[2:])) for each, f in zip(maps, features, strict=True)]
    return torch.stack([F.interpolate(each, tuple(size), mode="bilinear", align_corners=True) for each in shaped]).mean(
        0
    )


def minmax(maps: Tensor) -> Tensor:
    """Return ``(maps − min) / (max − min)`` per image and class; a map that is zero everywhere stays so."""
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1.0)
