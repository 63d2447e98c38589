"""Pixel-adaptive refinement: CAMs follow the edges of their image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from ssa_fast.localize.read import check_pixels
from ssa_fast.ops.resize import minmax, resize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DILATIONS = (1, 2, 4, 8, 12, 24)
SHARE, EPS = 0.1, 1e-8  # of the local standard deviation, by which colour differences are divided
CACHED_PIXELS = 1 << 20  # of an image whose weights are kept: 192 bytes per pixel with the default dilations


def refine(images: Tensor, cams: Tensor, *, dilations: Sequence[int] = DILATIONS, iterations: int = 10) -> Tensor:
    """Return CAMs averaged over neighbours of like colour: PAMR of Araslanov & Roth (CVPR 2020).

    Each iteration replaces a pixel's CAM by the weighted mean of the eight neighbours at each dilation. A neighbour's
    weight is the softmax, over all of them, of ``-mean_c |I_ic − I_jc| / (0.1 σ_jc)``, σ the standard deviation of the
    colour channel over these neighbourhoods. In the end each map is stretched to the range that it had. Masks gain from
    it, of any map that lies on the object; boxes do not.

    Args:
        images: (B, 3, H, W) in [0, 1], or (B, 1, H, W): the images before normalisation.
        cams: (B, K, h, w), resized bilinearly to (H, W) if they are smaller or larger.
        dilations: Distances of the neighbours in pixels, >= 1.
        iterations: How often, >= 0. Cost and reach grow with it.

    Returns:
        (B, K, H, W) float32 on the CAMs' device.

    Raises:
        TypeError: ``images`` or ``cams`` is not a floating-point tensor.
        ValueError: A shape does not fit, ``images`` are not in [0, 1], or an option is out of range.
    """
    _check(images, cams, dilations, iterations)
    size = (images.shape[2], images.shape[3])
    maps = resize(cams.detach().float(), size, align_corners=False)
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    pixels = images.detach().to(maps)
    refined = [_refine_one(*pair, dilations, iterations) for pair in zip(pixels, maps, strict=True)]
    return low + (high - low) * minmax(torch.stack(refined))


def _refine_one(image: Tensor, cams: Tensor, dilations: Sequence[int], iterations: int) -> Tensor:
    """Return the refined CAMs (K, H, W) of one image (C, H, W)."""
    neighbours = _Neighbours(image, dilations)
    small = cams.shape[1] * cams.shape[2] <= CACHED_PIXELS
    cached = list(neighbours.weights()) if small else None
    for _ in range(iterations):
        mean = torch.zeros_like(cams)
        weights = neighbours.weights() if cached is None else cached
        for weight, shifted in zip(weights, shifts(cams, dilations), strict=True):
            mean.addcmul_(weight, shifted)
        cams = mean
    return cams


class _Neighbours:
    """The weights of a pixel's neighbours, one shift (H, W) at a time, so that no (48, H, W) need be kept."""

    def __init__(self, image: Tensor, dilations: Sequence[int]) -> None:
        self.image, self.dilations = image, dilations
        total, squares = torch.zeros_like(image), torch.zeros_like(image)
        for shifted in shifts(image, dilations):
            difference = shifted - image
            total += difference
            squares.addcmul_(difference, difference)
        count = 9 * len(dilations)  # the pixel itself counts once per dilation, with difference 0
        variance = (squares - total.square() / count) / (count - 1)
        self.sharpness = 1 / (len(image) * (EPS + SHARE * variance.clamp_min_(0).sqrt_()))
        self.total = torch.zeros_like(image[0])
        for affinity in self._affinities():
            self.total += affinity

    def weights(self) -> Iterator[Tensor]:
        """Yield the weight (H, W) of each shift; they sum to 1 in each pixel."""
        for affinity in self._affinities():
            yield affinity.div_(self.total)

    def _affinities(self) -> Iterator[Tensor]:
        for shifted in shifts(self.image, self.dilations):
            distance = (shifted - self.image).abs_().mul_(self.sharpness).sum(dim=0)
            yield distance.neg_().exp_()


def shifts(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Yield the eight neighbours of every pixel at each dilation, (C, H, W) each; edges are replicated."""
    height, width = maps.shape[1:]
    margin = max(dilations)
    padded = pad(maps[None], [margin] * 4, mode="replicate")[0]
    for dilation in dilations:
        for y in (-dilation, 0, dilation):
            for x in (-dilation, 0, dilation):
                if y or x:
                    yield padded[:, margin + y : margin + y + height, margin + x : margin + x + width]


def _check(images: Tensor, cams: Tensor, dilations: Sequence[int], iterations: int) -> None:
    if not isinstance(cams, Tensor) or not cams.is_floating_point():
        kind = cams.dtype if isinstance(cams, Tensor) else type(cams).__name__
        raise TypeError(f"cams: expected a floating-point tensor, got {kind}; convert it with .float()")
    if cams.ndim != 4 or cams.numel() == 0:
        raise ValueError(f"cams: expected (B, K, h, w), got {tuple(cams.shape)}; reshape them")
    check_pixels(images, len(cams))
    if not dilations or any(dilation < 1 for dilation in dilations):
        raise ValueError(f"dilations: expected distances >= 1 in pixels, got {tuple(dilations)}; pass e.g. (1, 2, 4)")
    if iterations < 0:
        raise ValueError(f"iterations: expected a number >= 0, got {iterations}; the authors use 10")
