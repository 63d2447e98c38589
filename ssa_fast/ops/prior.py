"""Figure–ground priors: what is assumed of a photograph, whatever the class and the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

if TYPE_CHECKING:
    from torch import Tensor

Prior: TypeAlias = Literal["center"]

PRIORS = ("center",)


def check_prior(prior: str | None) -> Prior | None:
    """Return ``prior`` if it is a known one or None."""
    if prior is not None and prior not in PRIORS:
        raise ValueError(f"prior: expected None or one of {', '.join(PRIORS)}, got {prior!r}")
    return prior  # type: ignore[return-value]


def apply_prior(cam: Tensor, prior: Prior | None) -> Tensor:
    """Return ``cam`` (B, K, h, w), weighted by the prior.

    "center" is ``exp(−x² − y²)`` at the pixels' centres, ``x`` and ``y`` from −1 to 1 between the map's edges: 1 in the
    middle, 1/e in the middle of an edge, 1/e² in a corner.
    """
    if prior is None:
        return cam
    falloff = []
    for side in cam.shape[-2:]:
        position = (2 * torch.arange(side, dtype=cam.dtype, device=cam.device) + 1) / side - 1
        falloff.append(torch.exp(-position.square()))
    return cam * (falloff[0][:, None] * falloff[1])
