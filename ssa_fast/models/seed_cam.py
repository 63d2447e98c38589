"""Compute seed CAMs: from the classifier's own weights where that is exact, by Grad-CAM otherwise.

CAM (Zhou et al., CVPR 2016): with a head of global average pooling and one linear layer, the logit is
``mean(F) . W_k + b_k``, so ``relu(W_k . F)`` shows where it comes from (the bias, equal at all pixels, is left out).
Grad-CAM (Selvaraju et al., ICCV 2017): ``relu(sum_c mean(dy_k / dA_c) A_c)``.
Whether the CAM is exact is verified on the numbers of the traced sample image, never guessed from the model's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ssa_fast.models.extract import Features, extract_features
from ssa_fast.models.layer_selection import check_returns_map, is_normalisation
from ssa_fast.models.layout import find_first_tensor
from ssa_fast.models.trace import ForwardTrace, LayerRef, hooked_inference, make_trace_image

# Layers whose gradient is computed in one pass: a transformer block returns about a dozen maps, each with its graph.
LAYERS_PER_PASS = 12


@dataclass(frozen=True)
class SeedRecipe:
    """Recipe of the seed CAM.

    Attributes:
        kind, ref: Formula of the CAM, the layer whose map it reads.
        head: Name of the layer whose weights a CAM takes. None for Grad-CAM, and for a fully convolutional classifier,
            whose map holds the class scores.
    """

    kind: Literal["cam", "grad-cam"]
    ref: LayerRef
    head: str | None = None

    @property
    def layer(self) -> str:
        """Name of the module whose output the seed is made from."""
        return self.ref.name


def select_seed(model: nn.Module, trace: ForwardTrace, stages: list[str], seed: str) -> SeedRecipe:
    """Return the seed for ``"auto"``, ``"cam"``, ``"grad-cam"``, or Grad-CAM at the named module."""
    if not isinstance(seed, str):
        raise TypeError(f'seed: expected "auto", "cam", "grad-cam" or a module name, got {type(seed).__name__}')
    if seed in ("auto", "cam"):
        found = _exact_cam(trace, stages)
        if isinstance(found, SeedRecipe):
            return found
        if seed == "cam":
            raise ValueError(f'seed: expected a head for which a CAM is exact, but {found}; use seed="grad-cam"')
    if seed in ("auto", "grad-cam"):
        return SeedRecipe("grad-cam", _grad_cam_layer(model, trace, stages))
    check_returns_map(model, trace, seed, argument="seed")
    ref = trace.maps[seed]
    if not _layers_with_gradient(model, trace, [ref]):
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
    weight = cast("nn.Linear | nn.Conv2d", model.get_submodule(seed.head)).weight
    rows = weight.detach().flatten(1)[classes].to(features.dtype)  # (B, K, C)
    return torch.einsum("bkc,bchw->bkhw", rows, features).relu()


def grad_cam_seed(seed: SeedRecipe, extracted: Features, classes: Tensor) -> Tensor:
    """Return the seeds as ``cam_seed`` does, with one backward pass per class position, K in all."""
    leaf = extracted.leaf
    if leaf is None:
        raise ValueError("extracted: expected a forward with gradient_from, got one without; pass the seed's ref")
    features = _at_least_float32(seed.ref.layout.view(leaf.detach(), extracted.image_size))
    with torch.enable_grad():
        # In evaluation mode the images are independent, so their scores can be summed.
        scores = extracted.logits.gather(1, classes).sum(0).unbind()
    seeds = []
    for k, score in enumerate(scores):
        (gradient,) = torch.autograd.grad(score, leaf, retain_graph=k + 1 < len(scores))
        weights = seed.ref.layout.view(gradient, extracted.image_size).to(features.dtype).mean((2, 3))
        seeds.append(torch.einsum("bc,bchw->bhw", weights, features).relu())
    return torch.stack(seeds, 1)


def _at_least_float32(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _exact_cam(trace: ForwardTrace, stages: list[str]) -> SeedRecipe | str:
    """Return a seed whose pooled map and head give the traced logits, or why there is none."""
    usable = [ref for ref in reversed(trace.maps.values()) if ref.layout.pixels > 1 and not ref.needs_copy]
    usable.sort(key=lambda ref: ref.name not in stages)  # if one map has several names, prefer that of a stage
    maps = (ref.layout.view(trace.layers[ref.name].tensor, trace.image_size) for ref in usable)
    means = [features.float().mean((2, 3)) for features in maps]

    def find_mean(values: Tensor) -> LayerRef | None:
        return next((ref for ref, mean in zip(usable, means, strict=True) if _equal(mean, values)), None)

    ref, head = find_mean(trace.logits), None
    if ref is None:
        head = _find_head(trace)
        if head is None:
            return "the logits are neither the output of a linear layer nor the mean of a map"
        ref = find_mean(trace.linear_inputs[head].flatten(1))
    if ref is None:
        return f"the input of its last linear layer, {head!r}, is not the mean of a map over its pixels"
    return SeedRecipe("cam", ref, head)


def _find_head(trace: ForwardTrace) -> str | None:
    """Return the name of the linear layer whose output, unchanged, is the logits; None if there is none."""
    for name in reversed(trace.linear_inputs):
        layer, logits = trace.layers[name], trace.logits
        if layer.modified_inplace or layer.tensor.numel() != logits.numel():
            continue
        if torch.equal(layer.tensor.reshape_as(logits), logits):
            return name
    return None


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    tolerance = max(1e-4, 2 * torch.finfo(b.dtype).eps)
    scale = b.float().abs().max()
    return bool(scale > 0 and ((a.float() - b.float()).abs() <= tolerance * scale).all())


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
    for end in range(len(alike), 0, -LAYERS_PER_PASS):
        found = _layers_with_gradient(model, trace, alike[max(0, end - LAYERS_PER_PASS) : end])
        if found:
            norms = [ref for ref in found if is_normalisation(model.get_submodule(ref.name))]
            return found[-1] if found[-1].name == last.name or not norms else norms[-1]
    raise ValueError(
        f"seed: expected a layer that the logits depend on, but the gradient is zero at {last.name!r} and at every map "
        "of its shape before it; name the Grad-CAM layer"
    )


def _layers_with_gradient(model: nn.Module, trace: ForwardTrace, refs: list[LayerRef]) -> list[LayerRef]:
    """Return the layers on whose maps the logits depend, by one forward and one backward pass."""
    head = _find_head(trace)
    outputs: dict[str, Tensor | None] = {}

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs[name] = args[0] if name == head else find_first_tensor(output)

    first, *later = refs
    names = [ref.name for ref in later] + ([head] if head else [])
    with hooked_inference(model, {name: partial(hook, name) for name in names}):
        image = make_trace_image(model, trace.image_size, trace.channels)
        extracted = extract_features(model, image, {}, gradient_from=first)
    # Start at the input of the head, because a head of zeros (as of a new ViT) would make the gradient zero.
    start = outputs.pop(head) if head else None
    score = (extracted.logits if start is None else start).float().abs().sum()
    outputs[first.name] = extracted.leaf
    tracked = {name: tensor for name, tensor in outputs.items() if tensor is not None and tensor.requires_grad}
    if not tracked or not score.requires_grad:
        return []
    found = torch.autograd.grad(score, list(tracked.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(tracked, found, strict=True) if gradient is not None}
    known = [ref for ref in refs if ref.name in gradients]
    return [ref for ref in known if ref.layout.view(gradients[ref.name], trace.image_size).any()]
