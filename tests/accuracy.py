"""The project's one rule for numerical error.

A result passes if its largest error is at most

    2 · own + steps · ROUNDINGS · u · max|truth|

``own`` is the error of the reference run in the inputs' own dtype, ``u`` half the eps of the result's dtype: the most
that one rounding changes a number, relative to it. The truth is the reference in float64, on inputs drawn in their
dtype and promoted; for float64 inputs it is the same formula in NumPy's extended precision.

The second term is needed because ``own`` is one sample of an error, not a bound. With few pixels it can be almost 0: at
one pixel the norm and the cosine cancel, ``out = cam·a/(a + sum_eps)``, and the three roundings left may cancel as
well, depending on the processor's order of summation. Another correct program cannot be expected to be as lucky. But
whatever its order, each evaluation of

    out_kj = Σ_i cam_ki a_ij / (Σ_i a_ij + sum_eps)

rounds at least the product, the sum of the numerator, the sum of the denominator, the sum with ``sum_eps`` and the
quotient. To first order each of the five changes the result by at most ``u``, relative to it. A step averages the
errors of the step before with weights that sum to at most 1, so steps add their roundings and do not amplify them.
Rounded operands are granted nothing: a program that rounds them must compensate, as the kernels do with halves.

Compiled kernels are granted ``COMPILED`` as well, the project's goal for products in several parts on a matrix unit,
which the interpreter computes in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ssa_fast import reference

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast import Affinity

COMPILED = 1e-6  # of max|truth|
ROUNDINGS = 5  # per step: product, numerator, denominator, sum with sum_eps, quotient


def assert_as_accurate(
    out: Tensor, cam: Tensor, features: Tensor, affinity: Affinity, dtype: torch.dtype | None = None
) -> None:
    """Assert that ``out`` obeys the rule.

    Args:
        out: The polished CAM, ``(B, K, H, W)``.
        cam: The CAM at the stage's size, ``(B, K, H, W)``.
        features: ``(B, C, H, W)``.
        affinity: φ, its parameters, both eps and the number of steps.
        dtype: The dtype of the computation's operands, if not that of the features: float16 for kernels with
            ``precision="default"``.
    """
    compiled, cam, features = out.is_cuda, cam.flatten(2).cpu(), features.flatten(2).cpu()
    out, dtype = out.flatten(2).cpu(), features.dtype if dtype is None else dtype
    own = reference.polish_stage(cam.to(dtype), features.to(dtype), affinity).double().numpy()
    if features.dtype == torch.float64:
        truth = extended_reference(cam.numpy(), features.numpy(), affinity)
    else:
        truth = reference.polish_stage(cam.double(), features.double(), affinity).numpy()
    assert out.shape == truth.shape
    error = np.abs(out.double().numpy() - truth).max()
    own_error = np.abs(own - truth).max()
    roundings = affinity.steps * ROUNDINGS * torch.finfo(out.dtype).eps / 2 * np.abs(truth).max()
    roundings += COMPILED * np.abs(truth).max() if compiled else 0.0
    assert error <= 2 * own_error + roundings, (
        f"error {error:.3g}, expected at most 2 × {own_error:.3g} (error of the reference in {dtype}) "
        f"+ {roundings:.3g} (unavoidable roundings)"
    )


def extended_reference(cam: Any, features: Any, affinity: Affinity) -> Any:
    """Return ``reference.polish_stage`` for the ReLU and the shifted form in 80-bit floats, where NumPy has them."""
    cam, features = cam.astype(np.longdouble), features.astype(np.longdouble)
    if affinity.center:
        features = features - features.mean(2, keepdims=True)
    x = features / (np.sqrt((features**2).sum(1, keepdims=True)) + np.longdouble(affinity.norm_eps))
    cosine = x.swapaxes(1, 2) @ x
    if affinity.phi == "shifted":
        cosine = (cosine + np.longdouble(affinity.shift)) / (1 + np.longdouble(affinity.shift))
    else:
        cosine = np.maximum(cosine, 0)
    a = cosine ** np.longdouble(affinity.power)
    for _ in range(affinity.steps):
        cam = cam @ a / (a.sum(1, keepdims=True) + np.longdouble(affinity.sum_eps))
    return cam
