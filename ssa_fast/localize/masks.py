"""Pseudo-masks of class activation maps, and their PNG files."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ssa_fast.io.atomic import atomic_write
from ssa_fast.localize.options import AUTO, PostprocessOptions
from ssa_fast.localize.read import read_cams, value_range
from ssa_fast.localize.threshold import estimate_background

IGNORE = 255


def masks(cams: Tensor, options: PostprocessOptions | None = None, **overrides: Any) -> Tensor:
    """Return label maps: per pixel the class of the largest CAM, or background if none exceeds its score.

    Args:
        cams: (B, K, H, W), (K, H, W) or (H, W), of volumes (B, K, D, H, W), in [0, 1].
        options: ``background`` (a number, or "auto") or ``alpha``, the background's score, and ``ignore``; the rest is
            for ``boxes``.
        **overrides: Single fields of the options, for example ``alpha=8, ignore=16``.

    Returns:
        (B, H, W) uint8 on the CPU, of volumes (B, D, H, W): 0 background, k + 1 for class position k, 255 unsure. NaN
        pixels are unsure.

    Raises:
        TypeError: ``cams`` is not a floating-point tensor, or an option has another type.
        ValueError: Options out of range or not going together, CAMs outside [0, 1], or over 254 classes.
    """
    if isinstance(cams, Tensor) and cams.ndim == 5:  # a label depends on no neighbour
        return masks(cams.flatten(2, 3), options, **overrides).unflatten(1, cams.shape[2:4])
    maps = read_cams(cams)
    options = replace(options or PostprocessOptions(), **overrides)
    if maps.shape[1] >= IGNORE:
        raise ValueError(f"cams: expected at most 254 classes, as 255 means unsure, got {maps.shape[1]}; take fewer")
    low, high, has_nan = value_range(maps)
    if low < 0 or high > 1:
        raise ValueError(f"cams: expected values in [0, 1], got {low:.3g} to {high:.3g}; rescale them first")
    peak, best = maps.max(dim=1)  # [B, H, W]
    labels = (best + 1).to(torch.uint8)

    def exceeds(setting: float | Tensor) -> Tensor:
        """Return where the CAM exceeds the score ``setting``, or the score with it as exponent."""
        return peak > (setting if options.alpha is None else (1 - peak) ** setting)

    score = options.alpha or options.background_score
    labels *= exceeds(estimate_background(peak[:, None])[:, None, None] if score == AUTO else score)
    if options.ignore is not None:
        labels[(labels == 0) & exceeds(options.ignore)] = IGNORE
    return labels.masked_fill_(peak.isnan(), IGNORE) if has_nan else labels


def background_of(cams: Tensor, options: PostprocessOptions) -> float | None:
    """Return the background score that ``masks`` takes for one image's CAMs (K, H, W); None with ``alpha``."""
    if options.alpha is not None:
        return None
    score = options.background_score
    return float(estimate_background(cams)) if score == AUTO else score


def voc_palette() -> list[int]:
    """Return PASCAL VOC's 256 colours as flat RGB (``VOClabelcolormap`` of the VOC devkit)."""
    bits = ((np.arange(256)[:, None] >> np.arange(24)) & 1).reshape(256, 8, 3)  # bits 3n + c of the index: channel c
    colours: list[int] = (bits * (128 >> np.arange(8))[:, None]).sum(axis=1).ravel().tolist()
    return colours


def save_mask(path: str | Path, mask: Tensor | np.ndarray, palette: Literal["voc"] | list[int] = "voc") -> None:
    """Write a label map atomically as an indexed PNG whose pixel values are the labels.

    Args:
        path: The file.
        mask: (H, W) integers in 0..255.
        palette: "voc", or flat RGB of up to 256 colours.

    Raises:
        TypeError: The mask does not hold integers.
        ValueError: The mask is not (H, W), holds labels outside 0..255, or the palette has another form.
    """
    labels = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"mask: expected whole numbers, got {labels.dtype}; pass what masks() returns")
    if labels.ndim != 2 or labels.size == 0:
        raise ValueError(f"mask: expected shape (H, W), got {labels.shape}; pass one image's mask")
    if labels.min() < 0 or labels.max() > 255:
        raise ValueError(f"mask: expected labels in 0..255, got {labels.min()}..{labels.max()}; a PNG index has 8 bits")
    from PIL import Image  # here, so that overlays need NumPy only

    colours = voc_palette() if palette == "voc" else palette
    if isinstance(colours, str) or len(colours) % 3 or not 3 <= len(colours) <= 768:
        raise ValueError(f'palette: expected "voc" or flat RGB of up to 256 colours, got {palette!r}; pass a list')
    image = Image.fromarray(labels.astype(np.uint8, copy=False))
    image.putpalette(colours)
    rle = zlib.Z_RLE  # regions are runs: a third of the time for 1 % more bytes
    atomic_write(Path(path), lambda draft: image.save(draft, format="PNG", compress_type=rle), parents=False)
