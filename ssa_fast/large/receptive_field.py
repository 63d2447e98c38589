"""Measure a network's receptive field and the strides of its maps, with one NaN.

One forward of an image with a cell of NaN shows exactly which pixels of every map depend on it, whatever the weights:
NaN propagates through every sum, ReLU and pooling that reads it, and nowhere else. What skips NaN (``nanmean``) is
found by a cell of large numbers, which must change nothing outside of the receptive field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ssa_fast.models.extract import extract_features
from ssa_fast.models.trace import hooked_inference, make_trace_image
from ssa_fast.models.watch import Verb, describe_place, watch_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from ssa_fast.models.trace import LayerRef

CHANNELS = 3  # of large images
SIZES = (256, 512, 1024, 2048)  # sides of the test images, until one is larger than the receptive field
TOLERANCE = 0.02  # of a map's maximum: white noise shifted by a pixel differs by more, rounding by less
LARGE = 1000.0  # of the cell that must change nothing outside of the receptive field; images are about 1
PLACE_SIZE = 1024  # side of the image on which the first global layer is searched for
STEP = 256  # pixels by which an image is enlarged to measure the strides


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """Dependence of a network's maps on an image's pixels."""

    model: nn.Module
    sources: Mapping[str, LayerRef]  # map -> the layer that it is read from
    strides: dict[str, int]  # map -> image pixels per map pixel
    halo: int | None  # pixels around a tile that its maps depend on, a multiple of ``stride``; None: on all
    bytes_per_pixel: float  # of the largest module output, per image pixel
    global_from: str = (
        ""  # where maps begin to depend on all pixels, in words; "" if they do not, or if it is not known
    )

    @property
    def stride(self) -> int:
        """The coarsest map's stride; tiles begin at its multiples."""
        return max(self.strides.values())

    def map_sizes(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Return the maps' sizes (h, w) for an image of ``size`` (H, W), measured on a window at its end."""
        y, x = (max(0, side - SIZES[0]) // self.stride * self.stride for side in size)
        maps = extract_features(
            self.model, make_trace_image(self.model, (size[0] - y, size[1] - x), CHANNELS), self.sources
        ).maps
        return {
            name: (y // stride + maps[name].shape[-2], x // stride + maps[name].shape[-1])
            for name, stride in self.strides.items()
        }

    def check_windows(self, size: tuple[int, int]) -> None:
        """Check that maps of a window are parts of the whole maps, on a small image with the remainders of ``size``.

        They are not where padding depends on the size (TensorFlow's "SAME") or an operation hides a NaN.
        """
        if self.halo is None:
            return
        cell = self.stride
        end = 2 * self.halo + 3 * cell  # a cell of the image around the window, the halo, and two cells inside
        image = make_trace_image(self.model, (end + cell + size[0] % cell, end + cell + size[1] % cell), CHANNELS)
        whole = extract_features(self.model, image, self.sources).maps
        part = extract_features(self.model, image[:, :, cell:end, cell:end], self.sources).maps
        for name, stride in self.strides.items():
            lo, hi, shift = (cell + self.halo) // stride, (end - self.halo) // stride, cell // stride
            expected = whole[name][0, :, lo:hi, lo:hi].float()
            found = part[name][0, :, lo - shift : hi - shift, lo - shift : hi - shift].float()
            if (found - expected).abs().max() > TOLERANCE * expected.abs().max():
                raise ValueError(
                    f"model: expected windows of an image to give parts of its maps, but {name!r} differs there, as "
                    f'with padding that depends on the size ("SAME"); crop or pad the image to multiples of {cell} '
                    "pixels"
                )


def measure_receptive_field(model: nn.Module, sources: Mapping[str, LayerRef]) -> ReceptiveField:
    """Return the strides and the receptive field of the maps ``sources`` of a network, all convolutional."""
    for name, source in sources.items():
        if source.layout.kind != "nchw":
            raise ValueError(
                f"model: expected convolutional maps, (B, C, H, W), which can be computed in windows, but {name!r} has "
                f"the layout {source.layout.kind!r}; resize the image to what the model takes"
            )
    output_bytes: list[int] = []

    def record_bytes(_module: object, _args: object, output: object) -> None:
        output_bytes.append(output.nbytes if isinstance(output, torch.Tensor) else 0)

    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    with hooked_inference(model, dict.fromkeys(leaves, record_bytes)):
        small = extract_features(model, make_trace_image(model, (SIZES[0], SIZES[0]), CHANNELS), sources).maps
    larger = extract_features(
        model, make_trace_image(model, (SIZES[0] + STEP, SIZES[0] + STEP), CHANNELS), sources
    ).maps
    strides = {name: _stride(name, small[name], larger[name]) for name in sources}
    halo, place = _measure_halo(model, sources, strides)
    return ReceptiveField(model, sources, strides, halo, max(output_bytes) / SIZES[0] ** 2, place)


def _stride(name: str, small: Tensor, larger: Tensor) -> int:
    growth = {after - before for before, after in zip(small.shape[-2:], larger.shape[-2:], strict=True)}
    pixels = max(growth)
    if len(growth) > 1 or pixels < 1 or STEP % pixels:
        raise ValueError(
            f"model: expected maps whose size follows the image's, but {name!r} has {tuple(small.shape[-2:])} pixels "
            f"for {SIZES[0]}x{SIZES[0]} and {tuple(larger.shape[-2:])} for {STEP} more each way; name other stages"
        )
    return STEP // pixels


def _measure_halo(
    model: nn.Module, sources: Mapping[str, LayerRef], strides: Mapping[str, int]
) -> tuple[int | None, str]:
    """Return the largest distance at which a map depends on a pixel, in whole cells of the coarsest map.

    None if it is all of the image, with the place where that begins.
    """
    cell = max(strides.values())
    for size in SIZES:
        image, lo = make_trace_image(model, (size, size), CHANNELS), size // 2 // cell * cell
        nan = _with_cell(image, cell, float("nan"))
        distances = []
        for name, maps in extract_features(model, nan, sources).maps.items():
            dependent = maps[0].isnan().any(dim=0)
            for axis in (0, 1):
                line = dependent.any(dim=1 - axis).nonzero()[:, 0].tolist() or [0]
                if line[0] == 0 or line[-1] == dependent.shape[axis] - 1:
                    break
                distances += [lo - line[0] * strides[name], (line[-1] + 1) * strides[name] - (lo + cell)]
        if len(distances) == 4 * len(sources):
            large = _with_cell(image, cell, LARGE)
            if _changes_elsewhere(model, image, large, nan, sources):
                return None, _find_global_layer(model, image, large)
            return -(-max(0, *distances) // cell) * cell, ""
    image = make_trace_image(model, (PLACE_SIZE, PLACE_SIZE), CHANNELS)
    return None, _find_global_layer(model, image, _with_cell(image, cell, float("nan")))


def _with_cell(image: Tensor, cell: int, value: float) -> Tensor:
    """Return the image with ``value`` in a cell at its middle."""
    y, x = (side // 2 // cell * cell for side in image.shape[-2:])
    image = image.clone()
    image[:, :, y : y + cell, x : x + cell] = value
    return image


def _changes_elsewhere(
    model: nn.Module, image: Tensor, large: Tensor, nan: Tensor, sources: Mapping[str, LayerRef]
) -> bool:
    """Return whether the large numbers change pixels that the NaN do not reach."""
    plain, changed, marked = (extract_features(model, each, sources).maps for each in (image, large, nan))
    for name, maps in plain.items():
        change = (changed[name] - maps).float().abs().masked_fill(marked[name].isnan(), 0)
        if change.max() > TOLERANCE * maps.float().abs().max():
            return True
    return False


def _find_global_layer(model: nn.Module, image: Tensor, other: Tensor) -> str:
    """Return the first layer at which a map's corner differs between two images; "" if none does."""
    corners: list[tuple[str, Verb, Tensor]] = []

    def watch(name: str, verb: Verb, tensor: Tensor) -> None:
        if tensor.ndim == 4 and tensor.shape[-1] * tensor.shape[-2] > 1:
            corners.append((name, verb, tensor[0, :, 0, 0].float().clone()))

    for each in (image, other):
        with watch_tensors(model, watch):
            model(each)
    half = len(corners) // 2
    for (name, verb, before), (_, _, after) in zip(corners[:half], corners[half:], strict=True):
        tolerance = TOLERANCE * float(before.abs().max())
        if before.shape == after.shape and not torch.allclose(before, after, rtol=0, atol=tolerance, equal_nan=True):
            return describe_place(model, name, verb)
    return ""
