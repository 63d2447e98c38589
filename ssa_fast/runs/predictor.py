"""Predict CAMs, masks and boxes for images in memory: the part of a run that any executor can call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from ssa_fast import localize
from ssa_fast.io.stopwatch import activity
from ssa_fast.models.class_spec import select_rows
from ssa_fast.runs.options import MAX_LABEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ssa_fast.models.zoo import Classifier
    from ssa_fast.runs.options import RunOptions
    from ssa_fast.ssa import SSA, SSAResult


@dataclass(frozen=True, eq=False)
class Prediction:
    """The outputs of one image, all on the CPU.

    Attributes:
        cams: (K, h, w) float16 or uint8 (255 times the CAM, rounded), as they are stored, at the size SSA gives,
            or with ``refine`` at the image's.
        full: (K, H, W) float32 in [0, 1], the stored CAMs at the image's size; mask and boxes are made from them.
        mask: (H, W) uint8 of ``labels``, 0 background, 255 ignored.
        classes, names, labels: K each: class indices, class names, and values in the mask.
        scores, logits: (K,) float32: the network's probabilities and logits of the classes.
        background: The mask's background score, None with ``alpha``.
        seed, stages: (K, h, w) float32 each, for overlays; None without overlays.
    """

    cams: np.ndarray
    full: Tensor
    mask: np.ndarray
    classes: list[int]
    names: list[str]
    labels: list[int]
    scores: np.ndarray
    logits: np.ndarray
    background: float | None = None
    seed: Tensor | None = None
    stages: dict[str, Tensor] | None = None


class Predictor:
    """A classifier and SSA with the options of a run.

    A batch that does not fit into the GPU's memory is halved, and so are later batches of that size.

    Attributes:
        device: The device of the network.
        classes: The classes of every image, as ``SSA`` takes them; None for the dataset's own.
        max_batch_by_size: Input size (H, W) -> most images in a batch, for sizes that ran out of memory.

    Raises:
        ValueError: The classes of ``options`` are unknown, or too many for an 8-bit mask.
    """

    def __init__(self, classifier: Classifier, ssa: SSA, options: RunOptions) -> None:
        self.classifier, self.ssa, self.options = classifier, ssa, options
        self.device = next(classifier.model.parameters()).device
        self.classes = None if options.classes == "labels" else classifier.select(options.classes)
        self.max_batch_by_size: dict[tuple[int, int], int] = {}
        chosen = self.classes if self.classes is not None else []
        count = chosen.removeprefix("top") if isinstance(chosen, str) else str(len(chosen))
        if count.isdecimal() and int(count) > MAX_LABEL:
            raise ValueError(f"classes: expected at most {MAX_LABEL}, the labels of an 8-bit mask, got {count}")

    def size(self, rgb: np.ndarray) -> tuple[int, int]:
        """Return (height, width) at which an image enters the network; a batch has one such size."""
        return self.classifier.input_shape(rgb.shape[0], rgb.shape[1], self.options.size)

    def __call__(
        self, images: Sequence[np.ndarray], classes: Sequence[Sequence[int]] | None = None
    ) -> list[Prediction | Exception]:
        """Return one result per image, in order; an error concerns its own image only.

        Args:
            images: uint8 RGB (H, W, 3), all of one ``size``.
            classes: Class indices for each image, of any number; None for those of the options.
        """
        if not images:
            return []
        size = self.size(images[0])
        split = self.max_batch_by_size.get(size, len(images))
        if len(images) <= split:
            try:
                return self._predict(images, classes)
            except Exception as error:  # one bad image must not fail the others of its batch
                failure = error.with_traceback(None)  # its frames hold the tensors that filled the memory
            split = len(images) // 2
            if isinstance(failure, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
                if split:
                    self.max_batch_by_size[size] = split
            if not split:
                return [failure]
        return self(images[:split], classes and classes[:split]) + self(images[split:], classes and classes[split:])

    def _predict(
        self, images: Sequence[np.ndarray], classes: Sequence[Sequence[int]] | None
    ) -> list[Prediction | Exception]:
        with activity("network"):
            result = self._polish(images, classes)
        with activity("masks"):
            return self._predictions(result, images)

    def _polish(self, images: Sequence[np.ndarray], classes: Sequence[Sequence[int]] | None) -> SSAResult:
        batch = torch.cat([self.classifier.preprocess(rgb, self.options.size) for rgb in images])
        precision = self.options.precision_on(self.device)
        dtype = None if precision == "float32" else getattr(torch, precision)
        chosen: Any = self.classes if classes is None else classes
        if not isinstance(chosen, str):  # indices whatever they look like, which SSA alone would have to note or refuse
            rows = [chosen] * len(images) if classes is None else chosen
            chosen = select_rows(rows, len(self.classifier.categories))
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            return self.ssa(batch, classes=chosen)

    def _predictions(self, result: SSAResult, images: Sequence[np.ndarray]) -> list[Prediction | Exception]:
        probabilities = self.classifier.probabilities(result.logits.float())
        has_nan = result.logits.isnan().any(dim=1).tolist()
        nan = ValueError(f"{self.classifier.name} gave NaN for it; check the weights.")
        none = ValueError("no class was given for it.")
        counts = result.valid.sum(dim=1).tolist()
        return [
            nan if has_nan[b] else none if not K else self._prediction(result, b, K, rgb, probabilities[b])
            for b, (rgb, K) in enumerate(zip(images, counts, strict=True))
        ]

    def _prediction(self, result: SSAResult, b: int, K: int, rgb: np.ndarray, probabilities: Tensor) -> Prediction:
        """Return the prediction of image ``b``, which has K valid classes, the first ones of the result."""
        options, categories, index = self.options, self.classifier.categories, result.classes[b, :K]
        classes = index.tolist()
        labels = [k + 1 for k in (classes if len(categories) <= MAX_LABEL else range(len(classes)))]
        cams, size = result.cams[b, :K], rgb.shape[:2]
        if options.refine:
            pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255.0
            cams = localize.refine(pixels, self._resize(cams, size)[None])[0]
        stored = (cams * 255.0).round().to(torch.uint8) if options.store == "uint8" else cams.half()
        full = self._resize(stored, size).cpu()
        background = localize.background_of(full, options.postprocess)
        mask = localize.masks(full, options.postprocess.with_background(background))[0].numpy()
        label_of = np.arange(256, dtype=np.uint8)  # of a position in ``classes`` + 1; 0 and 255 stay
        label_of[1 : len(labels) + 1] = labels
        return Prediction(
            cams=stored.cpu().numpy(),
            full=full,
            mask=label_of.take(mask),
            classes=classes,
            names=[categories[index] for index in classes],
            labels=labels,
            scores=probabilities[index].cpu().numpy(),
            logits=result.logits[b, index].float().cpu().numpy(),
            background=background,
            seed=result.seed[b, :K].cpu() if options.overlays else None,
            stages={name: maps[b, :K].cpu() for name, maps in result.stages.items()} if options.overlays else None,
        )

    def _resize(self, stored: Tensor, size: Sequence[int]) -> Tensor:
        """Return CAMs (K, h, w) at the image's size, float32 in [0, 1], as ``cam_files`` does."""
        cams = stored.float() / 255.0 if stored.dtype == torch.uint8 else stored.float()
        if cams.shape[-2:] == size:
            return cams
        resized = interpolate(cams[None], size, mode="bilinear", align_corners=self.ssa.align_corners)[0]
        return resized.clamp_(0.0, 1.0)
