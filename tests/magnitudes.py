"""Features of extreme magnitude, made from usual ones ``(1, C, H, W)``: their squares leave float32's range."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def some_pixels(f: Tensor) -> Tensor:
    """Return the features with a huge, a tiny and a zero pixel among the usual ones."""
    f = f.clone()
    f[..., 2, 3] *= 1e25
    f[..., 3, 4] *= 1e-25
    f[..., 4, 4] = 0.0
    return f


EXTREME: dict[str, Callable[[Tensor], Tensor]] = {
    "subnormal": lambda f: f * 2.0**-146,
    "1e-38": lambda f: f * 1e-38,
    "1e-30": lambda f: f * 1e-30,
    "1e-20": lambda f: f * 1e-20,
    "1e20": lambda f: f * 1e20,
    "1e30": lambda f: f * 1e30,
    "largest": lambda f: f / f.abs().max() * torch.finfo(torch.float32).max,
    "of all pixels": lambda f: f * 10 ** (70 * torch.rand_like(f[:, :1]) - 35),
    "of all channels": lambda f: f * 10 ** (70 * torch.rand_like(f) - 35),
    "of some pixels": some_pixels,
}
