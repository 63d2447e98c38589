"""Inspect a classifier: find its stages and its seed, and how each stage would be polished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ssa_fast.models.extract import Features, extract_features
from ssa_fast.models.input_shape import parse_input_shape, trace_sample
from ssa_fast.models.layer_selection import select_stages
from ssa_fast.models.seed_cam import SeedRecipe, cam_seed, grad_cam_seed, select_seed
from ssa_fast.models.stage_affinity import affinity_reason, choose_affinities
from ssa_fast.models.trace import LayerRef
from ssa_fast.ops.cost_model import Problem
from ssa_fast.ops.dispatch import plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssa_fast.affinity import Affinity
    from ssa_fast.models.input_shape import InputShape
    from ssa_fast.models.stage_affinity import Sign, StageAffinities


@dataclass(frozen=True)
class ModelInfo:
    """Stages and seed of a network, found on one sample image.

    Attributes:
        stages, signs: Stage name -> the layer that it is read from, the sign of its features on the sample image.
        seed: Recipe of the seed CAM.
        num_classes, in_channels: Number of logits, of an image's channels.
        trace_size: (H, W) of the sample image.
        fixed_size: The only (H, W) that the network accepts by its own account, or None.
        notes: What was assumed about the network, one sentence each.
    """

    stages: dict[str, LayerRef]
    signs: dict[str, Sign]
    seed: SeedRecipe
    num_classes: int
    in_channels: int
    trace_size: tuple[int, int]
    fixed_size: tuple[int, int] | None
    notes: tuple[str, ...] = ()

    def forward(self, model: nn.Module, images: Tensor) -> Features:
        """Run images (B, C, H, W) once; return the stages' maps, the seed's map and the logits."""
        if self.seed.kind == "grad-cam":
            return extract_features(model, images, self.stages, gradient_from=self.seed.ref)
        return extract_features(model, images, {**self.stages, self.seed.layer: self.seed.ref})

    def seed_maps(self, model: nn.Module, extracted: Features, classes: Tensor) -> Tensor:
        """Return the seeds (B, K, h, w), >= 0, of ``classes`` (B, K): float32, or float64 for a float64 model."""
        if self.seed.kind == "cam":
            return cam_seed(model, self.seed, extracted, classes)
        return grad_cam_seed(self.seed, extracted, classes)


@dataclass(frozen=True)
class StageDescription:
    """One stage on the sample image: module, (C, H, W), sign of the features, affinity and why, polishing method.

    ``proved`` says whether the features are non-negative by construction, on every image.
    """

    name: str
    shape: tuple[int, int, int]
    sign: Sign
    proved: bool
    affinity: Affinity
    why: str
    method: str


@dataclass(frozen=True)
class ModelDescription:
    """Summary of a network on a random sample image of ``input_size`` (H, W)."""

    stages: tuple[StageDescription, ...]
    seed_kind: Literal["cam", "grad-cam"]
    seed_layer: str
    input_size: tuple[int, int]
    num_classes: int
    parameters: int


def inspect_model(
    model: nn.Module,
    *,
    stages: str | Sequence[str] = "auto",
    seed: str = "auto",
    input_shape: InputShape = None,
) -> ModelInfo:
    """Find the stages and the seed of a classification network, any ``nn.Module`` from images to logits.

    This takes one forward pass of a random image; Grad-CAM takes a second one with a short backward pass. The model's
    modes, hooks and gradients and the global random state are restored.

    Args:
        model: Takes (B, C, H, W), returns logits (B, num_classes) or an object with ``logits``.
        stages: "auto", or names as in ``model.named_modules()``.
        seed: "auto", "cam", "grad-cam", or the name of Grad-CAM's target layer.
        input_size: Side or (H, W) of the sample image; by default the network's ``image_size``, else 224.

    Raises:
        TypeError: ``model`` is not an ``nn.Module`` or returns no tensor.
        ValueError: The forward pass fails, a module is unknown or returns no map, or ``seed="cam"`` is not exact.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}; pass the network itself")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model: expected a network in Python, got TorchScript, whose layers call no hooks; pass the original"
        )
    trace = trace_sample(model, parse_input_shape(input_shape))
    fixed_size = None
    names = select_stages(model, trace, stages)
    with torch.inference_mode(False):
        recipe = select_seed(model, trace, names, seed)
    return ModelInfo(
        stages={name: trace.maps[name] for name in names},
        signs={name: "non-negative" if trace.layers[name].non_negative else "signed" for name in names},
        seed=recipe,
        num_classes=trace.logits.shape[1],
        in_channels=trace.channels,
        trace_size=trace.image_size,
        fixed_size=fixed_size,
    )


def describe(
    model: nn.Module,
    *,
    stages: str | Sequence[str] = "auto",
    seed: str = "auto",
    affinity: StageAffinities = "auto",
    classes: int = 20,
    input_shape: InputShape = None,
) -> ModelDescription:
    """Describe the stages, sizes, signs, affinities, methods and seed of a classification network.

    Takes and raises what ``inspect_model`` does; ``affinity``, as ``SSA`` takes it, and the number of CAM ``classes``
    decide the methods.
    """
    info = inspect_model(model, stages=stages, seed=seed, input_shape=input_shape)
    described = []
    for name, chosen in choose_affinities(affinity, info.signs).items():
        layout, sign = info.stages[name].layout, info.signs[name]
        problem = Problem(1, classes, layout.channels, layout.pixels, chosen, nonnegative=sign == "non-negative")
        why, method = affinity_reason(affinity, sign), plan(problem).method
        proved = info.stages[name].nonnegative_from is not None
        described.append(StageDescription(name, layout.shape, sign, proved, chosen, why, method))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    seed_kind, seed_layer = info.seed.kind, info.seed.layer
    return ModelDescription(tuple(described), seed_kind, seed_layer, info.trace_size, info.num_classes, parameters)
