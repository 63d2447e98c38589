"""One forward of a random image, to learn what each module of a network gives."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssa_fast.models.layout import TensorLayout, first_tensor, infer_layout, logits_of
from ssa_fast.validation import check_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SAMPLE = 1024


@dataclass
class LayerTrace:
    """One module's output in the trace: ``tensor`` as the forward left it, ``low`` its minimum when returned."""

    name: str
    tensor: Tensor
    layout: TensorLayout | None
    version: int
    sample: Tensor
    low: float

    @property
    def modified_inplace(self) -> bool:
        """Whether the network wrote into the output after the module had returned it."""
        return bool(self.tensor._version != self.version)

    @property
    def relu_inplace(self) -> bool:
        """Whether that writing was an in-place ReLU."""
        return self.modified_inplace and bool(torch.equal(strided_sample(self.tensor), self.sample.relu()))

    @property
    def non_negative(self) -> bool:
        """Whether the stage taken from this module has no negative element."""
        return self.low >= 0 or self.relu_inplace

    def map(self, image_size: tuple[int, int]) -> Tensor:
        """The output as (1, C, h, w)."""
        if self.layout is None:
            raise ValueError(f"{self.name}: expected a map, got shape {tuple(self.tensor.shape)}")
        return self.layout.view(self.tensor, image_size)


@dataclass
class ForwardTrace:
    """What the trial image showed: a record per called module, in the order in which they last returned."""

    image_size: tuple[int, int]
    records: dict[str, LayerTrace] = field(default_factory=dict)
    linear_inputs: dict[str, Tensor] = field(default_factory=dict)
    grids: list[tuple[int, int]] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def maps(self) -> dict[str, LayerTrace]:
        """The records that can be read as maps."""
        return {name: record for name, record in self.records.items() if record.layout is not None}

    def observe(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook's work: notes the output of ``module``."""
        tensor = first_tensor(output)
        if tensor is None or not tensor.is_floating_point() or tensor.numel() == 0:
            return
        form = infer_layout(tensor.shape, self.image_size, self.grids)
        if form is not None and form.kind != "tokens":
            self.grids.append((form.height, form.width))
        self.records.pop(name, None)
        low = tensor.amin().item()
        self.records[name] = LayerTrace(name, tensor, form, tensor._version, strided_sample(tensor).clone(), low)
        if is_linear_map(module) and args and isinstance(args[0], Tensor):
            self.linear_inputs[name] = args[0]


def strided_sample(tensor: Tensor) -> Tensor:
    """Up to about ``SAMPLE`` elements spread over the tensor."""
    flat = tensor.detach().flatten() if tensor.is_contiguous() else tensor.detach().reshape(-1)
    return flat[:: math.ceil(flat.numel() / SAMPLE)]


def is_linear_map(module: nn.Module) -> bool:
    """A fully connected layer, written as one or as a 1x1 convolution."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1 and module.stride == (1, 1)
    return isinstance(module, nn.Linear)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts every module in evaluation mode and gives each its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def hooked(model: nn.Module, hooks: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Forward hooks on the named modules, gone at the end whatever happens.

    What ``torch.compile`` made of a module skips hooks that came after its first call: it runs uncompiled meanwhile.
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


def trace_size(model: nn.Module, input_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """(H, W) of the trial image: what the caller says, else what the network was built for, else 224."""
    size = input_size if input_size is not None else fixed_size(model) or 224
    return check_size("input_size", (size, size) if isinstance(size, int) else size)


def fixed_size(model: nn.Module) -> int | None:
    """The side of the only square image a network says it takes (torchvision's ViT does), if it says so."""
    sizes = (getattr(module, "image_size", None) for module in model.modules())
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)


def input_channels(model: nn.Module) -> int:
    """Channels of the images a network takes: those of its first convolution, 3 if it has none.

    Modules are listed as they were registered, which may put a head first: one of few channels is the likelier input.
    """
    channels = [module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    return next((few for few in channels if few <= 4), channels[0] if channels else 3)


def trace_image(model: nn.Module, image_size: tuple[int, int]) -> Tensor:
    """A random image (1, C, H, W) in the model's dtype, on its device; the global random state is left alone."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, input_channels(model), *image_size, generator=generator)
    return image.to(device=parameter.device, dtype=parameter.dtype)


def trace_model(model: nn.Module, image_size: tuple[int, int]) -> ForwardTrace:
    """Runs the trial image through ``model`` and records every module's output.

    Raises ValueError if the forward fails.
    """
    trace = ForwardTrace(image_size)

    def observer(name: str) -> Callable[..., None]:
        return lambda module, args, output: trace.observe(name, module, args, output)

    hooks = {name: observer(name) for name, _ in model.named_modules() if name}
    with torch.inference_mode(False), torch.no_grad(), evaluating(model), hooked(model, hooks):
        image = trace_image(model, image_size)
        try:
            output = model(image)
        except Exception as error:
            raise ValueError(
                f"model: its forward failed on a trial image of shape {tuple(image.shape)} ({error}); "
                "pass input_size=(H, W) that the network takes"
            ) from error
        trace.logits = logits_of(output)
    return trace
