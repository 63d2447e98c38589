"""One image in one network: the forward pass that all methods share, and the seeds, each made once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from bench.quality.networks import Network
    from ssa_fast.models.extract import Features
    from ssa_fast.models.inspect import ModelInfo


class Sample:
    """One image in one network.

    Attributes:
        network: The network.
        image, images: The image, and preprocessed (1, 3, H, W).
        stages: The stages of ``SSA`` by name, of a forward pass without gradients.
        forward_ms: CPU time of that pass.
        predicted: The predicted class.
        classes, wrong: (1, K), the classes whose maps are made, and for each a class that is not in the image.
    """

    def __init__(self, network: Network, image: Image.Image, classes: Sequence[int | None]) -> None:
        self.network, self.image, self.images = network, image, network.preprocess(image)
        info = network.ssa().info
        begin = time.process_time()
        self._features = info.forward(network.model, self.images, "seed" if info.seed.kind == "cam" else "stages")
        self.forward_ms = 1000 * (time.process_time() - begin)
        self.stages = {name: self._features.maps[name] for name in info.stages}
        self.predicted = int(self._features.logits[0].argmax())
        given = [self.predicted if each is None else each for each in classes]
        self.classes = torch.tensor([given])
        self.wrong = torch.tensor([[_absent(each, given, info.num_classes) for each in given]])
        self._made: dict[str, tuple[Tensor, float]] = {}
        self._ran_network = False

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the preprocessed image."""
        return self.images.shape[2], self.images.shape[3]

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
        info = self.network.ssa(seed=kind).info
        return info.seed_maps(self.network.model, self._features_of(info), classes)

    def _features_of(self, info: ModelInfo) -> Features:
        if info.seed.kind == "cam":
            return self._features
        self.run_network()
        return info.forward(self.network.model, self.images)


def _absent(index: int, present: Sequence[int], count: int) -> int:
    """Return a class that is not present, as far from ``index`` as can be; ``index`` if all are present."""
    others = ((index + count // 2 + step) % count for step in range(count))
    return next((other for other in others if other not in present), index)
