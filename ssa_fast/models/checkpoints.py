"""Find a network's weights in a file: bare, or in a checkpoint of Lightning, timm, DDP, torch.compile and the like.

Which of a file's dictionaries is the network, and with what in front of its names, is decided by the names of the
model's own parameters, not by what training codes call them.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssa_fast.io.restricted_pickle import pickle_module

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

__all__ = ["mismatch_message", "read_state"]

TRAINING_ONLY = re.compile(r"^aux\d|^AuxLogits|num_batches_tracked$")
"""State that inference does not use, such as auxiliary heads (GoogLeNet, Inception): optional in a weights file."""

WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Modules that torch.compile, FSDP and activation checkpointing put around others: at any place of a name."""

MAX_DEPTH = 4  # of dictionaries inside each other; the network is not deeper than that in any known checkpoint
COPIES = re.compile(r"ema|teacher|momentum|averag|swa|shadow|target", re.IGNORECASE)
"""Words in the names of second copies of a network, which are taken only if there is no other."""
SHOWN = 3
ALLOWED_GLOBALS = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("torch", "Size"),
    ("torch", "device"),
    *(("torch._utils", name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")),
}
"""What a file of tensors needs."""


@dataclass
class _Network:
    """Weights that may be the network's: where they are in the file, and what is in front of their names."""

    where: str
    state: dict[str, Tensor]
    beside: list[str] = field(default_factory=list)  # names in the same dictionary without the prefix


def read_state(path: Path, expected: Collection[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the weights in a file that fit a model best, under the model's own names, and notes on the choice.

    What else the file holds (hyperparameters, optimizers, buffers of losses and metrics) is not used. Objects of other
    packages in it are never made, and no code that the file names is run.

    Args:
        path: A file of ``torch.save`` or safetensors.
        expected: The names in the model's state dict.

    Raises:
        ValueError: The file cannot be loaded safely, or holds no names with real tensors.
    """
    content = _load(path)
    found = [network for where, state in _state_dicts(content) for network in _networks(where, state, set(expected))]
    if not found:
        kind = type(content).__name__
        if isinstance(content, _Inert):
            raise ValueError(
                f"weights: {path} holds an object ({kind}), not a state dict that can be loaded with "
                "weights_only=True; write one with torch.save(model.state_dict(), FILE)"
            )
        raise ValueError(f"weights: expected {path} to hold a state dict, names with real tensors, got {kind}")
    most = max(len(expected & network.state.keys()) for network in found)
    best = [network for network in found if len(expected & network.state.keys()) == most]
    best.sort(key=lambda network: bool(COPIES.search(network.where)))
    chosen, notes = best[0], []
    if most and len(best) > 1:
        places = ", ".join(repr(network.where) for network in best)
        notes.append(f"weights: {path} holds several such networks ({places}); {chosen.where!r} is used")
    if most and chosen.beside:
        beside = _few(chosen.beside)
        notes.append(f"weights: {path} holds other state beside {chosen.where!r}, which is not used ({beside})")
    return chosen.state, tuple(notes)


def mismatch_message(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Describe how the entries of a state dict differ from those of the model; empty if they fit."""
    common = expected.keys() & given.keys()
    kinds = {
        "missing": [key for key in expected.keys() - common if not TRAINING_ONLY.search(key)],
        "unknown to the model": [key for key in given.keys() - common if not TRAINING_ONLY.search(key)],
        "of another shape": [key for key in common if expected[key].shape != given[key].shape],
    }
    return "; ".join(f"{len(keys)} {kind} ({_few(keys)})" for kind, keys in kinds.items() if keys)


class _Inert(dict[Any, Any]):
    """Stands for an object of a class that is not loaded: it keeps what it holds as a dictionary, and does nothing."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # objects may be keys of dictionaries

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:  # for subclasses of list
        pass

    extend = append


class _InertUnpickler(pickle.Unpickler):
    """An unpickler that makes tensors; any other class or function becomes a stand-in and is never imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED_GLOBALS:
            return super().find_class(module, name)
        return type(name.rpartition(".")[2], (_Inert,), {})


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" or head[8:] == b"{":  # after the length of its JSON header
        return _load_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says what is wrong with the file
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:  # it refuses all classes, whatever they are needed for
                return torch.load(
                    path, map_location="cpu", weights_only=False, pickle_module=pickle_module(_InertUnpickler)
                )
    except Exception as error:  # torch.load fails on other files with KeyError, EOFError, UnpicklingError and more
        reason = f"{type(error).__name__}: {error}".split("\n")[0].split(". ")[0]
        raise ValueError(
            f"weights: {path} is not a state dict that can be loaded with weights_only=True ({reason}); "
            "write one with torch.save(model.state_dict(), FILE)"
        ) from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise ValueError(f"weights: reading {path} needs the package safetensors; pip install safetensors") from None
    try:
        return load_file(path)
    except Exception as error:
        raise ValueError(f"weights: {path} is damaged or not a safetensors file ({error})") from error


def _state_dicts(content: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each dictionary that holds named tensors, with its keys' path in the file, outermost first."""
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, dict) or depth > MAX_DEPTH:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and _is_real(value)}
    if tensors:
        yield where, tensors
    for key, value in content.items():
        yield from _state_dicts(value, f"{where}.{key}" if where else str(key), depth + 1)


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_complex()


def _networks(where: str, tensors: Mapping[str, Tensor], expected: set[str]) -> Iterator[_Network]:
    """Yield the networks in one dictionary: one per prefix under which most of the expected names are found."""
    state = {WRAPPERS.sub("", name): value for name, value in tensors.items()}
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in expected:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    most = max(counts.values(), default=0)
    for prefix in [prefix for prefix, count in counts.items() if count == most] or [""]:
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        beside = [name for name in state if not name.startswith(prefix)]
        yield _Network(f"{where}.{prefix}".strip("."), own, beside)


def _few(names: Collection[str]) -> str:
    return f"{', '.join(sorted(names)[:SHOWN])}{', …' if len(names) > SHOWN else ''}"
