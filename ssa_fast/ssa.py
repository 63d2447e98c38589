"""SSA on whole classifiers: images or volumes in, completed class activation maps, boxes and masks out."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ssa_fast.io.stopwatch import activity
from ssa_fast.models import inspect_model
from ssa_fast.models.class_names import check_names, find_names
from ssa_fast.models.geometry import over_image
from ssa_fast.models.layout import window_size
from ssa_fast.models.scores import choose_probability
from ssa_fast.models.seed_source import ClassSeeds, GivenSeeds, Network, TargetSeeds, detached_logits
from ssa_fast.models.stage_affinity import affinity_reason, choose_affinities, sign_source
from ssa_fast.ops.polish import polish_each_and_fuse, rescale_each
from ssa_fast.ops.prior import apply_prior, check_prior
from ssa_fast.ops.resize import resize
from ssa_fast.result import SSAResult, StageFeatures
from ssa_fast.validation import (
    FusionOptions,
    InputWarning,
    StageRequest,
    check_fuse,
    check_images,
    check_output_size,
    check_scales,
    check_weights,
    result_dtype,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from ssa_fast.layouts import Size
    from ssa_fast.models.class_names import NamesLike
    from ssa_fast.models.class_spec import Classes, ClassSelection
    from ssa_fast.models.extract import Features
    from ssa_fast.models.geometry import Geometry
    from ssa_fast.models.input_shape import InputShape
    from ssa_fast.models.outputs import Logits
    from ssa_fast.models.stage_affinity import StageAffinities
    from ssa_fast.models.targets import Targets
    from ssa_fast.ops.prior import Prior
    from ssa_fast.validation import Fuse, Weights

__all__ = ["SSA", "SSAResult"]

SEED, CAMS = "the seed", "the fused CAMs"  # keys beside the stages' module names, which hold no space


class SSA:
    """Completes a classifier's CAMs along the semantic structure of its stages; no training, no parameters.

    Every image goes through the backbone once per scale and flip. For each of these views the seed CAM is polished in
    each stage (``ssa_fast.polish``) and the stages are fused; the results are summed over the views and min–max
    rescaled per image and class.

    Where φ is the ReLU, the sign of a stage is read on each image, unless the forward pass shows that the stage is
    non-negative by construction, such as the output of a ReLU that nothing has written to since (``models.signs``).

    A network whose convolutions are all 3-D, such as torchvision's ``r3d_18``, takes volumes (B, C, D, H, W): clips of
    video, scans. All works as for images, in three dimensions, but for ``scales``, ``prior`` and ``geometry``.

    Args:
        model: Any classification ``nn.Module`` from images to logits; used in evaluation mode, left as it was. Others
            work with ``targets`` or a ``cam``.
        stages: "auto", or module names as in ``model.named_modules()``.
        seed: "auto" (CAM if the head makes it exact, else Grad-CAM: one forward pass, at most the last stage backward),
            "cam", "grad-cam", or Grad-CAM's layer by name; "layercam" (LayerCAM over the stages: a backward pass per
            class; more of a single object, less of its class, see docs/quality.md); None if every call brings its
            ``cam``.
        affinity: How alike two pixels are: "auto", one, or one per stage (sequence or dict by stage). "auto" takes
            linear time in the pixels: PCM's ``Affinity()`` for stages without a negative feature on the random image,
            the shifted cosine (``models.stage_affinity.SIGNED_DEFAULT``) for others. ``Affinity()`` is PCM everywhere.
        scales: Factors of the image size, such as (0.5, 1, 1.5, 2); bilinear, antialiased when shrinking.
        flip: Also use the horizontally flipped image at each scale; its CAMs are flipped back.
        prior: "center" weights the seed by ``exp(−x² − y²)`` before it is polished, ``x`` and ``y`` from −1 to 1
            between the edges: an assumption about photographs, no evidence of the class. None assumes nothing.
        fuse: How the stages are fused, see ``ssa_fast.polish``.
        weights: Of the stages when they are fused, see ``ssa_fast.polish``.
        align_corners: Of the bilinear resizing of seeds and CAMs. False aligns pixels by their centres, which is more
            accurate on photographs (docs/quality.md); True is PCM's and ``polish``'s.
        size: Of the CAMs: "input" (the images'), "stage" (the largest stage's at the first scale), or (H, W), of
            volumes (D, H, W).
        input_shape: (C, H, W), (H, W) or a side of the random image on which stages and seed are found; by default what
            the network and its configuration name, else 224. Of volumes (C, D, H, W), by default of 16 × 112 × 112.
        geometry: What forward does to images before the backbone: "resize", "center-crop" or "pad" (to a square), or a
            function, see ``ssa_fast.models.inspect_model``; by default it is measured. Where maps do not cover the
            whole image, CAMs, seed and stages are laid over it at its own size, 0 where they do not reach.
        logits: Where they are in what the model returns, if the layers do not tell: an index, a key or attribute, or a
            function of the output. Of a model that ends in softmax or sigmoid they are the values before it.
        probability: Of the scores: "softmax" for exclusive classes, "sigmoid" for independent ones; by default what the
            model says, else "sigmoid" for a single logit and "softmax" for others.
        names: A name per output, a sequence or a dict by index, such as torchvision's ``weights.meta["categories"]``;
            by default the model's own (``models.class_names.find_names``).

    Attributes:
        stage_names: The stages' module names.
        seed_kind: "cam", "grad-cam", "layercam", or "given" for ``seed=None``.
        seed_layer: The module whose output the seed is made from; LayerCAM's, separated by commas.
        names, names_note: A name per output, () if there are none; a note if they are a guess, else None.
        probability: "softmax" or "sigmoid".
        info: All that was found out about the model (``ssa_fast.models.ModelInfo``).
        affinity: As given.
        affinities: The affinity of each stage, by name; the ``repr`` says why.
        fusion: How the stages are fused (``ssa_fast.validation.FusionOptions``).

    Raises:
        TypeError: An argument of the wrong kind.
        ValueError: A wrong option, an unknown module, or a model that cannot be used, with what to do instead.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        stages: str | Sequence[str] = "auto",
        seed: str | None = "auto",
        affinity: StageAffinities = "auto",
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        prior: Prior | None = None,
        fuse: Fuse = "mean",
        weights: Weights = None,
        align_corners: bool = False,
        size: str | Size = "input",
        input_shape: InputShape = None,
        geometry: Geometry = None,
        logits: Logits = None,
        probability: str | None = None,
        names: NamesLike = None,
    ) -> None:
        self.scales = check_scales(scales)
        self.flip = bool(flip)
        self.prior = check_prior(prior)
        if isinstance(size, str):
            check_output_size(size)
        self.info = inspect_model(
            model, stages=stages, seed=seed, input_shape=input_shape, geometry=geometry, logits=logits
        )
        self.size = check_output_size(size, self.info.dims)
        if self.info.fixed_size and self.scales != (1.0,):
            raise ValueError(
                f"scales: expected (1.0,), as the model takes images of {_by(self.info.fixed_size)} only, got "
                f"{self.scales}; leave scales out (flip=True is possible)"
            )
        if self.info.dims == 3 and (self.scales != (1.0,) or self.prior is not None):
            name, expected, got = ("prior", None, prior) if self.prior else ("scales", (1.0,), self.scales)
            raise ValueError(
                f"{name}: expected {expected} for a model of volumes, got {got!r}; resize volumes, or weight a cam= of "
                "your own, before the call"
            )
        self.model = model
        self.affinity = affinity
        self.align_corners = bool(align_corners)
        self.stage_names = list(self.info.stages)
        self.affinities = choose_affinities(affinity, self.info.signs)
        self.fusion = FusionOptions(
            fuse=check_fuse(fuse),
            weights=check_weights(weights, self.info.stages),
            rescale=True,
            size=None,
            align_corners=self.align_corners,
        )
        self.seed_kind = self.info.seed.kind
        self.seed_layer = self.info.seed.layer
        self.probability = choose_probability(probability, model, self.info.num_classes, self.info.output.activation)
        self.names, self.names_note = check_names(names, self.info.num_classes), None
        if names is None:
            self.names, self.names_note = find_names(model, self.info.num_classes)

    def __repr__(self) -> str:
        """Return a line for the model, the seed, and each stage: its size, features, affinity and the reason."""
        kind = "images" if self.info.dims == 2 else "volumes"
        lines = [f"  model: {type(self.model).__name__}, {kind} of {_by(self.info.trace_size, ' × ')}"]
        lines.append("  seed: " + ("given" if self.seed_kind == "given" else f"{self.seed_kind} at {self.seed_layer}"))
        for name, affinity in self.affinities.items():
            ref, sign = self.info.stages[name], self.info.signs[name]
            shape, known = " × ".join(map(str, ref.layout.shape)), sign_source(sign, ref.nonnegative_from is not None)
            lines.append(f"  {name}: {shape}, {sign}{known}, {affinity} ({affinity_reason(self.affinity, sign)})")
        lines += [f"  note: {note}" for note in self.info.notes]
        return "SSA(\n" + "\n".join(lines) + "\n)"

    def __call__(
        self,
        images: Tensor,
        classes: Classes | ClassSelection = None,
        *,
        cam: Any = None,
        targets: Targets | None = None,
    ) -> SSAResult:
        """Return seeds, polished CAMs and logits of images.

        Args:
            images: (B, C, H, W), of volumes (B, C, D, H, W), normalised as the model wants them.
            classes: None or "predicted" (each image's most probable class), "topN" such as "top5"; class indices or
                names for all images; one list of them per image, of any lengths; or multi-hot rows (B, num_classes).
            cam: A seed of one's own instead of the model's: (B, K, h, w), (B, h, w), or (K, h, w) of a single image, of
                volumes (B, K, d, h, w); ``classes`` then says of which classes it is, and may be left out.
            targets: Grad-CAM (or LayerCAM) seeds of something else than logits: a callable from the model's output for
                one image, without the batch axis, to a scalar, as in torch-cam and pytorch-grad-cam; a dict of them by
                name; or one, or a list of them, per image. In flipped views output maps are flipped back first.

        Raises:
            TypeError, ValueError: Images that the model cannot take, or classes, a seed or targets that do not fit.

        Warns:
            InputWarning: Something could be read in two ways; it stands in the result's ``notes``, too.
        """
        self._check(images)
        if sum(given is not None for given in (targets, cam)) > 1 or (targets is not None and classes is not None):
            raise ValueError("targets: expected them without classes and cam, got both; leave the others out")
        with torch.inference_mode(False), torch.no_grad():  # Grad-CAM's graph cannot be built in inference mode
            network = Network(self.model, self.info, self.names, self.probability, self.align_corners)
            source: ClassSeeds | TargetSeeds
            if targets is not None:
                source = TargetSeeds(network, targets, images)
            elif cam is not None:
                source = GivenSeeds(network, cam, images, classes)
            else:
                source = ClassSeeds(network, classes)
            result, notes = self._run(images, source)
        for note in notes:
            warnings.warn(note, InputWarning, stacklevel=2)
        return result

    def features(self, images: Tensor) -> StageFeatures:
        """Return the stages (B, C, [d,] h, w) of images by name, as ``polish`` takes them, with the logits.

        ``polish(cam, features, affinity=ssa.affinities, align_corners=ssa.align_corners)`` is what a call does with a
        seed of its own. Where forward crops or pads images (``info.window``), the stages cover that part of them.

        Raises:
            TypeError, ValueError: Images that the model cannot take.
        """
        self._check(images)
        with torch.inference_mode(False), torch.no_grad():
            features = self._forward(images, lambda view: self.info.forward(self.model, view, "stages"))
            return StageFeatures({name: features.maps[name] for name in self.stage_names}, detached_logits(features))

    def _check(self, images: Tensor) -> None:
        weight = next((p for p in self.model.parameters() if p.is_floating_point()), images)
        check_images(images, self.info.in_channels, weight, self.info.fixed_size, self.info.dims)

    def _run(self, images: Tensor, source: ClassSeeds | TargetSeeds) -> tuple[SSAResult, tuple[str, ...]]:
        """Return the result, and notes on how the classes or the seed were read."""
        views = [(scale, flipped) for scale in self.scales for flipped in ((False, True) if self.flip else (False,))]
        sums: dict[str, Tensor] = {}
        for scale, flipped in sorted(views, key=lambda view: view[0] != 1.0):  # the logits are the first view's
            features = source.read(self._forward(_view(images, scale, flipped), source.forward), flipped)
            if not sums:
                logits, chosen = detached_logits(features), source.choose(features)
            with torch.autocast(images.device.type, enabled=False):
                seed = source.maps(features, chosen, flipped)
            if not sums:
                notes = source.notes(chosen, seed)
            for name, maps in self._polish(features, seed, self._output_size(images, sums)).items():
                maps = maps.flip(-1) if flipped else maps
                sums[name] = (
                    sums[name] + resize(maps, sums[name].shape[2:], self.align_corners) if name in sums else maps
                )
        rescaled = {name: maps.float() for name, maps in rescale_each(sums).items()}
        selection = chosen.selection
        if selection.padded:
            kept = selection.valid.view(*selection.valid.shape, *(1 for _ in range(self.info.dims)))
            rescaled = {name: maps.where(kept, 0.0) for name, maps in rescaled.items()}
        guessed = (self.names_note,) if self.names_note and chosen.names is self.names else ()
        result = SSAResult(
            cams=rescaled[CAMS],
            seed=rescaled[SEED],
            stages={name: rescaled[name] for name in self.stage_names},
            logits=logits,
            classes=selection.index,
            valid=selection.valid,
            scores=chosen.scores.where(selection.valid, 0.0) if selection.padded else chosen.scores,
            output_names=chosen.names,
            notes=(*self.info.notes, *guessed, *notes),
        )
        return result, notes

    def _forward(self, images: Tensor, forward: Callable[[Tensor], Features]) -> Features:
        """Run the model by ``forward``; re-raise a failure at a new input size as a clear size error."""
        size = tuple(images.shape[2:])
        try:
            return forward(images)
        except Exception as error:
            if size == self.info.trace_size or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"images: expected a size that the model takes, such as {_by(self.info.trace_size)}, but its forward "
                f"failed at {_by(size)} ({error}); resize the images, or leave out scales that lead there"
            ) from error

    def _polish(self, features: Features, seed: Tensor, size: Size | None) -> dict[str, Tensor]:
        """Return one view's seed (``SEED``), polished stages (by name) and their fusion (``CAMS``), not rescaled."""
        with activity("polishing"), torch.autocast(seed.device.type, enabled=False):
            requests = {
                name: StageRequest(
                    features.maps[name],
                    self.affinities[name],
                    K=seed.shape[1],
                    dtype=result_dtype(seed.dtype, features.maps[name].dtype),
                    nonnegative=True if name in features.nonnegative else None,
                    align_corners=self.align_corners,
                )
                for name in self.stage_names
            }
            cam = apply_prior(seed, self.prior)
            if self.info.window is None:
                polished, fused = polish_each_and_fuse(cam, requests, replace(self.fusion, size=size))
                return {SEED: seed, **polished, CAMS: fused}
            window = self.info.window(*features.image_size)
            polished, fused = polish_each_and_fuse(cam, requests, replace(self.fusion, size=window_size(window)))
            maps = {SEED: seed, **polished, CAMS: fused}
            return {
                name: over_image(each, window, features.image_size, self.align_corners) for name, each in maps.items()
            }

    def _output_size(self, images: Tensor, sums: dict[str, Tensor]) -> Size | None:
        """Return the size of the fused CAMs; None is that of the largest stage, which the first view decides."""
        if isinstance(self.size, tuple):
            return self.size
        if self.size == "input":
            return tuple(images.shape[2:])
        return tuple(sums[CAMS].shape[2:]) if sums else None


def _view(images: Tensor, scale: float, flipped: bool) -> Tensor:
    """Return the images at one scale, flipped or not."""
    if scale != 1.0:
        size = [max(1, round(side * scale)) for side in images.shape[-2:]]
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)
    return images.flip(-1) if flipped else images


def _by(size: Size, times: str = " x ") -> str:
    return times.join(map(str, size))
