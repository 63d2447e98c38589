"""Select the modules whose outputs are the stages of a backbone.

If the network applies an in-place ReLU to a module's output (as VGG does to its convolutions), the stage is the map
after the ReLU, which the next layer reads; against any other in-place change the output is copied first. Of a module
called several times, the last call counts.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

    from ssa_fast.models.trace import ForwardTrace, LayerRef

MAX_STAGES = 4
MIN_SHARE = 0.05  # of the network's modules that a resolution of another row must take
NARROW = 4  # a map this many times narrower than another of its resolution holds gates or scores, not features


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
    """Select the last output of each of the four coarsest resolutions, or blocks of a single one.

    A row of siblings that ends before the middle of the network is a stem or a patch embedding, whatever its
    resolutions: the rows that end later are judged. Resolutions that the chosen row lacks, or leaves early, come from
    other rows, if they take a share of the network (``MIN_SHARE``).
    """
    chains = _chains(model, trace)
    end = max((trace.spans[chain[-1].name][1] for chain in chains), default=0)
    late = [chain for chain in chains if 2 * trace.spans[chain[-1].name][1] >= end]
    rows = [_Row(trace, chain) for chain in late]
    if not rows:
        raise ValueError(
            "stages: expected a network whose modules return maps of more than one pixel, found none; name the stages"
        )
    row = max(rows, key=_Row.rank)
    coarsest = row.levels[max(row.levels)]
    if len(row.levels) > 1 and not any(list(model.get_submodule(ref.name).parameters()) for ref in coarsest):
        del row.levels[max(row.levels)]  # it only pools the level before (VGG and AlexNet end in a max pooling)
    chosen = row.chosen()
    blocks = _similar_blocks(model, trace, chains, late) if len(chosen) == 1 else []
    chosen = _with_other_rows(model, trace, chains, blocks[-1:] or chosen)
    if blocks and len(chosen) == 1:
        count = min(MAX_STAGES, len(blocks))
        chosen = [blocks[(i + 1) * len(blocks) // count - 1] for i in range(count)]
    return list(dict.fromkeys(_activated(model, trace, ref) for ref in chosen[-MAX_STAGES:]))


def _chains(model: nn.Module, trace: ForwardTrace) -> list[list[LayerRef]]:
    """List for each module, outermost first, its children's maps (> 1 pixel) in order of return.

    Maps that the logits do not depend on are left out.
    """
    chains: dict[str, list[LayerRef]] = {name: [] for name, _ in model.named_modules()}
    for parent, ref in trace.maps.items():
        if trace.needed is not None and ref.name not in trace.needed:
            continue
        while ref.layout.pixels > 1 and parent:
            parent = parent.rpartition(".")[0]
            chains[parent].append(ref)
            if parent in trace.layers:  # else a container that is never called itself, such as a ModuleList
                break
    return [chain for chain in chains.values() if chain]


def _octave(ref: LayerRef) -> int:
    """Return the stride of a map as a power of two; that of height and width, as volumes may keep their depth."""
    return round(math.log2(math.prod(ref.layout.image_size[-2:]) / math.prod(ref.layout.shape[-2:])) / 2)


class _Row:
    """The maps of one module's children, by resolution.

    Attributes:
        levels: Octave of the stride -> the maps on the main path, without those finer than an earlier one. Where
            branches leave no main path, other maps take the resolutions between, or all.
    """

    def __init__(self, trace: ForwardTrace, chain: list[LayerRef]) -> None:
        self._trace, self._chain = trace, chain
        self.levels: dict[int, list[LayerRef]] = {}
        main = [ref for ref in chain if trace.main_path is None or ref.name in trace.main_path]
        self._has_main = bool(main)
        if main and 2 * self._end(main[-1]) < self._end(chain[-1]):
            main = []  # the network branches early
        for ref in main or chain:
            if not self.levels or _octave(ref) >= max(self.levels):
                self.levels.setdefault(_octave(ref), []).append(ref)
        if len(self.levels) < MAX_STAGES:
            known = set(self.levels)
            for ref in chain:
                if min(known) < _octave(ref) < max(known) and _octave(ref) not in known:
                    self.levels.setdefault(_octave(ref), []).append(ref)

    def rank(self) -> tuple[bool, int, bool, bool]:
        """Return by what rows are compared: resolutions first, last whether the finest one is more than a stem."""
        begin, end = self._trace.spans[self._chain[0].name][0], self._end(self._chain[-1])
        whole = end - begin >= 0.5 * self._trace.called and end >= 0.8 * self._trace.called
        return self._has_main, len(self.levels), whole, self._end(self.chosen()[0]) >= 0.1 * self._trace.called

    def chosen(self) -> list[LayerRef]:
        """Return the last map of each resolution, finest first, without maps of few channels or of class scores."""
        return [self._last(self.levels[octave]) for octave in sorted(self.levels)]

    def _end(self, ref: LayerRef) -> int:
        return self._trace.spans[ref.name][1]

    def _last(self, refs: list[LayerRef]) -> LayerRef:
        widest = max(ref.layout.channels for ref in refs)
        wide = [ref for ref in refs if NARROW * ref.layout.channels >= widest]
        last = next((ref for ref in reversed(wide) if not _is_class_map(self._trace, ref)), wide[-1])
        tensor = self._trace.layers[last.name].tensor  # dropout returns what it is given: prefer the name that made it
        same = (ref for ref in wide if self._trace.layers[ref.name].tensor is tensor and not ref.modified_inplace)
        return next(same, last)


def _is_class_map(trace: ForwardTrace, ref: LayerRef) -> bool:
    """Return whether the logits are the means of a map, which holds classes then, not features."""
    if ref.layout.channels != trace.logits.shape[1]:
        return False
    means = ref.layout.view(trace.layers[ref.name].tensor, trace.image_size).flatten(2).mean(2)
    return torch.allclose(means, trace.logits.reshape_as(means), rtol=1e-3, atol=1e-6)


def _with_other_rows(
    model: nn.Module, trace: ForwardTrace, chains: list[list[LayerRef]], chosen: list[LayerRef]
) -> list[LayerRef]:
    """Return the stages with blocks on the main path elsewhere that are finer, coarser or later at their resolution.

    This is so where a stage ends with its downsampling (Hugging Face's Swin), where a transformer follows a
    convolutional network, and where the last stage is no sibling of the others.
    """
    stages = {_octave(ref): ref for ref in chosen}
    first, last = chosen[0], chosen[-1]
    shares: dict[int, int] = {}
    for chain in chains:
        levels: dict[int, list[LayerRef]] = {}
        for ref in chain:
            octave, (begin, end) = _octave(ref), trace.spans[ref.name]
            finer = octave < _octave(first) and end <= trace.spans[first.name][1]
            later = octave > _octave(last) or octave in stages
            own = next((each for each in reversed(chosen) if _octave(each) <= octave), last)
            later = later and begin > trace.spans[own.name][1]
            alike = abs(_skew(ref) - _skew(last)) < 0.5  # no tokens by windows or heads
            block = bool(list(model.get_submodule(ref.name).children()))
            if (finer or later) and alike and block and ref.name in (trace.main_path or ()):
                levels.setdefault(octave, []).append(ref)
        for octave, refs in levels.items():
            share = trace.spans[refs[-1].name][1] - trace.spans[refs[0].name][0]
            if share >= MIN_SHARE * trace.called and share > shares.get(octave, 0):
                stages[octave], shares[octave] = refs[-1], share
    return [stages[octave] for octave in sorted(stages)]


def _skew(ref: LayerRef) -> float:
    return math.log(ref.layout.stride[-2] / ref.layout.stride[-1])


def _similar_blocks(
    model: nn.Module, trace: ForwardTrace, chains: list[list[LayerRef]], late: list[list[LayerRef]]
) -> list[LayerRef]:
    """Return the row of like modules that takes most of the network, for one of a single resolution (ViT)."""
    rows: dict[object, list[LayerRef]] = {}
    for number, chain in enumerate(late):
        for ref in chain:
            module = model.get_submodule(ref.name)
            if list(module.children()):
                rows.setdefault((number, type(module), ref.layout.shape), []).append(ref)
    parts: dict[object, list[LayerRef]] = {}
    for ref in sorted((ref for chain in chains for ref in chain), key=lambda ref: trace.spans[ref.name]):
        parent, _, name = ref.name.rpartition(".")
        if re.search(r"\d", parent) and is_normalisation(model.get_submodule(ref.name)):
            parts.setdefault((re.sub(r"\d+", "", parent), name, ref.layout.shape), []).append(ref)

    def share(row: list[LayerRef]) -> float:
        return (trace.spans[row[-1].name][1] - trace.spans[row[0].name][0]) / trace.called

    for candidates in (rows, parts):  # blocks, or, where a block returns no map first (TNT), a normalisation in each
        known = [row for row in candidates.values() if len(row) > 1 and share(row) >= 0.25]
        if known:  # of rows that take half of the network, the one of most blocks: they contain each other
            return max(known, key=lambda row: (len(row) if share(row) >= 0.5 else 0, share(row)))
    flat = max(late, key=len)  # a flat network without blocks
    return [ref for ref in flat if trace.layers[ref.name].non_negative] or flat


def is_normalisation(module: nn.Module) -> bool:
    """Return whether a module scales and shifts channels and mixes none."""
    parameters = list(module.parameters())
    return bool(parameters) and all(parameter.ndim < 2 for parameter in parameters)


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
