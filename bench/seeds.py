"""``python -m bench seeds``: what each kind of seed costs beside the network's forward pass alone.

Networks of torchvision with random weights, one image of 224 × 224 pixels, K classes. A seed's cost is the time of the
forward pass and the seed together, less that of the forward pass, as a share of the latter. Times are of the process's
CPU clock, medians over interleaved rounds. What SSA adds to a seed is the same for all kinds.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench import measure
from bench.problems import build
from ssa_fast.io.progress import paced
from ssa_fast.models import inspect_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from ssa_fast.models import ModelInfo

NETWORKS = ("resnet50", "efficientnet_b0", "vgg16", "vit_b_16")
SIZE, ROUNDS = 224, 7
FORWARD = "forward"


def _seed(model: torch.nn.Module, info: ModelInfo, images: Tensor, classes: Tensor) -> Tensor:
    with torch.no_grad():
        return info.seed_maps(model, info.forward(model, images), classes)


def _forward(model: torch.nn.Module, images: Tensor) -> Any:
    with torch.no_grad():
        return model(images)


def rows(name: str, counts: tuple[int, ...] = (1, 5), size: int = SIZE, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Return a row per number of classes and kind of seed that the network has."""
    torch.manual_seed(0)
    model, images = build(name), torch.randn(1, 3, size, size)
    kinds = {kind: inspect_model(model, seed=kind) for kind in ("grad-cam", "layercam")}
    automatic = inspect_model(model)
    if automatic.seed.kind == "cam":
        kinds = {"cam": automatic, **kinds}
    calls: dict[tuple[str, int], Callable[[], Any]] = {(FORWARD, 0): partial(_forward, model, images)}
    for K in counts:
        calls |= {(kind, K): partial(_seed, model, info, images, torch.arange(K)[None]) for kind, info in kinds.items()}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    for _ in range(rounds + 1):  # the first is not counted
        for key, call in calls.items():
            begin = time.process_time()
            call()
            times[key].append(time.process_time() - begin)
    medians = {key: float(np.median(each[1:])) for key, each in times.items()}
    alone = medians.pop((FORWARD, 0))
    return [
        {
            "network": name,
            "size": size,
            "K": K,
            "seed": kind,
            "forward_cpu_ms": round(1000 * alone, 1),
            "seed_share_of_forward": round(spent / alone - 1, 3),
        }
        for (kind, K), spent in medians.items()
    ]


def main(save: Path | None) -> int:
    """Print the table; with ``save`` keep it and the machine as JSON."""
    found = [row for name in paced(NETWORKS, "seeds", costs=[1.0] * len(NETWORKS)) for row in rows(name)]
    for row in found:
        share, forward = row["seed_share_of_forward"], row["forward_cpu_ms"]
        print(f"{row['network']:<16} K = {row['K']}  {row['seed']:<9} {share:>+8.1%} of the forward's {forward} ms")
    print(measure.describe(measure.machine()))
    if save:
        measure.save(save, found)
    return 0
