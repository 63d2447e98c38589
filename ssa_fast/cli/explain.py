"""``ssa-fast explain``: the plan per stage of a network, with its cost and the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ssa_fast.cli import console
from ssa_fast.cli.options import (
    CAM,
    EXECUTION,
    AffinityText,
    Debug,
    Model,
    Stages,
    Weights,
    option,
    parse_affinity,
    parse_stages,
)
from ssa_fast.io.sizes import format_bytes

if TYPE_CHECKING:
    import torch

    from ssa_fast.models import ModelInfo
    from ssa_fast.ops.gpu_info import Gpu

COLUMNS = ("stage", "method", "GFLOP", "extra memory")


def command(
    model: Model = "resnet50",
    weights: Weights = "none",
    size: Annotated[str, typer.Option(help="Image size: the side of a square, or HEIGHTxWIDTH.")] = "512",
    classes_count: Annotated[int, option(CAM, "Number of CAM classes.", min=1)] = 1,
    affinity: AffinityText = "auto",
    stages: Stages = "auto",
    device: Annotated[Literal["cpu", "cuda"], option(EXECUTION, "Device to plan for.")] = "cpu",
    debug: Debug = False,
) -> None:
    """Show the plan per stage: affinity, method, backend, cost and reasons, beside the cost of the dense affinity.

    Nothing is computed at the requested size: the network is run on one small image, the rest follows from shapes.
    """
    with console.usage_errors(debug=debug):
        from ssa_fast import models
        from ssa_fast.models import zoo
        from ssa_fast.models.stage_affinity import affinity_reason, choose_affinities, sign_source
        from ssa_fast.ops.cost_model import Problem, cost
        from ssa_fast.ops.dispatch import plan

        asked = parse_affinity(affinity)
        side = zoo.parse_size(size)
        classifier = zoo.load(model, "DEFAULT" if model == "demo" else weights)
        height, width = (side, side) if isinstance(side, int) else side or (0, 0)
        if classifier.input_size and classifier.input_size != (height, width):
            height, width = classifier.input_size
            console.err().print(f"notice: {model} takes images of {height}x{width} only; the plan is for that size")
        info = models.inspect_model(classifier.model, stages=parse_stages(stages), input_shape=classifier.input_size)
        gpu, no_gpu = _find_gpu(device)
        where: dict[str, Any] = {"device": device, "gpu": gpu, "no_gpu": no_gpu}
        affinities, rows, reasons = choose_affinities(asked, info.signs), [], []
        for name, (_, C, h, w) in _stage_shapes(classifier.model, info, height, width).items():
            chosen, sign = affinities[name], info.signs[name]
            problem = Problem(1, classes_count, C, h * w, chosen, nonnegative=sign == "non-negative", **where)
            choice = plan(problem)
            flops = f"{_giga(choice.cost.flops)}\n{_giga(cost('dense', problem).flops)}"
            memory = [format_bytes(count) for count in (choice.cost.extra_memory, problem.L**2 * problem.itemsize)]
            rows.append((f"{name}\n{C} x {h} x {w}", f"{choice.method}\ndense L x L", flops, "\n".join(memory)))
            method = f"{choice.method} on {choice.backend}, {format_bytes(choice.cost.bytes_moved)} moved"
            known = sign_source(sign, info.stages[name].nonnegative_from is not None)
            why = f"{sign} features{known}: affinity {chosen} ({affinity_reason(asked, sign)})"
            reasons.append(f"{name}, {why}; {method}; {choice.why}")
    title = f"{model}, image {height} x {width}, K = {classes_count}, affinity {asked}, float32, {device}"
    screen = console.out()
    screen.print(console.table(title, COLUMNS, rows, right=COLUMNS[2:]))
    screen.print("\n".join(reasons), soft_wrap=True)


def _find_gpu(device: str) -> tuple[Gpu | None, str]:
    """Return the GPU to plan for, a default one on a machine without a GPU, or None and the reason."""
    import torch

    from ssa_fast.ops import gpu_info

    if device != "cuda":
        return None, "the plan is for the CPU"
    if torch.cuda.is_available():
        return gpu_info.query(torch.device("cuda"))
    console.err().print(f"notice: no GPU on this machine; the plan is for {gpu_info.DEFAULT_GPU.name}")
    return gpu_info.DEFAULT_GPU, ""


def _stage_shapes(model: Any, info: ModelInfo, height: int, width: int) -> dict[str, torch.Size]:
    """Return (1, C, h, w) per stage for an image of height × width; the model ends on the meta device."""
    import torch

    from ssa_fast.models.extract import extract_features

    try:
        images = torch.empty(1, info.in_channels, height, width, device="meta")
        maps = extract_features(model.to("meta"), images, info.stages).maps
    except RuntimeError as error:
        raise ValueError(f"size: the network cannot take an image of {height}x{width} ({error})") from error
    return {name: stage.shape for name, stage in maps.items()}


def _giga(count: int) -> str:
    value = count / 1e9
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
