"""Select the modules whose outputs are the stages of a backbone.

If the network applies an in-place ReLU to a module's output (as VGG does to its convolutions), the stage is the map
after the ReLU, which the next layer reads; against any other in-place change the output is copied first. Of a module
called several times, the last call counts.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from ssa_fast.models.trace import ForwardTrace, LayerRef

MAX_STAGES = 4


def select_stages(model: nn.Module, trace: ForwardTrace, stages: str | Sequence[str]) -> list[str]:
    """Return the names of the stage modules: finest first for ``"auto"``, else ``stages`` as given."""
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
    levels = max((_group_by_stride(chain) for chain in chains), key=len, default=[])
    if len(levels) > 1:
        if not any(list(model.get_submodule(ref.name).parameters()) for ref in levels[-1]):
            del levels[-1]  # it only pools the level before (VGG and AlexNet end in a max pooling)
        chosen = [level[-1] for level in levels[-MAX_STAGES:]]
    else:
        chosen = _evenly_spaced_blocks(model, trace, chains)
    if not chosen:
        raise ValueError(
            "stages: expected a network whose modules return maps of more than one pixel, found none; name the stages"
        )
    return list(dict.fromkeys(_activated(model, trace, ref) for ref in chosen))


def _chains(model: nn.Module, trace: ForwardTrace) -> list[list[LayerRef]]:
    """List for each module, outermost first, its children's maps (> 1 pixel) in order of return."""
    chains: dict[str, list[LayerRef]] = {name: [] for name, _ in model.named_modules()}
    for parent, ref in trace.maps.items():
        while ref.layout.pixels > 1 and parent:
            parent = parent.rpartition(".")[0]
            chains[parent].append(ref)
            if parent in trace.layers:  # else a container that is never called itself, such as a ModuleList
                break
    return list(chains.values())


def _group_by_stride(chain: list[LayerRef]) -> list[list[LayerRef]]:
    """Group maps by stride, to the nearest power of two; drop maps finer than an earlier one."""
    levels: dict[int, list[LayerRef]] = {}
    for ref in chain:
        octave = round(math.log2(math.prod(ref.layout.image_size) / ref.layout.pixels) / 2)
        if not levels or octave >= max(levels):
            levels.setdefault(octave, []).append(ref)
    return list(levels.values())


def _evenly_spaced_blocks(model: nn.Module, trace: ForwardTrace, chains: list[list[LayerRef]]) -> list[LayerRef]:
    """Select four evenly spaced modules of the longest row of like ones, for one resolution (ViT)."""
    blocks = {name for name, module in model.named_modules() if list(module.children())}
    rows = [[ref for ref in c if ref.name in blocks and ref.layout.shape == c[-1].layout.shape] for c in chains]
    row = max(rows, key=len, default=[])
    if len(row) < 2:  # a flat network without blocks
        flat = max(chains, key=len, default=[])
        row = [ref for ref in flat if trace.layers[ref.name].non_negative] or flat
    count = min(MAX_STAGES, len(row))
    return [row[(i + 1) * len(row) // count - 1] for i in range(count)]


def _activated(model: nn.Module, trace: ForwardTrace, ref: LayerRef) -> str:
    """Return the name of the map after the ReLU that follows a signed one, else the map's own.

    Only normalisations and activations may lie between, as where DenseNet's next block begins with the ReLU.
    """
    names, tensor = list(trace.layers), trace.layers[ref.name].tensor
    for name in names[names.index(ref.name) :]:
        layer, following = trace.layers[name], trace.maps.get(name)
        pointwise = all(p.ndim < 2 for p in model.get_submodule(name).parameters())
        if not following or following.layout.shape != ref.layout.shape or not (pointwise or layer.tensor is tensor):
            break
        if layer.non_negative:
            # Several layers may share one tensor: prefer the name of the ReLU to that of the layer it overwrote.
            same = (other for other in names if trace.layers[other].tensor is layer.tensor)
            return next((other for other in (name, *same) if not trace.layers[other].modified_inplace), name)
    return ref.name
