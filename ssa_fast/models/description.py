"""What SSA finds in a network, told in one table row, and the same for every classifier that torchvision names."""

from __future__ import annotations

import difflib
import gc
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from ssa_fast.affinity import Affinity
from ssa_fast.api import polish
from ssa_fast.models.inspect import ModelInfo, inspect_model
from ssa_fast.models.trace import trace_image
from ssa_fast.ops.cost_model import Problem
from ssa_fast.ops.dispatch import plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True)
class StageDescription:
    """One stage on the trial image: its module, (C, H, W), the features' sign, and the method that polishes it."""

    name: str
    shape: tuple[int, int, int]
    sign: Literal["non-negative", "signed"]
    method: str


@dataclass(frozen=True)
class ModelDescription:
    """What SSA finds in a network on a random image of ``input_size`` (H, W)."""

    stages: tuple[StageDescription, ...]
    seed_kind: Literal["cam", "grad-cam"]
    seed_layer: str
    input_size: tuple[int, int]
    num_classes: int
    parameters: int


@dataclass(frozen=True)
class SweepRow:
    """One model of a sweep: its description, or the ``error`` it ended in; ``seconds`` taken, building included."""

    name: str
    description: ModelDescription | None
    error: str | None
    seconds: float


def describe(
    model: nn.Module,
    *,
    stages: str | Sequence[str] = "auto",
    seed: str = "auto",
    affinity: Affinity = Affinity(),  # noqa: B008 - frozen
    classes: int = 20,
    input_size: int | tuple[int, int] | None = None,
) -> ModelDescription:
    """Stages, sizes, signs, seed and methods of a classification network.

    Takes and raises what ``inspect_model`` does; ``affinity`` and the number of CAM ``classes`` decide the methods.
    """
    return _describe(model, inspect_model(model, stages=stages, seed=seed, input_size=input_size), affinity, classes)


def sweep(names: Sequence[str] | None = None) -> Iterator[SweepRow]:
    """Builds torchvision's classifiers one after the other, with random weights, and tries SSA on each.

    Args:
        names: models of ``torchvision.models``; default: all that ``list_models(module=torchvision.models)`` names.

    Yields:
        A row per model, as soon as it is done; a model that fails gives one with an error, and the sweep goes on. Only
        one model is in memory at a time; the largest, regnet_y_128gf and vit_h_14, take a few GB.

    Raises:
        ValueError: a name that torchvision does not know.
    """
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    unknown = [name for name in names or () if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=3) or known[:3]
        raise ValueError(
            f"names: expected classifiers of torchvision.models, got {unknown[0]!r}; name others, such as "
            f"{', '.join(close)}"
        )
    return (_row(name) for name in (known if names is None else names))


def light_half() -> list[str]:
    """The half of torchvision's classification models with fewer parameters, as its weights' meta data count them."""
    from torchvision import models

    known = models.list_models(module=models)
    size = {name: models.get_model_weights(name)["DEFAULT"].meta["num_params"] for name in known}
    return sorted(sorted(known, key=lambda name: size[name])[: len(known) // 2])


def _row(name: str) -> SweepRow:
    import torchvision

    began = time.perf_counter()
    description, error = None, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # GoogLeNet and Inception announce a change of initialisation
            model = torchvision.models.get_model(name, weights=None)
        info = inspect_model(model)
        _exercise(model, info)
        description = _describe(model, info, Affinity(), classes=20)
    except Exception as problem:  # one model's failure is a row of the table
        error = f"{type(problem).__name__}: {problem}"
    model = None
    gc.collect()
    return SweepRow(name, description, error, time.perf_counter() - began)


def _exercise(model: nn.Module, info: ModelInfo) -> None:
    """Seeds of two classes, polished in every stage; raises ArithmeticError unless all come out finite and >= 0."""
    image = trace_image(model, info.trace_size)
    extracted = info.forward(model, image)
    seeds = info.seed_maps(model, extracted, torch.tensor([[0, info.num_classes - 1]]))
    polished = {name: polish(seeds, extracted.maps[name]) for name in info.stages}
    for name, maps in {"seed": seeds, **polished}.items():
        if not bool((maps.isfinite() & (maps >= 0)).all()):
            raise ArithmeticError(f"{name}: expected finite numbers >= 0, got {maps.amin()} to {maps.amax()}")


def _describe(model: nn.Module, info: ModelInfo, affinity: Affinity, classes: int) -> ModelDescription:
    described = []
    for name, source in info.stages.items():
        channels, height, width = source.layout.shape
        sign = info.signs[name]
        problem = Problem(1, classes, channels, height * width, affinity, nonnegative=sign == "non-negative")
        described.append(StageDescription(name, source.layout.shape, sign, plan(problem).method))
    return ModelDescription(
        stages=tuple(described),
        seed_kind=info.seed.kind,
        seed_layer=info.seed.layer,
        input_size=info.trace_size,
        num_classes=info.num_classes,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
