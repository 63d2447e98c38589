"""Score every method in one network, image by image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from bench.quality.sample import Sample
from bench.quality.stages import describe_stage
from bench.quality.statistics import Folds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.quality.examples import Example
    from bench.quality.methods import Method
    from bench.quality.networks import Network
    from bench.quality.statistics import Array
    from bench.quality.truths import Scores


class Run:
    """Scores and times of every method in one network.

    Attributes:
        network: The network.
        methods: Name -> method, without those left out.
        left_out: Name -> why the network or the installation cannot have the method.
        stages: Name of a stage -> its figures (``describe_stage``) for each image, if they are wanted.
    """

    def __init__(
        self,
        network: Network,
        methods: Mapping[str, Method],
        *,
        optional: frozenset[str] = frozenset(),
        describe: bool = False,
    ) -> None:
        """Take the methods; those named in ``optional`` are left out if they fail on the first image."""
        self.network, self.methods, self._optional, self._describe = network, dict(methods), optional, describe
        self.left_out: dict[str, str] = {}
        self.stages: dict[str, list[dict[str, float]]] = {}
        self._found: dict[str, list[Scores]] = {}
        self._times: dict[str, list[float]] = {}
        self._images: list[int] = []
        self._forward_ms: list[float] = []
        self._right: list[bool] = []

    def add(self, example: Example) -> None:
        """Score one image with every method."""
        with torch.no_grad():
            sample = Sample(self.network, example.read(), example.classes)
            scorers = [truth.scorer(sample.size) for truth in example.truths]
            for name, method in list(self.methods.items()):
                try:
                    maps, spent = method.make(name, sample)
                except (ValueError, ModuleNotFoundError) as error:
                    if self._images or name not in self._optional:
                        raise
                    self.left_out[name] = str(error)
                    del self.methods[name]
                    continue
                self._times.setdefault(name, []).append(spent)
                found = [score(cam) for score, cam in zip(scorers, maps[0].float().numpy(), strict=True)]
                self._found.setdefault(name, []).extend(found)
            if self._describe:
                for name, features in sample.stages.items():
                    self.stages.setdefault(name, []).append(describe_stage(features))
        self._images += [len(self._forward_ms)] * len(scorers)
        self._forward_ms.append(sample.forward_ms)
        self._right.append(sample.predicted in sample.classes[0])

    @property
    def num_images(self) -> int:
        """Number of images so far."""
        return len(self._forward_ms)

    @property
    def num_maps(self) -> int:
        """Number of pairs of image and class so far, each of which has one map per method."""
        return len(self._images)

    @property
    def num_predicted(self) -> int:
        """Number of images whose predicted class is one of those whose maps were made."""
        return sum(self._right)

    @property
    def forward_ms(self) -> float:
        """Median CPU milliseconds of the forward pass."""
        return float(np.median(self._forward_ms))

    def folds(self) -> Folds:
        """Return which map is of which image."""
        return Folds(np.array(self._images))

    def levels(self) -> dict[str, Array]:
        """Return the scores (maps, criteria, thresholds) of each method, in [0, 1]."""
        return {name: np.stack([each.levels for each in found]) for name, found in self._found.items()}

    def mean(self, name: str, score: Literal["own", "precision"]) -> float:
        """Return the mean over maps of a method's score without a chosen threshold, in [0, 1]; see ``Scores``."""
        return float(np.mean([getattr(each, score) for each in self._found[name]]))

    def cpu_ms(self, name: str) -> float:
        """Return the median over images of the CPU milliseconds beyond the forward pass."""
        return float(np.median(self._times[name]))
