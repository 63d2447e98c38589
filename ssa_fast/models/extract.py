"""Run a network once and keep its stage maps, with gradients from one layer on if asked."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssa_fast.models.layout import find_first_tensor, replace_first_tensor
from ssa_fast.models.signs import SignTracker
from ssa_fast.models.trace import LayerRef, has_hooks, hooked_inference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ssa_fast.models.outputs import LogitsRef


@dataclass(frozen=True)
class Features:
    """Feature maps and logits of one forward pass.

    Attributes:
        image_size: (H, W) of the images.
        maps: Module name -> (B, C, h, w), a view without gradient.
        nonnegative: Names of the maps that are ≥ 0 by construction, as this forward pass itself has shown.
        output: What the model returned; with ``gradient_from``, the end of a graph that begins at ``leaf``.
        logits: (B, num_classes) in it, (B, 0) if there are none, or none were asked for.
        leaf: Raw output of the ``gradient_from`` layer, else None.
        values: Values (B,) that targets gave to the output (``models.targets``).
    """

    image_size: tuple[int, int]
    maps: dict[str, Tensor]
    nonnegative: frozenset[str] = frozenset()
    output: Any = None
    logits: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    leaf: Tensor | None = None
    values: tuple[Tensor, ...] = ()


def extract_features(
    model: nn.Module,
    images: Tensor,
    refs: Mapping[str, LayerRef],
    gradient_from: LayerRef | None = None,
    logits: LogitsRef | None = None,
) -> Features:
    """Run ``images`` (B, C, H, W) once, in evaluation mode, and keep the outputs of ``refs`` and the ``logits``.

    The graph begins at ``gradient_from``, whose hook enables gradients: up to that layer the pass needs no memory for
    gradients, and frozen parameters do not matter. The model's modes, hooks and gradients are restored.

    Where the trace proved a map non-negative, PyTorch's functions are followed again (``SignTracker``), so that nothing
    is assumed of the model: edited, or on another branch, it has no proof. They are followed from where the proof began
    in the trace until the map is returned or overwritten; if the model has hooks, which may write anywhere, all along.

    Raises:
        ValueError: A layer was not called, or did not return a map, as it did in the trace.
    """
    outputs: dict[str, Tensor] = {}
    leaf: Tensor | None = None
    signs, proved = SignTracker(), [ref for ref in refs.values() if ref.nonnegative_from is not None]
    spans = [(ref.nonnegative_from or "", None if ref.relu_inplace else ref.name) for ref in proved]
    if spans and has_hooks(model):
        spans = [("", None)]

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        nonlocal leaf
        tensor = find_first_tensor(output)
        if tensor is None:
            raise ValueError(
                f"stages: expected {name!r} to return a tensor as on the sample image, got {type(output)}; name others"
            )
        if gradient_from is not None and name == gradient_from.name:
            start = tensor.detach().requires_grad_(True)
            torch.set_grad_enabled(True)  # the surrounding no_grad() restores the caller's mode
            # A leaf must not be modified in place. An in-place ReLU turns the copy into the map that Grad-CAM weights.
            tensor = start.clone() if gradient_from.modified_inplace else start
            leaf = tensor if gradient_from.relu_inplace else start
            output = replace_first_tensor(output, tensor)
        if name in refs:
            outputs[name] = tensor.clone() if refs[name].needs_copy else tensor
        return output

    names = {*refs, gradient_from.name} if gradient_from else refs
    hooks = {name: partial(hook, name) for name in names}
    follow = nullcontext() if logits is None else logits.follow()
    with hooked_inference(model, hooks), follow as flow, signs.during(model, spans):
        output = model(images.clone() if images.is_inference() else images)
        scores = None if logits is None or logits.missing else logits.read(output, len(images), flow)
    scores = images.new_empty(len(images), 0) if scores is None else scores
    image_size, maps = (images.shape[-2], images.shape[-1]), {}
    for name, ref in refs.items():
        if name not in outputs:
            raise ValueError(
                f"stages: expected the network to call {name!r} as on the sample image, but it did not; name others"
            )
        maps[name] = ref.layout.view(outputs[name].detach(), image_size)
    nonnegative = frozenset(name for name in maps if signs.holds(outputs[name]))
    return Features(image_size, maps, nonnegative, output, scores, leaf)
