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

from ssa_fast.models.capture import Captured, Source, capture
from ssa_fast.models.maps import first_tensor
from ssa_fast.models.stages import check_map_module
from ssa_fast.models.trial import Record, Trial, hooked, trial_image

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
    source: Source
    head: str | None = None

    @property
    def layer(self) -> str:
        """Name of the module whose output the seed is made from."""
        return self.source.name


def source_of(record: Record) -> Source:
    """What a forward needs to know of a module seen in the trial."""
    if record.form is None:
        raise ValueError(f"{record.name}: expected a map, got shape {tuple(record.tensor.shape)}")
    return Source(record.name, record.form, record.altered, record.rectified)


def find_seed(model: nn.Module, trial: Trial, stages: list[str], seed: str) -> Seed:
    """The seed for ``"auto"``, ``"cam"``, ``"grad-cam"`` or Grad-CAM at the named module.

    Raises ValueError if a CAM is asked for where it is not exact, with the reason, for an unknown name, or for a layer
    that the logits do not depend on.
    """
    if not isinstance(seed, str):
        raise TypeError(f'seed: expected "auto", "cam", "grad-cam" or a module name, got {type(seed).__name__}')
    if seed in ("auto", "cam"):
        found = _exact_cam(trial, stages)
        if isinstance(found, Seed):
            return found
        if seed == "cam":
            raise ValueError(f'seed: expected a head for which a CAM is exact, but {found}; use seed="grad-cam"')
    if seed in ("auto", "grad-cam"):
        return Seed("grad-cam", source_of(_gradient_layer(model, trial, stages)))
    check_map_module(model, trial, seed, argument="seed")
    record = trial.records[seed]
    if not _reached(model, trial, [record]):
        raise ValueError(
            f"seed: expected a layer that the logits depend on, but their gradient at {seed!r} is zero on every pixel; "
            'name an earlier layer or use seed="auto"'
        )
    return Seed("grad-cam", source_of(record))


def cam_seed(model: nn.Module, seed: Seed, captured: Captured, classes: Tensor) -> Tensor:
    """Seeds (B, K, h, w), float32 or float64, all classes at once. ``classes``: LongTensor (B, K)."""
    features = _at_least_float32(captured.maps[seed.layer])
    if seed.head is None:
        index = classes[:, :, None, None].expand(-1, -1, *features.shape[-2:])
        return features.gather(1, index).relu()
    weight = cast("nn.Linear | nn.Conv2d", model.get_submodule(seed.head)).weight
    rows = weight.detach().flatten(1)[classes].to(features.dtype)  # (B, K, C)
    return torch.einsum("bkc,bchw->bkhw", rows, features).relu()


def grad_cam_seed(seed: Seed, captured: Captured, classes: Tensor) -> Tensor:
    """Seeds (B, K, h, w) as ``cam_seed``'s: one backward per class position for all images, back to the layer."""
    leaf = captured.leaf
    if leaf is None:
        raise ValueError("captured: expected a forward with gradient_from, got one without; pass the seed's source")
    features = _at_least_float32(seed.source.form.view(leaf.detach(), captured.image_size))
    with torch.enable_grad():
        scores = captured.logits.gather(1, classes).sum(0).unbind()  # images do not mix in evaluation mode
    seeds = []
    for k, score in enumerate(scores):
        (gradient,) = torch.autograd.grad(score, leaf, retain_graph=k + 1 < len(scores))
        weights = seed.source.form.view(gradient, captured.image_size).to(features.dtype).mean((2, 3))
        seeds.append(torch.einsum("bc,bchw->bhw", weights, features).relu())
    return torch.stack(seeds, 1)


def _at_least_float32(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _exact_cam(trial: Trial, stages: list[str]) -> Seed | str:
    """A seed whose pooled map, through the head's weights, gives the trial's logits; or the reason why none does."""
    readable = [
        r for r in reversed(trial.maps.values()) if r.form and r.form.pixels > 1 and not source_of(r).needs_copy
    ]
    maps = sorted(readable, key=lambda record: record.name not in stages)  # of several names for one map, the stage's
    means = [(record, record.map(trial.image_size).float().mean((2, 3))) for record in maps]
    for record, mean in means:
        if _equal(mean, trial.logits):
            return Seed("cam", source_of(record))
    head = next((name for name in reversed(trial.linear_inputs) if _gives_logits(trial, name)), None)
    if head is None:
        return "the logits are neither the output of a linear layer nor the mean of a map"
    pooled = trial.linear_inputs[head].flatten(1)
    for record, mean in means:
        if _equal(mean, pooled):
            return Seed("cam", source_of(record), head)
    return f"the input of its last linear layer, {head!r}, is not the mean of a map over its pixels"


def _gives_logits(trial: Trial, name: str) -> bool:
    """Whether the logits are that layer's output, unchanged."""
    record = trial.records[name]
    if record.altered or record.tensor.numel() != trial.logits.numel():
        return False
    return torch.equal(record.tensor.reshape_as(trial.logits), trial.logits)


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    tolerance = max(1e-4, 2 * torch.finfo(b.dtype).eps)
    a, b = a.float(), b.float()
    scale = b.abs().max()
    return bool(scale > 0) and bool(((a - b).abs() <= tolerance * scale).all())


def _gradient_layer(model: nn.Module, trial: Trial, stages: list[str]) -> Record:
    """The last stage; or, where its gradient is zero, the last map of the same shape before it that has one.

    A network that reads its class token alone (ViT) sends no gradient to the last block's patches; there, that is the
    block's first normalisation, the target that pytorch-grad-cam recommends.
    """
    records = list(trial.records.values())
    last = max((trial.records[name] for name in stages), key=records.index)
    shape = last.form.shape if last.form else None
    alike = [r for r in records[: records.index(last) + 1] if r.form and r.form.shape == shape]
    while alike:
        reached = _reached(model, trial, alike[-WINDOW:])
        if reached:
            return reached[-1]
        del alike[-WINDOW:]
    raise ValueError(
        f"seed: expected a layer that the logits depend on, but the gradient is zero at {last.name!r} and at every map "
        "of its shape before it; name the Grad-CAM layer"
    )


def _reached(model: nn.Module, trial: Trial, records: list[Record]) -> list[Record]:
    """Those of the records (in order) on whose maps the logits depend; one forward, one backward.

    Asked at the input of the last linear layer: a head of zeros (a new ViT's) would hide everything.
    """
    head = next((name for name in reversed(trial.linear_inputs) if _gives_logits(trial, name)), None)
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensor = args[0] if name == head else first_tensor(output)
            if tensor is not None:
                outputs[name] = tensor

        return hook

    later = [record.name for record in records[1:] if record.name != head]
    with hooked(model, {name: keep(name) for name in (*later, *([head] if head else []))}):
        captured = capture(model, trial_image(model, trial.image_size), {}, gradient_from=source_of(records[0]))
    score = (outputs.pop(head) if head else captured.logits).float().abs().sum()
    if captured.leaf is not None:
        outputs[records[0].name] = captured.leaf
    tracked = {name: tensor for name, tensor in outputs.items() if tensor.requires_grad}
    if not tracked or not score.requires_grad:
        return []
    gradients = torch.autograd.grad(score, list(tracked.values()), allow_unused=True)
    found = {name for name, g in zip(tracked, gradients, strict=True) if g is not None and _any(trial, name, g)}
    return [record for record in records if record.name in found]


def _any(trial: Trial, name: str, gradient: Tensor) -> bool:
    form = trial.records[name].form
    return form is not None and bool(form.view(gradient, trial.image_size).any())
