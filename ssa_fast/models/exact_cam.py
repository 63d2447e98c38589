"""Prove on numbers that a head makes a CAM exact: the mean of one map over its pixels, and then one linear layer.

The proof is made on the sample image. Where it was not seen that the network averages the whole map, whatever its size,
it is made again on a larger image: pooling with a fixed window is the mean of the whole map at one size only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ssa_fast.models.extract import extract_features
from ssa_fast.models.module_kinds import is_dynamically_quantized
from ssa_fast.models.trace import ForwardTrace, LayerRef, hooked_inference, make_trace_image, restored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ssa_fast.layouts import Size


def find_exact_cam(model: nn.Module, trace: ForwardTrace, stages: list[str]) -> tuple[LayerRef, str | None] | str:
    """Return the map and the name of the head that make a CAM exact (None: the map is the CAM), or why there is none.

    A map that is one of the ``stages`` is preferred to another name of it.
    """
    usable = [ref for ref in reversed(trace.maps.values()) if ref.layout.pixels > 1 and not ref.needs_copy]
    usable.sort(key=lambda ref: ref.name not in stages)
    maps = (ref.layout.view(trace.layers[ref.name].tensor, trace.image_size) for ref in usable)
    means = [_mean(features) for features in maps]

    def find_mean(values: Tensor) -> LayerRef | None:
        return next((ref for ref, mean in zip(usable, means, strict=True) if _is_mean(mean, values)), None)

    if trace.output.missing:
        return "the model returns no logits"
    values, head = trace.logits, None
    ref = find_mean(values)
    if ref is None:
        head = find_head(trace)
        if head is None:
            return "the logits are neither the output of a linear layer nor the mean of a map"
        values = trace.linear_inputs[head]
        ref = find_mean(values.flatten(1))
        if ref is None:
            return f"the input of its last linear layer, {head!r}, is not the mean of a map over its pixels"
        if not _is_affine(model.get_submodule(head), values, trace.layers[head].tensor):
            return f"its last layer, {head!r}, does more than multiply by its weight and add its bias"
    if not _is_mean_at_any_size(trace, ref, values):
        size = _find_counterexample(model, trace, ref, head)
        if size is not None:
            read = f"the input of {head!r}" if head else "the output"
            shown = " x ".join(map(str, size))
            return f"{read} is not the mean of {ref.name!r} on an image of {shown} (a fixed window)"
    return ref, head


def find_head(trace: ForwardTrace) -> str | None:
    """Return the name of the linear layer whose output, unchanged, is the logits; None if there is none."""
    logits = trace.logits
    for name in reversed(trace.linear_inputs):
        layer = trace.layers[name]
        if layer.modified_inplace or layer.tensor.numel() != logits.numel():
            continue
        if torch.equal(layer.tensor.reshape_as(logits).to(logits.dtype), logits):
            return name
    return None


def _is_affine(module: nn.Module, values: Tensor, output: Tensor) -> bool:
    """Return whether a layer does what its class does: a subclass or a hook may normalise or scale."""
    if is_dynamically_quantized(module):
        return True
    layer = next((kind for kind in (nn.Conv2d, nn.Conv3d) if isinstance(module, kind)), nn.Linear)
    with torch.no_grad():
        return _close(cast("Any", layer).forward(module, values.to(output.dtype)), output)


def _is_mean_at_any_size(trace: ForwardTrace, ref: LayerRef, values: Tensor) -> bool:
    """Return whether ``values`` were seen to be made by averaging the map itself, not a part, over all its pixels."""
    origin = trace.flow.find(values)
    if origin is None or origin.mean_of is not trace.layers[ref.name].tensor:
        return False
    first, axes = 2 if ref.layout.kind == "nchw" else 1, 1 if ref.layout.kind == "tokens" else len(trace.image_size)
    return origin.dims == set(range(first, first + axes))


def _find_counterexample(model: nn.Module, trace: ForwardTrace, ref: LayerRef, head: str | None) -> Size | None:
    """Return a size of the image at which the head does not read the mean of the map.

    None if it does, or if the network takes no other size.
    """
    for size in _larger_sizes(trace, ref):
        read: list[Tensor] = []

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any, read: list[Tensor] = read) -> None:
            read.append(args[0])

        try:
            with restored(model), hooked_inference(model, {head: hook} if head else {}):
                features = extract_features(
                    model,
                    make_trace_image(model, size, trace.channels),
                    {ref.name: ref},
                    logits=None if head else trace.output,
                )
        except Exception:  # a network may refuse a size in any way
            continue
        mean = _mean(features.maps[ref.name])
        values = read[-1].flatten(1) if head else features.logits
        return None if _is_mean(mean, values) else size
    return None


def _larger_sizes(trace: ForwardTrace, ref: LayerRef) -> Iterator[Size]:
    """Yield sizes at which the map has a pixel more each way, and twice as many."""
    yield tuple(side + math.ceil(step) for side, step in zip(trace.image_size, ref.layout.stride, strict=True))
    yield tuple(2 * side for side in trace.image_size)


def _mean(features: Tensor) -> Tensor:
    return features.float().mean(tuple(range(2, features.ndim)))


def _is_mean(mean: Tensor, values: Tensor) -> bool:
    return _close(mean, values) and bool(values.any())


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = max(1e-4, 2 * torch.finfo(b.dtype).eps)
    return a.shape == b.shape and bool(((a.float() - b.float()).abs() <= tolerance * b.float().abs().max()).all())
