"""Thresholds that CAMs give by themselves, without a look at the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssa_fast.localize.read import read_cams

if TYPE_CHECKING:
    from torch import Tensor


def estimate_background(cams: Tensor) -> Tensor:
    """Return each image's background score, from its CAMs alone: their strongest, averaged with itself as weight.

    With ``p_j = max_k cam_kj`` the score is ``Σ_j p_j² / Σ_j p_j``, the contraharmonic mean (P. S. Bullen, Handbook of
    Means and Their Inequalities, 2003, III.5): the CAM to be expected at a pixel drawn in proportion to the CAM. It has
    no parameter. It was chosen among some 100 rules (Otsu, Kittler–Illingworth, Kapur, Li, triangle, mean plus standard
    deviations, areas, image edges and colours, ...) by the IoU of the masks; see docs/quality.md.

    Args:
        cams: (B, K, H, W), (K, H, W) or (H, W), floating, >= 0. NaN pixels do not count.

    Returns:
        (B,) float32 on the CPU, below the image's largest value: half of it where all values above 0 are equal, as in
        a mask, and 0 where no value is above 0.

    Raises:
        TypeError: ``cams`` is not a floating-point tensor.
        ValueError: ``cams`` has another rank, or a value below 0.
    """
    maps = read_cams(cams)
    if bool((maps < 0).any()):
        raise ValueError(f"cams: expected values >= 0, got {maps.nan_to_num(0).min():.3g}; rescale them first")
    return self_weighted_mean(maps.amax(dim=1))


def self_weighted_mean(planes: Tensor) -> Tensor:
    """Return ``Σ p² / Σ p`` of maps (..., H, W) >= 0 as (...), as ``estimate_background`` describes it."""
    values = planes.double().nan_to_num(0.0).flatten(-2)
    peak = values.amax(dim=-1)
    mean = values.square().sum(dim=-1) / values.sum(dim=-1).clamp_min(1e-300)
    return mean.where(mean < peak * (1 - 1e-6), peak / 2).float()
