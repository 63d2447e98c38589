"""Measure a network's receptive field and the strides of its maps, with one NaN.

One forward of an image with a cell of NaN shows exactly which pixels of every map depend on it, whatever the weights:
NaN propagates through every sum, ReLU and pooling that reads it, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ssa_fast.models.extract import extract_features

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from ssa_fast.models.trace import LayerRef

SIZES = (256, 512, 1024, 2048)  # sides of the test images, until one is larger than the receptive field
TOLERANCE = 0.02  # of a map's maximum: white noise shifted by a pixel differs by more, rounding by less
STEP = 256  # pixels by which an image is enlarged to measure the strides


@dataclass(frozen=True)
class ReceptiveField:
    """How an image must be cut into tiles for a network.

    Attributes:
        strides: Map -> image pixels per map pixel.
        halo: Pixels around a tile that its maps depend on, a multiple of ``stride``; None if they depend on all.
        bytes_per_pixel: Size of the largest module output, in bytes per image pixel.
    """

    strides: dict[str, int]
    halo: int | None
    bytes_per_pixel: float

    @property
    def stride(self) -> int:
        """The coarsest map's stride; tiles begin at its multiples."""
        return max(self.strides.values())


def measure_receptive_field(model: nn.Module, sources: Mapping[str, LayerRef]) -> ReceptiveField:
    """Return the strides and the receptive field of the maps ``sources`` of a network for RGB images.

    Raises:
        ValueError: A map is not convolutional, so it cannot be computed in windows.
    """
    for name, source in sources.items():
        if source.layout.kind != "nchw":
            raise ValueError(
                f"model: expected convolutional maps, (B, C, H, W), which can be computed in windows, but {name!r} has "
                f"the layout {source.layout.kind!r}; resize the image to what the model takes"
            )
    output_bytes: list[float] = []
    handles = [
        module.register_forward_hook(lambda _, __, output: output_bytes.append(_size(output)))
        for module in model.modules()
        if not list(module.children())
    ]
    try:
        small = extract_features(model, _image(model, SIZES[0], SIZES[0]), sources).maps
    finally:
        for handle in handles:
            handle.remove()
    larger = extract_features(model, _image(model, SIZES[0] + STEP, SIZES[0] + STEP), sources).maps
    strides = {name: _stride(name, small[name], larger[name]) for name in sources}
    return ReceptiveField(strides, _measure_halo(model, sources, strides), max(output_bytes) / SIZES[0] ** 2)


def _stride(name: str, small: Tensor, larger: Tensor) -> int:
    growth = {after - before for before, after in zip(small.shape[-2:], larger.shape[-2:], strict=True)}
    pixels = max(growth)
    if len(growth) > 1 or pixels < 1 or STEP % pixels:
        raise ValueError(
            f"model: expected maps whose size follows the image's, but {name!r} has {tuple(small.shape[-2:])} pixels "
            f"for {SIZES[0]}x{SIZES[0]} and {tuple(larger.shape[-2:])} for {STEP} more each way; name other stages"
        )
    return STEP // pixels


def _measure_halo(model: nn.Module, sources: Mapping[str, LayerRef], strides: Mapping[str, int]) -> int | None:
    """Return the largest distance at which a map depends on a pixel, in whole cells of the coarsest map."""
    cell = max(strides.values())
    for size in SIZES:
        image = _image(model, size, size)
        lo = size // 2 // cell * cell
        image[:, :, lo : lo + cell, lo : lo + cell] = float("nan")
        distances = []
        for name, maps in extract_features(model, image, sources).maps.items():
            dependent = maps[0].isnan().any(dim=0)
            for axis in (0, 1):
                line = dependent.any(dim=1 - axis).nonzero()[:, 0].tolist()
                first, last = (line[0], line[-1]) if line else (0, 0)
                if first == 0 or last == dependent.shape[axis] - 1:
                    break
                distances += [lo - first * strides[name], (last + 1) * strides[name] - (lo + cell)]
        if len(distances) == 4 * len(sources):
            return -(-max(0, *distances) // cell) * cell
    return None


def map_sizes(
    model: nn.Module, sources: Mapping[str, LayerRef], field: ReceptiveField, size: tuple[int, int]
) -> dict[str, tuple[int, int]]:
    """Return the maps' sizes (h, w) for an image of ``size`` (H, W), measured on a window at its end."""
    y, x = (max(0, side - SIZES[0]) // field.stride * field.stride for side in size)
    maps = extract_features(model, _image(model, size[0] - y, size[1] - x), sources).maps
    return {
        name: (y // field.strides[name] + each.shape[-2], x // field.strides[name] + each.shape[-1])
        for name, each in maps.items()
    }


def check_windows(
    model: nn.Module, sources: Mapping[str, LayerRef], field: ReceptiveField, size: tuple[int, int]
) -> None:
    """Check on a small image that maps of a window are parts of the whole image's maps.

    Its sides have the same remainders by the stride as those of ``size`` (H, W). The check fails where padding depends
    on the size (TensorFlow's "SAME"), or where an operation hides the NaN of ``measure_receptive_field``.

    Raises:
        ValueError: With the first map that differs.
    """
    if field.halo is None:
        return
    cell = field.stride
    end = 2 * field.halo + 3 * cell  # a cell of the image around the window, the halo, and two cells inside
    image = _image(model, *(end + cell + side % cell for side in size))
    whole = extract_features(model, image, sources).maps
    part = extract_features(model, image[:, :, cell:end, cell:end], sources).maps
    for name, stride in field.strides.items():
        lo, hi, shift = (cell + field.halo) // stride, (end - field.halo) // stride, cell // stride
        expected = whole[name][0, :, lo:hi, lo:hi].float()
        difference = (part[name][0, :, lo - shift : hi - shift, lo - shift : hi - shift].float() - expected).abs().max()
        if difference > TOLERANCE * expected.abs().max():
            raise ValueError(
                f"model: expected windows of an image to give parts of its maps, but {name!r} differs there, as with "
                f'padding that depends on the size ("SAME"); crop or pad the image to multiples of {cell} pixels'
            )


def _image(model: nn.Module, H: int, W: int) -> Tensor:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    image = torch.rand(1, 3, H, W, generator=torch.Generator().manual_seed(0))
    return image.to(parameter.device, parameter.dtype)


def _size(output: object) -> float:
    return float(output.numel() * output.element_size()) if isinstance(output, torch.Tensor) else 0.0
