"""Where ``SSA`` takes a seed from: the model's classes, a CAM of the caller's, or targets of the model's output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.arrays import as_tensor
from ssa_fast.models.class_spec import PADDING, ClassSelection, resolve_classes
from ssa_fast.models.geometry import in_window
from ssa_fast.models.scores import probabilities
from ssa_fast.models.seed_cam import gradient_seed
from ssa_fast.models.targets import read_targets, target_values

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ssa_fast.models.class_spec import Classes
    from ssa_fast.models.extract import Features
    from ssa_fast.models.inspect import ModelInfo
    from ssa_fast.models.scores import Probability
    from ssa_fast.models.targets import Targets


@dataclass(frozen=True, eq=False)
class Network:
    """A classifier with what is known about it: its names per output, and how its logits become probabilities.

    ``align_corners`` is that of the bilinear resizing of seeds.
    """

    model: nn.Module
    info: ModelInfo
    names: tuple[str, ...]
    probability: Probability
    align_corners: bool = False

    def score(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Return the probabilities (B, K) of classes (B, K)."""
        return probabilities(logits, self.probability).gather(1, classes)


@dataclass(frozen=True, eq=False)
class Chosen:
    """The classes of a result, with a score (B, K) and a name per class index."""

    selection: ClassSelection
    scores: Tensor
    names: tuple[str, ...]


class ClassSeeds:
    """Seeds of the model's own classes.

    Raises:
        ValueError: The model returns no logits, or no seed was looked for.
    """

    def __init__(self, network: Network, classes: Classes | ClassSelection) -> None:
        self.network, self.classes = network, classes
        if network.info.no_logits is not None:
            raise ValueError(f"{network.info.no_logits}; or pass targets= or cam= with the images")
        check_seed_layer(network.info)

    def forward(self, images: Tensor) -> Features:
        """Run the images once."""
        return self.network.info.forward(self.network.model, images)

    def read(self, features: Features, flipped: bool) -> Features:
        """Return the features as they are."""
        return features

    def choose(self, features: Features) -> Chosen:
        """Resolve the classes by the logits of the first view."""
        logits = detached_logits(features)
        selection = resolve_classes(self.classes, logits, self.network.names)
        return Chosen(selection, self.network.score(logits, selection.filled), self.network.names)

    def maps(self, features: Features, chosen: Chosen, flipped: bool) -> Tensor:
        """Return the seeds (B, K, h, w)."""
        return self.network.info.seed_maps(
            self.network.model, features, chosen.selection.filled, self.network.align_corners
        )

    def notes(self, chosen: Chosen, seed: Tensor) -> tuple[str, ...]:
        """Return notes on how the classes or the seed were read."""
        return chosen.selection.notes


class GivenSeeds(ClassSeeds):
    """Seeds of the caller's own, (B, K, h, w); ``classes`` says of which classes they are, None that nobody knows."""

    def __init__(self, network: Network, cam: Any, images: Tensor, classes: Classes | ClassSelection) -> None:
        self.network, self.classes = network, classes
        self.cam, self.cam_notes = read_cam(cam, images)
        if classes is not None and network.info.no_logits is not None:
            raise ValueError(f"{network.info.no_logits}; leave classes out")

    def forward(self, images: Tensor) -> Features:
        """Run the images once, without what a seed of the model's own needs."""
        return self.network.info.forward(self.network.model, images, "stages")

    def choose(self, features: Features) -> Chosen:
        """Resolve the classes, one per map; without them, those of all outputs if there are as many maps."""
        (B, K), device = self.cam.shape[:2], self.cam.device
        logits, names = detached_logits(features), self.network.names
        if self.classes is None and logits.shape[1] != K:
            index = torch.full((B, K), PADDING, device=device)
            selection = ClassSelection(index, torch.ones_like(index, dtype=torch.bool), notes=self.cam_notes)
            return Chosen(selection, torch.full((B, K), float("nan"), device=device), names)
        selection = resolve_classes(range(K) if self.classes is None else self.classes, logits, names)
        if selection.index.shape[1] != K:
            count = selection.index.shape[1]
            raise ValueError(f"classes: expected {K} per image, one per map of cam, got {count}; pass as many as maps")
        notes = self.cam_notes + (selection.notes if self.classes is not None else ())
        return Chosen(replace(selection, notes=notes), self.network.score(logits, selection.filled), names)

    def maps(self, features: Features, chosen: Chosen, flipped: bool) -> Tensor:
        """Return the CAM, flipped as the view is, of the part of the image that the stages cover."""
        cam, window = self.cam.flip(-1) if flipped else self.cam, self.network.info.window
        if window is None:
            return cam
        return in_window(cam, window(*features.image_size), features.image_size, self.network.align_corners)


