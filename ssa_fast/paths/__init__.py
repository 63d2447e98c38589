"""The exact ways to polish one stage, in plain PyTorch.

Each file is one way to *propagate* rows ``v`` (``(B, R, L)``) along the affinity, ``Σ_i v_ri a_ij``, as
``propagate(v, pixels) -> (B, R, L)``; with ``sums=True`` there is one row more, ``Σ_i a_ij``. ``polish_stage`` makes a
polished CAM of any of them; ``ssa_fast.dispatch`` picks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.paths import dense, prototypes, second_order, tiled
from ssa_fast.paths.pixels import Pixels

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PROPAGATE: dict[str, Callable[..., Tensor]] = {
    "dense": dense.propagate,
    "prototypes": prototypes.propagate,
    "second_order": second_order.propagate,
    "tiled": tiled.propagate,
}

__all__ = ["PROPAGATE", "Pixels", "polish_stage"]


def polish_stage(cam: Tensor, pixels: Pixels, path: str) -> Tensor:
    """``out_kj = Σ_i cam_ki a_ij / (Σ_i a_ij + sum_eps)``, ``steps`` times, on the path named.

    ``cam`` is ``(B, K, L)`` in ``pixels.dtype``; so is the result. The denominator is computed once.
    """
    propagate, K = PROPAGATE[path], cam.shape[1]
    summed = propagate(cam, pixels, sums=True)  # [B, K + 1, L]
    denominator = (summed[:, K:] + pixels.affinity.sum_eps).clamp_min_(torch.finfo(summed.dtype).tiny)
    out = summed[:, :K] / denominator
    for _ in range(pixels.affinity.steps - 1):
        out = propagate(out, pixels).div_(denominator)
    return out
