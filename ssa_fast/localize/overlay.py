"""Lay a class activation map over its image in colour, on tensors, arrays and PIL images."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from ssa_fast.arrays import as_tensor
from ssa_fast.localize.colormaps import table
from ssa_fast.ops.resize import resize

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ssa_fast.arrays import ArrayLike

OPACITY = 0.8
ROUNDING = 1e-3  # by which values may leave [0, 1], as resized ones do
PIL_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits
WHITE = (255, 255, 255)

Image = TypeVar("Image")


def overlay(image: Image, cam: ArrayLike | Any, *, colormap: str = "viridis", opacity: float = OPACITY) -> Image:
    """Return the image with a class activation map over it in colour; where the CAM is low, the image shows.

    A pixel under the CAM's value ``v`` becomes ``(1 − a) · image + a · colour(v)`` with ``a = opacity · v``. NaN, a
    value that is not known, is grey at the whole opacity.

    Args:
        image: A tensor (3, H, W) or (B, 3, H, W), an array (H, W, 3) or (B, H, W, 3), both uint8 or floating in [0, 1];
            or a PIL image of 8 bits, laid on white where it is transparent. Grey ones have one channel, arrays also
            none: (H, W).
        cam: A tensor or an array, floating in [0, 1], of any size: (h, w), of a batch (B, h, w) or (B, 1, h, w). It is
            resized bilinearly. A PIL image of mode F, or L with 255 for 1, is one as well.
        colormap: One of ``ssa_fast.localize.colormaps.COLORMAPS``: "viridis", "cividis", "magma" or "turbo".
        opacity: Of the colour where the CAM is 1, in [0, 1].

    Returns:
        An image of the same kind, type of numbers, size and device, without gradient and with three channels.

    Raises:
        TypeError: ``image`` or ``cam`` is of another kind.
        ValueError: A shape, a range, the colour map or the opacity is another one; the message says which.
    """
    colours = table(colormap)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected a number in [0, 1], got {opacity}; 1 hides the image where the CAM is 1")
    pixels, restore = _read_image(image)
    cams = _read_cam(cam, len(pixels)).to(pixels)
    height, width = pixels.shape[2:]
    blended = _blend(pixels, resize(cams, (height, width), align_corners=False), colours, opacity)
    return cast("Image", restore(blended))


def _blend(pixels: Tensor, cams: Tensor, colours: NDArray[np.uint8], opacity: float) -> Tensor:
    """Return the images (B, 3, H, W) in [0, 1] under the CAMs (B, 1, H, W)."""
    unknown = cams.isnan()
    values = cams.nan_to_num(nan=0.0).clamp_(0, 1)
    indices = (values[:, 0] * len(colours)).long().clamp_(max=len(colours) - 1)  # as matplotlib divides [0, 1]
    tint = (torch.from_numpy(colours).to(pixels) / 255)[indices].movedim(-1, 1)  # [B, 3, H, W]
    tint = tint.masked_fill(unknown, 0.5)
    return torch.lerp(pixels.expand_as(tint), tint, opacity * values.masked_fill_(unknown, 1))


def _read_image(image: Any) -> tuple[Tensor, Callable[[Tensor], object]]:
    """Return the images (B, 1 or 3, H, W) in [0, 1], and the function that makes the caller's kind of (B, 3, H, W)."""
    if isinstance(image, Tensor):
        pixels, single = image.detach(), image.ndim == 3
        if not 3 <= image.ndim <= 4 or image.shape[-3] not in (1, 3) or image.numel() == 0:
            advice = "move the channels with .movedim(-1, -3)" if image.shape[-1:] == (3,) else "reshape it"
            raise ValueError(f"image: expected (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}; {advice}")
        values, back = _scale(pixels[None] if single else pixels)
        return values, lambda drawn: back(drawn[0] if single else drawn)
    if isinstance(image, np.ndarray):
        grey, single = image.ndim == 2, image.ndim <= 3
        if not 2 <= image.ndim <= 4 or not (grey or image.shape[-1] in (1, 3)) or image.size == 0:
            channels_first = image.ndim >= 3 and image.shape[-3] == 3
            advice = "move the channels with np.moveaxis(image, -3, -1)" if channels_first else "reshape it"
            raise ValueError(f"image: expected (H, W, 3) or (B, H, W, 3), got {image.shape}; {advice}")
        if image.dtype.kind not in "fu":
            raise TypeError(f"image: expected uint8, or floating values in [0, 1], got {image.dtype}; convert it")
        array = image[..., None] if grey else image
        pixels = torch.from_numpy(np.array(array, dtype=image.dtype.newbyteorder("="))).movedim(-1, -3)
        values, back = _scale(pixels[None] if single else pixels)
        return values, lambda drawn: back(drawn[0] if single else drawn).movedim(-3, -1).contiguous().numpy()
    pil = sys.modules.get("PIL.Image")  # whoever has such an image has imported it
    if pil is None or not isinstance(image, pil.Image):
        raise TypeError(
            f"image: expected a torch tensor, a NumPy array or a PIL image, got {type(image).__name__}; convert it"
        )
    if image.mode not in PIL_MODES:
        raise ValueError(f"image: expected a PIL image of 8 bits, got mode {image.mode}; convert it to RGB")
    if "transparency" in image.info or image.mode.endswith("A"):
        image = image.convert("RGBA")
        image = pil.alpha_composite(pil.new("RGBA", image.size, (*WHITE, 255)), image)
    values, to_array = _read_image(np.asarray(image.convert("RGB")))
    return values, lambda drawn: pil.fromarray(to_array(drawn))


