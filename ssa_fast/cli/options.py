"""From the options that several commands share to a classifier and an `SSA` around it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from ssa_fast.models.zoo import Classifier
    from ssa_fast.ssa import SSA

__all__ = ["Affinity_", "Debug", "Device", "Model", "Stages", "Weights", "build", "device_of", "numbers", "stage_names"]

Model = Annotated[str, typer.Option("--model", "-m", help="A classification model of torchvision, or 'demo'.")]
Weights = Annotated[
    str, typer.Option("--weights", "-w", help="DEFAULT (or another name torchvision has), none (random) or a file.")
]
Stages = Annotated[str, typer.Option(help="'auto', or names of modules between commas.")]
Affinity_ = Annotated[
    str, typer.Option("--affinity", help="What makes pixels alike, e.g. 'power=2,center' or 'phi=exp,temperature=0.1'.")
]
Device = Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1', ...")]
Debug = Annotated[bool, typer.Option("--debug", help="Print tracebacks.")]


def device_of(text: str) -> torch.device:
    """The device that `text` names; "auto" is the first GPU if there is one.

    Raises:
        ValueError: no such device here.
    """
    import torch

    if text == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        mine = int(os.environ.get("LOCAL_RANK", "0"))  # under torchrun every process takes a GPU of its own
        return torch.device("cuda", mine % torch.cuda.device_count())
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"device: expected auto, cpu or a GPU such as cuda that is here, got {text!r} ({reason})"
        ) from None
    return device


def build(
    *,
    model: str,
    weights: str,
    device: str,
    stages: str,
    affinity: str,
    scales: str = "1",
    output_size: str = "input",
    **options: Any,
) -> tuple[Classifier, SSA]:
    """The classifier and an `SSA` around it; `options` go to `SSA` as they are.

    Raises:
        ValueError: one of them is wrong, in the words of whoever checked it.
    """
    from ssa_fast import SSA, Affinity
    from ssa_fast.models import zoo

    chosen = Affinity.parse(affinity)
    factors = numbers("scales", scales)
    classifier = zoo.load(model, weights, device=device_of(device))
    if classifier.input_size and factors != (1.0,):
        raise ValueError("scales: {} takes pictures of {}x{} only; leave it out".format(model, *classifier.input_size))
    ssa = SSA(
        classifier.model,
        stages=stage_names(stages),
        affinity=chosen,
        scales=factors,
        input_size=classifier.input_size,
        size=output_size,
        **options,
    )
    return classifier, ssa


def stage_names(text: str) -> str | list[str]:
    """Stages as `SSA` takes them, from `--stages`."""
    return "auto" if text.strip() == "auto" else [name.strip() for name in text.split(",") if name.strip()]


def numbers(name: str, text: str) -> tuple[float, ...]:
    """The numbers between the commas of `text`.

    Raises:
        ValueError: one of them is none, or there is none.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name}: expected numbers between commas such as 0.5,1,1.5,2, got {text!r}") from None
    return values
