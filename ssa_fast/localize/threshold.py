"""Thresholds that CAMs give by themselves, without a look at the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ssa_fast.localize.read import read_cams, value_range

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

MASK_POWER, BOX_POWER = 1.5, 0.75
"""Weight of a pixel as a power of its CAM, for masks and for boxes; chosen on half of the images (docs/quality.md)."""


def estimate_background(cams: Tensor, power: float = MASK_POWER) -> Tensor:
    """Return each image's background score from its CAMs alone: their strongest, averaged with itself as weight.

    With ``p_j = max_k cam_kj`` the score is ``Σ_j p_j^(power + 1) / Σ_j p_j^power``, the Lehmer mean (P. S. Bullen,
    Handbook of Means and Their Inequalities, 2003, III.5): the CAM to be expected at a pixel drawn in proportion to
    ``p^power``. It was chosen among some 70 rules without a look at the truth (Otsu, Kittler–Illingworth, Kapur, Li,
    triangle, mean plus standard deviations, areas, the image's edges and colours), by the IoU of polished CAMs' masks.

    Args:
        cams: (B, K, H, W), (K, H, W) or (H, W), floating, >= 0. NaN pixels do not count.
        power: Of the weights, > 0. A higher power gives smaller masks; 1 suits a classifier's own, unpolished CAM.

    Returns:
        (B,) float32 on the CPU, below the image's largest value: half of it where all values above 0 are equal, as in
        a mask, and 0 where no value is above 0.

    Raises:
        TypeError: ``cams`` is not a floating-point tensor.
        ValueError: ``cams`` has another rank or a value below 0, or ``power`` is not above 0.
    """
    maps = read_cams(cams)
    low, _, _ = value_range(maps)
    if low < 0:
        raise ValueError(f"cams: expected values >= 0, got {low:.3g}; rescale them first")
    if not power > 0:
        raise ValueError(f"power: expected a number > 0, got {power}; leave it out")
    return self_weighted_mean(maps.amax(dim=1), power)


def self_weighted_mean(planes: Tensor, power: float) -> Tensor:
    """Return ``Σ p^(power + 1) / Σ p^power`` of CPU maps (..., H, W) as (...); NaN and values below 0 count as 0.

    It is half the largest value where all values above 0 are equal, so that something exceeds it.
    """
    # NumPy and a map at a time: writers call it beside the network, whose cores PyTorch's threads would take.
    each = [_mean_of(plane, power) for plane in planes.float().reshape(-1, *planes.shape[-2:]).numpy()]
    return torch.tensor(each, dtype=torch.float32).reshape(planes.shape[:-2])


def _mean_of(plane: NDArray[np.float32], power: float) -> float:
    if not (plane.min() >= 0 and plane.max() < np.inf):
        plane = np.nan_to_num(plane, nan=0.0).clip(min=0)
    highest = float(plane.max())
    if highest == 0:
        return 0.0
    weights = _raise(plane / np.float32(highest), power)
    total = float(weights.sum(dtype=np.float64))
    mean = float(np.multiply(weights, plane, out=weights).sum(dtype=np.float64)) / total
    return mean if mean < highest * (1 - 1e-6) else highest / 2


def _raise(base: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    """Return ``base ** power``; the usual powers by square roots, which take a third of the time."""
    if power not in (MASK_POWER, BOX_POWER):
        return base**power
    root = np.sqrt(base)
    return np.multiply(base if power == MASK_POWER else np.sqrt(root), root, out=root)
