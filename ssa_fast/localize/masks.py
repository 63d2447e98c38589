"""Pseudo-masks of class activation maps, and the files they are kept in."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssa_fast.localize.boxes import check_fraction, read_cams

IGNORE = 255
DEFAULT_BACKGROUND = 0.25


def masks(
    cams: Tensor, background: float | None = None, *, alpha: float | None = None, ignore: float | None = None
) -> Tensor:
    """Label maps: at each pixel the class whose CAM is largest, or background if none exceeds the background's score.

    The background's score is a constant (``background``, 0.25 unless said otherwise), or ``(1 - max_k cam_k)^alpha`` as
    in AffinityNet (Ahn & Kwak, CVPR 2018): the larger ``alpha``, the less background. ``ignore`` is a second setting
    of the same kind that sees less background (a lower constant, a higher exponent): pixels that are foreground there
    and background here are unsure and become 255, as in IRN (Ahn et al., CVPR 2019).

    Args:
        cams: (B, K, H, W), (K, H, W) or (H, W), in [0, 1].
        background: in [0, 1]. alpha: > 0, instead of ``background``. ignore: below ``background`` or above ``alpha``.

    Returns:
        (B, H, W) uint8 on the CPU: 0 background, k + 1 for class position k, 255 unsure. NaN pixels are unsure.

    Raises:
        TypeError: ``cams`` is no floating-point tensor, or a setting no number.
        ValueError: settings out of range or on the wrong side of each other, CAMs outside [0, 1], over 254 classes.
    """
    maps = read_cams(cams)
    if maps.shape[1] >= IGNORE:
        raise ValueError(f"cams: expected at most 254 classes, as 255 means unsure, got {maps.shape[1]}; take fewer")
    if bool((maps < 0).any() | (maps > 1).any()):
        low, high = maps.nan_to_num(0).aminmax()
        raise ValueError(f"cams: expected values in [0, 1], got {low:.3g} to {high:.3g}; rescale them first")
    peak, best = maps.max(dim=1)  # [B, H, W]
    labels = torch.where(peak > _background(peak, background, alpha), best + 1, 0)
    if ignore is not None:
        _check_ignore(background, alpha, ignore)
        sure = peak <= (_background(peak, ignore, None) if alpha is None else _background(peak, None, ignore))
        labels[(labels == 0) & ~sure] = IGNORE
    labels[peak.isnan()] = IGNORE
    return labels.to(torch.uint8)


def _background(peak: Tensor, background: float | None, alpha: float | None) -> Tensor:
    if alpha is None:
        background = DEFAULT_BACKGROUND if background is None else background
        check_fraction("background", background)
        return torch.full_like(peak, background)
    if background is not None:
        raise ValueError(f"alpha: expected either background or alpha, got {background} and {alpha}; leave one out")
    if not alpha > 0:
        raise ValueError(f"alpha: expected a number > 0, got {alpha}; the AffinityNet authors use 4 to 32")
    return (1 - peak) ** alpha


def _check_ignore(background: float | None, alpha: float | None, ignore: float) -> None:
    if alpha is not None and not ignore > alpha:
        raise ValueError(f"ignore: expected an exponent above alpha = {alpha}, got {ignore}; raise it")
    constant = DEFAULT_BACKGROUND if background is None else background
    if alpha is None and not 0 <= ignore < constant:
        raise ValueError(f"ignore: expected a number in [0, background = {constant}), got {ignore}; lower it")


def voc_palette() -> list[int]:
    """PASCAL VOC's 256 colours as flat RGB: the index's bits, dealt to the channels (VOC devkit, VOClabelcolormap)."""
    index = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return [int(value) for value in colours.ravel()]


def save_mask(path: str | Path, mask: Tensor | np.ndarray, palette: Literal["voc"] | list[int] = "voc") -> None:
    """Writes a label map (H, W) as an indexed PNG: pixel values are the labels, colours are for looking at.

    The file appears whole or not at all. ``palette``: "voc" or flat RGB of up to 256 colours.

    Raises:
        TypeError: the mask is not of whole numbers. ValueError: not (H, W), labels outside 0..255, or a wrong palette.
    """
    labels = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"mask: expected whole numbers, got {labels.dtype}; pass what masks() returns")
    if labels.ndim != 2 or labels.size == 0:
        raise ValueError(f"mask: expected shape (H, W), got {labels.shape}; pass one image's mask")
    if labels.min() < 0 or labels.max() > 255:
        raise ValueError(f"mask: expected labels in 0..255, got {labels.min()}..{labels.max()}; a PNG index has 8 bits")
    colours = voc_palette() if palette == "voc" else palette
    if isinstance(colours, str) or len(colours) % 3 or not 3 <= len(colours) <= 768:
        raise ValueError(f'palette: expected "voc" or flat RGB of up to 256 colours, got {palette!r}; pass a list')
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(colours)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    draft = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    try:
        draft.write_bytes(buffer.getvalue())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
