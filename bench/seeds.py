"""``python -m bench seeds``: what each kind of seed costs beside the network's forward pass alone.

Networks of torchvision with random weights, one image of 224 × 224 pixels, K classes. A seed's cost is the time of the
forward pass and the seed together, less that of the forward pass, as a share of the latter; medians of interleaved
rounds. What SSA adds to a seed is the same for all kinds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision.models import get_model

from bench import measure
from bench.command import parser_of, save
from ssa_fast.models import inspect_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from ssa_fast.models import ModelInfo

NETWORKS = ("resnet50", "efficientnet_b0", "vgg16", "vit_b_16")


@torch.no_grad()
def _seed(model: nn.Module, info: ModelInfo, images: Tensor, classes: Tensor) -> Tensor:
    return info.seed_maps(model, info.forward(model, images), classes)


def rows(name: str, counts: Sequence[int] = (1, 5), size: int = 224, rounds: int = 7) -> list[dict[str, Any]]:
    """Return a row per number of classes and kind of seed that the network has."""
    torch.manual_seed(0)
    model, images = get_model(name).eval(), torch.randn(1, 3, size, size)
    infos = {
        info.seed.kind: info for info in (inspect_model(model, seed=kind) for kind in ("auto", "grad-cam", "layercam"))
    }
    calls: dict[str, Callable[[], Any]] = {"forward": torch.no_grad()(partial(model, images))}
    for K in counts:
        for kind, info in infos.items():
            calls[f"{kind} {K}"] = partial(_seed, model, info, images, torch.arange(K)[None])
    times = measure.time_interleaved(measure.Device(), calls, cold=0, warm=rounds, least=rounds)
    medians = {key: float(np.median(each.warm)) for key, each in times.items()}
    alone = medians["forward"]
    return [
        {
            "network": name,
            "size": size,
            "K": K,
            "seed": kind,
            "forward_ms": round(1000 * alone, 1),
            "seed_share_of_forward": round(medians[f"{kind} {K}"] / alone - 1, 3),
        }
        for K in counts
        for kind in infos
    ]


def main(given: Sequence[str]) -> int:
    """Print the table; with ``--save`` keep it and the machine as JSON."""
    options = parser_of("seeds", __doc__).parse_args(given)
    found = [row for name in measure.paced(NETWORKS, "seeds") for row in rows(name)]
    for row in found:
        share, forward = row["seed_share_of_forward"], row["forward_ms"]
        print(f"{row['network']:<16} K = {row['K']}  {row['seed']:<9} {share:>+8.1%} of the forward's {forward} ms")
    save(options, ["seeds", *given], found)
    return 0
