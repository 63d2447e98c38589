"""The result of SSA: polished CAMs, and the boxes, masks and pictures made from them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor

    from ssa_fast.localize import PostprocessOptions


@dataclass(frozen=True, eq=False, repr=False)
class SSAResult:
    """CAMs of B images and K classes each; all tensors on the images' device, without gradient.

    Attributes:
        cams: (B, K, H, W) float32 in [0, 1], the fused, polished CAMs at the asked size; a class without evidence is 0.
        seed: (B, K, h, w) float32 in [0, 1], the CAMs before polishing, at the seed layer's size.
        stages: Stage name -> (B, K, h, w) float32 in [0, 1], the polished CAMs at that stage's size.
        logits: (B, num_classes) float32 of the images as given (or of the first scale, if 1 is not among the scales);
            (B, 0) of a model that returns none.
        classes: (B, K) int64, the class each CAM is of; with ``targets``, its position among them. -1 where an image
            has fewer classes than others, and where a given ``cam`` came without classes.
        valid: (B, K) bool, False where an image has fewer classes than others: its maps are 0 there.
        scores: (B, K) float32, the probabilities of the classes, or what the targets gave; 0 where not valid, NaN where
            the class is not known.
        output_names: A name per class index, () if there are none.
        notes: What was assumed about the model and its input, one sentence each.
    """

    cams: Tensor
    seed: Tensor
    stages: dict[str, Tensor]
    logits: Tensor
    classes: Tensor
    valid: Tensor
    scores: Tensor
    output_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[list[str]]:
        """Per image the name of each of its K classes, "" where not valid; reading it waits for the device."""
        rows = zip(self.classes.tolist(), self.valid.tolist(), strict=True)
        return [
            [self._name(k, index) if valid else "" for k, (index, valid) in enumerate(zip(*row, strict=True))]
            for row in rows
        ]

    def __repr__(self) -> str:
        """Return one line per field, with the tensors' shapes instead of their values."""
        lines = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                lines += [f"  {field.name}[{name!r}]: {_shape(tensor)}" for name, tensor in value.items()]
            elif field.name == "output_names":
                continue
            elif field.name == "notes":
                lines += [f"  note: {note}" for note in value]
            else:
                lines.append(f"  {field.name}: {_shape(value)}")
        return "SSAResult(\n" + "\n".join(lines) + "\n)"

    def boxes(self, options: PostprocessOptions | None = None, **overrides: Any) -> list[list[Tensor]]:
        """Return boxes (n, 4) float32 x1 y1 x2 y2 per image and class; see ``ssa_fast.localize.boxes``."""
        from ssa_fast.localize import boxes

        return boxes(self.cams, options, **overrides)

    def masks(self, options: PostprocessOptions | None = None, **overrides: Any) -> Tensor:
        """Return pseudo-masks (B, H, W) uint8: 0 background, k + 1 for class k; see ``ssa_fast.localize.masks``."""
        from ssa_fast.localize import masks

        return masks(self.cams, options, **overrides)

    def refine(self, images: Tensor, **options: Any) -> SSAResult:
        """Return the result with CAMs that follow the edges of ``images``; see ``ssa_fast.localize.refine``.

        ``images`` are (B, 3, H, W) in [0, 1], before normalisation; the CAMs get their size.
        """
        from ssa_fast.localize import refine

        return replace(self, cams=refine(images, self.cams, **options))

    def panels(
        self,
        images: Tensor,
        *,
        names: Sequence[str] | None = None,
        options: PostprocessOptions | None = None,
        **overrides: Any,
    ) -> list[Image]:
        """Return a panel per image: image, seed, each stage, fused, boxes (all regions) and mask, one row per class.

        ``images`` are (B, 3, H, W) in [0, 1]; ``names`` holds a name per output of the model, by default its own. An
        image's panel has no row for a class that is not valid. See ``ssa_fast.localize.panels``.
        """
        from ssa_fast.localize import panels

        maps: dict[str, Any] = {"seed": self.seed, "stages": self.stages, "classes": self.classes, "valid": self.valid}
        names = names if names is not None else self.output_names or None
        return panels(images, self.cams, **maps, names=names, options=options, **overrides)

    def figure(
        self,
        images: Tensor,
        *,
        names: Sequence[str] | None = None,
        classes: Sequence[int | str] | None = None,
        stages: bool = False,
        boxes: bool = True,
        mask: bool = False,
        columns: int | None = None,
        colormap: str = "viridis",
        **options: Any,
    ) -> Figure:
        """Return a matplotlib figure: image, seed and polished CAM with boxes, a row per class with its probability.

        ``images`` are (B, 3, H, W) in [0, 1]. All options are those of ``ssa_fast.localize.figure.figure``, which also
        draws several results in one figure. Its ``savefig`` writes PNG, SVG and PDF; extra ``figures``.
        """
        from ssa_fast.localize.figure import figure

        drawn: dict[str, Any] = {"names": names, "classes": classes, "stages": stages, "boxes": boxes, "mask": mask}
        return figure([images], [self], **drawn, columns=columns, colormap=colormap, **options)

    def _name(self, k: int, index: int) -> str:
        if index < 0:
            return f"map {k}"
        return self.output_names[index] if self.output_names else f"class {index}"


class StageFeatures(dict[str, "Tensor"]):
    """The stages of images by name, each (B, C, h, w), as ``polish`` takes them, without gradient.

    Attributes:
        logits: (B, num_classes) float32, (B, 0) of a model that returns none.
    """

    def __init__(self, stages: Mapping[str, Tensor], logits: Tensor) -> None:
        super().__init__(stages)
        self.logits = logits


def _shape(tensor: Tensor) -> str:
    sides = " × ".join(map(str, tensor.shape))
    return f"{sides}, {str(tensor.dtype).removeprefix('torch.')}, {tensor.device}"
