"""The exact ways to polish one stage, in plain PyTorch.

Each file is one way to *propagate* rows ``v`` (``(B, R, L)``) along the affinity: ``propagate(v, pixels)`` is
``Σ_i v_ri a_ij``, ``(B, R, L)``. The last row of ``v`` is of ones: its sum is the denominator, and a method may take it
another way than the others. ``polish_stage`` makes a polished CAM of any of them; ``ssa_fast.ops.dispatch`` picks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.ops import dense, prototypes, second_order, tiled
from ssa_fast.ops.features import Pixels

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


def polish_stage(cam: Tensor, pixels: Pixels, method: str) -> Tensor:
    """``out_kj = Σ_i cam_ki a_ij / (Σ_i a_ij + sum_eps)``, ``steps`` times, on the method named.

    ``cam`` is ``(B, K, L)`` in ``pixels.dtype``; so is the result.
    """
    (B, K, L), propagate = cam.shape, PROPAGATE[method]
    v = cam.new_empty((B, K + 1, L))
    v[:, K:] = 1.0
    for _ in range(pixels.affinity.steps):
        v[:, :K] = cam
        summed = propagate(v, pixels)
        denominator = (summed[:, K:] + pixels.affinity.sum_eps).clamp_min_(torch.finfo(summed.dtype).tiny)
        cam = summed[:, :K].div_(denominator)
    return cam.contiguous()
