"""One forward of a network that keeps the stages' maps, and the gradient path from one layer on if a seed needs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssa_fast.models.layout import TensorLayout, first_tensor, logits_of, replace_first_tensor
from ssa_fast.models.trace import evaluating, hooked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class LayerRef:
    """Where a map comes from: a module, how to read its output, and whether the network overwrites that output."""

    name: str
    layout: TensorLayout
    modified_inplace: bool = False
    relu_inplace: bool = False

    @property
    def needs_copy(self) -> bool:
        """Whether the output must be copied before the network overwrites it with something else than its ReLU."""
        return self.modified_inplace and not self.relu_inplace


@dataclass
class Features:
    """What one forward gave: ``maps`` name -> (B, C, h, w) views without gradient, and ``logits`` (B, num_classes).

    With a ``gradient_from`` layer, ``logits`` carry a graph that begins at ``leaf``, that layer's raw output.
    """

    image_size: tuple[int, int]
    maps: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    leaf: Tensor | None = None


def extract_features(
    model: nn.Module, images: Tensor, sources: Mapping[str, LayerRef], gradient_from: LayerRef | None = None
) -> Features:
    """Runs ``images`` (B, C, H, W) once, in evaluation mode, and keeps the outputs of ``sources``.

    No graph is built before ``gradient_from``: its hook switches gradient mode on, so up to there memory is that of a
    plain forward, and frozen parameters do not matter. The model's modes, hooks and gradients are left as they were.
    """
    extracted = Features((images.shape[-2], images.shape[-1]))
    outputs: dict[str, Tensor] = {}
    names = {*sources, *({gradient_from.name} if gradient_from else ())}

    def keeper(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            replaced = None
            if gradient_from is not None and name == gradient_from.name:
                output = replaced = _start_gradient(extracted, gradient_from, output)
            tensor = _tensor(name, output)
            if name in sources:
                outputs[name] = tensor.clone() if sources[name].needs_copy else tensor
            return replaced

        return hook

    with (
        torch.inference_mode(False),
        torch.no_grad(),
        evaluating(model),
        hooked(model, {name: keeper(name) for name in names}),
    ):
        batch = images.clone() if images.is_inference() else images
        extracted.logits = logits_of(model(batch))
    for name, source in sources.items():
        if name not in outputs:
            raise ValueError(
                f"stages: expected the network to call {name!r} as on the trial image, but it did not; name others"
            )
        extracted.maps[name] = source.layout.view(outputs[name].detach(), extracted.image_size)
    return extracted


def _start_gradient(extracted: Features, source: LayerRef, output: Any) -> Any:
    """Cuts the graph at the layer: its output becomes a leaf, and everything after it is recorded."""
    leaf = _tensor(source.name, output).detach().requires_grad_(True)
    torch.set_grad_enabled(True)  # the surrounding no_grad() restores the caller's mode
    # A leaf may not be written into; after an in-place ReLU the copy is the rectified map, and the map Grad-CAM weighs.
    passed = leaf.clone() if source.modified_inplace else leaf
    extracted.leaf = passed if source.relu_inplace else leaf
    return replace_first_tensor(output, passed)


def _tensor(name: str, output: Any) -> Tensor:
    tensor = first_tensor(output)
    if tensor is None:
        raise ValueError(
            f"stages: expected {name!r} to return a tensor as on the trial image, got {type(output)}; name others"
        )
    return tensor
