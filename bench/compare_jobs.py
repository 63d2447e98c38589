"""What ``python -m bench compare`` does in processes that have one tree's ``ssa_fast``, and how an answer is checked.

Of the package the cases call only the public face, so that older commits can be measured, too.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import statistics
import tempfile
import time
import timeit
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import ssa_fast
from bench.problems import STAGES, Problem, relative_error, sampled_truth

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from bench.measure import Device
    from bench.workers import Row

SEED = 20
CHECKED = 2048  # pixels of a lone stage that are checked, all or as many evenly spread
WARM = 5  # calls before the first sample of a case: thread pool, pages, caches
# A sample and each of its bursts of calls last about so long: a busy machine takes the processor away after some 5 ms.
SAMPLE_S, BURST_S = 0.005, 0.0005
SETTLE_S = 0.004  # before a sample, for which another worker's threads may still spin after their last product
ROUNDINGS = 5  # see tests/accuracy.py
CLASSES, SIDE = 5, 128  # of the demo's network and its image
# What the rows of two commands of ``bench`` are of, and their numbers that are compared.
LABELS = {"aot": ("target", "kernel", "config", "what"), "host": ("case",)}
NUMBERS = {"aot": ("problems", "spilled", "local", "matrix", "registers", "shared"), "host": ("launches", "us")}


@dataclass(frozen=True)
class Case:
    """``polish`` of stages by the first one's CAM, fused if they are several; without any, the demo's network.

    Nobody says that features are ≥ 0.
    """

    name: str
    stages: tuple[Problem, ...] = ()
    method: str = "auto"


def stage(C: int, side: int, K: int = 20, **more: Any) -> Problem:
    """Return a stage whose CAM has a quarter of its sides, as one of stride 16 beside features of stride 4."""
    cam = max(side // 4, 2)
    return Problem(1, K, C, side, side, cam, cam, dtype="float32", **more)


CASES = (
    Case("tiny/49", (stage(64, 7, K=1),)),
    Case("dense/196/signed", (stage(1024, 14, values="randn"),)),
    Case("prototypes/3136", (stage(256, 56),), "prototypes"),
    Case("prototypes/3136/nhwc", (stage(256, 56, layout="nhwc"),), "prototypes"),
    Case("prototypes/16384", (stage(256, 128),), "prototypes"),
    Case("prototypes/16384/nhwc", (stage(256, 128, layout="nhwc"),), "prototypes"),
    Case("second_order/3136", (stage(128, 56, K=3, affinity="power=2"),), "second_order"),
    Case("tiled/4096/signed", (stage(256, 64, values="randn"),), "tiled"),
    Case("tiled/1024/centred", (stage(512, 32, affinity="center,power=2"),), "tiled"),
    Case("resnet50/224", tuple(stage(C, 224 // step) for C, step in STAGES.values())),
    Case("ssa/demo"),
)
# What traffic is counted of: ragged in every size, and large enough for several tiles of each method.
COUNTED = (
    Case("prototypes", (stage(72, 13, K=3),), "prototypes"),
    Case("shifted", (stage(72, 13, K=3, values="randn", affinity="phi=shifted"),), "prototypes"),
    Case("tiled", (stage(72, 13, K=3, values="randn"),), "tiled"),
    Case("resident", (stage(72, 10, K=3, values="randn"),), "resident"),
    Case("fusion", (stage(40, 13, K=3), stage(72, 7, K=3)), "prototypes"),
)


def made(device: torch.device, case: Case, **options: Any) -> tuple[Callable[[], Tensor], Tensor, list[Tensor]]:
    """Return the call that a case is, and the CAM and features that it polishes: the same in every process."""
    if case.stages:
        drawn = [each.draw(device, SEED) for each in case.stages]
        cam, features = drawn[0][0], [each for _, each in drawn]
        given = features if len(features) > 1 else features[0]
        options |= {"affinity": case.stages[0].phi, "method": case.method}
        return functools.partial(ssa_fast.polish, cam, given, **options), cam, features
    from ssa_fast.models.demo_net import load_classifier

    image = 4 * torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(SEED)).to(device) - 2
    net = load_classifier().to(device)
    ssa = ssa_fast.SSA(net, align_corners=True)
    features = list(ssa.features(image).values())
    cam = torch.einsum("kc,bchw->bkhw", net.fc.weight.detach()[:CLASSES], features[-1]).relu()
    return lambda: ssa(image, classes=list(range(CLASSES))).cams, cam, features


# Times.


def answer(device: Device, case: Case) -> list[Row]:
    """Return a case's result and what it was made of, as arrays."""
    call, cam, features = made(device.device, case)
    return [{"arrays": [each.cpu().numpy() for each in (call(), cam, *features)]}]


