"""Trace one forward pass on a random sample image, to learn what each module of a network returns."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ssa_fast.models.flow import FlowTracker
from ssa_fast.models.layout import TensorLayout, find_first_tensor, float_tensors, infer_layout
from ssa_fast.models.main_path import PathTracker
from ssa_fast.models.module_kinds import is_linear_map
from ssa_fast.models.outputs import Logits, LogitsRef, try_logits
from ssa_fast.models.signs import SignTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ssa_fast.layouts import Size


@dataclass(frozen=True)
class LayerRef:
    """Reference to a module whose output is a map: its name, its layout, how it is overwritten, what its sign is.

    ``nonnegative_from`` is the module after whose call the trace's proof begins that the map is ≥ 0 by construction, ""
    the whole model; None without a proof.
    """

    name: str
    layout: TensorLayout
    modified_inplace: bool = False
    relu_inplace: bool = False
    nonnegative_from: str | None = None

    @property
    def needs_copy(self) -> bool:
        """True if the output must be copied, because it is overwritten by something other than its ReLU."""
        return self.modified_inplace and not self.relu_inplace


@dataclass(frozen=True)
class LayerTrace:
    """Output of one module, as it was when the forward pass ended.

    Attributes:
        tensor: The output.
        modified_inplace: Whether the network wrote into the output after the module had returned it.
        non_negative: Whether the stage taken from this module has no negative element.
    """

    tensor: Tensor
    modified_inplace: bool
    non_negative: bool


@dataclass(frozen=True)
class ForwardTrace:
    """Trace of one forward pass of the sample image.

    Attributes:
        image_size, channels: (H, W) and C of the sample image; (D, H, W) of a volume.
        layers, maps: Module name -> its output, the reference if the output is a map; in the order of last return.
        linear_inputs: Name of a linear layer or 1x1 convolution -> its input.
        logits: (1, num_classes); (1, 0) if the model returns none.
        output: Where the logits are in what the network returns, or why there are none.
        flow: What each tensor of the forward pass was made from.
        spans: Module name -> how many modules had been called when its last call began, and when it ended.
        needed, main_path: The outputs that the logits (or the first output, if there are none) depend on, those that
            every path to them crosses (``models.main_path``); both None where that is not known.
    """

    image_size: Size
    channels: int
    layers: dict[str, LayerTrace]
    maps: dict[str, LayerRef]
    linear_inputs: dict[str, Tensor]
    logits: Tensor
    output: LogitsRef
    flow: FlowTracker
    spans: dict[str, tuple[int, int]]
    needed: frozenset[str] | None
    main_path: frozenset[str] | None

    @property
    def called(self) -> int:
        """Number of calls of modules: the end of all ``spans``."""
        return max((end for _, end in self.spans.values()), default=1)


class ForwardError(ValueError):
    """The sample image could not be run through the network.

    Attributes:
        takes: Input channels of the first convolution that was called, or None.
        passed: Whether that convolution returned, so that the number of channels was right.
    """

    def __init__(self, shape: tuple[int, ...], error: Exception, takes: int | None, passed: bool) -> None:
        self.takes, self.passed = takes, passed
        axes = "D, H, W" if len(shape) == 5 else "H, W"
        if passed:
            advice = f"pass input_shape=({'C, ' if len(shape) == 5 else ''}{axes}) that the network accepts"
        elif takes not in (None, shape[1]):
            advice = f"its first convolution takes {takes} channels: pass input_shape=({takes}, {axes})"
        elif isinstance(error, TypeError):
            advice = "wrap the network in a module whose forward takes the images alone"
        else:
            advice = f"pass input_shape=(C, {axes}) that the network accepts, or wrap one that takes something else"
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        super().__init__(
            f"model: expected a forward pass on a sample image of shape {shape}, got an error ({reason}); {advice}"
        )


class _Output(NamedTuple):
    """Output of a module as it returned it: version, some elements, sign of all, and what proves it (``LayerRef``)."""

    tensor: Tensor
    layout: TensorLayout | None
    version: int
    sample: Tensor
    positive: bool
    nonnegative_from: str | None


def sample_elements(tensor: Tensor) -> Tensor:
    """Return about 1024 elements at equal distances, or all of fewer."""
    flat = tensor.detach().reshape(-1)
    return flat[:: math.ceil(flat.numel() / 1024)]


@contextmanager
def hooked_inference(
    model: nn.Module, hooks: Mapping[str, Callable[..., Any]], pre_hooks: Mapping[str, Callable[..., Any]] | None = None
) -> Iterator[None]:
    """Hook the named modules, in evaluation mode and without gradients; restore hooks and modes.

    Modules compiled by ``torch.compile`` ignore hooks registered after their first call, so they run uncompiled here.
    """
    modules = dict(model.named_modules())
    training = [module for module in modules.values() if module.training]
    compiled = any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in modules.values())
    stance = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    handles = [modules[name].register_forward_hook(hook) for name, hook in hooks.items()]
    handles += [modules[name].register_forward_pre_hook(hook) for name, hook in (pre_hooks or {}).items()]
    try:
        with torch.inference_mode(False), torch.no_grad(), stance:
            if training:
                model.eval()
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Restore the modules' attributes and buffers after a trial at another size than the sample image's.

    Some networks shrink their windows to a small image for good (Hugging Face's Swin).
    """
    modules = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, buffers in modules:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def has_hooks(model: nn.Module) -> bool:
    """Return whether a forward hook is registered at one of the modules, or at all."""
    hooks = [torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks]
    hooks += [each for module in model.modules() for each in (module._forward_hooks, module._forward_pre_hooks)]
    return any(hooks)


