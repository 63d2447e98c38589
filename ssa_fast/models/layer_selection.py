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
    from collections.abc import Iterable, Iterator

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
        return select_automatic_stages(model, trace)
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


def select_automatic_stages(model: nn.Module, trace: ForwardTrace) -> list[str]:
    """Select the last output of each of the four coarsest resolutions, or four blocks of a single one.

    Raises:
        ValueError: No module returns a map of more than one pixel.
    """
    chains = list(_chains(model, trace))
    pyramids = [_pyramid(chain, trace) for chain in chains]
    best = max(pyramids, key=len, default=[])
    if len(best) > 1:
        chosen = [level[-1] for level in _drop_pooled_tail(model, best)][-MAX_STAGES:]
    else:
        chosen = _evenly_spaced_blocks(model, chains)
    if not chosen:
        raise ValueError(
            "stages: expected a network whose modules return maps of more than one pixel, found none; name the stages"
        )
    names = (_activated(model, trace, layer).name for layer in chosen)
    return list(dict.fromkeys(names))


def _chains(model: nn.Module, trace: ForwardTrace) -> Iterator[list[LayerTrace]]:
    """Yield for each module, outermost first, its children's maps (> 1 pixel) in order of return."""
    order = {name: position for position, name in enumerate(trace.layers)}
    for name, module in model.named_modules():
        children = sorted(_called_children(name, module, trace), key=order.__getitem__)
        yield [trace.layers[child] for child in children if trace.layers[child].pixels > 1]


def _called_children(prefix: str, module: nn.Module, trace: ForwardTrace) -> Iterable[str]:
    for name, child in module.named_children():
        full_name = f"{prefix}.{name}" if prefix else name
        if full_name in trace.layers:
            yield full_name
        else:  # a container that is never called itself, such as a ModuleList
            yield from _called_children(full_name, child, trace)


def _pyramid(chain: list[LayerTrace], trace: ForwardTrace) -> list[list[LayerTrace]]:
    """Group maps by stride, to the nearest power of two; drop maps finer than an earlier one."""
    levels: dict[int, list[LayerTrace]] = {}
    area = trace.image_size[0] * trace.image_size[1]
    for layer in chain:
        octave = round(math.log2(area / layer.pixels) / 2)
        if not levels or octave >= max(levels):
            levels.setdefault(octave, []).append(layer)
    return list(levels.values())


def _drop_pooled_tail(model: nn.Module, levels: list[list[LayerTrace]]) -> list[list[LayerTrace]]:
    """Drop the last level if it only pools the one before (VGG and AlexNet end in a max pooling)."""
    learnt = any(list(model.get_submodule(layer.name).parameters()) for layer in levels[-1])
    return levels if learnt or len(levels) == 1 else levels[:-1]


def _evenly_spaced_blocks(model: nn.Module, chains: list[list[LayerTrace]]) -> list[LayerTrace]:
    """Select four evenly spaced modules of the longest row of like ones, for one resolution (ViT)."""

    def has_children(layer: LayerTrace) -> bool:
        return any(True for _ in model.get_submodule(layer.name).children())

    rows = [[r for r in chain if has_children(r) and r.shape == chain[-1].shape] for chain in chains]
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
