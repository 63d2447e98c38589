"""From pictures in memory to their CAMs, masks and boxes: the part of a run that is the same wherever it happens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import interpolate

from ssa_fast import localize
from ssa_fast.runs.options import LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from ssa_fast.models.zoo import Classifier
    from ssa_fast.runs.options import RunOptions
    from ssa_fast.ssa import SSA, SSAResult

MIXED = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run makes of one picture; all of it on the CPU.

    Attributes:
        cams: (K, h, w) float16 or uint8 (255 times the CAM, rounded), as they are stored, at the size SSA gives.
        full: (K, H, W) float32 in [0, 1], those very CAMs at the picture's size; mask and boxes are made from them.
        mask: (H, W) uint8 of `labels`, 0 background, 255 undecided.
        classes, names, labels: K of each: indices, what they are called, and their values in the mask.
        scores, logits: (K,) float32: the network's probabilities and logits of the classes.
        seed, stages: (K, h, w) float32 each, to look at; only where overlays are drawn.
    """

    cams: np.ndarray
    full: Tensor
    mask: np.ndarray
    classes: list[int]
    names: list[str]
    labels: list[int]
    scores: np.ndarray
    logits: np.ndarray
    seed: Tensor | None = None
    stages: dict[str, Tensor] | None = None


class Predictor:
    """A classifier and SSA with what a run wants of them: pictures in, `Prediction`s or their errors out.

    A batch that does not fit the GPU's memory is halved, and later batches of that size stay so; `halved` maps the
    size (H, W) to the most pictures that are taken together from then on.
    """

    def __init__(self, classifier: Classifier, ssa: SSA, options: RunOptions) -> None:
        self.classifier, self.ssa, self.options = classifier, ssa, options
        self.classes = None if options.classes == "labels" else classifier.select(options.classes)
        self.halved: dict[tuple[int, int], int] = {}
        self._check_count()

    def _check_count(self) -> None:
        chosen = self.classes if self.classes is not None else []
        top = chosen.removeprefix("top") if isinstance(chosen, str) else str(len(chosen))
        if top.isdecimal() and int(top) > LABELS:
            raise ValueError(f"classes: expected at most {LABELS}, which an 8-bit mask can tell apart, got {top}")

    @cached_property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.classifier.model.parameters()).device

    def size(self, rgb: np.ndarray) -> tuple[int, int]:
        """(height, width) at which a picture goes into the network: pictures of one size can share a batch."""
        return self.classifier.input_shape(rgb.shape[0], rgb.shape[1], self.options.size)

    def __call__(
        self, pictures: Sequence[np.ndarray], classes: Sequence[Sequence[int]] | None = None
    ) -> list[Prediction | Exception]:
        """One result per picture, in their order: what one picture does wrong is its own error and no other's.

        Args:
            pictures: uint8 RGB (H, W, 3), all of one `size`.
            classes: K indices for each, equally many; None for those of the options.
        """
        if not pictures:
            return []
        most = self.halved.get(self.size(pictures[0]), len(pictures))
        results: list[Prediction | Exception] = []
        for lo in range(0, len(pictures), most):
            results += self._together(pictures[lo : lo + most], classes[lo : lo + most] if classes else None)
        return results

    def _together(
        self, pictures: Sequence[np.ndarray], classes: Sequence[Sequence[int]] | None
    ) -> list[Prediction | Exception]:
        failure = None
        try:
            return self._predict(pictures, classes)
        except Exception as error:  # whatever is wrong with one picture, the others shall have their turn
            failure = error.with_traceback(None)  # whose frames would hold the tensors that filled the memory
        half = len(pictures) // 2
        if isinstance(failure, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            if half:
                self.halved[self.size(pictures[0])] = half
        if not half:
            return [failure]
        return self(pictures[:half], classes and classes[:half]) + self(pictures[half:], classes and classes[half:])

    def _predict(
        self, pictures: Sequence[np.ndarray], classes: Sequence[Sequence[int]] | None
    ) -> list[Prediction | Exception]:
        images = torch.cat([self.classifier.preprocess(rgb, self.options.size) for rgb in pictures])
        precision = MIXED.get(self.options.precision_on(self.device))
        wanted: Any = self.classes if classes is None else [list(each) for each in classes]
        with torch.autocast(self.device.type, dtype=precision, enabled=precision is not None):
            result = self.ssa(images, classes=wanted)
        probabilities = self.classifier.probabilities(result.logits.float())
        spoilt = result.logits.isnan().any(dim=1).tolist()
        return [
            ValueError(f"{self.classifier.name} gave NaN for it; check the weights.")
            if spoilt[b]
            else self._one(result, b, rgb.shape[:2], probabilities[b])
            for b, rgb in enumerate(pictures)
        ]

    def _one(self, result: SSAResult, b: int, size: Sequence[int], probabilities: Tensor) -> Prediction:
        classes = result.classes[b].tolist()
        stored = quantised(result.cams[b], self.options.store)
        full = self._full_size(stored, (size[0], size[1]))
        labels = self.labels(classes)
        mask = relabel(localize.masks(full[None], **self.options.mask_options)[0], labels)
        shown = self.options.overlays
        return Prediction(
            cams=stored.cpu().numpy(),
            full=full.cpu(),
            mask=mask.numpy(),
            classes=classes,
            names=[self.classifier.categories[index] for index in classes],
            labels=labels,
            scores=probabilities[result.classes[b]].cpu().numpy(),
            logits=result.logits[b, result.classes[b]].float().cpu().numpy(),
            seed=result.seed[b].cpu() if shown else None,
            stages={name: maps[b].cpu() for name, maps in result.stages.items()} if shown else None,
        )

    def _full_size(self, stored: Tensor, size: tuple[int, int]) -> Tensor:
        """Stored CAMs (K, h, w) at the picture's size, float32 in [0, 1]: what whoever reads the file makes of it."""
        cams = stored.float() / 255.0 if stored.dtype == torch.uint8 else stored.float()
        if cams.shape[-2:] == size:
            return cams
        resized = interpolate(cams[None], size, mode="bilinear", align_corners=self.ssa.align_corners)[0]
        return resized.clamp_(0.0, 1.0)

    def labels(self, classes: list[int]) -> list[int]:
        """The classes' values in the mask: the same in every picture where 8 bits have room for all classes."""
        if len(self.classifier.categories) <= LABELS:
            return [index + 1 for index in classes]
        return list(range(1, len(classes) + 1))


def quantised(cams: Tensor, store: str) -> Tensor:
    """CAMs in [0, 1] as they are stored: float16, or 255 times as much in uint8."""
    return (cams * 255.0).round().to(torch.uint8) if store == "uint8" else cams.half()


def relabel(mask: Tensor, labels: list[int]) -> Tensor:
    """Positions + 1 in `mask` (H, W) replaced by `labels`; 0 and 255 stay what they are."""
    table = torch.arange(256, dtype=torch.uint8)
    table[1 : len(labels) + 1] = torch.tensor(labels, dtype=torch.uint8)
    return table[mask.cpu().long()]
