"""Run a network once and keep its stage maps, with gradients of some layers if asked."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssa_fast.models.layout import find_first_tensor, replace_first_tensor
from ssa_fast.models.signs import SignTracker
from ssa_fast.models.trace import LayerRef, has_hooks, hooked_inference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ssa_fast.layouts import Size
    from ssa_fast.models.outputs import LogitsRef


@dataclass(frozen=True)
class Features:
    """Feature maps and logits of one forward pass.

    Attributes:
        image_size: (H, W) of the images, (D, H, W) of volumes.
        maps: Module name -> (B, C, h, w), of volumes (B, C, d, h, w), a view without gradient.
        nonnegative: Names of the maps that are ≥ 0 by construction, as this forward pass itself has shown.
        output: What the model returned; with ``gradients_of``, the end of a graph that begins at the first of them.
        logits: (B, num_classes) in it, (B, 0) if there are none, or none were asked for.
        leaves: Module name -> raw output, in that graph, of each of the ``gradients_of``.
        values: Values (B,) that targets gave to the output (``models.targets``).
    """

    image_size: Size
    maps: dict[str, Tensor]
    nonnegative: frozenset[str] = frozenset()
    output: Any = None
    logits: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    leaves: dict[str, Tensor] = field(default_factory=dict)
    values: tuple[Tensor, ...] = ()


def extract_features(
    model: nn.Module,
    images: Tensor,
    refs: Mapping[str, LayerRef],
    gradients_of: Mapping[str, LayerRef] = MappingProxyType({}),
    logits: LogitsRef | None = None,
) -> Features:
    """Run ``images`` (B, C, H, W) once, in evaluation mode, and keep the outputs of ``refs`` and the ``logits``.

    The graph begins at the first of the layers ``gradients_of``, whose hook enables gradients: up to it the pass needs
    no memory for gradients, and frozen parameters do not matter. The model's modes, hooks and gradients are restored.

    Where the trace proved a map non-negative, PyTorch's functions are followed again (``SignTracker``), so that nothing
    is assumed of the model: edited, or on another branch, it has no proof. They are followed from where the proof began
    in the trace until the map is returned or overwritten; if the model has hooks, which may write anywhere, all along.

    Raises:
        ValueError: A layer was not called, or did not return a map, as it did in the trace.
    """
    outputs: dict[str, Tensor] = {}
    leaves: dict[str, Tensor] = {}
    signs, proved = SignTracker(), [ref for ref in refs.values() if ref.nonnegative_from is not None]
    spans = [(ref.nonnegative_from or "", None if ref.relu_inplace else ref.name) for ref in proved]
    if spans and has_hooks(model):
        spans = [("", None)]

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        tensor = find_first_tensor(output)
        if tensor is None:
            raise ValueError(
                f"stages: expected {name!r} to return a tensor as on the sample image, got {type(output)}; name others"
            )
        if name in gradients_of:
            ref, inside = gradients_of[name], bool(leaves) and tensor.requires_grad  # inside of the graph, or its leaf
            torch.set_grad_enabled(True)  # the surrounding no_grad() restores the caller's mode
            start = tensor if inside else tensor.detach().requires_grad_(True)
            # A leaf must not be modified in place. An in-place ReLU turns the copy into the map that Grad-CAM weights.
            copied = ref.needs_copy or (ref.modified_inplace and not inside)
            given, tensor = tensor, start.clone() if copied else start
            leaves[name] = tensor if ref.relu_inplace else start
            output = output if tensor is given else replace_first_tensor(output, tensor)
        if name in refs:
            outputs[name] = tensor.clone() if refs[name].needs_copy else tensor
        return output

    hooks = {name: partial(hook, name) for name in {**refs, **gradients_of}}
    follow = nullcontext() if logits is None else logits.follow()
    with hooked_inference(model, hooks), follow as flow, signs.during(model, spans):
        output = model(images.clone() if images.is_inference() else images)
        scores = None if logits is None or logits.missing else logits.read(output, len(images), flow)
    scores = images.new_empty(len(images), 0) if scores is None else scores
    image_size, maps = tuple(images.shape[2:]), {}
    for name in hooks:
        if name not in (outputs if name in refs else leaves):
            raise ValueError(
                f"stages: expected the network to call {name!r} as on the sample image, but it did not; name others"
            )
    for name, ref in refs.items():
        maps[name] = ref.layout.view(outputs[name].detach(), image_size)
    nonnegative = frozenset(name for name in maps if signs.holds(outputs[name]))
    return Features(image_size, maps, nonnegative, output, scores, leaves)