def sample(device: Device, case: Case) -> list[Row]:
    """Return seconds per call: of bursts the median, which leaves out those in which the process lost its processor."""
    call, calls, bursts = warm(device, case)
    time.sleep(SETTLE_S)
    times = timeit.repeat(call, timer=time.perf_counter, number=calls, repeat=bursts)
    return [{"seconds": statistics.median(times) / calls}]


@functools.lru_cache(maxsize=1)
def warm(device: Device, case: Case) -> tuple[Callable[[], None], int, int]:
    """Return a case's call, once it is warm, how many make a burst, and how many bursts a sample."""
    run, *_ = made(device.device, case)

    def call() -> None:
        run()
        device.synchronize()

    seconds = min(timeit.repeat(call, number=1, repeat=WARM))
    calls = math.ceil(BURST_S / seconds)
    return call, calls, math.ceil(SAMPLE_S / (calls * seconds))


# Numbers for the gates.


def figures(_: Device, command: str, arguments: list[str]) -> list[Row]:
    """Return the numbers that a command of ``bench`` saves: of problems how many, of matrix instructions the lack."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        importlib.import_module(f"bench.{command}").main([*arguments, "--save", str(file)])
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    for row in rows if command == "aot" else ():
        row |= {"problems": len(row["problems"]), "matrix": -sum(row["matrix"].values())}
    return [
        {"label": " ".join(row[key] for key in LABELS[command]), "numbers": {key: row[key] for key in NUMBERS[command]}}
        for row in rows
    ]


def traffic(device: Device, case: Case) -> list[Row]:
    """Count what a small interpreted call loads, stores and multiplies: the same numbers everywhere."""
    from bench import traffic  # needs TRITON_INTERPRET=1 in the environment

    call, *_ = made(device.device, case, backend="triton", nonnegative=case.stages[0].nonnegative)
    with traffic.count({}) as found:
        call()
    counted = {"bytes loaded": found.loaded.total(), "bytes stored": found.stored.total(), "FLOPs": found.dot_flops}
    return [{"label": case.name, "numbers": counted}]


# Beside this tree's package: is an answer right?


def mistake(case: Case, arrays: list[Any], on_gpu: bool) -> str:
    """Return what is wrong with an answer by the rule of ``tests/accuracy.py``, or nothing.

    Its error may be about that of the definition in float32, on a GPU of inputs rounded as its matrix units round them.
    """
    out, *given = (torch.from_numpy(each) for each in arrays)
    right = definition(case, *(each.double() for each in given))
    in_float32 = definition(case, *(each.half().float() if on_gpu else each for each in given))
    if len(case.stages) == 1 and out[0, 0].numel() == case.stages[0].L:
        out = out.flatten(2)[0, :, checked(case.stages[0])]
    error, own = relative_error(out, right), relative_error(in_float32, right)
    most = 2 * own + ROUNDINGS * torch.finfo(torch.float32).eps / 2
    return "" if error <= most else f"error {error:.3g}, expected at most {most:.3g}"


def definition(case: Case, cam: Tensor, *features: Tensor) -> Tensor:
    """Return the result in the inputs' dtype, ``(1, K, H, W)``; of a lone stage ``(K, pixels)`` where it is checked."""
    if len(case.stages) == 1:
        return sampled_truth(case.stages[0], cam, features[0], checked(case.stages[0]), cam.dtype)
    fused: Tensor = ssa_fast.polish(cam, features, backend="reference", size=None if case.stages else (SIDE, SIDE))
    if not case.stages:  # SSA rescales what is fused, too; a class without any evidence stays 0
        low, high = fused.amin((2, 3), keepdim=True), fused.amax((2, 3), keepdim=True)
        fused = ((fused - low) / (high - low)).nan_to_num(0.0)
    return fused


def checked(problem: Problem) -> Tensor:
    """Return the indices of the pixels that are checked: all, or many evenly spread from the first to the last."""
    return torch.linspace(0, problem.L - 1, min(problem.L, CHECKED), dtype=torch.float64).long()
