"""Read module outputs as feature maps: NCHW as it is, channels-last and token sequences as views.

Of a network of volumes, maps are (B, C, d, h, w), and what is said of (h, w) goes for (d, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from ssa_fast.layouts import Size

# Class, distillation and register tokens before the patches; DINOv2 with registers has 5.
MAX_PREFIX_TOKENS = 8

Window: TypeAlias = "tuple[float, float, float, float]"  # top, left, bottom, right in pixels of the image


def window_size(window: Window) -> tuple[int, int]:
    """Return the (height, width) of a window in whole pixels."""
    top, left, bottom, right = (round(edge) for edge in window)
    return max(1, bottom - top), max(1, right - left)


@dataclass(frozen=True)
class TensorLayout:
    """Layout of one module's output, by which it is read as a map (B, C, h, w).

    Attributes:
        kind: Order of the axes: (B, C, h, w), (B, h, w, C) or (B, N, C).
        shape, image_size: (C, h, w) of the sample image's map, (H, W) of the sample image.
        prefix: Tokens before the patches (class token, registers); 0 for the other kinds.
        fixed: Whether the tokens' grid is that of the sample image for every image (a forward that resizes images).
        window: (H, W) of an image -> the part of it that the map covers; None: the whole.
    """

    kind: Literal["nchw", "nhwc", "tokens"]
    shape: tuple[int, ...]
    image_size: Size
    prefix: int = 0
    fixed: bool = False
    window: Callable[[int, int], Window] | None = None

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[0]

    @property
    def pixels(self) -> int:
        """h · w of the sample image's map."""
        return math.prod(self.shape[1:])

    @property
    def stride(self) -> tuple[float, ...]:
        """Image pixels per map pixel (y, x), on the sample image."""
        return tuple(side / length for side, length in zip(self.image_size, self.shape[1:], strict=True))

    def view(self, output: Tensor, image_size: Size) -> Tensor:
        """Return the output for images of ``image_size`` (H, W) as (B, C, h, w), sharing its memory."""
        if self.kind == "nchw":
            return output
        if self.kind == "nhwc":
            return output.movedim(-1, 1)
        patches = output[:, self.prefix :].transpose(1, 2)
        return patches.view(*patches.shape[:2], *self.grid(patches.shape[2], image_size))

    def grid(self, patches: int, image_size: Size) -> Size:
        """Return (h, w) of the ``patches`` of an image of ``image_size`` (H, W); ValueError if there is none.

        Patch embeddings floor, paddings and halvings of odd sizes ceil; a fraction of both is found by its product.
        """
        covered: Size = image_size if self.window is None else window_size(self.window(*image_size))
        axes = zip(covered, self.image_size, self.shape[1:], strict=True)
        lengths = [[self.shape[axis]] if self.fixed else _lengths(*each) for axis, each in enumerate(axes, 1)]
        choices = (zip(*each, strict=True) for each in product(*map(enumerate, lengths)))
        ranked = sorted((sum(ranks), sides) for ranks, sides in choices)
        found = next((sides for _, sides in ranked if math.prod(sides) == patches), None)
        if found is None:
            raise ValueError(
                f"stages: expected {self.prefix} + {' x '.join(str(each[0]) for each in lengths)} tokens for images of "
                f"{' x '.join(map(str, image_size))}, got {self.prefix + patches}; resize the images to the network's "
                "own size"
            )
        return found


def _lengths(side: int, sample_side: int, sample_length: int) -> list[int]:
    """List the lengths that an axis of a token grid may have for an image's ``side``, most probable first.

    Strides are whole numbers that lead from ``sample_side`` to ``sample_length`` by flooring or ceiling: the quotient
    itself, powers of two, then others. Last come the neighbours of the fraction, for strides that are none.
    """
    ratio = sample_side / sample_length
    longest = -(-sample_side // max(1, sample_length - 1))
    strides = [s for s in range(1, longest + 1) if sample_length in (sample_side // s, -(-sample_side // s))]
    strides.sort(key=lambda stride: (stride != ratio, stride & (stride - 1) != 0, abs(stride - ratio)))
    lengths = []
    for stride in strides:
        lengths += [side // stride] if sample_side // stride == sample_length else []
        lengths += [-(-side // stride)] if -(-sample_side // stride) == sample_length else []
    near = round(side / ratio)
    lengths += [near, near + 1, near - 1] if near >= 10 else [near]  # of few patches, another number is another grid
    return [length for length in dict.fromkeys(lengths) if length > 0]


def infer_layout(shape: Sequence[int], image_size: Size, grids: Sequence[Size] = ()) -> TensorLayout | None:
    """Infer the layout of a module's output for one image; None if the output is not a map.

    Args:
        shape, image_size: Shape of the output, (H, W) of the image.
        grids: (h, w) of the maps seen before, newest last. The patch grid of a token sequence is looked up among them
            first; otherwise it is the grid with the image's aspect ratio, which volumes do not keep.
    """
    if len(shape) not in (3, 2 + len(image_size)) or shape[0] != 1:
        return None
    if len(shape) == 3:
        return _token_layout(shape[1], shape[2], image_size, grids)
    _, *axes, last = shape
    layouts = (
        TensorLayout("nchw", (*axes, last), image_size),
        TensorLayout("nhwc", (last, *axes), image_size),
    )
    # A map keeps the image's aspect ratio; an axis of channels does not. NCHW comes first, so it wins a tie.
    return min((layout for layout in layouts if min(layout.stride) >= 1), key=_anisotropy, default=None)


def _token_layout(tokens: int, channels: int, image_size: Size, grids: Sequence[Size]) -> TensorLayout | None:
    seen = [g for g in reversed(grids) if math.prod(g) > 1 and 0 <= tokens - math.prod(g) <= MAX_PREFIX_TOKENS]
    if seen:
        grid = max(seen, key=math.prod)
        return TensorLayout("tokens", (channels, *grid), image_size, tokens - math.prod(grid))
    if len(image_size) == 3:
        return None
    smaller = _halvings(grids)
    for prefix in range(min(MAX_PREFIX_TOKENS + 1, tokens)):
        patches = tokens - prefix
        height = round(math.sqrt(patches * image_size[0] / image_size[1]))
        if height > 1 and patches % height == 0:
            layout = TensorLayout("tokens", (channels, height, patches // height), image_size, prefix)
            # Latents and queries are no pixels: a network that had maps before goes on with one of them, halved or not.
            if _anisotropy(layout) < 0.1 and (not grids or layout.shape[1:] in smaller):
                return layout
    return None


def _halvings(grids: Sequence[Size]) -> set[Size]:
    """Return all grids to which halving leads, rounding odd sizes up or down."""
    found, new = set(grids), set(grids)
    while new:
        halved: set[Size] = {half for y, x in new for half in ((y // 2, x // 2), (-(-y // 2), -(-x // 2)))}
        new = {grid for grid in halved if math.prod(grid) > 1} - found
        found |= new
    return found


def _anisotropy(layout: TensorLayout) -> float:
    return abs(math.log(layout.stride[-2] / layout.stride[-1]))


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
