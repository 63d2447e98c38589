"""Seed CAMs: the classifier's own weights where the head allows it, Grad-CAM otherwise.

CAM (Zhou et al., CVPR 2016): with a head of global average pooling and one linear layer, the logit is
``mean(F) . W_k + b_k``, so ``relu(W_k . F)`` shows where it comes from (the bias, the same everywhere, is left out).
Grad-CAM (Selvaraju et al., ICCV 2017): ``relu(sum_c mean(dy_k / dA_c) A_c)``.
Whether the head is of the first kind is not read from the model's name but shown by the trial image's numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from ssa_fast.models.extract import Features, LayerRef, extract_features
from ssa_fast.models.layer_selection import check_map_module
from ssa_fast.models.layout import first_tensor
from ssa_fast.models.trace import ForwardTrace, LayerTrace, hooked, trace_image

if TYPE_CHECKING:
    from collections.abc import Callable

# Maps asked for their gradient in one forward: a transformer block returns about a dozen, and each keeps its graph.
WINDOW = 12


@dataclass(frozen=True)
class Seed:
    """How seeds are made: ``kind`` of CAM, the map it reads, and the ``head`` whose weights it takes.

    A CAM without a head is a fully convolutional one: the map holds the class scores themselves.
    """

    kind: Literal["cam", "grad-cam"]
    source: LayerRef
    head: str | None = None

    @property
    def layer(self) -> str:
        """Name of the module whose output the seed is made from."""
        return self.source.name


def layer_ref(record: LayerTrace) -> LayerRef:
    """What a forward needs to know of a module seen in the trace."""
    if record.layout is None:
        raise ValueError(f"{record.name}: expected a map, got shape {tuple(record.tensor.shape)}")
    return LayerRef(record.name, record.layout, record.modified_inplace, record.relu_inplace)


def find_seed(model: nn.Module, trace: ForwardTrace, stages: list[str], seed: str) -> Seed:
    """The seed for ``"auto"``, ``"cam"``, ``"grad-cam"`` or Grad-CAM at the named module.

    Raises ValueError if a CAM is asked for where it is not exact, with the reason, for an unknown name, or for a layer
    that the logits do not depend on.
    """
    if not isinstance(seed, str):
        raise TypeError(f'seed: expected "auto", "cam", "grad-cam" or a module name, got {type(seed).__name__}')
    if seed in ("auto", "cam"):
        found = _exact_cam(trace, stages)
        if isinstance(found, Seed):
            return found
        if seed == "cam":
            raise ValueError(f'seed: expected a head for which a CAM is exact, but {found}; use seed="grad-cam"')
    if seed in ("auto", "grad-cam"):
        return Seed("grad-cam", layer_ref(_gradient_layer(model, trace, stages)))
    check_map_module(model, trace, seed, argument="seed")
    record = trace.records[seed]
    if not _reached(model, trace, [record]):
        raise ValueError(
            f"seed: expected a layer that the logits depend on, but their gradient at {seed!r} is zero on every pixel; "
            'name an earlier layer or use seed="auto"'
        )
    return Seed("grad-cam", layer_ref(record))


def cam_seed(model: nn.Module, seed: Seed, extracted: Features, classes: Tensor) -> Tensor:
    """Seeds (B, K, h, w), float32 or float64, all classes at once. ``classes``: LongTensor (B, K)."""
    features = _at_least_float32(extracted.maps[seed.layer])
    if seed.head is None:
        index = classes[:, :, None, None].expand(-1, -1, *features.shape[-2:])
        return features.gather(1, index).relu()
    weight = cast("nn.Linear | nn.Conv2d", model.get_submodule(seed.head)).weight
    rows = weight.detach().flatten(1)[classes].to(features.dtype)  # (B, K, C)
    return torch.einsum("bkc,bchw->bkhw", rows, features).relu()


def grad_cam_seed(seed: Seed, extracted: Features, classes: Tensor) -> Tensor:
    """Seeds (B, K, h, w) as ``cam_seed``'s: one backward per class position for all images, back to the layer."""
    leaf = extracted.leaf
    if leaf is None:
        raise ValueError("extracted: expected a forward with gradient_from, got one without; pass the seed's source")
    features = _at_least_float32(seed.source.layout.view(leaf.detach(), extracted.image_size))
    with torch.enable_grad():
        scores = extracted.logits.gather(1, classes).sum(0).unbind()  # images do not mix in evaluation mode
    seeds = []
    for k, score in enumerate(scores):
        (gradient,) = torch.autograd.grad(score, leaf, retain_graph=k + 1 < len(scores))
        weights = seed.source.layout.view(gradient, extracted.image_size).to(features.dtype).mean((2, 3))
        seeds.append(torch.einsum("bc,bchw->bhw", weights, features).relu())
    return torch.stack(seeds, 1)


