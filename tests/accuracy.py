"""The project's one rule for numerical error.

A result passes if it is at most twice as far from the truth as the reference itself is when it runs in the inputs' own
dtype, plus one rounding of the largest number in the result. The truth is the reference in float64, on inputs drawn in
their dtype and promoted; for float64 inputs it is the same formula in NumPy's extended precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ssa_fast import reference

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast import Affinity


def assert_as_accurate(
    out: Tensor, cam: Tensor, features: Tensor, affinity: Affinity, dtype: torch.dtype | None = None
) -> None:
    """``out`` ``(B, K, H, W)`` against the reference on ``cam`` ``(B, K, H, W)`` and ``features`` ``(B, C, H, W)``.

    ``dtype`` is the one that the computation's operands have, where that is not the features' own: float16 for kernels
    with ``precision="default"``.
    """
    cam, features = cam.flatten(2), features.flatten(2)
    dtype = features.dtype if dtype is None else dtype
    own = reference.polish_stage(cam.to(dtype), features.to(dtype), affinity).double().numpy()
    if features.dtype == torch.float64:
        truth = extended_reference(cam.numpy(), features.numpy(), affinity)
    else:
        truth = reference.polish_stage(cam.double(), features.double(), affinity).numpy()
    assert out.flatten(2).shape == truth.shape
    error = np.abs(out.flatten(2).double().numpy() - truth).max()
    own_error = np.abs(own - truth).max()
    band = torch.finfo(out.dtype).eps * np.abs(truth).max()
    assert error <= 2 * own_error + band, (
        f"error {error:.3g}, of the reference in {dtype} {own_error:.3g}, rounding band {band:.3g}"
    )


def extended_reference(cam: Any, features: Any, affinity: Affinity) -> Any:
    """``reference.polish_stage`` for φ = relu(c)^power without threshold, in 80-bit floats if there are any."""
    cam, features = cam.astype(np.longdouble), features.astype(np.longdouble)
    x = features / (np.sqrt((features**2).sum(1, keepdims=True)) + np.longdouble(affinity.norm_eps))
    a = np.maximum(x.swapaxes(1, 2) @ x, 0) ** np.longdouble(affinity.power)
    for _ in range(affinity.steps):
        cam = cam @ a / (a.sum(1, keepdims=True) + np.longdouble(affinity.sum_eps))
    return cam
