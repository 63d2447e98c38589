"""Options shared by several commands, and the classifier and ``SSA`` made from them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from ssa_fast.models.zoo import Classifier
    from ssa_fast.ssa import SSA

__all__ = ["CAM", "EXECUTION", "MODEL", "AffinityText", "Debug", "Device", "Model", "Stages", "Weights"]
__all__ += ["build", "parse_stages"]

MODEL, CAM, EXECUTION = "Model", "CAM", "Execution"
"""Titles of the groups in which ``--help`` lists the options."""


def _option(group: str, text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=group)


Model = Annotated[str, _option(MODEL, "A torchvision classification model, or 'demo'.", "--model", "-m")]
Weights = Annotated[
    str, _option(MODEL, "'DEFAULT' or another set's name, 'none' (random) or a file.", "--weights", "-w")
]
Stages = Annotated[str, _option(CAM, "'auto', or module names separated by commas.")]
AffinityText = Annotated[
    str, _option(CAM, "Pixel similarity, e.g. 'power=2,center' or 'phi=exp,temperature=0.1'.", "--affinity")
]
Device = Annotated[str, _option(EXECUTION, "'auto', 'cpu', 'cuda', 'cuda:1', ...")]
Debug = Annotated[bool, _option(EXECUTION, "Print tracebacks.", "--debug")]


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
    """Return the classifier and an ``SSA`` around it; ``options`` are passed to ``SSA`` unchanged.

    Raises:
        ValueError: An option is wrong.
    """
    from ssa_fast import SSA, Affinity
    from ssa_fast.models import zoo

    parsed = Affinity.parse(affinity)
    factors = _parse_scales(scales)
    classifier = zoo.load(model, weights, device=_parse_device(device))
    if classifier.input_size and factors != (1.0,):
        raise ValueError("scales: {} takes images of {}x{} only; leave it out".format(model, *classifier.input_size))
    ssa = SSA(
        classifier.model,
        stages=parse_stages(stages),
        affinity=parsed,
        scales=factors,
        input_size=classifier.input_size,
        size=output_size,
        **options,
    )
    return classifier, ssa


def parse_stages(text: str) -> str | list[str]:
    """Return ``--stages`` in the form that ``SSA`` takes."""
    return "auto" if text.strip() == "auto" else [name.strip() for name in text.split(",") if name.strip()]


def _parse_scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"scales: expected numbers separated by commas such as 0.5,1,1.5,2, got {text!r}") from None


def _parse_device(text: str) -> torch.device:
    """Return the device; "auto" is a GPU if there is one, under torchrun a different one per process."""
    import torch

    if text == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"device: expected auto, cpu or an available GPU, got {text!r} ({reason})") from None
    return device
