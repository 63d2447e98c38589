"""The networks whose maps are scored, by name or from a function."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.quality import scenes
from ssa_fast import SSA
from ssa_fast.models import demo_net, zoo

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image
    from torch import Tensor, nn


@dataclass(eq=False)
class Network:
    """A classifier, frozen, with its preprocessing, from an image to (1, 3, H, W), which shows the whole of it."""

    name: str
    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    _made: dict[str, SSA] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Freeze the parameters: no method needs their gradients, and some would compute them."""
        self.model.requires_grad_(False)

    def ssa(self, **options: Any) -> SSA:
        """Return ``SSA`` of the network with these options, made once.

        Raises:
            ValueError: The network cannot be used so, or crops the images that it gets.
        """
        key = repr(sorted(options.items()))
        if key not in self._made:
            made = SSA(self.model, **options)
            if made.info.window is not None:
                raise ValueError(f"model: expected one that sees all of an image, {self.name} crops or pads it")
            self._made[key] = made
        return self._made[key]


def load(name: str, weights: str = "DEFAULT", side: int = 224) -> Network:
    """Load a network by its name in ``ssa_fast``, from ``module:function``, or from "scenes=FILE" (``scenes``).

    Such a function returns (network, preprocess). Otherwise images are squashed to a square of ``side`` pixels, or to
    the only size that the network accepts; for networks that are trained on scenes they keep theirs.

    Raises:
        ValueError: An unknown name or weights.
    """
    if name.startswith("scenes="):
        model = scenes.load(Path(name.removeprefix("scenes=")))
        return Network(name, model, lambda image: demo_net.preprocess(np.array(image)[None]))
    if ":" in name:
        return Network(name, *imported(name)())
    classifier = zoo.load(name, weights)
    size = None if name == "demo" else (side, side)
    return Network(name, classifier.model, lambda image: classifier.preprocess(np.array(image), size))


def imported(name: str) -> Any:
    """Return what ``module:attribute`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
