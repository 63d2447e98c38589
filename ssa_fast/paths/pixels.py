"""A stage's features as a sequence of pixels, read tile by tile in whatever strides they come."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ssa_fast.affinity import Affinity

TILE_ELEMENTS = 1 << 19  # 2 MB of float32: stays in a core's cache while it is squared, summed and multiplied


class Pixels:
    """``(B, C, H, W)`` features seen as ``(B, C, L)`` unit features, without a copy of more than a tile.

    NCHW, channels_last, sliced and expanded tensors are read in place: where H and W can be merged a tile is a view,
    elsewhere only the rows that a tile touches are gathered. Tiles come in ``dtype``, the dtype of the computation.
    """

    def __init__(self, features: Tensor, affinity: Affinity, dtype: torch.dtype) -> None:
        self.features, self.affinity, self.dtype = features, affinity, dtype
        self.B, self.C, self.H, self.W = features.shape
        self.L = self.H * self.W
        mergeable = self.H == 1 or self.W == 1 or features.stride(2) == self.W * features.stride(3)
        self._flat = features.flatten(2) if mergeable else None

    def images(self) -> Iterator[Pixels]:
        """One ``Pixels`` per image, sharing what has been computed for the batch."""
        for b in range(self.B):
            image = Pixels(self.features[b : b + 1], self.affinity, self.dtype)
            image.mean = self.mean[b : b + 1] if self.mean is not None else None
            image.inverse_norms = self.inverse_norms[b : b + 1]
            yield image

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Bounds ``(lo, hi)`` of the tiles that cover the pixels, each about ``TILE_ELEMENTS`` numbers."""
        size = max(64, TILE_ELEMENTS // (self.B * self.C))
        for lo in range(0, self.L, size):
            yield lo, min(lo + size, self.L)

    def raw(self, lo: int, hi: int) -> Tensor:
        """Pixels ``lo … hi − 1`` as the network gave them, ``[B, C, hi − lo]``."""
        if self._flat is not None:
            return self._flat[:, :, lo:hi].to(self.dtype)
        top, bottom = lo // self.W, -(-hi // self.W)
        rows = self.features[:, :, top:bottom].to(self.dtype)
        return rows.flatten(2)[:, :, lo - top * self.W : hi - top * self.W]

    def centered(self, lo: int, hi: int) -> Tensor:
        """Pixels ``lo … hi − 1`` less the image's mean feature if the affinity asks for it, ``[B, C, hi − lo]``."""
        tile = self.raw(lo, hi)
        return tile if self.mean is None else tile - self.mean

    def unit(self, lo: int, hi: int) -> Tensor:
        """Unit features ``x`` of pixels ``lo … hi − 1``, ``[B, C, hi − lo]``."""
        return self.centered(lo, hi) * self.inverse_norms[:, :, lo:hi]

    def with_ones(self, v: Tensor) -> Tensor:
        """Rows ``v`` ``(B, R, L)`` and one more of ones: what is summed of it is ``Σ_i a_ij``."""
        return torch.cat([v, v.new_ones(()).expand(self.B, 1, self.L)], dim=1)

    def nonnegative(self) -> bool:
        """Whether every feature is ≥ 0, read from the data; False where one is NaN."""
        return bool(self.features.amin() >= 0)

    @cached_property
    def all_affinities(self) -> Tensor:
        """``a_ij`` of all pairs, ``[B, L, L]``, kept for the next step: the dense path alone can afford it."""
        x = self.unit(0, self.L)
        return self.affinity.apply_(torch.bmm(x.mT, x))

    @cached_property
    def mean(self) -> Tensor | None:
        """Each image's mean feature ``[B, C, 1]`` under ``center=True``, else None."""
        if not self.affinity.center:
            return None
        total = self.features.new_zeros((self.B, self.C, 1), dtype=self.dtype)
        for lo, hi in self.tiles():
            total += self.raw(lo, hi).sum(dim=2, keepdim=True)
        return total / self.L

    @cached_property
    def inverse_norms(self) -> Tensor:
        """``1 / (‖f_i‖₂ + norm_eps)`` of every (centred) pixel, ``[B, 1, L]``."""
        norms = self.features.new_empty((self.B, 1, self.L), dtype=self.dtype)
        for lo, hi in self.tiles():
            # The square is a tile in cache; PyTorch's own norm over a strided dimension takes four times as long.
            norms[:, :, lo:hi] = self.centered(lo, hi).square().sum(dim=1, keepdim=True)
        norms.sqrt_().add_(self.affinity.norm_eps)
        return norms.reciprocal().masked_fill_(norms == 0, 0.0)  # only where norm_eps is 0 and the feature too
