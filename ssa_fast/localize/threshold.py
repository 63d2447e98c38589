"""Thresholds that CAMs give by themselves, without a look at the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssa_fast.localize.read import read_cams

if TYPE_CHECKING:
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
    if bool((maps < 0).any()):
        raise ValueError(f"cams: expected values >= 0, got {maps.nan_to_num(0).min():.3g}; rescale them first")
    if not power > 0:
        raise ValueError(f"power: expected a number > 0, got {power}; leave it out")
    return self_weighted_mean(maps.amax(dim=1), power)


def self_weighted_mean(planes: Tensor, power: float) -> Tensor:
    """Return ``Σ p^(power + 1) / Σ p^power`` of maps (..., H, W) as (...); NaN and values below 0 count as 0.

    It is half the largest value where all values above 0 are equal, so that something exceeds it.
    """
    values = planes.double().nan_to_num(0.0).clamp_min(0).flatten(-2)
    highest = values.amax(dim=-1)
    weights = (values / highest[..., None].clamp_min(1e-300)) ** power
    mean = (weights * values).sum(dim=-1) / weights.sum(dim=-1).clamp_min(1e-300)
    return mean.where(mean < highest * (1 - 1e-6), highest / 2).float()
