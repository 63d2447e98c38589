"""Which module outputs are the stages of a backbone.

A stage is the output of a named module, as a map. If the network applies an in-place ReLU to that output (as VGG does
to its convolutions, DenseNet to its last normalisation), the stage is the rectified map that the next layer reads; any
other writing into it is kept out: the output is copied first. Of a module called several times the last call counts.
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

STAGES = 4


def find_stages(model: nn.Module, trace: ForwardTrace, stages: str | Sequence[str]) -> list[str]:
    """Names of the stage modules, finest first for ``"auto"``, in the given order for a list of names.

    Raises ValueError for an unknown name, for a module that gives no map, or if nothing can be found.
    """
    if isinstance(stages, str):
        if stages != "auto":
            raise ValueError(f'stages: expected "auto" or a list of module names, got {stages!r}; write [{stages!r}]')
        return automatic_stages(model, trace)
    names = list(stages) if isinstance(stages, Sequence) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f'stages: expected at least one module name, got {stages!r}; pass names or "auto"')
    if len(set(names)) < len(names):
        raise ValueError(f"stages: expected distinct module names, got {names!r}; name each stage once")
    for name in names:
        check_map_module(model, trace, name, argument="stages")
    return names


def check_map_module(model: nn.Module, trace: ForwardTrace, name: str, *, argument: str) -> None:
    """Raises ValueError unless ``name`` is a module of ``model`` whose output in the trial could be read as a map."""
    known = [known for known, _ in model.named_modules() if known]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.4) or list(trace.maps)[-5:]
        raise ValueError(
            f"{argument}: expected a module name of the model, got {name!r}; name another, such as {', '.join(close)}"
        )
    if name not in trace.records:
        raise ValueError(
            f"{argument}: expected a module whose output the network uses, but {name!r} was not called or returned no "
            "tensor; name one of the modules inside or around it"
        )
    if name not in trace.maps:
        raise ValueError(
            f"{argument}: expected a module that returns (B, C, H, W), (B, H, W, C) or patch tokens (B, N, C), but "
            f"{name!r} gave {tuple(trace.records[name].tensor.shape)} for one image; name another module"
        )


def automatic_stages(model: nn.Module, trace: ForwardTrace) -> list[str]:
    """The last output at each of the four coarsest resolutions; four evenly spaced blocks if there is one only."""
    chains = list(_chains(model, trace))
    pyramids = [_pyramid(chain, trace) for chain in chains]
    best = max(pyramids, key=len, default=[])
    if len(best) > 1:
        chosen = [level[-1] for level in _drop_pooled_tail(model, best)][-STAGES:]
    else:
        chosen = _even_blocks(model, chains)
    if not chosen:
        raise ValueError(
            "stages: expected a network whose modules return maps of more than one pixel, found none; name the stages"
        )
    names = (_activated(model, trace, record).name for record in chosen)
    return list(dict.fromkeys(names))


def _chains(model: nn.Module, trace: ForwardTrace) -> Iterator[list[LayerTrace]]:
    """For each module, outermost first: its children's maps of more than one pixel, in the order they returned."""
    order = {name: position for position, name in enumerate(trace.records)}
    for name, module in model.named_modules():
        children = [child for child in _called_children(name, module, trace) if child in trace.maps]
        records = [trace.records[child] for child in sorted(children, key=order.__getitem__)]
        yield [record for record in records if _pixels(record) > 1]


def _called_children(prefix: str, module: nn.Module, trace: ForwardTrace) -> Iterable[str]:
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if path in trace.records:
            yield path
        else:  # a ModuleList and the like: never called itself
            yield from _called_children(path, child, trace)


def _pyramid(chain: list[LayerTrace], trace: ForwardTrace) -> list[list[LayerTrace]]:
    """The chain's maps grouped by stride, to the nearest power of two; maps that grow again do not count."""
    levels: dict[int, list[LayerTrace]] = {}
    area = trace.image_size[0] * trace.image_size[1]
    for record in chain:
        octave = round(math.log2(area / _pixels(record)) / 2)
        if not levels or octave >= max(levels):
            levels.setdefault(octave, []).append(record)
    return list(levels.values())


def _drop_pooled_tail(model: nn.Module, levels: list[list[LayerTrace]]) -> list[list[LayerTrace]]:
    """Without a last level that is a pooled copy of the one before (VGG and AlexNet end in a max pooling)."""
    learnt = any(list(model.get_submodule(record.name).parameters()) for record in levels[-1])
    return levels if learnt or len(levels) == 1 else levels[:-1]


def _even_blocks(model: nn.Module, chains: list[list[LayerTrace]]) -> list[LayerTrace]:
    """Four evenly spaced blocks of a network that keeps one resolution (ViT): the longest row of like modules."""

    def composite(record: LayerTrace) -> bool:
        return any(True for _ in model.get_submodule(record.name).children())

    rows = [[r for r in chain if composite(r) and _shape(r) == _shape(chain[-1])] for chain in chains]
    row = max(rows, key=len, default=[])
    if len(row) < 2:  # no blocks: a flat network
        flat = max(chains, key=len, default=[])
        row = [record for record in flat if record.non_negative] or flat
    count = min(STAGES, len(row))
    return [row[(i + 1) * len(row) // count - 1] for i in range(count)]


def _activated(model: nn.Module, trace: ForwardTrace, record: LayerTrace) -> LayerTrace:
    """The rectified map behind a signed one: in pre-activation networks (DenseNet) the next block begins with the ReLU.

    Only normalisations and activations may lie between; anything else leaves the record as it is.
    """
    records = list(trace.records.values())
    for following in [record, *records[records.index(record) + 1 :]]:
        pointwise = all(p.ndim < 2 for p in model.get_submodule(following.name).parameters())
        same_tensor = following.tensor is record.tensor
        if following.layout is None or _shape(following) != _shape(record) or not (pointwise or same_tensor):
            break
        if following.non_negative:
            # The same tensor may bear several names: the ReLU's own tells more than that of the layer it overwrote.
            named_after_relu = (r for r in records if r.tensor is following.tensor and not r.modified_inplace)
            return next(named_after_relu, following) if following.modified_inplace else following
    return record


def _shape(record: LayerTrace) -> tuple[int, int, int]:
    return record.layout.shape if record.layout is not None else (0, 0, 0)


def _pixels(record: LayerTrace) -> int:
    return record.layout.pixels if record.layout is not None else 0
