"""``ssa-fast models``: list the stages, seed and methods of the networks that are known by name."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ssa_fast.cli import console
from ssa_fast.cli.options import Debug  # noqa: TC001 - typer reads it
from ssa_fast.io.progress import paced

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from ssa_fast.models import ModelDescription


@dataclass(frozen=True)
class NetworkRow:
    """One network of the table: its description or the error, and the seconds, building included."""

    name: str
    description: ModelDescription | None
    error: str | None
    seconds: float


def command(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Classification models.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every model of torchvision and of the extra photos.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Inspect networks with random weights: stages with sizes and signs, affinities and why, methods, kind of seed.

    Exit code: 0 if SSA works on all of them, 1 if it fails on some, 2 for wrong usage.
    """
    with console.usage_errors(debug=debug):
        list_networks(select_networks(names, everything=everything))


def select_networks(names: Sequence[str] | None, *, everything: bool = False) -> list[str]:
    """Return ``names`` if they are known, or all known models; without the extra ``photos``, a notice says so."""
    from ssa_fast.models import efficientnet_lite, zoo
    from ssa_fast.models.class_names import suggest

    if bool(names) == everything:
        raise ValueError(f"names: expected either names or --all, got {'both; leave one out' if names else 'neither'}")
    known = zoo.known_models()
    unknown = [name for name in names or () if name not in known]
    if unknown:
        hint = suggest(unknown[0], known) or f"; name others, such as {', '.join(known[:3])}"
        raise ValueError(
            f"names: expected models of torchvision or {', '.join(efficientnet_lite.SIDES)}, got {unknown[0]!r}{hint}"
        )
    if everything and not efficientnet_lite.can_build():
        left_out = f"{', '.join(efficientnet_lite.SIDES)} left out, as timm is not installed"
        console.err().print(f"notice: {left_out}; {efficientnet_lite.HINT}")
        known = [name for name in known if name not in efficientnet_lite.SIDES]
    return list(names or known)


def describe_network(name: str, check: Callable[[nn.Module], None] | None = None) -> NetworkRow:
    """Build a known model with random weights, run ``check`` on it, and describe it.

    An exception becomes the row's error. Building the largest models, regnet_y_128gf and vit_h_14, takes a few GB.
    """
    from ssa_fast.models import describe
    from ssa_fast.models.zoo import build_random

    gc.collect()  # frees the previous network, whose modules may refer to each other
    start = time.perf_counter()
    try:
        model = build_random(name)
        if check is not None:
            check(model)
        return NetworkRow(name, describe(model), None, time.perf_counter() - start)
    except Exception as error:
        return NetworkRow(name, None, f"{type(error).__name__}: {error}", time.perf_counter() - start)


def list_networks(names: Sequence[str], check: Callable[[nn.Module], None] | None = None) -> None:
    """Print the table of the networks and the failures; exit with 1 if there are any."""
    screen = console.err()
    shown = paced(names, "inspecting networks", costs=[1.0] * len(names), console=screen)
    rows = [describe_network(name, check) for name in shown]
    working = [_cells(row.name, row.description, row.seconds) for row in rows if row.description]
    if working:
        columns = ("model", "input", "stages", "C x h x w", "features", "method at K = 20", "seed", "seconds")
        console.out().print(console.table("networks", columns, working, right=("seconds",)))
        # The features' sign decides the affinity, so it needs no column of its own.
        stages = [stage for row in rows if row.description for stage in row.description.stages]
        for line in dict.fromkeys(f"{each.sign} features: {each.affinity} ({each.why})" for each in stages):
            console.out().print(line, soft_wrap=True)
        proofs = [stage.proved for stage in stages if stage.sign == "non-negative"]
        if proofs:
            known = f"by construction in {sum(proofs)} of {len(proofs)} stages"
            console.out().print(f"non-negative {known}, read on each image in the others", soft_wrap=True)
    for row in rows:
        if row.error is not None:
            screen.print(f"failed: {row.name}: {row.error}", soft_wrap=True)
    console.out().print(f"SSA works on {len(working)} of {len(rows)} networks")
    raise typer.Exit(int(len(working) < len(rows)))


def _cells(name: str, network: ModelDescription, seconds: float) -> tuple[str, ...]:
    stages = [(s.name, " x ".join(map(str, s.shape)), s.sign, s.method) for s in network.stages]
    columns = ("\n".join(column) for column in zip(*stages, strict=True))
    size = "{} x {}".format(*network.input_size)
    return name, size, *columns, f"{network.seed_kind}\n{network.seed_layer}", f"{seconds:.1f}"
