"""The networks whose maps are scored, and one image in one of them: what all methods share, each made once.

``python -m bench.quality.networks relu|silu SEED FILE`` trains another network on the demo's scenes, in about a quarter
of an hour on two cores; "silu" has signed features instead of the ReLU's. ``--model scenes=FILE`` reads it.
"""

from __future__ import annotations

import pkgutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import silu

from ssa_fast import SSA, Affinity
from ssa_fast.demo.train import Recipe, fit
from ssa_fast.io.atomic import atomic_write
from ssa_fast.models import demo_net, zoo
from ssa_fast.ops.features import UnitFeatures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from ssa_fast.models.demo_net import SceneClassifier

ACTIVATIONS = ("relu", "silu")
SIDE = 224  # of what a network by name sees


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


def load(name: str) -> Network:
    """Load a network by its name in ``ssa_fast``, from ``module:function``, or from "scenes=FILE" (see above).

    Such a function returns (network, preprocess). Otherwise images are squashed to ``SIDE``, or to the only size that
    the network accepts; for networks that are trained on scenes they keep theirs.

    Raises:
        ValueError: An unknown name.
    """
    if name.startswith("scenes="):
        model = load_scenes_network(Path(name.removeprefix("scenes=")))
        return Network(name, model, lambda image: demo_net.preprocess(np.array(image)[None]))
    if ":" in name:
        return Network(name, *pkgutil.resolve_name(name)())
    classifier = zoo.load(name, "DEFAULT")
    size = None if name == "demo" else (SIDE, SIDE)
    return Network(name, classifier.model, lambda image: classifier.preprocess(np.array(image), size))


class Sample:
    """One image in one network.

    Attributes:
        network: The network.
        image, images: The image, and preprocessed (1, 3, H, W).
        size: (H, W) of the latter.
        stages: The stages of ``SSA`` by name, of a forward pass without gradients.
        forward_ms: CPU time of that pass.
        predicted: The predicted class.
        classes, wrong: (1, K), the classes whose maps are made, and for each a class that is not in the image.
    """

    def __init__(self, network: Network, image: Image.Image, classes: Iterable[int | None]) -> None:
        self.network, self.image, self.images = network, image, network.preprocess(image)
        self.size = (self.images.shape[2], self.images.shape[3])
        info = network.ssa().info
        begin = time.process_time()
        self._features = info.forward(network.model, self.images, "seed" if info.seed.kind == "cam" else "stages")
        self.forward_ms = 1000 * (time.process_time() - begin)
        self.stages = {name: self._features.maps[name] for name in info.stages}
        self.predicted = int(self._features.logits[0].argmax())
        given = [self.predicted if each is None else each for each in classes]
        others = [index for index in range(info.num_classes) if index not in given] or given
        half = info.num_classes // 2  # as far from the class as can be
        wrong = [min(others, key=lambda other: (other - each - half) % info.num_classes) for each in given]
        self.classes, self.wrong = torch.tensor([given]), torch.tensor([wrong])
        self._made: dict[str, tuple[Tensor, float]] = {}
        self._ran_network = False

    def pixels(self) -> Tensor:
        """Return the image (1, 3, H, W) in [0, 1], at the size of the preprocessed one."""
        resized = self.image.resize(self.size[::-1], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 255.0

    def made(self, name: str, function: Callable[[Sample], Tensor]) -> tuple[Tensor, float]:
        """Return maps (1, K, h, w) and the CPU milliseconds that they take beyond the forward pass, made once."""
        if name not in self._made:
            self._ran_network, begin = False, time.process_time()
            maps = function(self)
            spent = 1000 * (time.process_time() - begin)
            self._made[name] = maps, spent - self.forward_ms * self._ran_network
        return self._made[name]

    def run_network(self) -> None:
        """Note that what is being made runs the network itself: one forward pass is not its cost."""
        self._ran_network = True

    def model_seed(self, kind: str, classes: Tensor) -> Tensor:
        """Return the seeds (1, K, h, w) of ``SSA(seed=kind)`` for classes (1, K)."""
        info, features = self.network.ssa(seed=kind).info, self._features
        if info.seed.kind != "cam":
            self.run_network()
            features = info.forward(self.network.model, self.images)
        return info.seed_maps(self.network.model, features, classes)


def describe_stage(maps: Tensor) -> dict[str, float]:
    """Return what an affinity depends on, from one image's features (1, C, H, W).

    With ``mean_cosine`` of a pixel to all pixels, the shifted cosine's denominator is ``L·(s + mean_cosine)/(1 + s)``:
    it is positive at every pixel if the shift ``s`` exceeds minus the least of them.
    """
    x = UnitFeatures(maps, Affinity(), torch.float32).unit(0, maps.shape[2] * maps.shape[3])[0].double()  # [C, L]
    mean_cosine = x.mean(1) @ x
    return {"signed": float((maps < 0).any()), "mean_cosine_min": float(mean_cosine.min())}


class _SignedBlock(demo_net.ResidualBlock):
    """A residual block with SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return silu(self.second(silu(self.first(x))) + self.shortcut(x))


def build_scenes_network(activation: str) -> SceneClassifier:
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


def load_scenes_network(path: Path) -> SceneClassifier:
    """Load what ``train_on_scenes`` wrote, in evaluation mode; ValueError if the file is another."""
    saved = torch.load(path, weights_only=True)
    if not isinstance(saved, dict) or saved.get("activation") not in ACTIVATIONS:
        raise ValueError(f"model: expected a file of `python -m bench.quality.networks`, got {path}; train one")
    model = build_scenes_network(saved["activation"])
    model.load_state_dict(saved["state"])
    return model.eval()


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ACTIVATIONS:
        sys.exit(__doc__)
    train_on_scenes(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
