"""Compute seed CAMs: from the classifier's own weights where that is exact, by Grad-CAM otherwise.

CAM (Zhou et al., CVPR 2016): with a head of global average pooling and one linear layer, the logit is
``mean(F) . W_k + b_k``, so ``relu(W_k . F)`` shows where it comes from (the bias, equal at all pixels, is left out).
Grad-CAM (Selvaraju et al., ICCV 2017): ``relu(sum_c mean(dy_k / dA_c) A_c)``.
Whether the CAM is exact is proved (``models.exact_cam``), never guessed from the model's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ssa_fast.models.exact_cam import find_exact_cam, find_head
from ssa_fast.models.extract import Features, extract_features
from ssa_fast.models.layer_selection import check_returns_map, is_normalisation
from ssa_fast.models.layout import find_first_tensor, float_tensors
from ssa_fast.models.module_kinds import check_gradient, head_weights
from ssa_fast.models.trace import ForwardTrace, LayerRef, hooked_inference, make_trace_image

if TYPE_CHECKING:
    from collections.abc import Sequence

# Layers whose gradient is computed in one pass: a transformer block returns about a dozen maps, each with its graph.
LAYERS_PER_PASS = 12
SATURATED = 1e-6  # distance from 0 or 1 at which a probability has no gradient to speak of


@dataclass(frozen=True)
class SeedRecipe:
    """Recipe of the seed CAM.

    Attributes:
        kind, ref: Formula of the CAM, the layer whose map it reads. "given" is none: every call brings its own.
        head: Name of the layer whose weights a CAM takes. None for Grad-CAM, and for a fully convolutional classifier,
            whose map holds the class scores.
    """

    kind: Literal["cam", "grad-cam", "given"]
    ref: LayerRef
    head: str | None = None

    @property
    def layer(self) -> str:
        """Name of the module whose output the seed is made from."""
        return self.ref.name


def select_seed(model: nn.Module, trace: ForwardTrace, stages: list[str], seed: str | None) -> SeedRecipe:
    """Return the seed for ``"auto"``, ``"cam"``, ``"grad-cam"``, or Grad-CAM at the named module; "given" for None."""
    if seed is None:
        return SeedRecipe("given", trace.maps[stages[-1]])
    if not isinstance(seed, str):
        raise TypeError(f'seed: expected "auto", "cam", "grad-cam" or a module name, got {type(seed).__name__}')
    if seed in ("auto", "cam"):
        found = find_exact_cam(model, trace, stages)
        if not isinstance(found, str):
            return SeedRecipe("cam", *found)
        if seed == "cam":
            raise ValueError(f'seed: expected a head for which a CAM is exact, but {found}; use seed="grad-cam"')
    check_gradient(model)
    if seed in ("auto", "grad-cam"):
        return SeedRecipe("grad-cam", _grad_cam_layer(model, trace, stages))
    check_returns_map(model, trace, seed, argument="seed")
    ref = trace.maps[seed]
    if trace.output.missing is None and not _layers_with_gradient(model, trace, [ref])[0]:
        raise ValueError(
            f"seed: expected a layer that the logits depend on, but their gradient at {seed!r} is zero on every pixel; "
            'name an earlier layer or use seed="auto"'
        )
    return SeedRecipe("grad-cam", ref)


def cam_seed(model: nn.Module, seed: SeedRecipe, extracted: Features, classes: Tensor) -> Tensor:
    """Return the seeds (B, K, h, w), float32 or float64, of ``classes``, a LongTensor (B, K)."""
    features = _at_least_float32(extracted.maps[seed.layer])
    if seed.head is None:
        index = classes[:, :, None, None].expand(-1, -1, *features.shape[-2:])
        return features.gather(1, index).relu()
    weight, _ = head_weights(model.get_submodule(seed.head))
    rows = weight[classes].to(features.dtype)  # (B, K, C)
    return torch.einsum("bkc,bchw->bkhw", rows, features).relu()


def grad_cam_seed(seed: SeedRecipe, extracted: Features, classes: Tensor) -> Tensor:
    """Return the seeds as ``cam_seed`` does, with one backward pass per class position, K in all."""
    with torch.enable_grad():
        values = extracted.logits.gather(1, classes).unbind(1)
    return target_seed(seed, extracted, values)


def target_seed(seed: SeedRecipe, extracted: Features, values: Sequence[Tensor]) -> Tensor:
    """Return the Grad-CAM seeds (B, K, h, w) of K values (B,) that were made from the model's output."""
    leaf = extracted.leaf
    if leaf is None:
        raise ValueError("extracted: expected a forward with gradient_from, got one without; pass the seed's ref")
    features = _at_least_float32(seed.ref.layout.view(leaf.detach(), extracted.image_size))
    with torch.enable_grad():
        scores = [each.sum() for each in values]  # in evaluation mode the images are independent
    seeds = []
    for k, score in enumerate(scores):
        more = k + 1 < len(scores)
        (gradient,) = torch.autograd.grad(score, leaf, retain_graph=more, allow_unused=True)
        if gradient is None:
            raise ValueError(
                f"targets: expected values that depend on the Grad-CAM layer {seed.layer!r}, but number {k} does not; "
                "name a layer before it with seed=..."
            )
        weights = seed.ref.layout.view(gradient, extracted.image_size).to(features.dtype).mean((2, 3))
        seeds.append(torch.einsum("bc,bchw->bhw", weights, features).relu())
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
        found, complete = _layers_with_gradient(model, trace, alike[max(0, end - LAYERS_PER_PASS) : end])
        best = found if complete else best or found
        if complete:
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


def _layers_with_gradient(model: nn.Module, trace: ForwardTrace, refs: list[LayerRef]) -> tuple[list[LayerRef], bool]:
    """Return the layers on whose maps the logits depend, by one forward and one backward pass, and whether any does.

    Without logits, those on which most of the returned tensors depend, by a backward pass each, and whether all do.
    """
    head = find_head(trace)
    outputs: dict[str, Tensor | None] = {}

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs[name] = args[0] if name == head else find_first_tensor(output)

    first, *later = refs
    names = [ref.name for ref in later] + ([head] if head else [])
    with hooked_inference(model, {name: partial(hook, name) for name in names}):
        image = make_trace_image(model, trace.image_size, trace.channels)
        extracted = extract_features(model, image, {}, gradient_from=first, logits=trace.output)
    # Start at the input of the head, because a head of zeros (as of a new ViT) would make the gradient zero.
    start = outputs.pop(head) if head else None
    ends = (
        [start] if start is not None else float_tensors(extracted.output if trace.output.missing else extracted.logits)
    )
    scores = [_score(end) for end in ends if end.requires_grad]
    outputs[first.name] = extracted.leaf
    tracked = {name: tensor for name, tensor in outputs.items() if tensor is not None and tensor.requires_grad}
    if not tracked or not scores:
        return [], False
    counts = dict.fromkeys(tracked, 0)  # of the ends that depend on the layer
    layouts = {ref.name: ref.layout for ref in refs}
    for score in scores:
        found = torch.autograd.grad(
            score, list(tracked.values()), retain_graph=score is not scores[-1], allow_unused=True
        )
        for name, gradient in zip(tracked, found, strict=True):
            if gradient is not None:
                counts[name] += bool(layouts[name].view(gradient, trace.image_size).any())
    most = max(counts.values())
    return [ref for ref in refs if most and counts.get(ref.name) == most], most == len(scores)
