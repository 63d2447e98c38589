"""Compute seed CAMs: from the classifier's own weights where that is exact, by gradients otherwise.

CAM (Zhou et al., CVPR 2016): with a head of global average pooling and one linear layer, the logit is
``mean(F) . W_k + b_k``, so ``relu(W_k . F)`` shows where it comes from (the bias, equal at all pixels, is left out).
Grad-CAM (Selvaraju et al., ICCV 2017): ``relu(sum_c mean(dy_k / dA_c) A_c)``.
LayerCAM, over the stages: ``models.layercam``.
Whether the CAM is exact is proved (``models.exact_cam``), never guessed from the model's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ssa_fast.models.exact_cam import find_exact_cam, find_head
from ssa_fast.models.extract import Features, extract_features
from ssa_fast.models.layer_selection import check_returns_map, is_normalisation
from ssa_fast.models.layercam import HALF_SCALE, iter_batched_gradients, iter_gradients, layercam
from ssa_fast.models.layout import float_tensors
from ssa_fast.models.module_kinds import check_gradient, head_weights
from ssa_fast.models.trace import ForwardTrace, LayerRef, hooked_inference, make_trace_image

if TYPE_CHECKING:
    from collections.abc import Sequence

# Layers whose gradient is computed in one pass: a transformer block returns about a dozen maps, each with its graph.
LAYERS_PER_PASS = 12
SeedKind: TypeAlias = Literal["cam", "grad-cam", "layercam", "given"]
TITLES = {"layercam": "LayerCAM"}  # in messages; Grad-CAM for others
SATURATED = 1e-6  # distance from 0 or 1 at which a probability has no gradient to speak of


@dataclass(frozen=True)
class SeedRecipe:
    """Recipe of the seed CAM.

    Attributes:
        kind: Formula of the CAM. "given" is none: every call brings its own.
        refs: The layers whose maps it reads, in the order of their calls: one, LayerCAM's several.
        head: Name of the layer whose weights a CAM takes. None for the others, and for a fully convolutional
            classifier, whose map holds the class scores.
    """

    kind: SeedKind
    refs: tuple[LayerRef, ...]
    head: str | None = None

    @property
    def ref(self) -> LayerRef:
        """The last layer."""
        return self.refs[-1]

    @property
    def layer(self) -> str:
        """Name of the module whose output the seed is made from, LayerCAM's separated by commas."""
        return ", ".join(ref.name for ref in self.refs)


def select_seed(model: nn.Module, trace: ForwardTrace, stages: list[str], seed: str | None) -> SeedRecipe:
    """Return the seed for "auto", "cam", "grad-cam", "layercam", or Grad-CAM's module; "given" for None."""
    if seed is None:
        return SeedRecipe("given", (trace.maps[stages[-1]],))
    if not isinstance(seed, str):
        raise TypeError(
            f'seed: expected "auto", "cam", "grad-cam", "layercam" or a module name, got {type(seed).__name__}'
        )
    if seed in ("auto", "cam"):
        found = find_exact_cam(model, trace, stages)
        if not isinstance(found, str):
            return SeedRecipe("cam", found[:1], found[1])
        if seed == "cam":
            raise ValueError(f'seed: expected a head for which a CAM is exact, but {found}; use seed="grad-cam"')
    check_gradient(model)
    if seed in ("auto", "grad-cam"):
        return SeedRecipe("grad-cam", (_grad_cam_layer(model, trace, stages),))
    if seed == "layercam":
        return SeedRecipe("layercam", _layercam_layers(model, trace, stages))
    check_returns_map(model, trace, seed, argument="seed")
    ref = trace.maps[seed]
    if trace.output.missing is None and not _count_dependents(model, trace, [ref])[0][ref.name]:
        raise ValueError(
            f"seed: expected a layer that the logits depend on, but their gradient at {seed!r} is zero on every pixel; "
            'name an earlier layer or use seed="auto"'
        )
    return SeedRecipe("grad-cam", (ref,))


def cam_seed(model: nn.Module, seed: SeedRecipe, extracted: Features, classes: Tensor) -> Tensor:
    """Return the seeds (B, K, h, w), of volumes (B, K, d, h, w), float32 or float64, of ``classes`` (B, K)."""
    features = _at_least_float32(extracted.maps[seed.layer])
    if seed.head is None:
        sides = features.shape[2:]
        index = classes.view(*classes.shape, *(1 for _ in sides)).expand(-1, -1, *sides)
        return features.gather(1, index).relu()
    weight, _ = head_weights(model.get_submodule(seed.head))
    rows = weight[classes].to(features.dtype)  # (B, K, C)
    return torch.einsum("bkc,bc...->bk...", rows, features).relu()


def class_seed(seed: SeedRecipe, extracted: Features, classes: Tensor, align_corners: bool) -> Tensor:
    """Return the seeds as ``cam_seed`` does, by gradients of the logits: K backward passes, LayerCAM on a GPU fewer."""
    with torch.enable_grad():
        values = extracted.logits.gather(1, classes).unbind(1)
    batched = seed.kind == "layercam" and len(values) > 1 and classes.device.type != "cpu"
    return gradient_seed(seed, extracted, values, align_corners, batched=batched)


