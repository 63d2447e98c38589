"""What ``python -m bench compare`` calls in both trees, and the plain formula that the results are held against.

Only the package's public face is called, so that older commits can be measured, too. ``answer``, ``begin`` and
``sample`` are jobs of workers that have one tree's ``ssa_fast``; all else runs beside this tree's.
"""

from __future__ import annotations

import functools
import gc
import importlib
import resource
import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from bench.measure import Device

SEED = 20
CHECKED, BLOCK = 4096, 2048  # targets of a lone stage that are checked, all or as many evenly spread; at a time
WARM = 2  # calls before the first sample of a case: thread pool, pages, caches
SETTLE_S = 0.004  # before a sample, for which another worker's threads may still spin after their last product
OPERANDS = {"cuda": torch.float16}  # what a device's matrix units round to by default


@dataclass(frozen=True)
class Case:
    """``polish`` of stages ``(C, H, W)``, several of which are fused; without any, ``SSA`` on the demo's classifier.

    Features are ≥ 0 and nobody says so, or ``signed``. The CAM has a quarter of the first stage's sides, as a class map
    of stride 16 beside features of stride 4. ``side`` is that of a network's images.
    """

    name: str
    stages: tuple[tuple[int, int, int], ...] = ()
    K: int = 20
    B: int = 1
    method: str = "auto"
    power: float = 1.0
    signed: bool = False
    center: bool = False
    channels_last: bool = False
    side: int = 128

    @property
    def targets(self) -> Tensor | None:
        """The pixels whose results are checked, None for all."""
        if len(self.stages) != 1:
            return None
        _, H, W = self.stages[0]
        return torch.linspace(0, H * W - 1, min(H * W, CHECKED), dtype=torch.float64).long()


