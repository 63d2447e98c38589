"""The result of SSA: polished CAMs, and the boxes, masks and overlays made from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        logits: (B, num_classes) float32 of the images as given (or of the first scale, if 1 is not among the scales).
        classes: (B, K) int64, the class each CAM is of.
        notes: What was assumed about the model and its input, one sentence each.
    """

    cams: Tensor
    seed: Tensor
    stages: dict[str, Tensor]
    logits: Tensor
    classes: Tensor
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return one line per field, with the tensors' shapes instead of their values."""
        lines = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                lines += [f"  {field.name}[{name!r}]: {_shape(tensor)}" for name, tensor in value.items()]
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

    def overlay(
        self,
        images: Tensor,
        *,
        names: Sequence[str] | None = None,
        options: PostprocessOptions | None = None,
        **overrides: Any,
    ) -> list[Image]:
        """Return a panel per image: image, seed, each stage, fused, boxes (all regions) and mask, one row per class.

        ``images`` are (B, 3, H, W) in [0, 1]; ``names`` holds a name per output of the model. See
        ``ssa_fast.localize.overlay``.
        """
        from ssa_fast.localize import overlay

        maps: dict[str, Any] = {"seed": self.seed, "stages": self.stages, "classes": self.classes}
        return overlay(images, self.cams, **maps, names=names, options=options, **overrides)


def _shape(tensor: Tensor) -> str:
    sides = " × ".join(map(str, tensor.shape))
    return f"{sides}, {str(tensor.dtype).removeprefix('torch.')}, {tensor.device}"
