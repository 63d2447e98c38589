"""Run SSA on torchvision's classifiers with random weights.

``python -m tests.sweep_torchvision [NAME ...] [--all]`` prints the table of ``ssa-fast models``, but also polishes two
seeds in every stage of each network by prototypes. Exit code 0 if SSA works on all, 1 if it fails on some, 2 for wrong
usage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
import torchvision
import typer

from ssa_fast.api import polish
from ssa_fast.cli import console, models
from ssa_fast.models import inspect_model
from ssa_fast.models.stage_affinity import choose_affinities
from ssa_fast.models.trace import make_trace_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn


def sweep(names: Sequence[str]) -> Iterator[models.NetworkRow]:
    """Yield a row per network as soon as it is done; only one network is in memory at a time."""
    return (models.describe_network(name, check_polishing) for name in models.select_networks(names))


def light_half() -> list[str]:
    """Return the half of torchvision's classifiers with fewer parameters, by the weights' metadata."""
    known = torchvision.models.list_models(module=torchvision.models)
    known.sort(key=lambda name: torchvision.models.get_model_weights(name)["DEFAULT"].meta["num_params"])
    return sorted(known[: len(known) // 2])


def check_polishing(model: nn.Module) -> None:
    """Polish two seeds in every stage by SSA's own affinities.

    Raises:
        ValueError: A stage cannot be polished by prototypes, in time linear in the pixels.
        ArithmeticError: A map is not finite, or negative though no affinity is.
    """
    info = inspect_model(model)
    extracted = info.forward(model, make_trace_image(model, info.trace_size))
    seeds = info.seed_maps(model, extracted, torch.tensor([[0, info.num_classes - 1]]))
    maps = {"seed": (seeds, 0.0)}
    for name, affinity in choose_affinities("auto", info.signs).items():
        polished = polish(seeds, extracted.maps[name], affinity=affinity, method="prototypes")
        maps[name] = polished, 0.0 if affinity.shift >= 1 else -torch.inf
    for name, (each, low) in maps.items():
        if not bool((each.isfinite() & (each >= low)).all()):
            raise ArithmeticError(f"{name}: expected finite numbers >= {low:g}, got {each.amin()} to {each.amax()}")


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every classification model of torchvision.")] = False,
) -> None:
    """Run SSA on networks with random weights; by default on the half with fewer parameters."""
    with console.usage_errors(debug=False):
        chosen = models.select_networks(names, everything=everything) if names or everything else light_half()
        models.list_networks(chosen, check_polishing)


if __name__ == "__main__":
    typer.run(main)
