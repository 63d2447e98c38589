"""Refuse networks whose modules cannot be read, with the real reason, and read the weights of those that can."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def check_modules(model: nn.Module) -> None:
    """Raise TypeError unless ``model`` is a network in Python, with weights, whose layers call hooks.

    Raises:
        TypeError: Something else, TorchScript, an exported or a statically quantized network.
        ValueError: There are no weights yet (lazy layers, meta device), or they lie on several devices as copies.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}; pass the network itself")
    for name, module in model.named_modules():
        where = f" at {name!r}" if name else ""
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"model: expected a network in Python, got TorchScript{where}, whose layers call no hooks; pass the "
                "original"
            )
        if isinstance(module, torch.fx.GraphModule) and not _calls_modules(module):
            raise TypeError(
                f"model: expected a network whose layers are modules, got one graph of operators{where} (torch.export, "
                "make_fx), which calls no hooks; pass the original network or torch.export.unflatten(program)"
            )
        if ".quantized." in type(module).__module__ and not is_dynamically_quantized(module):
            raise TypeError(
                f"model: expected floating-point layers, got a statically quantized one{where} "
                f"({type(module).__name__}), whose maps are integers without gradient; pass the network from before "
                "convert()"
            )
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise ValueError(
                f"model: expected a network on one device, got nn.DataParallel{where} on {len(module.device_ids)}, "
                "which runs copies; pass its .module"
            )
    _check_weights(model)


def _check_weights(model: nn.Module) -> None:
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(
                f"model: expected weights, but {name!r} has no shape yet, as its layer is lazy; run one image through "
                "the model first"
            )
        if tensor.is_meta:
            raise ValueError(
                f"model: expected weights, but {name!r} is on the meta device and holds no numbers; load the model on "
                "the CPU or a GPU"
            )


def _calls_modules(module: torch.fx.GraphModule) -> bool:
    return any(node.op == "call_module" and node.target != "_guards_fn" for node in module.graph.nodes)


def is_dynamically_quantized(module: nn.Module) -> bool:
    """Return whether a layer, or a part of one, is of ``quantize_dynamic``: int8 weights, floating-point output."""
    path = type(module).__module__
    return ".quantized." in path and (".dynamic." in path or type(module).__name__ == "LinearPackedParams")


def is_linear_map(module: nn.Module) -> bool:
    """Return whether the module is a fully connected layer, possibly written as a 1x1 or 1x1x1 convolution."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        return set(module.kernel_size) == set(module.stride) == {1} and module.groups == 1
    quantized = is_dynamically_quantized(module) and type(module).__name__ == "Linear"
    return quantized or isinstance(module, nn.Linear)


def head_weights(module: Any) -> tuple[Tensor, Tensor | None]:
    """Return the weight (classes, channels) and the bias (classes,) or None of a linear map, without gradient."""
    weight, bias = (each() if callable(each) else each for each in (module.weight, module.bias))
    weight = weight.dequantize() if weight.is_quantized else weight
    return weight.detach().flatten(1), None if bias is None else bias.detach()


def check_gradient(model: nn.Module) -> None:
    """Raise ValueError, with the reason, for weights through which no gradient can be computed."""
    expected = "seed: expected weights through which gradients can be computed"
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_inference():
            raise ValueError(
                f"{expected}, but {name!r} was made under torch.inference_mode(); pass copy.deepcopy(model), made "
                "outside of it"
            )
    for name, module in model.named_modules():
        if is_dynamically_quantized(module):
            raise ValueError(f"{expected}, but {name!r} is quantized; pass the floating-point network")