class TargetSeeds:
    """Grad-CAM or LayerCAM seeds of targets (``models.targets``), whatever the model returns."""

    def __init__(self, network: Network, targets: Targets, images: Tensor) -> None:
        self.network = network
        check_seed_layer(network.info)
        rows = read_targets(targets, len(images))
        self.rows = replace(rows, selection=rows.selection.to(images.device))

    def forward(self, images: Tensor) -> Features:
        """Run the images once, with a graph from the seed's layers to the output."""
        return self.network.info.forward(self.network.model, images, "gradient")

    def read(self, features: Features, flipped: bool) -> Features:
        """Return the features with the targets' values."""
        with torch.enable_grad():
            values = tuple(target_values(self.rows, features.output, flipped))
        constant = [name for name, value in zip(self.rows.names, values, strict=True) if not value.requires_grad]
        if constant:
            raise ValueError(
                f"targets: expected values that depend on the model's output, {constant[0]!r} does not; return a "
                "tensor computed from what the target gets"
            )
        return replace(features, values=values)

    def choose(self, features: Features) -> Chosen:
        """Return the positions of the targets as classes, and their values as scores."""
        scores = torch.stack([each.detach().float() for each in features.values], 1)
        return Chosen(self.rows.selection, scores, self.rows.names)

    def maps(self, features: Features, chosen: Chosen, flipped: bool) -> Tensor:
        """Return the seeds (B, K, h, w)."""
        return gradient_seed(self.network.info.seed, features, features.values, self.network.align_corners)

    def notes(self, chosen: Chosen, seed: Tensor) -> tuple[str, ...]:
        """Return a note on each target without any evidence; the one place where a call waits for the device."""
        found = (seed.amax((0, *range(2, seed.ndim))) == 0).tolist()
        layer = self.network.info.seed.layer
        return tuple(
            f"target {name!r} has no evidence in any image at {layer!r}; if that is not so, it may not depend on that "
            "layer: name one before it with seed=..."
            for name, empty in zip(self.rows.names, found, strict=True)
            if empty
        )


def detached_logits(features: Features) -> Tensor:
    """Return the logits of a forward, float32 without gradient."""
    return features.logits.detach().float()


def check_seed_layer(info: ModelInfo) -> None:
    """Raise ValueError if no seed was looked for."""
    if info.seed.kind == "given":
        raise ValueError('cam: expected one, as SSA was made with seed=None, got none; pass cam=, or use seed="auto"')


def read_cam(cam: Any, images: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Return a CAM of the images as (B, K, h, w), and notes on what was done to it.

    Raises:
        TypeError: It is no floating-point tensor or array, or a list of them.
        ValueError: It has another rank, batch or device, or the list holds several.
    """
    if isinstance(cam, list | tuple):
        if len(cam) != 1:
            raise ValueError(
                f"cam: expected one tensor, got a {type(cam).__name__} of {len(cam)}; pass one layer's CAMs"
            )
        (cam,) = cam
    maps, B = as_tensor("cam", cam, images.device), len(images)
    if images.ndim == 5 and maps.ndim != 5:
        raise ValueError(f"cam: expected (B, K, d, h, w) of volumes, got {tuple(maps.shape)}; add the missing axes")
    if maps.numel() == 0:
        raise ValueError(f"cam: expected at least one class and one pixel, got shape {tuple(maps.shape)}")
    shape = tuple(maps.shape)
    if maps.ndim == 3:
        maps = maps[None] if B == 1 else maps[:, None]
    elif maps.ndim == 2:
        maps = maps[None, None]
    if maps.ndim != images.ndim or len(maps) != B:
        raise ValueError(
            f"cam: expected (B, K, h, w) or (B, h, w) with B = {B} images, or (K, h, w) or (h, w) of a single one, got "
            f"{shape}; reshape it"
        )
    if maps.device != images.device:
        raise ValueError(f"cam: expected the images' device {images.device}, got {maps.device}; move one of them")
    note = "cam required grad and was detached, as SSA is inference only"
    return maps.detach(), (note,) if maps.requires_grad else ()
