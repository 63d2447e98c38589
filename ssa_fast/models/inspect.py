"""The info of a classifier: its stages, its seed, and the one forward that gives both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ssa_fast.models.extract import Features, LayerRef, extract_features
from ssa_fast.models.layer_selection import find_stages
from ssa_fast.models.seed_cam import Seed, cam_seed, find_seed, grad_cam_seed, layer_ref
from ssa_fast.models.trace import fixed_size, input_channels, trace_model, trace_size

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class ModelInfo:
    """What SSA needs to know of a network, learnt from one trial image of ``trace_size`` (H, W).

    ``stages``: name -> where the map comes from. ``signs``: name -> sign of the features on the trial image.
    ``fixed_size``: the only (H, W) the network says it takes, or None.
    """

    stages: dict[str, LayerRef]
    signs: dict[str, Literal["non-negative", "signed"]]
    seed: Seed
    num_classes: int
    in_channels: int
    trace_size: tuple[int, int]
    fixed_size: tuple[int, int] | None

    def forward(self, model: nn.Module, images: Tensor) -> Features:
        """One forward of (B, C, H, W) images: stage maps, seed map and logits."""
        sources = dict(self.stages)
        if self.seed.kind == "grad-cam":
            return extract_features(model, images, sources, gradient_from=self.seed.source)
        sources.setdefault(self.seed.layer, self.seed.source)
        return extract_features(model, images, sources)

    def seed_maps(self, model: nn.Module, extracted: Features, classes: Tensor) -> Tensor:
        """The seeds (B, K, h, w), float32 (float64 of a float64 model) and >= 0, of ``classes`` (B, K)."""
        if self.seed.kind == "cam":
            return cam_seed(model, self.seed, extracted, classes)
        return grad_cam_seed(self.seed, extracted, classes)


def inspect_model(
    model: nn.Module,
    *,
    stages: str | Sequence[str] = "auto",
    seed: str = "auto",
    input_size: int | tuple[int, int] | None = None,
) -> ModelInfo:
    """Finds the stages and the seed of a classification network, any ``nn.Module`` from images to logits.

    One forward of a random image shows the maps; a second, with a short backward, is needed for Grad-CAM. The model's
    modes, hooks, gradients and the global random state are left as they were.

    Args:
        model: takes (B, C, H, W), returns logits (B, num_classes) or an object whose ``logits`` they are.
        stages: "auto", or names as in ``model.named_modules()``.
        seed: "auto", "cam", "grad-cam", or the name of Grad-CAM's target layer.
        input_size: side or (H, W) of the trial image; by default the network's ``image_size``, else 224.

    Raises:
        TypeError: ``model`` is no ``nn.Module`` or returns no tensor.
        ValueError: the trial forward fails, a name is unknown or no map, or ``seed="cam"`` is not exact.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}; pass the network itself")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model: expected a network in Python, got TorchScript, whose layers call no hooks; pass the original"
        )
    trace = trace_model(model, trace_size(model, input_size))
    names = find_stages(model, trace, stages)
    with torch.inference_mode(False):
        found = find_seed(model, trace, names, seed)
    only = fixed_size(model)
    return ModelInfo(
        stages={name: layer_ref(trace.records[name]) for name in names},
        signs={name: "non-negative" if trace.records[name].non_negative else "signed" for name in names},
        seed=found,
        num_classes=trace.logits.shape[1],
        in_channels=input_channels(model),
        trace_size=trace.image_size,
        fixed_size=(only, only) if only else None,
    )
