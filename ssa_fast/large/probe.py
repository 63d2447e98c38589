"""What a network does to windows: the strides of its maps, and how far a pixel is felt in them. Seen, not guessed.

One forward of an image with a cell of NaN shows exactly which cells of every map depend on it, whatever the weights:
NaN goes through every sum, ReLU and pooling that reads it, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ssa_fast.models.capture import capture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from ssa_fast.models.capture import Source

SIZES = (512, 1024, 2048)
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


def probe(model: nn.Module, sources: Mapping[str, Source], channels: int, *, halo: bool) -> Reach:
    """Strides and reach of the maps ``sources``; without ``halo`` the reach is not asked for.

    Raises:
        ValueError: a map that is no convolutional one, so that windows of it make no sense.
    """
    for name, source in sources.items():
        if source.form.layout != "nchw":
            raise ValueError(
                f"model: expected convolutional maps, (B, C, H, W), which can be made from windows, but {name!r} is of "
                f"the layout {source.form.layout!r}; resize the image to what the model takes"
            )
    image = _image(model, channels, SIZES[0])
    largest: list[float] = []
    handles = [
        module.register_forward_hook(lambda _, __, output: largest.append(_size(output)))
        for module in model.modules()
        if not list(module.children())
    ]
    try:
        first = capture(model, image, sources).maps
    finally:
        for handle in handles:
            handle.remove()
    second = capture(model, _image(model, channels, SIZES[0] + STEP), sources).maps
    strides = {name: _stride(name, first[name], second[name]) for name in sources}
    reach = _reach(model, sources, channels, strides) if halo else None
    return Reach(strides, reach, max(largest) / SIZES[0] ** 2)


def _stride(name: str, first: Tensor, second: Tensor) -> int:
    grown = second.shape[-1] - first.shape[-1]
    if grown < 1 or STEP % grown:
        raise ValueError(
            f"model: expected maps whose size follows the image's, but {name!r} has {first.shape[-1]} columns for "
            f"{SIZES[0]} pixels and {second.shape[-1]} for {SIZES[0] + STEP}; name other stages"
        )
    return STEP // grown


def _reach(model: nn.Module, sources: Mapping[str, Source], channels: int, strides: Mapping[str, int]) -> int | None:
    """The largest distance, in whole cells of the coarsest map, over which a cell of the image is felt."""
    cell = max(strides.values())
    for size in SIZES:
        image = _image(model, channels, size)
        lo = size // 2 // cell * cell
        image[:, :, lo : lo + cell, lo : lo + cell] = float("nan")
        reaches = []
        for name, maps in capture(model, image, sources).maps.items():
            felt = maps[0].isnan().any(dim=0)
            for axis in (0, 1):
                line = felt.any(dim=1 - axis).nonzero()[:, 0]
                first, last = int(line.min()), int(line.max())
                if first == 0 or last == felt.shape[axis] - 1:
                    break
                reaches += [lo - first * strides[name], (last + 1) * strides[name] - (lo + cell)]
        if len(reaches) == 4 * len(sources):
            return -(-max(0, *reaches) // cell) * cell
    return None


def _image(model: nn.Module, channels: int, size: int) -> Tensor:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    image = torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    return image.to(parameter.device, parameter.dtype)


def _size(output: object) -> float:
    return float(output.numel() * output.element_size()) if isinstance(output, torch.Tensor) else 0.0
