"""Trace one forward pass on a random sample image, to learn what each module of a network returns."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssa_fast.models.layout import TensorLayout, find_first_tensor, find_logits, infer_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@dataclass
class LayerTrace:
    """Output of one module during the trace.

    Attributes:
        name, tensor: The module's name, its output as it was when the forward pass ended.
        layout: The output's layout if it is a map, else None.
        version, sample, min: Version counter, some elements and the least element when the module returned the output.
    """

    name: str
    tensor: Tensor
    layout: TensorLayout | None
    version: int
    sample: Tensor
    min: float

    @property
    def modified_inplace(self) -> bool:
        """Whether the network wrote into the output after the module had returned it."""
        return bool(self.tensor._version != self.version)

    @property
    def relu_inplace(self) -> bool:
        """Whether the output was modified by an in-place ReLU."""
        return self.modified_inplace and bool(torch.equal(_sample_elements(self.tensor), self.sample.relu()))

    @property
    def non_negative(self) -> bool:
        """Whether the stage taken from this module has no negative element."""
        return self.min >= 0 or self.relu_inplace

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, h, w) if the output is a map, else None."""
        return self.layout.shape if self.layout is not None else None

    @property
    def pixels(self) -> int:
        """h · w if the output is a map, else 0."""
        return self.layout.pixels if self.layout is not None else 0


@dataclass
class ForwardTrace:
    """Trace of one forward pass of the sample image.

    Attributes:
        image_size: (H, W) of the sample image.
        layers: Module name -> its trace, in the order in which the modules last returned.
        linear_inputs: Name of a linear layer or 1x1 convolution -> its input.
        grids: (h, w) of the 4-D maps, in the order in which they were returned.
        logits: (1, num_classes).
    """

    image_size: tuple[int, int]
    layers: dict[str, LayerTrace] = field(default_factory=dict)
    linear_inputs: dict[str, Tensor] = field(default_factory=dict)
    grids: list[tuple[int, int]] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def maps(self) -> dict[str, LayerTrace]:
        """The layers whose outputs are maps."""
        return {name: layer for name, layer in self.layers.items() if layer.layout is not None}

    def observe(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Record the output of ``module``; called by its forward hook."""
        tensor = find_first_tensor(output)
        if tensor is None or not tensor.is_floating_point() or tensor.numel() == 0:
            return
        layout = infer_layout(tensor.shape, self.image_size, self.grids)
        if layout is not None and layout.kind != "tokens":
            self.grids.append(layout.shape[1:])
        self.layers.pop(name, None)  # a module called again moves to the end
        sample = _sample_elements(tensor).clone()
        self.layers[name] = LayerTrace(name, tensor, layout, tensor._version, sample, tensor.amin().item())
        if _is_linear_map(module) and args and isinstance(args[0], Tensor):
            self.linear_inputs[name] = args[0]


def _is_linear_map(module: nn.Module) -> bool:
    """Return whether the module is a fully connected layer, possibly written as a 1x1 convolution."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == module.stride == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def _sample_elements(tensor: Tensor) -> Tensor:
    """Return about 1024 elements at equal distances, or all of fewer."""
    flat = tensor.detach().reshape(-1)
    return flat[:: math.ceil(flat.numel() / 1024)]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and restore each module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def forward_hooks(model: nn.Module, hooks: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Register forward hooks on the named modules, and remove them afterwards.

    Modules compiled by ``torch.compile`` ignore hooks registered after their first call, so they run uncompiled here.
    """
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook) for name, hook in hooks.items()]
    compiled = any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in modules.values())
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


def find_fixed_size(model: nn.Module) -> tuple[int, int] | None:
    """Return (H, W) of the only image, a square one, that the model accepts (ViT), if it names one."""
    sides = (getattr(module, "image_size", None) for module in model.modules())
    return next(((side, side) for side in sides if isinstance(side, int) and side > 0), None)


def find_input_channels(model: nn.Module) -> int:
    """Return the number of image channels: that of the first convolution, 3 if there is none.

    Modules are listed in the order of their registration, which may put the head first; so the first convolution of at
    most 4 channels is preferred.
    """
    channels = [module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    return next((few for few in channels if few <= 4), channels[0] if channels else 3)


def make_trace_image(model: nn.Module, image_size: tuple[int, int]) -> Tensor:
    """Draw an image (1, C, H, W) in the model's dtype, on its device, with a generator of its own."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, find_input_channels(model), *image_size, generator=generator)
    return image.to(device=parameter.device, dtype=parameter.dtype)


def trace_model(model: nn.Module, image_size: tuple[int, int]) -> ForwardTrace:
    """Run the sample image through ``model`` and record every module's output.

    Raises:
        ValueError: The forward pass fails.
    """
    trace = ForwardTrace(image_size)
    hooks = {name: partial(trace.observe, name) for name, _ in model.named_modules() if name}
    with torch.inference_mode(False), torch.no_grad(), evaluation_mode(model), forward_hooks(model, hooks):
        image = make_trace_image(model, image_size)
        try:
            output = model(image)
        except Exception as error:
            raise ValueError(
                f"model: expected a forward pass on a sample image of shape {tuple(image.shape)}, got an error "
                f"({error}); pass input_size=(H, W) that the network accepts"
            ) from error
        trace.logits = find_logits(output)
    return trace