def _at_least_float32(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _exact_cam(trace: ForwardTrace, stages: list[str]) -> Seed | str:
    """A seed whose pooled map, through the head's weights, gives the trial's logits; or the reason why none does."""
    readable = [
        r for r in reversed(trace.maps.values()) if r.layout and r.layout.pixels > 1 and not layer_ref(r).needs_copy
    ]
    maps = sorted(readable, key=lambda record: record.name not in stages)  # of several names for one map, the stage's
    means = [(record, record.map(trace.image_size).float().mean((2, 3))) for record in maps]
    for record, mean in means:
        if _equal(mean, trace.logits):
            return Seed("cam", layer_ref(record))
    head = next((name for name in reversed(trace.linear_inputs) if _gives_logits(trace, name)), None)
    if head is None:
        return "the logits are neither the output of a linear layer nor the mean of a map"
    pooled = trace.linear_inputs[head].flatten(1)
    for record, mean in means:
        if _equal(mean, pooled):
            return Seed("cam", layer_ref(record), head)
    return f"the input of its last linear layer, {head!r}, is not the mean of a map over its pixels"


def _gives_logits(trace: ForwardTrace, name: str) -> bool:
    """Whether the logits are that layer's output, unchanged."""
    record = trace.records[name]
    if record.modified_inplace or record.tensor.numel() != trace.logits.numel():
        return False
    return torch.equal(record.tensor.reshape_as(trace.logits), trace.logits)


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    tolerance = max(1e-4, 2 * torch.finfo(b.dtype).eps)
    a, b = a.float(), b.float()
    scale = b.abs().max()
    return bool(scale > 0) and bool(((a - b).abs() <= tolerance * scale).all())


def _gradient_layer(model: nn.Module, trace: ForwardTrace, stages: list[str]) -> LayerTrace:
    """The last stage; or, where its gradient is zero, the last map of the same shape before it that has one.

    A network that reads its class token alone (ViT) sends no gradient to the last block's patches; there, that is the
    block's first normalisation, the target that pytorch-grad-cam recommends.
    """
    records = list(trace.records.values())
    last = max((trace.records[name] for name in stages), key=records.index)
    shape = last.layout.shape if last.layout else None
    alike = [r for r in records[: records.index(last) + 1] if r.layout and r.layout.shape == shape]
    while alike:
        reached = _reached(model, trace, alike[-WINDOW:])
        if reached:
            return reached[-1]
        del alike[-WINDOW:]
    raise ValueError(
        f"seed: expected a layer that the logits depend on, but the gradient is zero at {last.name!r} and at every map "
        "of its shape before it; name the Grad-CAM layer"
    )


def _reached(model: nn.Module, trace: ForwardTrace, records: list[LayerTrace]) -> list[LayerTrace]:
    """Those of the records (in order) on whose maps the logits depend; one forward, one backward.

    Asked at the input of the last linear layer: a head of zeros (a new ViT's) would hide everything.
    """
    head = next((name for name in reversed(trace.linear_inputs) if _gives_logits(trace, name)), None)
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensor = args[0] if name == head else first_tensor(output)
            if tensor is not None:
                outputs[name] = tensor

        return hook

    later = [record.name for record in records[1:] if record.name != head]
    with hooked(model, {name: keep(name) for name in (*later, *([head] if head else []))}):
        extracted = extract_features(
            model, trace_image(model, trace.image_size), {}, gradient_from=layer_ref(records[0])
        )
    score = (outputs.pop(head) if head else extracted.logits).float().abs().sum()
    if extracted.leaf is not None:
        outputs[records[0].name] = extracted.leaf
    tracked = {name: tensor for name, tensor in outputs.items() if tensor.requires_grad}
    if not tracked or not score.requires_grad:
        return []
    gradients = torch.autograd.grad(score, list(tracked.values()), allow_unused=True)
    found = {name for name, g in zip(tracked, gradients, strict=True) if g is not None and _any(trace, name, g)}
    return [record for record in records if record.name in found]


def _any(trace: ForwardTrace, name: str, gradient: Tensor) -> bool:
    form = trace.records[name].layout
    return form is not None and bool(form.view(gradient, trace.image_size).any())
