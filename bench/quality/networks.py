"""The networks whose maps are scored, and one image in one of them: what all methods share, each made once.

``python -m bench.quality.networks relu|silu SEED FILE`` trains another network on the demo's scenes, in about a quarter
of an hour on two cores; "silu" has signed features instead of the ReLU's. ``--model scenes=FILE`` reads it.
"""

from __future__ import annotations

import functools
import pkgutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.functional import silu

from ssa_fast import SSA, Affinity
from ssa_fast.demo.train import Recipe, fit
from ssa_fast.io.atomic import atomic_write
from ssa_fast.models import demo_net, zoo
from ssa_fast.ops.features import UnitFeatures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from PIL import Image
    from torch import Tensor

    Network: TypeAlias = tuple[Callable[..., SSA], Callable[[Image.Image], Tensor]]

ACTIVATIONS = ("relu", "silu")
SIDE = 224  # of what a network by name sees


def load(name: str) -> Network:
    """Return ``SSA`` of a network, by its options, each made once; and what makes an image the network's (1, 3, H, W).

    Both come from a name that ``ssa_fast`` knows, from "scenes=FILE", or from ``module:function``, which returns the
    network and its preprocessing. Images for a name are squashed to ``SIDE``, or to the only size that is accepted.
    """
    of_scenes = name.startswith("scenes=")
    if ":" in name and not of_scenes:
        model, preprocess = pkgutil.resolve_name(name)()
    else:
        classifier = zoo.load("demo" if of_scenes else name, "DEFAULT")
        size = None if of_scenes or name == "demo" else (SIDE, SIDE)
        model, preprocess = classifier.model, lambda image: classifier.preprocess(np.array(image), size)
    if of_scenes:
        model = load_scenes_network(Path(name.removeprefix("scenes=")))
    # Frozen: no method needs the gradients of parameters, and some would compute them.
    ssa = functools.cache(functools.partial(SSA, model.requires_grad_(False)))
    if ssa().info.window is not None:
        raise ValueError(f"model: expected one that sees all of an image, {name} crops or pads it")
    return ssa, preprocess


class Sample:
    """One image in one network.

    Attributes:
        ssa: ``SSA`` of the network, by its options.
        image, images, size: The image; preprocessed, (1, 3, H, W); and (H, W).
        stages: The stages of ``SSA`` by name, of a forward pass without gradients.
        forward_ms, predicted: CPU time of that pass, and the class that it predicts.
        classes, wrong: (1, K), the classes whose maps are made, and for each a class that is not in the image.
        runs_network: To be set by what runs the network itself: one forward pass is not its cost.
    """

    def __init__(self, network: Network, image: Image.Image, classes: Iterable[int | None]) -> None:
        self.ssa, preprocess = network
        self.image, self.images, self.runs_network = image, preprocess(image), False
        self.size = (self.images.shape[2], self.images.shape[3])
        info, begin = self.ssa().info, time.process_time()
        self._features = info.forward(self.ssa().model, self.images, "seed" if info.seed.kind == "cam" else "stages")
        self.forward_ms = 1000 * (time.process_time() - begin)
        self.stages = {name: self._features.maps[name] for name in info.stages}
        self.predicted = int(self._features.logits[0].argmax())
        given = [self.predicted if each is None else each for each in classes]
        others = [index for index in range(info.num_classes) if index not in given] or given
        half = info.num_classes // 2  # as far from the class as can be
        wrong = [min(others, key=lambda other: (other - each - half) % info.num_classes) for each in given]
        self.classes, self.wrong = torch.tensor([given]), torch.tensor([wrong])
        self._made: dict[Callable[[Sample], Tensor], tuple[Tensor, float]] = {}

    def made(self, function: Callable[[Sample], Tensor]) -> tuple[Tensor, float]:
        """Return maps (1, K, h, w) and the CPU milliseconds that they take beyond the forward pass, made once."""
        if function not in self._made:
            self.runs_network, begin = False, time.process_time()
            maps = function(self)
            spent = 1000 * (time.process_time() - begin)
            self._made[function] = maps, spent - self.forward_ms * self.runs_network
        return self._made[function]

    def seed(self, kind: str, wrong: bool = False) -> Tensor:
        """Return the seeds (1, K, h, w) of ``SSA(seed=kind)``, or those of classes that are not in the image."""
        ssa, features = self.ssa(seed=kind), self._features
        if ssa.seed_kind != "cam":
            self.runs_network = True
            features = ssa.info.forward(ssa.model, self.images)
        return ssa.info.seed_maps(ssa.model, features, self.wrong if wrong else self.classes)


def describe_stage(maps: Tensor) -> dict[str, float]:
    """Return what an affinity depends on, from one image's features (1, C, H, W).

    With ``mean_cosine`` of a pixel to all pixels, the shifted cosine's denominator is ``L·(s + mean_cosine)/(1 + s)``:
    it is positive at every pixel if the shift ``s`` exceeds minus the least of them.
    """
    x = UnitFeatures(maps, Affinity(), torch.float32).unit(0, maps.shape[2] * maps.shape[3])[0].double()  # [C, L]
    return {"signed": float((maps < 0).any()), "mean_cosine_min": float((x.mean(1) @ x).min())}


class _SignedBlock(demo_net.ResidualBlock):
    def forward(self, x: Tensor) -> Tensor:
        return silu(self.second(silu(self.first(x))) + self.shortcut(x))


def build_scenes_network(activation: str) -> demo_net.SceneClassifier:
    """Return the demo's architecture, untrained, with "relu" or "silu"."""
    model = demo_net.SceneClassifier()
    if activation == "silu":
        model.stem[1] = nn.SiLU()
        for block in (model.layer1, model.layer2, model.layer3, model.layer4):
            block.__class__ = _SignedBlock  # the same parameters
    return model


def train_on_scenes(activation: str, seed: int, path: Path, **recipe: int) -> None:
    """Train a network on scenes and write it; ``recipe`` changes the demo's hyperparameters."""
    model = fit(lambda: build_scenes_network(activation), Recipe(seed=seed, **recipe))
    saved = {"activation": activation, "state": model.state_dict()}
    atomic_write(path, lambda temporary: torch.save(saved, temporary))


def load_scenes_network(path: Path) -> demo_net.SceneClassifier:
    """Load what ``train_on_scenes`` wrote, in evaluation mode; ValueError if the file is another."""
    saved = torch.load(path, weights_only=True)
    if saved.get("activation") not in ACTIVATIONS:
        raise ValueError(f"model: expected a file of `python -m bench.quality.networks`, got {path}; train one")
    model = build_scenes_network(saved["activation"])
    model.load_state_dict(saved["state"])
    return model.eval()


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ACTIVATIONS:
        sys.exit(__doc__)
    train_on_scenes(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