def _scale(pixels: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the values in [0, 1] in which to compute, and the function that turns them back into the given type."""
    dtype = pixels.dtype
    if dtype == torch.uint8:
        return pixels.float() / 255, lambda drawn: (drawn * 255).round_().to(dtype)
    if not dtype.is_floating_point:
        raise TypeError(f"image: expected uint8, or floating values in [0, 1], got {dtype}; convert it")
    low, high = (float(value) for value in pixels.aminmax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        advice = "divide it by 255" if low >= 0 else "undo the normalisation"
        raise ValueError(f"image: expected values in [0, 1], got {low:.3g} to {high:.3g}; {advice}")
    return pixels.to(torch.promote_types(dtype, torch.float32)), lambda drawn: drawn.to(dtype)


def _read_cam(cam: ArrayLike | Any, count: int) -> Tensor:
    """Return the CAMs of ``count`` images as (B, 1, h, w) in [0, 1] or NaN."""
    pil = sys.modules.get("PIL.Image")
    if pil is not None and isinstance(cam, pil.Image):
        if cam.mode not in ("F", "L"):
            raise ValueError(f"cam: expected a PIL image of mode F or L, got {cam.mode}; pass the map, not a picture")
        cam = np.asarray(cam) if cam.mode == "F" else np.asarray(cam, np.float32) / 255
    maps = as_tensor("cam", cam).detach()
    shapes = {(count, 1), (count,)} | ({(), (1,), (1, 1)} if count == 1 else set())
    if tuple(maps.shape[:-2]) not in shapes or maps.ndim < 2 or maps.numel() == 0:
        expected = "(h, w)" if count == 1 else f"({count}, h, w) or ({count}, 1, h, w)"
        raise ValueError(f"cam: expected {expected}, got {tuple(maps.shape)}; pass one class, such as cam[:, 0]")
    maps = maps.float().reshape(count, 1, *maps.shape[-2:])
    low, high = (float(value) for value in maps.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf).aminmax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(
            f"cam: expected values in [0, 1], got {low:.3g} to {high:.3g}; rescale it, "
            "(cam - cam.min()) / (cam.max() - cam.min())"
        )
    return maps