def gradient_seed(
    seed: SeedRecipe, extracted: Features, values: Sequence[Tensor], align_corners: bool, *, batched: bool = False
) -> Tensor:
    """Return the Grad-CAM or LayerCAM seeds (B, K, h, w) of K values (B,) that were made from the model's output.

    ``extracted`` has the gradients of the seed's layers; ``align_corners`` is that of LayerCAM's resizing.
    """
    size, layouts = extracted.image_size, [ref.layout for ref in seed.refs]
    leaves = [extracted.leaves[ref.name] for ref in seed.refs]
    features = [
        _at_least_float32(layout.view(leaf.detach(), size)) for layout, leaf in zip(layouts, leaves, strict=True)
    ]
    half = seed.kind == "layercam" and any(leaf.dtype == torch.float16 for leaf in leaves)
    with torch.enable_grad():  # in evaluation mode the images are independent
        scores = [each.sum() * HALF_SCALE if half else each.sum() for each in values]
    seeds = []
    for k, found in enumerate((iter_batched_gradients if batched else iter_gradients)(scores, leaves)):
        if all(each is None for each in found):
            raise ValueError(
                f"targets: expected values that depend on the {TITLES.get(seed.kind, 'Grad-CAM')} layer "
                f"{seed.layer!r}, but number {k} does not; name a layer before it with seed=..."
            )
        gradients = [g if g is None else layout.view(g, size) for layout, g in zip(layouts, found, strict=True)]
        if seed.kind == "layercam":
            seeds.append(layercam(features, gradients, align_corners))
        elif gradients[0] is not None:
            weights = gradients[0].to(features[0].dtype).mean(tuple(range(2, features[0].ndim)))
            seeds.append(torch.einsum("bc,bc...->b...", weights, features[0]).relu())
    return torch.stack(seeds, 1)


def _at_least_float32(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _score(end: Tensor) -> Tensor:
    """Return a scalar that changes with each element; a plain sum of probabilities is constant."""
    values = end.float().abs().flatten()
    return values @ torch.linspace(1, 2, len(values), device=values.device)


def _grad_cam_layer(model: nn.Module, trace: ForwardTrace, stages: list[str]) -> LayerRef:
    """Return the last stage or, if its gradient is zero, the last map of its shape with a gradient.

    If the head reads the class token alone (ViT), the patches after the last block have none. The layer is then that
    block's first normalisation, the target that pytorch-grad-cam recommends.
    """
    refs = list(trace.maps.values())
    while refs[-1].name not in stages:
        refs.pop()
    last = refs[-1]
    alike = [ref for ref in refs if ref.layout.shape == last.layout.shape]
    best: list[LayerRef] = []
    for end in range(len(alike), 0, -LAYERS_PER_PASS):
        counts, ends = _count_dependents(model, trace, alike[max(0, end - LAYERS_PER_PASS) : end])
        most = max(counts.values())
        found = [ref for ref in alike if most and counts.get(ref.name) == most]
        best = found if most == ends else best or found
        if most == ends:
            break
    if best:
        norms = [ref for ref in best if is_normalisation(model.get_submodule(ref.name))]
        return best[-1] if best[-1].name == last.name or not norms else norms[-1]
    raise ValueError(
        f"seed: expected a layer that the logits depend on, but the gradient is zero at {last.name!r} and at every map "
        f"of its shape before it; {_advise_without_gradient(trace)}"
    )


def _advise_without_gradient(trace: ForwardTrace) -> str:
    """Return what to do about a gradient of zero, by its likely reason."""
    logits = trace.logits
    if trace.output.missing:
        return "name the Grad-CAM layer"
    if not bool(logits.any()):
        return (
            "all logits of an image alone are 0, as where the mean of the batch is subtracted: return them before that"
        )
    if bool(((logits - logits.round()).abs() < SATURATED).all()) and 0 <= logits.amin() <= logits.amax() <= 1:
        return "the outputs are probabilities of 0 or 1: let the model return the values before them, and pass logits="
    return "name the Grad-CAM layer"


def _layercam_layers(model: nn.Module, trace: ForwardTrace, stages: list[str]) -> tuple[LayerRef, ...]:
    """Return the stages that the logits depend on; in place of a last one without gradient, Grad-CAM's layer."""
    refs = [ref for ref in trace.maps.values() if ref.name in stages]
    try:
        counts, _ = _count_dependents(model, trace, refs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"seed: expected a network through which gradients reach the first stage, {refs[0].name!r}, but the "
            f'backward pass failed ({error}); name later stages, or use seed="grad-cam"'
        ) from error
    found = [ref for ref in refs if counts[ref.name]]
    if refs[-1] in found:
        return tuple(found)
    return tuple(dict.fromkeys([*found, _grad_cam_layer(model, trace, stages)]))


def _count_dependents(model: nn.Module, trace: ForwardTrace, refs: list[LayerRef]) -> tuple[dict[str, int], int]:
    """Return how many of the ends depend on each layer, and the number of ends.

    The end is the logits, by one forward and one backward pass. Without logits, the ends are the returned tensors, by a
    backward pass each.
    """
    head = find_head(trace)
    inputs: list[Tensor] = []  # of the head

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        inputs.append(args[0])

    with hooked_inference(model, {head: hook} if head else {}):
        image = make_trace_image(model, trace.image_size, trace.channels)
        extracted = extract_features(
            model, image, {}, gradients_of={ref.name: ref for ref in refs}, logits=trace.output
        )
    # Start at the input of the head, because a head of zeros (as of a new ViT) would make the gradient zero.
    ends = inputs[-1:] or (float_tensors(extracted.output) if trace.output.missing else [extracted.logits])
    scores = [_score(end) for end in ends if end.requires_grad]
    counts = {ref.name: 0 for ref in refs}
    for found in iter_gradients(scores, [extracted.leaves[ref.name] for ref in refs]):
        for ref, gradient in zip(refs, found, strict=True):
            if gradient is not None:
                counts[ref.name] += bool(ref.layout.view(gradient, trace.image_size).any())
    return counts, len(scores)
