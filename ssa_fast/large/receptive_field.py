"""What a network does to windows: the strides of its maps, and how far a pixel is felt in them. Seen, not guessed.

One forward of an image with a cell of NaN shows exactly which cells of every map depend on it, whatever the weights:
NaN goes through every sum, ReLU and pooling that reads it, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ssa_fast.models.extract import extract_features

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from ssa_fast.models.extract import LayerRef

SIZES = (256, 512, 1024, 2048)
TOLERANCE = 0.02  # of a map's maximum: white noise seen one pixel further on differs by more, rounding by less
STEP = 256  # pixels by which an image is made larger to see the stride


@dataclass(frozen=True)
class Reach:
    """How windows of an image have to be cut for a network.

    Attributes:
        strides: map -> image pixels per map pixel.
        halo: pixels around a tile within which everything lies that its maps depend on; None if that is everything.
        bytes_per_pixel: of the largest output of a module, in bytes per pixel of the image.
    """

    strides: dict[str, int]
    halo: int | None
    bytes_per_pixel: float

    @property
    def stride(self) -> int:
        """The coarsest map's: tiles begin at its multiples."""
        return max(self.strides.values())


def probe(model: nn.Module, sources: Mapping[str, LayerRef], channels: int) -> Reach:
    """Strides and reach of the maps ``sources``.

    Raises:
        ValueError: a map that is no convolutional one, so that windows of it make no sense.
    """
    for name, source in sources.items():
        if source.layout.kind != "nchw":
            raise ValueError(
                f"model: expected convolutional maps, (B, C, H, W), which can be made from windows, but {name!r} is of "
                f"the layout {source.layout.kind!r}; resize the image to what the model takes"
            )
    image = _image(model, channels, SIZES[0], SIZES[0])
    largest: list[float] = []
    handles = [
        module.register_forward_hook(lambda _, __, output: largest.append(_size(output)))
        for module in model.modules()
        if not list(module.children())
    ]
    try:
        first = extract_features(model, image, sources).maps
    finally:
        for handle in handles:
            handle.remove()
    second = extract_features(model, _image(model, channels, SIZES[0] + STEP, SIZES[0] + STEP), sources).maps
    strides = {name: _stride(name, first[name], second[name]) for name in sources}
    return Reach(strides, _reach(model, sources, channels, strides), max(largest) / SIZES[0] ** 2)


def _stride(name: str, first: Tensor, second: Tensor) -> int:
    grown = {after - before for before, after in zip(first.shape[-2:], second.shape[-2:], strict=True)}
    cells = max(grown)
    if len(grown) > 1 or cells < 1 or STEP % cells:
        raise ValueError(
            f"model: expected maps whose size follows the image's, but {name!r} has {tuple(first.shape[-2:])} pixels "
            f"for {SIZES[0]}x{SIZES[0]} and {tuple(second.shape[-2:])} for {STEP} more each way; name other stages"
        )
    return STEP // cells


def whole_sizes(
    model: nn.Module, sources: Mapping[str, LayerRef], channels: int, reach: Reach, size: tuple[int, int]
) -> dict[str, tuple[int, int]]:
    """The maps' sizes (h, w) for an image of ``size`` (H, W), from a window at its end."""
    starts = [max(0, side - SIZES[0]) // reach.stride * reach.stride for side in size]
    image = _image(model, channels, size[0] - starts[0], size[1] - starts[1])
    maps = extract_features(model, image, sources).maps
    return {
        name: (starts[0] // reach.strides[name] + each.shape[-2], starts[1] // reach.strides[name] + each.shape[-1])
        for name, each in maps.items()
    }


def check_windows(
    model: nn.Module, sources: Mapping[str, LayerRef], channels: int, reach: Reach, size: tuple[int, int]
) -> None:
    """See on a small image, whose sides leave what those of ``size`` (H, W) leave over, that windows give its parts.

    They do not where padding depends on the size (TensorFlow's "SAME"), or where something hides NaN from ``probe``.

    Raises:
        ValueError: with the first map that differs.
    """
    if reach.halo is None:
        return
    cell = reach.stride
    end = 2 * reach.halo + 3 * cell  # a cell of the image around the window, the halo, and two cells inside
    image = _image(model, channels, *(end + cell + side % cell for side in size))
    whole = extract_features(model, image, sources).maps
    part = extract_features(model, image[:, :, cell:end, cell:end], sources).maps
    for name, stride in reach.strides.items():
        lo, hi, shift = (cell + reach.halo) // stride, (end - reach.halo) // stride, cell // stride
        seen = whole[name][0, :, lo:hi, lo:hi].float()
        differ = (part[name][0, :, lo - shift : hi - shift, lo - shift : hi - shift].float() - seen).abs().max()
        if differ > TOLERANCE * seen.abs().max():
            raise ValueError(
                f"model: expected windows of an image to give parts of its maps, but {name!r} differs there, as with "
                f'padding that depends on the size ("SAME"); crop or pad the image to multiples of {cell} pixels'
            )


def _reach(model: nn.Module, sources: Mapping[str, LayerRef], channels: int, strides: Mapping[str, int]) -> int | None:
    """The largest distance, in whole cells of the coarsest map, over which a cell of the image is felt."""
    cell = max(strides.values())
    for size in SIZES:
        image = _image(model, channels, size, size)
        lo = size // 2 // cell * cell
        image[:, :, lo : lo + cell, lo : lo + cell] = float("nan")
        reaches = []
        for name, maps in extract_features(model, image, sources).maps.items():
            felt = maps[0].isnan().any(dim=0)
            for axis in (0, 1):
                line = felt.any(dim=1 - axis).nonzero()[:, 0].tolist()
                first, last = (line[0], line[-1]) if line else (0, 0)
                if first == 0 or last == felt.shape[axis] - 1:
                    break
                reaches += [lo - first * strides[name], (last + 1) * strides[name] - (lo + cell)]
        if len(reaches) == 4 * len(sources):
            return -(-max(0, *reaches) // cell) * cell
    return None


def _image(model: nn.Module, channels: int, H: int, W: int) -> Tensor:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    image = torch.rand(1, channels, H, W, generator=torch.Generator().manual_seed(0))
    return image.to(parameter.device, parameter.dtype)


def _size(output: object) -> float:
    return float(output.numel() * output.element_size()) if isinstance(output, torch.Tensor) else 0.0
