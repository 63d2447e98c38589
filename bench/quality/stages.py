"""What an affinity depends on, stage by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast import Affinity
from ssa_fast.ops.features import UnitFeatures

if TYPE_CHECKING:
    from torch import Tensor

PIXELS, PIXELS_SEED = 512, 0  # drawn for the cosines between pixels


def describe_stage(maps: Tensor) -> dict[str, float]:
    """Return what an affinity depends on, from one image's features (1, C, H, W).

    With ``mean_cosine`` of a pixel to all pixels, the shifted cosine's denominator is ``L·(s + mean_cosine)/(1 + s)``:
    it is positive at every pixel if the shift ``s`` exceeds minus the least of them. The last two are of drawn pixels:
    the share of negative cosines, and how many pixels' worth a pixel averages over with relu, as a share of all.
    """
    x = UnitFeatures(maps, Affinity(), torch.float32).unit(0, maps.shape[2] * maps.shape[3])[0].double()  # [C, L]
    mean_cosine = x.mean(1) @ x
    drawn = x[:, torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(PIXELS_SEED))[:PIXELS]]
    cosines = drawn.T @ drawn
    weights = cosines.clamp_min(0)
    used = weights.sum(0).square() / (len(weights) * weights.square().sum(0)).clamp_min(1e-12)
    return {
        "signed": float((maps < 0).any()),
        "mean_cosine_min": float(mean_cosine.min()),
        "mean_cosine_median": float(mean_cosine.median()),
        "negative_cosines": float((cosines < 0).double().mean()),
        "pixels_averaged_by_relu": float(used.mean()),
    }
