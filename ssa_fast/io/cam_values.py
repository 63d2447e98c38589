"""Convert the values of CAMs into what a format holds, or refuse them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["WSOL_SIZE", "in_unit", "minmax", "nearest_pixels", "to_array", "to_float16"]

WSOL_SIZE = 224
"""Side of a ``wsol`` map. wsolevaluation resizes true boxes and masks to it, whatever an image's size, and never a map;
its files are called after the image's whole name: ``val/a.jpg.npy``."""
TOLERANCE = 0.5 / 255  # SEAM's CAMs go slightly below 0: values that round to 0 or 255 count as in [0, 1]


def to_array(value: Any) -> Any:
    """Return a tensor of any type, on any device, with or without gradient, as an array; all else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()


def nearest_pixels(side: int) -> np.ndarray:
    """Return the pixels of an image's side that OpenCV takes when wsolevaluation resizes a true mask to ``WSOL_SIZE``.

    Any other resizing would move edges against the mask's, by up to a pixel, and cost a perfect map its full score.
    """
    step = 1.0 / (WSOL_SIZE / side)
    return np.minimum(np.floor(np.arange(WSOL_SIZE) * step), side - 1).astype(np.int64)


def in_unit(cams: np.ndarray, what: str) -> np.ndarray:
    """Return CAMs clipped to [0, 1]; ValueError, about ``what``, if more than rounding is outside."""
    if not (cams.min() >= -TOLERANCE and cams.max() <= 1 + TOLERANCE):
        raise ValueError(
            f"{what} holds CAMs in [0, 1] only, got {cams.min():g} to {cams.max():g}; rescale them, or use another"
        )
    return cams.clip(0, 1)


def minmax(cam: np.ndarray) -> np.ndarray:
    """Return a map scaled to [0, 1]; one that is constant or holds NaN becomes 0, as wsolevaluation normalises maps."""
    low, high = cam.min(), cam.max()
    return (cam - low) / (high - low) if high > low else np.zeros_like(cam)


def to_float16(cams: np.ndarray) -> np.ndarray:
    """Return CAMs as float16; ValueError if a finite value would become infinite."""
    if cams.dtype == np.float16:
        return cams
    largest = np.finfo(np.float16).max
    if (np.isfinite(cams) & (np.abs(cams) > largest)).any():
        raise ValueError(f"cams: float16 holds values up to {largest:g}, got {np.abs(cams).max():g}; rescale them")
    return cams.astype(np.float16)
