"""``python -m bench seeds``: what each kind of seed costs beside the network's forward pass alone.

Networks of torchvision with random weights, one image of 224 × 224 pixels, K classes. A seed's cost is the time of the
forward pass and the seed together, less that of the forward pass, as a share of the latter; medians of interleaved
rounds. What SSA adds to a seed is the same for all kinds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torchvision.models import get_model

from bench.command import parser_of, save
from bench.measure import paced
from bench.measures import median_ms
from ssa_fast.models import inspect_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ssa_fast.models import ModelInfo

NETWORKS = ("resnet50", "efficientnet_b0", "vgg16", "vit_b_16")


@torch.no_grad()
def rows(name: str, counts: Sequence[int] = (1, 5), size: int = 224, rounds: int = 7) -> list[dict[str, Any]]:
    """Return a row per number of classes and kind of seed that the network has."""
    torch.manual_seed(0)
    model, images = get_model(name).eval(), torch.randn(1, 3, size, size)
    infos = [inspect_model(model, seed=kind) for kind in ("auto", "grad-cam", "layercam")]

    def seed(info: ModelInfo, K: int) -> Tensor:
        return info.seed_maps(model, info.forward(model, images), torch.arange(K)[None])

    seeds = {f"{K} {info.seed.kind}": partial(seed, info, K) for K in counts for info in infos}
    forward_ms, *found = median_ms({"forward": partial(model, images)} | seeds, rounds).values()
    return [
        {
            "network": name,
            "size": size,
            "K": int(key.split()[0]),
            "seed": key.split()[1],
            "forward_ms": round(forward_ms, 1),
            "seed_share_of_forward": round(ms / forward_ms - 1, 3),
        }
        for key, ms in zip(seeds, found, strict=True)
    ]


def main(given: Sequence[str]) -> int:
    """Print the table; with ``--save`` keep it and the machine as JSON."""
    options = parser_of("seeds", __doc__).parse_args(given)
    found = [row for name in paced(NETWORKS, "seeds") for row in rows(name)]
    for row in found:
        share, forward = row["seed_share_of_forward"], row["forward_ms"]
        print(f"{row['network']:<16} K = {row['K']}  {row['seed']:<9} {share:>+8.1%} of the forward's {forward} ms")
    save(options, ["seeds", *given], found)
    return 0
