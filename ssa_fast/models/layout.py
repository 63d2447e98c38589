"""Read module outputs as feature maps: NCHW as it is, channels-last and token sequences as views."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from torch import Tensor

# Class, distillation and register tokens before the patches; DINOv2 with registers has 5.
MAX_PREFIX_TOKENS = 8


@dataclass(frozen=True)
class TensorLayout:
    """Layout of one module's output, by which it is read as a map (B, C, h, w).

    Attributes:
        kind: Order of the axes: (B, C, h, w), (B, h, w, C) or (B, N, C).
        shape, image_size: (C, h, w) of the sample image's map, (H, W) of the sample image.
        prefix: Tokens before the patches (class token, registers); 0 for the other kinds.
    """

    kind: Literal["nchw", "nhwc", "tokens"]
    shape: tuple[int, int, int]
    image_size: tuple[int, int]
    prefix: int = 0

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[0]

    @property
    def pixels(self) -> int:
        """h · w of the sample image's map."""
        return self.shape[1] * self.shape[2]

    @property
    def stride(self) -> tuple[float, float]:
        """Image pixels per map pixel (y, x), on the sample image."""
        return self.image_size[0] / self.shape[1], self.image_size[1] / self.shape[2]

    def view(self, output: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return the output for images of ``image_size`` (H, W) as (B, C, h, w), sharing its memory."""
        if self.kind == "nchw":
            return output
        if self.kind == "nhwc":
            return output.permute(0, 3, 1, 2)
        tokens = output.shape[1]
        height, width = (round(size / stride) for size, stride in zip(image_size, self.stride, strict=True))
        if tokens != self.prefix + height * width:
            raise ValueError(
                f"stages: expected {self.prefix} + {height} x {width} tokens for images of "
                f"{image_size[0]} x {image_size[1]}, got {tokens}; resize the images to the network's own size"
            )
        patches = output[:, self.prefix :].transpose(1, 2)
        return patches.view(*patches.shape[:2], height, width)


def infer_layout(
    shape: Sequence[int], image_size: tuple[int, int], grids: Sequence[tuple[int, int]] = ()
) -> TensorLayout | None:
    """Infer the layout of a module's output for one image; None if the output is not a map.

    Args:
        shape, image_size: Shape of the output, (H, W) of the image.
        grids: (h, w) of the 4-D maps seen before, newest last. The patch grid of a token sequence is looked up among
            them first; otherwise it is the grid with the image's aspect ratio.
    """
    if len(shape) not in (3, 4) or shape[0] != 1:
        return None
    if len(shape) == 3:
        return _token_layout(shape[1], shape[2], image_size, grids)
    _, a, b, c = shape
    layouts = (TensorLayout("nchw", (a, b, c), image_size), TensorLayout("nhwc", (c, a, b), image_size))
    # A map keeps the image's aspect ratio; an axis of channels does not. NCHW comes first, so it wins a tie.
    return min((layout for layout in layouts if min(layout.stride) >= 1), key=_anisotropy, default=None)


def _token_layout(
    tokens: int, channels: int, image_size: tuple[int, int], grids: Sequence[tuple[int, int]]
) -> TensorLayout | None:
    seen = [(h, w) for h, w in reversed(grids) if h * w > 1 and 0 <= tokens - h * w <= MAX_PREFIX_TOKENS]
    if seen:
        height, width = max(seen, key=math.prod)
        return TensorLayout("tokens", (channels, height, width), image_size, tokens - height * width)
    for prefix in range(min(MAX_PREFIX_TOKENS + 1, tokens)):
        patches = tokens - prefix
        height = round(math.sqrt(patches * image_size[0] / image_size[1]))
        if height > 1 and patches % height == 0:
            layout = TensorLayout("tokens", (channels, height, patches // height), image_size, prefix)
            if _anisotropy(layout) < 0.1:
                return layout
    return None


def _anisotropy(layout: TensorLayout) -> float:
    return abs(math.log(layout.stride[0] / layout.stride[1]))


def find_first_tensor(output: Any) -> Tensor | None:
    """Return ``output`` or, of a tuple, list or mapping, its first tensor; None if it holds none."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "values") and callable(output.values):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return None


def replace_first_tensor(output: Any, tensor: Tensor) -> Any:
    """Return ``output`` with its first tensor replaced; TypeError unless it is a tensor, tuple or list."""
    if isinstance(output, Tensor):
        return tensor
    if type(output) in (tuple, list):
        position = next(i for i, item in enumerate(output) if isinstance(item, Tensor))
        return type(output)([*output[:position], tensor, *output[position + 1 :]])
    raise TypeError(
        f"seed: expected a Grad-CAM layer that returns a tensor, tuple or list, got {type(output).__name__}; "
        "name a layer inside it"
    )


def map_tensors(function: Callable[[Tensor], Any], output: Any) -> Any:
    """Return what a model returned with ``function`` of its tensors: in tuples, lists, dicts and dataclasses, too."""
    if isinstance(output, Tensor):
        return function(output)
    parts = {key: map_tensors(function, part) for key, part in _parts(output).items()}
    if isinstance(output, tuple | list):
        return type(output)(*parts.values()) if hasattr(output, "_fields") else type(output)(parts.values())
    if not parts:
        return output
    return type(output)(**parts) if all(isinstance(key, str) for key in parts) else parts


def float_tensors(output: Any) -> list[Tensor]:
    """Return all floating-point tensors of what a model returned."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    return [tensor for part in _parts(output).values() for tensor in float_tensors(part)]


def _parts(output: Any) -> dict[Any, Any]:
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return {}
