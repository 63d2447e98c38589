"""`ssa-fast explain`: how each stage of a network would be polished at a size, what that takes, and why so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ssa_fast.cli import console
from ssa_fast.cli.options import Affinity_, Debug, Model, Stages, Weights, stage_names
from ssa_fast.io.sizes import format_bytes

if TYPE_CHECKING:
    from ssa_fast.models import ModelInfo
    from ssa_fast.ops.cost_model import Problem
    from ssa_fast.ops.dispatch import Choice
    from ssa_fast.ops.gpu_info import Gpu

__all__ = ["command", "stage_shapes"]

NUMBERS = ("C", "h x w", "L", "GFLOP", "moved", "peak extra", "dense: L x L", "dense: GFLOP")
COLUMNS = ("stage", "C", "h x w", "L", "path", "backend", *NUMBERS[3:])


def command(
    model: Model = "resnet50",
    weights: Weights = "none",
    size: Annotated[str, typer.Option(help="Side of a square picture, or HEIGHTxWIDTH.")] = "512",
    classes_count: Annotated[int, typer.Option(min=1, help="CAM classes K, polished at once.")] = 1,
    affinity: Affinity_ = "",
    stages: Stages = "auto",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Plan for the CPU, or for the GPU at hand.")] = "cpu",
    debug: Debug = False,
) -> None:
    """Show the plan per stage: path, backend, cost and why, and what the dense affinity would have taken.

    Nothing is computed at the size asked for: the network is tried on one small picture, the rest is shapes.
    """
    with console.usage_errors(debug=debug):
        from ssa_fast import Affinity, models
        from ssa_fast.models import zoo
        from ssa_fast.ops.cost_model import Problem
        from ssa_fast.ops.dispatch import plan

        chosen = Affinity.parse(affinity)
        side = zoo.parse_size(size)
        classifier = zoo.load(model, "DEFAULT" if model == "demo" else weights)
        height, width = (side, side) if isinstance(side, int) else side or (0, 0)
        if classifier.input_size and classifier.input_size != (height, width):
            height, width = classifier.input_size
            console.err().print(f"notice: {model} takes pictures of {height}x{width} only; that is planned for")
        info = models.inspect_model(classifier.model, stages=stage_names(stages), input_size=classifier.input_size)
        shapes = stage_shapes(classifier.model, info, height, width)
        gpu, no_gpu = _gpu(device)
        plans = {}
        for name, (channels, h, w) in shapes.items():
            positive = info.signs[name] == "non-negative"
            problem = Problem(
                1, classes_count, channels, h * w, chosen, nonnegative=positive, device=device, gpu=gpu, no_gpu=no_gpu
            )
            plans[name] = problem, plan(problem)
    title = f"{model}, picture {height} x {width}, K = {classes_count}, affinity {chosen}, float32, {device}"
    rows = [_row(name, shapes[name], *planned) for name, planned in plans.items()]
    screen = console.out()
    screen.print(console.table(title, COLUMNS, rows, right=NUMBERS))
    for name, (_, choice) in plans.items():
        screen.print(f"{name}, {info.signs[name]} features: {choice.method}, {choice.why}", soft_wrap=True)


def _gpu(device: str) -> tuple[Gpu | None, str]:
    """The GPU to plan for and why there is none; where the machine has no GPU, a large one, with a notice."""
    import torch

    from ssa_fast.ops import gpu_info

    if device != "cuda":
        return None, "the plan is for the CPU"
    if torch.cuda.is_available():
        return gpu_info.query(torch.device("cuda"))
    console.err().print(f"notice: no GPU here; that is planned for {gpu_info.DEFAULT_GPU.name}")
    return gpu_info.DEFAULT_GPU, ""


def stage_shapes(model: Any, info: ModelInfo, height: int, width: int) -> dict[str, tuple[int, int, int]]:
    """Name -> (C, h, w) of each stage for a picture of height × width, worked out without computing a number.

    The model is moved to torch's meta device, where tensors have shapes only: it is of no use afterwards.

    Raises:
        ValueError: the network cannot take pictures of that size.
    """
    import torch

    from ssa_fast.models.extract import extract_features

    try:
        pictures = torch.empty(1, info.in_channels, height, width, device="meta")
        maps = extract_features(model.to("meta"), pictures, info.stages).maps
    except RuntimeError as error:
        raise ValueError(f"size: the network cannot take a picture of {height}x{width} ({error})") from error
    return {name: (stage.shape[1], stage.shape[2], stage.shape[3]) for name, stage in maps.items()}


def _row(name: str, shape: tuple[int, int, int], problem: Problem, choice: Choice) -> tuple[str, ...]:
    from ssa_fast.ops.cost_model import cost

    channels, h, w = shape
    return (
        name,
        str(channels),
        f"{h} x {w}",
        f"{h * w:,}",
        choice.method,
        choice.backend,
        _giga(choice.cost.flops),
        format_bytes(choice.cost.bytes_moved),
        format_bytes(choice.cost.extra_memory),
        format_bytes((h * w) ** 2 * problem.itemsize),
        _giga(cost("dense", problem).flops),
    )


def _giga(count: int) -> str:
    value = count / 1e9
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
