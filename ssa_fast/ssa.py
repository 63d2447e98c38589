"""SSA on whole classifiers: images in, completed class activation maps, boxes and masks out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssa_fast.affinity import Affinity
from ssa_fast.api import Affinities, polish_stages
from ssa_fast.models import inspect_model
from ssa_fast.models.class_spec import Classes, resolve_classes
from ssa_fast.ops.fusion import Fuse, Weights, fuse_stages, minmax, resize
from ssa_fast.validation import check_size, per_stage

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from ssa_fast.large import LargeImageResult
    from ssa_fast.localize import PostprocessOptions
    from ssa_fast.models.extract import Features


# PixelBank beside the stages' module names, which hold no space.
SEED, CAMS = "the seed", "the fused CAMs"


@dataclass(frozen=True, eq=False)
class SSAResult:
    """What SSA gives for B images and K classes each; all tensors on the images' device, without gradient.

    Attributes:
        cams: (B, K, H, W) float32 in [0, 1], the fused, polished CAMs at the asked size; a class without evidence is 0.
        seed: (B, K, h, w) float32 in [0, 1], the CAMs before polishing, at the seed layer's size.
        stages: stage name -> (B, K, h, w) float32 in [0, 1], the polished CAMs at that stage's size.
        logits: (B, num_classes) float32 of the images as given (or of the first scale, if 1 is not among the scales).
        classes: (B, K) int64, the class each CAM is of.
    """

    cams: Tensor
    seed: Tensor
    stages: dict[str, Tensor]
    logits: Tensor
    classes: Tensor

    def boxes(self, options: PostprocessOptions | None = None, **overrides: Any) -> list[list[Tensor]]:
        """Return boxes (n, 4) float32 x1 y1 x2 y2 per image and class; see ``ssa_fast.localize.boxes``."""
        from ssa_fast.localize import boxes

        return boxes(self.cams, options, **overrides)

    def masks(self, options: PostprocessOptions | None = None, **overrides: Any) -> Tensor:
        """Return pseudo-masks (B, H, W) uint8: 0 background, k + 1 for class k; see ``ssa_fast.localize.masks``."""
        from ssa_fast.localize import masks

        return masks(self.cams, options, **overrides)

    def overlay(
        self, images: Tensor, *, names: Sequence[str] | None = None, threshold: float = 0.2, background: float = 0.25
    ) -> list[Image]:
        """A panel per image: image, seed, each stage, fused, boxes and mask, one row per class.

        ``images`` are (B, 3, H, W) in [0, 1]; ``names`` holds a name per output of the model. See
        ``ssa_fast.localize.overlay``.
        """
        from ssa_fast.localize import overlay

        return overlay(images, self, names=names, threshold=threshold, background=background)


class SSA:
    """Completes a classifier's CAMs along the semantic structure of its stages; no training, no parameters.

    Every image goes through the backbone once per scale and mirroring; at each, the seed CAM is polished in each stage
    (``ssa_fast.polish``) and the stages are fused; the results are summed and min-max rescaled per image and class.

    Args:
        model: any classification ``nn.Module`` from images to logits; used in evaluation mode, left as it was.
        stages: "auto", or module names as in ``model.named_modules()``.
        seed: "auto" (CAM where the head makes it exact, else Grad-CAM), "cam", "grad-cam", or Grad-CAM's layer by name.
        affinity: what makes two pixels alike; one, or one per stage (sequence or dict by stage).
        scales: factors of the image size, as the field does it (0.5, 1, 1.5, 2); bilinear, antialiased when shrinking.
        flip: also the mirrored image at each scale, mirrored back.
        fuse, weights: how the stages are fused, see ``ssa_fast.polish``.
        align_corners: of the bilinear resizing of seeds and CAMs; True as in PCM, False for pixels counted by their
            centres, which suits networks that halve even sizes.
        size: of the CAMs: "input" (the images'), "stage" (the largest stage's at the first scale), or (H, W).
        input_size: side or (H, W) of the random image on which stages and seed are found; default the network's own
            ``image_size``, else 224.

    Attributes:
        stage_names: the stages' module names. seed_kind: "cam" or "grad-cam". seed_layer: the module it is made from.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a wrong option, an unknown module, a model that cannot be used, with what to do instead.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        stages: str | Sequence[str] = "auto",
        seed: str = "auto",
        affinity: Affinities = Affinity(),  # noqa: B008 - frozen
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        fuse: Fuse = "mean",
        weights: Weights = None,
        align_corners: bool = True,
        size: str | tuple[int, int] = "input",
        input_size: int | tuple[int, int] | None = None,
    ) -> None:
        self.scales = _check_scales(scales)
        self.flip = bool(flip)
        self.size = _check_size(size)
        self.info = inspect_model(model, stages=stages, seed=seed, input_size=input_size)
        if self.info.fixed_size and self.scales != (1.0,):
            height, width = self.info.fixed_size
            raise ValueError(
                f"scales: expected (1.0,), as the model takes images of {height} x {width} only, got {self.scales}; "
                "leave scales out (flip=True is possible)"
            )
        self.model = model
        self.affinity, self.fuse, self.weights = affinity, fuse, weights
        self.align_corners = bool(align_corners)
        self.stage_names = list(self.info.stages)
        dry = {name: torch.zeros(1, 1, 1, 1) for name in self.stage_names}  # wrong options are told before any work
        per_stage("affinity", affinity, dry, Affinity)
        fuse_stages(dry, fuse=fuse, weights=weights)
        self.seed_kind = self.info.seed.kind
        self.seed_layer = self.info.seed.layer

    def __call__(self, images: Tensor, classes: Classes = None) -> SSAResult:
        """Seeds, polished CAMs and logits of ``images`` (B, C, H, W), normalised as the model wants them.

        ``classes``: None or "predicted" (each image's most probable class), "topN" such as "top5", class
        indices for all images, or one list of K indices per image. Raises ValueError or TypeError for wrong inputs.
        """
        self._check_images(images)
        with torch.inference_mode(False), torch.no_grad():  # Grad-CAM's graph cannot be built in inference mode
            return self._run(images, classes)

    def large(
        self,
        image: Any,
        classes: Classes = None,
        *,
        out: str | Path,
        overwrite: bool = False,
        progress: bool = False,
        **options: Any,
    ) -> LargeImageResult:
        """The CAMs of one image that is too large for the network, or for the memory, at once; exactly.

        The network sees tiles with as much around them as it feels. A first pass over them gathers each stage's
        prototypes (or, for signed features and other affinities, the pixels themselves), a second applies them; both
        read the features from disk if there is room, and else compute them again. With classes that are told the
        network runs once per tile if features are kept, else twice; "predicted" and "topN", which need the whole
        image's logits first, take one run more where features are not kept. CAMs are of the image's size, whatever
        ``size`` SSA was made with.

        Args:
            image: a path (TIFF and BigTIFF, zarr, .npy, slides, or what Pillow reads), an array or memmap (H, W, 3), a
                zarr array, an open rasterio dataset or OpenSlide, or any reader (``ssa_fast.io.readers.open``).
            classes: as for a call; of one image.
            out: the CAMs' file, ``.tif`` (tiled BigTIFF with a pyramid, a page per class) or ``.zarr``; 255 times the
                CAM as uint8. Beside it come ``NAME.mask.tif`` (or .zarr) and ``NAME.preview.png``.
            overwrite: replace these files.
            progress: show a bar with the time left for every phase; needs rich.

        Keyword Args:
            tile: pixels of a tile's side, a multiple of the coarsest stride; "auto" by the memory.
            halo: pixels around a tile that the network sees too; "auto" measures how far it feels (ResNet-18 and
                ResNet-50: 224 pixels). A smaller one is an approximation. A margin for the seed's resizing is added:
                two of its map's pixels, 64 of the image, for those.
            memory: what the process may take in all, bytes or as in "4GB".
            disk: bytes that kept features may take; "auto" is half of what is free, 0 none.
            scratch: folder for them; default beside ``out``.
            key_stride: keep every n-th pixel only where pixels are kept: an approximation, see ``PixelBank``.
            seed: (K, h, w) of the whole image, instead of the classifier's own CAM; with explicit classes.
            mean, std: of the normalisation of pixels in [0, 1]; default ImageNet's.
            look: ``ssa_fast.large.export.Look``: the mask's and the boxes' options, names and labels of the classes.
            watch: called with a ``LargeStep`` after every window.

        Returns:
            ``ssa_fast.large.LargeImageResult``: the files, classes, logits, boxes, and how it was done.

        Raises:
            ValueError: an image, network or option that does not go, with what to do; files that exist; NaN or
                infinity in logits or CAMs. OSError: no room.
        """
        from ssa_fast.large import large_image

        return large_image.to_files(self, image, classes, out=out, overwrite=overwrite, progress=progress, **options)

    def _run(self, images: Tensor, classes: Classes) -> SSAResult:
        views = [(scale, mirrored) for scale in self.scales for mirrored in ((False, True) if self.flip else (False,))]
        sums: dict[str, Tensor] = {}
        for scale, mirrored in sorted(views, key=lambda view: view[0] != 1.0):
            extracted = self._forward(_view(images, scale, mirrored))
            if not sums:
                logits = extracted.logits.detach().float()
                chosen = resolve_classes(classes, logits)
            for name, maps in self._polish(extracted, chosen, _hw(images), sums).items():
                maps = maps.flip(-1) if mirrored else maps
                sums[name] = sums[name] + resize(maps, _hw(sums[name]), self.align_corners) if name in sums else maps
        rescaled = {name: minmax(maps).float() for name, maps in sums.items()}
        return SSAResult(
            cams=rescaled[CAMS],
            seed=rescaled[SEED],
            stages={name: rescaled[name] for name in self.stage_names},
            logits=logits,
            classes=chosen,
        )

    def _forward(self, images: Tensor) -> Features:
        """One forward; an error at a size that is not the trial's is told as what it most likely is."""
        size = _hw(images)
        try:
            return self.info.forward(self.model, images)
        except Exception as error:
            if size == self.info.trace_size or isinstance(error, torch.OutOfMemoryError):
                raise
            height, width = self.info.trace_size
            raise ValueError(
                f"images: expected a size that the model takes, such as {height} x {width}, but its forward failed at "
                f"{size[0]} x {size[1]} ({error}); resize the images, or leave out scales that lead there"
            ) from error

    def _polish(
        self, extracted: Features, classes: Tensor, image_size: tuple[int, int], sums: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """One view's seed (``SEED``), polished stages (by name) and their fusion (``CAMS``), not yet rescaled."""
        with torch.autocast(classes.device.type, enabled=False):
            seed = self.info.seed_maps(self.model, extracted, classes)
            features = {name: extracted.maps[name] for name in self.stage_names}
            polished = polish_stages(seed, features, affinity=self.affinity, align_corners=self.align_corners)
            size = self._fused_size(image_size, polished, sums)
            cams = fuse_stages(
                polished, size=size, fuse=self.fuse, weights=self.weights, align_corners=self.align_corners
            )
        return {SEED: seed, **polished, CAMS: cams}

    def _fused_size(
        self, image_size: tuple[int, int], polished: dict[str, Tensor], sums: dict[str, Tensor]
    ) -> tuple[int, int]:
        if isinstance(self.size, tuple):
            return self.size
        if self.size == "input":
            return image_size
        largest = max((sums.get(name, maps) for name, maps in polished.items()), key=lambda maps: maps[0, 0].numel())
        return _hw(largest)

    def _check_images(self, images: Tensor) -> None:
        """Raises TypeError or ValueError unless the model can take ``images``."""
        if not isinstance(images, Tensor):
            raise TypeError(f"images: expected a torch tensor, got {type(images).__name__}; use torch.from_numpy")
        channels = self.info.in_channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(
                f"images: expected shape (B, {channels}, H, W), got {tuple(images.shape)}; add a batch axis with "
                "images[None] or bring the channels to the front"
            )
        if images.numel() == 0:
            raise ValueError(f"images: expected at least one image and pixel, got shape {tuple(images.shape)}")
        if images.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "images: expected a tensor without grad, got requires_grad=True; SSA is inference only: call under "
                "torch.no_grad() or pass images.detach()"
            )
        self._check_fits_model(images)

    def _check_fits_model(self, images: Tensor) -> None:
        weight = next((p for p in self.model.parameters() if p.is_floating_point()), images)
        if images.dtype != weight.dtype and not (images.is_floating_point() and _autocasting(images)):
            raise TypeError(
                f"images: expected {weight.dtype} like the model's weights, got {images.dtype}; "
                f"convert with images.to({weight.dtype}) and normalise as the model wants"
            )
        if images.device != weight.device:
            raise ValueError(
                f"images: expected the model's device {weight.device}, got {images.device}; move them with .to()"
            )
        only = self.info.fixed_size
        if only is not None and _hw(images) != only:
            raise ValueError(
                f"images: expected {only[0]} x {only[1]}, the only size this model takes, got "
                f"{images.shape[-2]} x {images.shape[-1]}; resize the images"
            )


def _view(images: Tensor, scale: float, mirrored: bool) -> Tensor:
    """The images at one scale, mirrored or not."""
    if scale != 1.0:
        size = [max(1, round(side * scale)) for side in images.shape[-2:]]
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)
    return images.flip(-1) if mirrored else images


def _hw(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def _autocasting(images: Tensor) -> bool:
    return torch.is_autocast_enabled(images.device.type)


def _check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    numbers = isinstance(scales, Sequence) and all(isinstance(s, int | float) for s in scales)
    if not numbers or isinstance(scales, str):
        raise TypeError(
            f"scales: expected a sequence of numbers such as (0.5, 1, 1.5, 2), got {scales!r}; pass a tuple"
        )
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(f"scales: expected at least one finite factor > 0, got {tuple(scales)}; pass (1.0,) for none")
    return tuple(float(scale) for scale in scales)


def _check_size(size: str | tuple[int, int]) -> str | tuple[int, int]:
    if isinstance(size, str):
        if size not in ("input", "stage"):
            raise ValueError(f'size: expected "input", "stage" or (H, W), got {size!r}; choose one of them')
        return size
    return check_size("size", size)
