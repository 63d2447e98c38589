"""Inspect a classifier: find its stages and its seed, and how each stage would be polished."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ssa_fast.models.batch_trial import try_batch
from ssa_fast.models.extract import Features, extract_features
from ssa_fast.models.geometry import try_other_sizes
from ssa_fast.models.input_shape import parse_input_shape, trace_sample
from ssa_fast.models.layer_selection import select_stages
from ssa_fast.models.module_kinds import check_modules
from ssa_fast.models.seed_cam import SeedKind, SeedRecipe, cam_seed, class_seed, select_seed
from ssa_fast.models.stage_affinity import affinity_reason, choose_affinities
from ssa_fast.ops.cost_model import Problem
from ssa_fast.ops.dispatch import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ssa_fast.affinity import Affinity
    from ssa_fast.layouts import Size
    from ssa_fast.models.geometry import Geometry
    from ssa_fast.models.input_shape import InputShape
    from ssa_fast.models.layout import Window
    from ssa_fast.models.outputs import Logits, LogitsRef
    from ssa_fast.models.stage_affinity import Sign, StageAffinities
    from ssa_fast.models.trace import ForwardTrace, LayerRef


@dataclass(frozen=True)
class ModelInfo:
    """Stages and seed of a network, found on one sample image.

    Attributes:
        stages, signs: Stage name -> the layer that it is read from, the sign of its features on the sample image.
        seed: Recipe of the seed CAM.
        num_classes, in_channels: Number of logits (0 if there are none), of an image's channels.
        trace_size: (H, W) of the sample image, (D, H, W) of the sample of a network of volumes.
        fixed_size: The only such size that the network was found to accept, or None.
        window: (H, W) of an image -> the (top, left, bottom, right) that the maps cover; None: the whole.
        output: Where the logits are in what the network returns.
        takes_one: Whether the network takes one image per call only.
        notes: What was assumed about the network, one sentence each.
    """

    stages: dict[str, LayerRef]
    signs: dict[str, Sign]
    seed: SeedRecipe
    num_classes: int
    in_channels: int
    trace_size: Size
    fixed_size: Size | None
    window: Callable[[int, int], Window] | None
    output: LogitsRef
    takes_one: bool = False
    notes: tuple[str, ...] = ()

    @property
    def dims(self) -> int:
        """2 for a network of images, 3 for one of volumes."""
        return len(self.trace_size)

    @property
    def no_logits(self) -> str | None:
        """Why what the network returns holds no logits; None if it does."""
        return self.output.missing

    def forward(
        self, model: nn.Module, images: Tensor, until: Literal["stages", "seed", "gradient"] = "seed"
    ) -> Features:
        """Run images (B, C, H, W) once; return the stages' maps, the output and the logits.

        ``until`` "seed", also what the seed of a class needs; "gradient", a graph from the seed's layers to the output.
        """
        if self.takes_one and len(images) > 1:
            raise ValueError(
                f"images: expected one, as the model failed with two at once, got {len(images)}; pass them one by one"
            )
        seed, refs = self.seed, self.stages
        layers = {ref.name: ref for ref in seed.refs}
        if until == "gradient" or (until == "seed" and seed.kind in ("grad-cam", "layercam")):
            return extract_features(model, images, refs, gradients_of=layers, logits=self.output)
        if until == "seed" and seed.kind == "cam":
            refs = {**refs, **layers}
        return extract_features(model, images, refs, logits=self.output)

    def seed_maps(self, model: nn.Module, extracted: Features, classes: Tensor, align_corners: bool = False) -> Tensor:
        """Return the seeds (B, K, h, w), >= 0, of ``classes`` (B, K): float32, or float64 for a float64 model.

        LayerCAM resizes its layers' maps with ``align_corners``.
        """
        if self.seed.kind == "cam":
            return cam_seed(model, self.seed, extracted, classes)
        return class_seed(self.seed, extracted, classes, align_corners)


@dataclass(frozen=True)
class StageDescription:
    """One stage on the sample image: module, (C, [D,] H, W), sign of the features, affinity and why, polishing method.

    ``proved`` says whether the features are non-negative by construction, on every image.
    """

    name: str
    shape: tuple[int, ...]
    sign: Sign
    proved: bool
    affinity: Affinity
    why: str
    method: str


@dataclass(frozen=True)
class ModelDescription:
    """Summary of a network on a random sample image of ``input_size`` (H, W), or volume (D, H, W)."""

    stages: tuple[StageDescription, ...]
    seed_kind: SeedKind
    seed_layer: str
    input_size: Size
    num_classes: int
    parameters: int
    notes: tuple[str, ...] = ()


def inspect_model(
    model: nn.Module,
    *,
    stages: str | Sequence[str] = "auto",
    seed: str | None = "auto",
    input_shape: InputShape = None,
    geometry: Geometry = None,
    logits: Logits = None,
) -> ModelInfo:
    """Find the stages and the seed of a classification network, any ``nn.Module`` from images to logits.

    This takes a forward pass of a random image; two of half of it, which show whether other sizes are accepted and
    where in the maps a change of the image is found; and two of a small image, alone and beside another, which show
    whether results depend on the batch. Grad-CAM and LayerCAM take one more with a backward pass. The model's modes,
    hooks and gradients and the global random state are restored.

    Args:
        model: Takes (B, C, H, W), or (B, C, D, H, W) if all its convolutions are 3-D; returns logits (B, num_classes)
            or an object with ``logits``, or anything else, for which there is Grad-CAM of targets only.
        stages: "auto", or names as in ``model.named_modules()``.
        seed: "auto", "cam", "grad-cam", "layercam", or the name of Grad-CAM's target layer; None to look for none.
        input_shape: (C, H, W), (H, W) or a side of the sample image, or a preprocessor's sizes; by default what the
            network and its configuration name (``image_size``, timm's ``pretrained_cfg``), else 224. (C, D, H, W) of a
            volume; by default a clip of 16 × 112 × 112, or what else the network takes.
        geometry: What forward does to images before the backbone: "resize", "center-crop", "pad", "pad-end" (see
            ``models.geometry``), or a function from (H, W) to the (top, left, bottom, right) that the maps cover, in
            pixels of the image. None: measured. Volumes have to be covered as a whole.
        logits: Where they are in what the network returns, if not by evidence: an index, a key or attribute, or a
            function of the output.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
        ValueError: The forward pass fails, a module is unknown or returns no map, ``seed="cam"`` is not exact, or the
            maps do not follow the image.
    """
    check_modules(model)
    trace = trace_sample(model, parse_input_shape(input_shape), logits)
    try:
        names = select_stages(model, trace, stages)
        with torch.inference_mode(False):
            recipe = select_seed(model, trace, names, seed)
    except ValueError as error:
        if trace.output.missing is None:
            raise
        raise ValueError(f"{trace.output.missing}; or, for targets= and cam=, {error}") from error
    refs = {name: trace.maps[name] for name in names}
    sizes = try_other_sizes(
        model, {**refs, **{ref.name: ref for ref in recipe.refs}}, trace.image_size, trace.channels, geometry
    )
    batch = try_batch(model, trace, names)
    return ModelInfo(
        stages={name: sizes.adapt(ref) for name, ref in refs.items()},
        signs={name: "non-negative" if trace.layers[name].non_negative else "signed" for name in names},
        seed=replace(recipe, refs=tuple(map(sizes.adapt, recipe.refs))),
        num_classes=trace.logits.shape[1],
        in_channels=trace.channels,
        trace_size=trace.image_size,
        fixed_size=sizes.fixed_size,
        window=sizes.window,
        output=trace.output,
        takes_one=batch.takes_one,
        notes=(*_depth_note(trace, names), *sizes.notes, *trace.output.notes, *batch.notes),
    )


def _depth_note(trace: ForwardTrace, names: Sequence[str]) -> list[str]:
    """Return a note if all stages lie at the beginning of the network, as those of a patch embedding do."""
    last = max(names, key=lambda name: trace.spans[name][1])
    share = trace.spans[last][1] / trace.called
    if share >= 0.1:
        return []
    return [
        f"stages: the last stage, {last!r}, lies in the first {math.ceil(100 * share)} % of the network; "
        "name later modules with stages=[...]"
    ]


def describe(
    model: nn.Module,
    *,
    stages: str | Sequence[str] = "auto",
    seed: str = "auto",
    affinity: StageAffinities = "auto",
    classes: int = 20,
    input_shape: InputShape = None,
    geometry: Geometry = None,
    logits: Logits = None,
) -> ModelDescription:
    """Describe the stages, sizes, signs, affinities, methods and seed of a classification network.

    Takes and raises what ``inspect_model`` does; ``affinity``, as ``SSA`` takes it, and the number of CAM ``classes``
    decide the methods.
    """
    info = inspect_model(model, stages=stages, seed=seed, input_shape=input_shape, geometry=geometry, logits=logits)
    if info.no_logits is not None:
        raise ValueError(info.no_logits)
    described = []
    for name, chosen in choose_affinities(affinity, info.signs).items():
        layout, sign = info.stages[name].layout, info.signs[name]
        problem = Problem(1, classes, layout.channels, layout.pixels, chosen, nonnegative=sign == "non-negative")
        why, method = affinity_reason(affinity, sign), plan(problem).method
        proved = info.stages[name].nonnegative_from is not None
        described.append(StageDescription(name, layout.shape, sign, proved, chosen, why, method))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    seed_kind, seed_layer = info.seed.kind, info.seed.layer
    size, classes, notes = info.trace_size, info.num_classes, info.notes
    return ModelDescription(tuple(described), seed_kind, seed_layer, size, classes, parameters, notes)