def resnet50(side: int, B: int = 1) -> Case:
    """Return the four stages of a ResNet-50 on images of ``side`` pixels, polished and fused."""
    strides = ((256, 4), (512, 8), (1024, 16), (2048, 32))
    stages = tuple((C, side // stride, side // stride) for C, stride in strides)
    return Case(f"resnet50/{side}" + (f"/B{B}" if B > 1 else ""), stages, B=B)


SMALL = (
    Case("tiny/49", ((64, 7, 7),), K=1),
    Case("dense/196/signed", ((1024, 14, 14),), signed=True),
    Case("prototypes/3136", ((256, 56, 56),), method="prototypes"),
    Case("prototypes/3136/nhwc", ((256, 56, 56),), method="prototypes", channels_last=True),
    Case("prototypes/16384", ((256, 128, 128),), method="prototypes"),
    Case("prototypes/16384/nhwc", ((256, 128, 128),), method="prototypes", channels_last=True),
    Case("second_order/3136", ((128, 56, 56),), K=3, method="second_order", power=2.0),
    Case("tiled/4096/signed", ((256, 64, 64),), method="tiled", signed=True),
    Case("tiled/1024/centred", ((512, 32, 32),), method="tiled", power=2.0, center=True),
    resnet50(224),
    Case("ssa/demo", K=5),
)
FULL = (
    *SMALL,
    Case("prototypes/65536", ((256, 256, 256),), method="prototypes"),
    Case("prototypes/3136/B8", ((256, 56, 56),), B=8, method="prototypes"),
    Case("prototypes/16384/K1000", ((256, 128, 128),), K=1000, method="prototypes"),
    Case("tiled/16384/signed", ((256, 128, 128),), method="tiled", signed=True),
    Case("auto/784/signed/B8", ((512, 28, 28),), B=8, signed=True),
    resnet50(512),
    resnet50(224, B=8),
    Case("ssa/demo/B8", K=5, B=8),
)
SETS = {"small": SMALL, "full": FULL}


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
    """Return seconds per call, the median of ``bursts`` of ``calls`` calls of the case that was begun; and switches.

    A switch is a time that the process lost a processor for which it had more work. With short bursts the median leaves
    out those that it happened in.
    """
    device.synchronize()
    time.sleep(SETTLE_S)
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    times = []
    for _ in range(bursts):
        start = time.perf_counter()
        for _ in range(calls):
            _call()
        device.synchronize()
        times.append((time.perf_counter() - start) / calls)
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches
    return [{"seconds": statistics.median(times), "switches": switches}]


def _made(device: Device, case: Case) -> Callable[[], Any]:
    """Return the call that is timed."""
    if not case.stages:
        ssa, images = _network(device, case)
        return lambda: ssa(images, classes=list(range(case.K)))
    package = importlib.import_module("ssa_fast")
    cam, features = draw(case)
    cam, stages = cam.to(device.device), [stage.to(device.device) for stage in features]
    affinity = package.Affinity(power=case.power, center=case.center)
    given = stages if len(stages) > 1 else stages[0]
    return lambda: package.polish(cam, given, affinity=affinity, method=case.method)


def _network(device: Device, case: Case) -> tuple[Any, Tensor]:
    """Return SSA of the demo's network, and images normalised for it."""
    network = importlib.import_module("ssa_fast.models.demo_net").load_classifier().to(device.device)
    generator = torch.Generator().manual_seed(SEED)
    images = 4 * torch.rand(case.B, 3, case.side, case.side, generator=generator) - 2
    return importlib.import_module("ssa_fast").SSA(network, align_corners=True), images.to(device.device)


def draw(case: Case) -> tuple[Tensor, list[Tensor]]:
    """Return the same CAM and features in every process."""
    generator = torch.Generator().manual_seed(SEED)
    draw = torch.randn if case.signed else torch.rand
    _, H, W = case.stages[0]
    cam = torch.rand(case.B, case.K, max(H // 4, 2), max(W // 4, 2), generator=generator)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    return cam, [draw(case.B, *sizes, generator=generator).to(memory_format=layout) for sizes in case.stages]


# ---- Beside this tree's package: is it right? ----


def mistake(case: Case, answer: dict[str, Any], device: str) -> str:
    """Return what is wrong with an answer, or nothing.

    It is right if its error is at most twice that of the plain formula in the computation's own dtype, plus one
    rounding of the largest number in it.
    """
    out = torch.from_numpy(answer["out"])
    if case.targets is not None:
        out = out.flatten(2)[:, :, case.targets]
    if case.stages:
        same = replace(case, name="", method="auto", channels_last=False)  # however it is computed
        truth, own = expected(same, torch.float64), expected(same, torch.float32, OPERANDS.get(device))
    else:
        weight, seed, *stages = (torch.from_numpy(answer[name]) for name in ("weight", "seed", *answer["names"]))
        cam = torch.einsum("kc,bchw->bkhw", weight[: case.K].double(), seed.double()).relu()
        given = case, cam, stages, (case.side, case.side)
        truth, own = formula(*given, torch.float64), formula(*given, torch.float32, OPERANDS.get(device))
        truth, own = minmax(truth), minmax(own)
    if out.shape != truth.shape or out.dtype != torch.float32:
        return f"expected float32 {tuple(truth.shape)}, got {out.dtype} {tuple(out.shape)}"
    errors = [float((each.double() - truth).abs().max() / truth.abs().max()) for each in (out, own)]
    rounding = torch.finfo(torch.float32).eps
    if errors[0] <= 2 * errors[1] + rounding:
        return ""
    return (
        f"error {errors[0]:.3g}, of the plain formula {errors[1]:.3g}, one rounding {rounding:.3g}; expected at most "
        "twice the second plus the third"
    )


@functools.cache
def expected(case: Case, dtype: torch.dtype, operands: torch.dtype | None = None) -> Tensor:
    """Return the plain formula of stages, ``(B, K, targets)``, or ``(B, K, H, W)`` where they are fused."""
    cam, features = draw(case)
    return formula(case, cam, features, features[0].shape[2:], dtype, operands)


def formula(
    case: Case,
    cam: Tensor,
    features: Sequence[Tensor],
    size: Sequence[int],
    dtype: torch.dtype,
    operands: torch.dtype | None = None,
) -> Tensor:
    """Return the definition in ``dtype``, products of numbers rounded to ``operands``: stages polished and fused."""
    from ssa_fast import Affinity, reference

    def rounded(tensor: Tensor) -> Tensor:
        return tensor if operands is None else tensor.to(operands).to(dtype)

    affinity, maps = Affinity(power=case.power, center=case.center), []
    for f in features:
        seed = rounded(resize(cam.to(dtype), f.shape[2:]).flatten(2))  # [B, K, L]
        x = rounded(reference.unit_features(f.to(dtype).flatten(2), affinity))  # [B, C, L]
        targets, parts = torch.arange(x.shape[2]) if case.targets is None else case.targets, []
        for at in targets.split(BLOCK):
            a = rounded(reference.phi(x.mT @ x[:, :, at], affinity))  # [B, L, BLOCK]
            parts.append(seed @ a / reference.denominator(a.sum(dim=1, keepdim=True), affinity))
        maps.append(torch.cat(parts, dim=2))
    if case.targets is not None:
        return maps[0]
    shaped = [each.unflatten(2, f.shape[2:]) for each, f in zip(maps, features, strict=True)]
    return torch.stack([resize(minmax(each), size) for each in shaped]).mean(dim=0)


def minmax(maps: Tensor) -> Tensor:
    """Return ``(maps − min) / (max − min)`` per image and class; a map that is zero everywhere stays so."""
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1.0)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)
