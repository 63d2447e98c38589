"""Options shared by several commands, and the classifier and ``SSA`` made from them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ssa_fast.cli import console

if TYPE_CHECKING:
    import torch

    from ssa_fast.affinity import Affinity
    from ssa_fast.models.zoo import Classifier
    from ssa_fast.ssa import SSA

MODEL, CAM, MASKS, EXECUTION, OUTPUT = "Model", "CAM", "Masks and boxes", "Execution", "Output"
"""Titles of the groups in which ``--help`` lists the options."""


def option(group: str, text: str, *names: str, **details: Any) -> Any:
    """Return an option with its help text, listed under ``group``."""
    return typer.Option(*names, help=text, rich_help_panel=group, **details)


Model = Annotated[
    str,
    option(
        MODEL,
        "A torchvision classification model, 'efficientnet_lite0' (1, 2; extra photos), or 'demo'.",
        "--model",
        "-m",
    ),
]
Weights = Annotated[
    str, option(MODEL, "'DEFAULT' or another set's name, 'none' (random) or a file.", "--weights", "-w")
]
Size = Annotated[str | None, option(MODEL, "Input size: shorter side or HEIGHTxWIDTH; default: the image's.", "--size")]
ProbabilityText = Annotated[
    Literal["softmax", "sigmoid"] | None,
    option(
        MODEL,
        "Scores: softmax, or sigmoid for several labels per image; default: the model's.",
        "--probability",
    ),
]
Seed = Annotated[str, option(CAM, "'auto', 'cam', 'grad-cam', 'layercam', or the layer for Grad-CAM.")]
Fuse = Annotated[Literal["mean", "max", "sum", "product"], option(CAM, "How to fuse the stages.")]
BoxThreshold = Annotated[str, option(MASKS, "Boxes: share of the map's maximum, or 'auto': each map's own.")]
Background = Annotated[
    str | None,
    option(MASKS, "Masks: background score, or 'auto': each image's own, by its CAMs; default: auto."),
]
BoxComponents = Annotated[Literal["largest", "all"], option(MASKS, "Boxes: which connected regions.")]
Stages = Annotated[str, option(CAM, "'auto', or module names separated by commas.")]
AffinityText = Annotated[
    str,
    option(
        CAM,
        "Pixel similarity: 'auto' (per stage, in linear time), or one for all, e.g. 'phi=relu' (PCM), "
        "'phi=shifted,shift=0.5' or 'power=2,center'.",
        "--affinity",
    ),
]
Device = Annotated[str, option(EXECUTION, "'auto', 'cpu', 'cuda', 'cuda:1', ...")]
Debug = Annotated[bool, option(EXECUTION, "Print tracebacks.", "--debug")]


def build(
    *,
    model: str,
    weights: str,
    device: str,
    stages: str,
    affinity: str,
    scales: str,
    probability: str | None = None,
    **options: Any,
) -> tuple[Classifier, SSA]:
    """Return the classifier and an ``SSA`` around it with the ``options``; ValueError if one is wrong."""
    from ssa_fast import SSA
    from ssa_fast.models import zoo

    options |= {"affinity": parse_affinity(affinity), "scales": parse_scales(scales), "stages": parse_stages(stages)}
    classifier = zoo.load(model, weights, device=_parse_device(device), probability=probability)
    if classifier.input_size and options["scales"] != (1.0,):
        raise ValueError("scales: {} takes images of {}x{} only; leave it out".format(model, *classifier.input_size))
    options |= {"names": classifier.categories, "probability": classifier.probability}
    return classifier, SSA(classifier.model, input_shape=classifier.input_size, **options)


def note_fixed_size(classifier: Classifier) -> None:
    """Say on stderr that the network takes images of one size only, if it does."""
    if classifier.input_size:
        only = "{}x{}".format(*classifier.input_size)
        line = f"notice: {classifier.name} takes {only} only; images are resized to it, outputs back to their size"
        console.err().print(line)


def parse_stages(text: str) -> str | list[str]:
    """Return ``--stages`` in the form that ``SSA`` takes."""
    return "auto" if text.strip() == "auto" else [name.strip() for name in text.split(",") if name.strip()]


def parse_affinity(text: str) -> Affinity | Literal["auto"]:
    """Return ``--affinity`` in the form that ``SSA`` takes; ValueError for anything else than "auto" or parameters."""
    from ssa_fast import Affinity

    return "auto" if text.strip() == "auto" else Affinity.parse(text)


def parse_scales(text: str) -> tuple[float, ...]:
    """Return ``--scales`` in the form that ``SSA`` takes; ValueError for anything else than factors > 0."""
    from ssa_fast.validation import check_scales

    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"scales: expected numbers separated by commas such as 0.5,1,1.5,2, got {text!r}") from None
    return check_scales(scales)


def parse_score(name: str, text: str) -> float | Literal["auto"]:
    """Return a threshold's text as a number or "auto"; ValueError for anything else."""
    try:
        return "auto" if text.strip() == "auto" else float(text)
    except ValueError:
        raise ValueError(f"{name}: expected a number in [0, 1] or 'auto', got {text!r}") from None


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
