"""Select the modules whose outputs are the stages of a backbone.

If the network applies an in-place ReLU to a module's output (as VGG does to its convolutions, DenseNet to its last
normalisation), the stage is the map after the ReLU, which the next layer reads; against any other in-place change the
output is copied first. Of a module called several times, the last call counts.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from ssa_fast.models.trace import ForwardTrace, LayerTrace

MAX_STAGES = 4


def select_stages(model: nn.Module, trace: ForwardTrace, stages: str | Sequence[str]) -> list[str]:
    """Return the names of the stage modules: finest first for ``"auto"``, else ``stages`` as given.

    Raises:
        ValueError: A name is unknown, a module returns no map, or no stage is found.
    """
    if isinstance(stages, str):
        if stages != "auto":
            raise ValueError(f'stages: expected "auto" or a list of module names, got {stages!r}; write [{stages!r}]')
        return _select_automatically(model, trace)
    names = list(stages) if isinstance(stages, Sequence) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f'stages: expected at least one module name, got {stages!r}; pass names or "auto"')
    if len(set(names)) < len(names):
        raise ValueError(f"stages: expected distinct module names, got {names!r}; name each stage once")
    for name in names:
        check_returns_map(model, trace, name, argument="stages")
    return names


def check_returns_map(model: nn.Module, trace: ForwardTrace, name: str, *, argument: str) -> None:
    """Raise ValueError unless ``name`` is a module of ``model`` whose output in the trace is a map."""
    known = [known for known, _ in model.named_modules() if known]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.4) or list(trace.maps)[-5:]
        raise ValueError(
            f"{argument}: expected a module name of the model, got {name!r}; name another, such as {', '.join(close)}"
        )
    if name not in trace.layers:
        raise ValueError(
            f"{argument}: expected a module whose output the network uses, but {name!r} was not called or returned no "
            "tensor; name one of the modules inside or around it"
        )
    if name not in trace.maps:
        raise ValueError(
            f"{argument}: expected a module that returns (B, C, H, W), (B, H, W, C) or patch tokens (B, N, C), but "
            f"{name!r} returned {tuple(trace.layers[name].tensor.shape)} for one image; name another module"
        )


def _select_automatically(model: nn.Module, trace: ForwardTrace) -> list[str]:
    """Select the last output of each of the four coarsest resolutions, or four blocks of a single one."""
    chains = _chains(model, trace)
    levels = max((_group_by_stride(chain, trace) for chain in chains), key=len, default=[])
    if len(levels) > 1:
        if not any(list(model.get_submodule(layer.name).parameters()) for layer in levels[-1]):
            del levels[-1]  # it only pools the level before (VGG and AlexNet end in a max pooling)
        chosen = [level[-1] for level in levels[-MAX_STAGES:]]
    else:
        chosen = _evenly_spaced_blocks(model, chains)
    if not chosen:
        raise ValueError(
            "stages: expected a network whose modules return maps of more than one pixel, found none; name the stages"
        )
    return list(dict.fromkeys(_activated(model, trace, layer).name for layer in chosen))


def _chains(model: nn.Module, trace: ForwardTrace) -> list[list[LayerTrace]]:
    """List for each module, outermost first, its children's maps (> 1 pixel) in order of return."""
    chains: dict[str, list[LayerTrace]] = {name: [] for name, _ in model.named_modules()}
    for layer in trace.layers.values():
        parent = layer.name
        while layer.pixels > 1 and parent:
            parent = parent.rpartition(".")[0]
            chains[parent].append(layer)
            if parent in trace.layers:  # else a container that is never called itself, such as a ModuleList
                break
    return list(chains.values())


def _group_by_stride(chain: list[LayerTrace], trace: ForwardTrace) -> list[list[LayerTrace]]:
    """Group maps by stride, to the nearest power of two; drop maps finer than an earlier one."""
    levels: dict[int, list[LayerTrace]] = {}
    for layer in chain:
        octave = round(math.log2(math.prod(trace.image_size) / layer.pixels) / 2)
        if not levels or octave >= max(levels):
            levels.setdefault(octave, []).append(layer)
    return list(levels.values())


def _evenly_spaced_blocks(model: nn.Module, chains: list[list[LayerTrace]]) -> list[LayerTrace]:
    """Select four evenly spaced modules of the longest row of like ones, for one resolution (ViT)."""
    blocks = {name for name, module in model.named_modules() if list(module.children())}
    rows = [[layer for layer in chain if layer.name in blocks and layer.shape == chain[-1].shape] for chain in chains]
    row = max(rows, key=len, default=[])
    if len(row) < 2:  # a flat network without blocks
        flat = max(chains, key=len, default=[])
        row = [layer for layer in flat if layer.non_negative] or flat
    count = min(MAX_STAGES, len(row))
    return [row[(i + 1) * len(row) // count - 1] for i in range(count)]


def _activated(model: nn.Module, trace: ForwardTrace, layer: LayerTrace) -> LayerTrace:
    """Return the map after the ReLU that follows a signed one, else ``layer``.

    In pre-activation networks (DenseNet) the next block begins with that ReLU. Only normalisations and activations may
    lie between.
    """
    layers = list(trace.layers.values())
    for following in [layer, *layers[layers.index(layer) + 1 :]]:
        pointwise = all(p.ndim < 2 for p in model.get_submodule(following.name).parameters())
        same_tensor = following.tensor is layer.tensor
        if following.shape is None or following.shape != layer.shape or not (pointwise or same_tensor):
            break
        if following.non_negative:
            # Several layers may share one tensor: prefer the name of the ReLU to that of the layer it overwrote.
            named_after_relu = (r for r in layers if r.tensor is following.tensor and not r.modified_inplace)
            return next(named_after_relu, following) if following.modified_inplace else following
    return layer