def make_trace_image(model: nn.Module, image_size: Size, channels: int) -> Tensor:
    """Draw an image (1, C, H, W), or a volume, in the model's dtype, on its device, with a generator of its own."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, *image_size, generator=generator)
    return image.to(device=parameter.device, dtype=parameter.dtype)


def pair_images(image: Tensor) -> Tensor:
    """Return an image (1, C, H, W) and another, of other statistics, beside it."""
    return torch.cat([image, 3 * image.flip(-1) + 1])


def _run_pair(model: nn.Module, image: Tensor) -> Any:
    """Return what the model returns for an image and another beside it, None if it takes one only."""
    with suppress(Exception):
        return model(pair_images(image))
    return None


def trace_model(model: nn.Module, image_size: Size, channels: int, where: Logits = None) -> ForwardTrace:
    """Run the sample image through ``model`` and record the modules' outputs; ``ForwardError`` if it fails.

    ``where`` says where the logits are in what it returns (``models.outputs``).
    """
    outputs: dict[str, _Output] = {}
    inputs: dict[str, Tensor] = {}
    grids: list[Size] = []
    spans: dict[str, tuple[int, int]] = {}
    convolutions: dict[str, bool] = {}  # called so far, whether they have returned
    signs, paths, flow = SignTracker(), PathTracker(), FlowTracker()
    modules = dict(model.named_modules())

    def enter(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        signs.called.append(name)
        spans[name] = len(signs.called), 0
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            convolutions[name] = False

    def leave(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        spans[name] = spans[name][0], len(signs.called)
        if name in convolutions:
            convolutions[name] = True
        tensor = find_first_tensor(output)
        if tensor is None or not tensor.is_floating_point() or tensor.numel() == 0:
            return
        paths.mark(name, tensor, args)
        layout = infer_layout(tensor.shape, image_size, grids)
        if layout is not None and layout.kind != "tokens":
            grids.append(layout.shape[1:])
        outputs.pop(name, None)  # a module called again moves to the end
        sample, positive = sample_elements(tensor).clone(), bool(tensor.amin() >= 0)
        outputs[name] = _Output(tensor, layout, tensor._version, sample, positive, signs.proved_from(tensor))
        if is_linear_map(module) and args and isinstance(args[0], Tensor):
            inputs[name] = args[0]

    hooks = ({name: partial(hook, name) for name in modules if name} for hook in (leave, enter))
    with hooked_inference(model, *hooks), signs, paths, flow:
        image = make_trace_image(model, image_size, channels)
        paths.start(image)
        try:
            output = model(image)
        except Exception as error:
            first, passed = next(iter(convolutions.items()), (None, False))
            takes = None if first is None else cast("nn.Conv2d", modules[first]).in_channels
            raise ForwardError(tuple(image.shape), error, takes, passed) from error
    with hooked_inference(model, {}), paths, flow:
        ref = try_logits(output, flow, where, partial(_run_pair, model, image))
        logits = image.new_empty(1, 0) if ref.missing else ref.read(output, 1, flow)
    ends = float_tensors(output)[:1] if ref.missing else [logits]
    needed, main_path = (ends and paths.names(ends[0])) or (None, None)
    if ref.missing and needed is not None:  # what is returned holds scores of pixels, not features
        needed = needed - {name for name, made in outputs.items() if made.tensor is ends[0]}
    trace = ForwardTrace(image_size, channels, {}, {}, inputs, logits, ref, flow, spans, needed, main_path)
    _add_layers(trace, outputs, signs)
    return trace


def _add_layers(trace: ForwardTrace, outputs: Mapping[str, _Output], signs: SignTracker) -> None:
    """Record the outputs as they are when the forward pass has ended."""
    for name, (tensor, layout, version, sample, positive, proved_from) in outputs.items():
        modified = bool(tensor._version != version)
        relu = modified and torch.equal(sample_elements(tensor), sample.relu())
        trace.layers[name] = LayerTrace(tensor, modified, positive or relu)
        if layout is not None:
            copied = modified and not relu
            proof = proved_from if copied else signs.proved_from(tensor)
            trace.maps[name] = LayerRef(name, layout, modified, relu, proof)
