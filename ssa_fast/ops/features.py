"""A stage's features as a sequence of unit features, read tile by tile in whatever strides they come."""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import torch

from ssa_fast.ops.numerics import inverse_power_of_two

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ssa_fast.affinity import Affinity

TILE_ELEMENTS = 1 << 20  # 4 MB of float32: long enough for a matrix product's full speed, and still in the last cache
NORM_CHUNK = 1 << 19  # elements squared at once when norms are computed: 2 MB, of which two cores have a half each
USUAL = 2.0**-20, 2.0**20  # norms whose squares, and whose inverses times a CAM, are far from float32's limits


class NegativeFeatureError(Exception):
    """Raised where a feature is not ≥ 0 (it may be NaN), for a method that is exact only if all are."""


class UnitFeatures:
    """``(B, C, [D,] H, W)`` features seen as ``(B, C, L)`` unit features, without a copy of more than a tile.

    NCHW, channels_last, sliced and expanded tensors are read in place: where the axes of pixels can be merged a tile is
    a view, elsewhere only the rows that a tile touches are gathered. Tiles come in ``dtype``, that of the computation.
    With ``check_sign`` a feature that is not ≥ 0 raises ``NegativeFeatureError`` when its norm would be computed.
    """

    def __init__(self, features: Tensor, affinity: Affinity, dtype: torch.dtype, *, check_sign: bool = False) -> None:
        self.features, self.affinity, self.dtype, self.check_sign = features, affinity, dtype, check_sign
        self.B, self.C, *depth, self.H, self.W = features.shape
        self.L = prod(depth) * self.H * self.W
        mergeable = self.H == 1 or self.W == 1 or features.stride(-2) == self.W * features.stride(-1)
        if mergeable and depth:
            pixels, step = self.H * self.W, features.stride(-1 if self.W > 1 else -2)
            mergeable = depth[0] == 1 or pixels == 1 or features.stride(2) == pixels * step
        self._flat = features.flatten(2) if mergeable else None
        self._inverse_norms: Tensor | None = None  # [B, 1, L]
        self._scales: Tensor | None = None  # [B, 1, L] powers of two, once a pixel of unusual norm has been met
        self._num_norms = 0  # pixels whose norm is computed

    @cached_property
    def images(self) -> list[UnitFeatures]:
        """One ``UnitFeatures`` per image, sharing the norms computed so far."""
        return [self._image(b) for b in range(self.B)]

    def _image(self, b: int) -> UnitFeatures:
        image = UnitFeatures(self.features[b : b + 1], self.affinity, self.dtype)
        image._inverse_norms = None if self._inverse_norms is None else self._inverse_norms[b : b + 1]
        image._num_norms = self._num_norms
        image._scales = None if self._scales is None else self._scales[b : b + 1]
        return image

    def tiles(self, rows: int = 1) -> Iterator[tuple[int, int]]:
        """Yield the bounds ``(lo, hi)`` of the tiles that cover the pixels.

        Neither the features of a tile nor ``rows`` numbers per pixel are more than about ``TILE_ELEMENTS``.
        """
        size = max(64, TILE_ELEMENTS // (self.B * max(self.C, rows)))
        for lo in range(0, self.L, size):
            yield lo, min(lo + size, self.L)

    def raw(self, lo: int, hi: int) -> Tensor:
        """Return the features of pixels ``lo … hi − 1`` as given, ``[B, C, hi − lo]``."""
        if self._flat is not None:
            tile = self._flat if hi - lo == self.L else self._flat[:, :, lo:hi]
        else:
            top, bottom = lo // self.W, -(-hi // self.W)
            tile = self._rows(top, bottom).flatten(2)[:, :, lo - top * self.W : hi - top * self.W]
        return tile if tile.dtype == self.dtype else tile.to(self.dtype)

    def _rows(self, top: int, bottom: int) -> Tensor:
        """Return rows ``top … bottom − 1``, ``[B, C, bottom − top, W]``; a volume's are counted through its planes."""
        if self.features.ndim == 4:
            return self.features[:, :, top:bottom]
        planes = range(top // self.H, -(-bottom // self.H))
        return torch.cat(
            [self.features[:, :, z, max(top - z * self.H, 0) : bottom - z * self.H] for z in planes], dim=2
        )

    def centered(self, lo: int, hi: int) -> Tensor:
        """Return ``raw``, minus the image's mean feature if the affinity asks for it, ``[B, C, hi − lo]``."""
        tile = self.raw(lo, hi)
        return tile if self.mean is None else tile - self.mean

    def scaled(self, lo: int, hi: int) -> Tensor:
        """Return ``centered``, each pixel of unusual norm times a power of two, ``[B, C, hi − lo]``.

        Those are the pixels whose squares, or whose products with a CAM, could leave the dtype's range.
        """
        if hi > self._num_norms:
            self._compute_norms(hi)  # which finds the scales
        if self._scales is None:
            return self.centered(lo, hi)
        return self._scale(self.raw(lo, hi), self._scales[:, :, lo:hi])

    def _scale(self, tile: Tensor, scales: Tensor) -> Tensor:
        """Return raw pixels ``[B, C, n]`` centred and scaled: made smaller before the subtraction, larger after it."""
        below, above = scales.clamp_max(1.0), scales.clamp_min(1.0)
        tile = tile * below
        return (tile if self.mean is None else tile - self.mean * below) * above

    def unit(self, lo: int, hi: int) -> Tensor:
        """Return the unit features ``x`` of pixels ``lo … hi − 1``, ``[B, C, hi − lo]``."""
        return self.scaled(lo, hi) * self.inverse_norms(lo, hi)

    def nonnegative(self) -> bool:
        """Return whether every feature is ≥ 0, read from the data; False if one is NaN."""
        return bool(self.features.amin() >= 0)

    def inverse_norms(self, lo: int, hi: int) -> Tensor:
        """Return ``1 / (‖f_i‖₂ + norm_eps)`` of the pixels ``lo … hi − 1`` as ``scaled``, ``[B, 1, hi − lo]``.

        Norms are computed on first use: a caller that walks through the tiles then finds each tile in cache.
        """
        if hi > self._num_norms:
            self._compute_norms(hi)
        assert self._inverse_norms is not None
        return self._inverse_norms if hi - lo == self.L else self._inverse_norms[:, :, lo:hi]

    def _compute_norms(self, hi: int) -> None:
        """Compute the inverse norms of all pixels before ``hi`` that have none yet."""
        lo, eps = self._num_norms, self.affinity.norm_eps
        tile = self.centered(lo, hi)
        if self.check_sign:  # and the tile is in cache for what follows
            rows = tile if tile.is_contiguous() or tile.stride(1) == 1 else tile.amin(dim=2)  # faster than all at once
            if not rows.amin().item() >= 0:
                raise NegativeFeatureError
        if tile.is_cpu or self.features.dtype == torch.float16:  # no square of which leaves float32's range
            norms = _norms(tile)
            unusual = None if self.features.dtype == torch.float16 else _find_unusual(norms)
        else:  # the host would have to wait for what it finds
            norms = tile.new_empty((self.B, 1, hi - lo))
            unusual = torch.arange(hi - lo, device=norms.device)
        scales = None if unusual is None else self._set_scales(lo, hi, unusual, norms)
        norms.add_(eps if scales is None else eps * scales)
        if eps == 0:
            norms.masked_fill_(norms == 0, float("inf"))  # the unit feature of a zero feature is 0
        norms.reciprocal_()
        if hi - lo == self.L:
            self._inverse_norms = norms
        else:
            if self._inverse_norms is None:
                self._inverse_norms = norms.new_empty((self.B, 1, self.L))
            self._inverse_norms[:, :, lo:hi] = norms
        self._num_norms = hi

    def _set_scales(self, lo: int, hi: int, unusual: Tensor, norms: Tensor) -> Tensor | None:
        """Scale pixels ``lo + unusual`` and set their ``norms``; return the tile's scales, None if all are 1."""
        tile = self.raw(lo, hi).index_select(2, unusual)
        centered = tile if self.mean is None else tile - self.mean
        largest = torch.linalg.vector_norm(centered, float("inf"), dim=1, keepdim=True)
        if largest.is_cpu and not bool(largest.any()):  # nothing but zeros
            return None
        scales = inverse_power_of_two(largest.clamp_max(torch.finfo(largest.dtype).max))
        norms[:, :, unusual] = torch.linalg.vector_norm(self._scale(tile, scales), dim=1, keepdim=True)
        if self._scales is None:
            self._scales = norms.new_ones((self.B, 1, self.L))
        self._scales[:, :, lo + unusual] = scales
        return self._scales[:, :, lo:hi]

    @cached_property
    def all_affinities(self) -> Tensor:
        """``a_ij`` of all pairs, ``[B, L, L]``, kept for the next step of the dense method."""
        return self.affinity.apply_(self._cosines())

    def _cosines(self) -> Tensor:
        """Return ``x_iᵀ x_j`` of all pairs; of few pixels from ``f_iᵀ f_j``, whose diagonal is their squared norms."""
        if self.L <= self.C and self.features.is_cpu:
            f = self.centered(0, self.L)
            products = torch.bmm(f.mT, f)
            norms = products.diagonal(dim1=1, dim2=2).sqrt()[:, None]
            if _find_unusual(norms) is None:
                inverse_norms = norms.add_(self.affinity.norm_eps).reciprocal_()
                return products.mul_(inverse_norms).mul_(inverse_norms.mT)
        x = self.unit(0, self.L)
        return torch.bmm(x.mT, x)

    @cached_property
    def mean(self) -> Tensor | None:
        """Each image's mean feature ``[B, C, 1]`` under ``center=True``, else None."""
        if not self.affinity.center:
            return None
        mean = self._sum() / self.L
        if self.features.dtype == torch.float16 or (mean.is_cpu and bool(mean.isfinite().all())):
            return mean
        factor = 0.5 ** (self.L - 1).bit_length()  # so that no sum leaves the dtype's range
        return torch.where(mean.isfinite(), mean, self._sum(factor) / (self.L * factor))

    def _sum(self, factor: float = 1.0) -> Tensor:
        """Return the sum over the pixels of ``factor`` times the features, ``[B, C, 1]``."""
        total = self.features.new_zeros((self.B, self.C, 1), dtype=self.dtype)
        for lo, hi in self.tiles():
            tile = self.raw(lo, hi)
            total += (tile if factor == 1.0 else tile * factor).sum(dim=2, keepdim=True)
        return total


def _find_unusual(norms: Tensor) -> Tensor | None:
    """Return the pixels of which an image's norm ``[B, 1, n]`` is not usual (zero, NaN, …), or None."""
    low, high = norms.aminmax()
    if low.item() >= USUAL[0] and high.item() <= USUAL[1]:
        return None
    return (~((norms >= USUAL[0]) & (norms <= USUAL[1]))).any(dim=0)[0].nonzero()[:, 0]


def _norms(tile: Tensor) -> Tensor:
    """Return ``‖f_i‖₂`` of a tile's pixels, ``[B, C, n]`` → ``[B, 1, n]``."""
    B, C, n = tile.shape
    if tile.stride(1) == 1:
        return torch.linalg.vector_norm(tile, dim=1, keepdim=True)
    # PyTorch's norm over a strided dimension takes eight times as long as these sums over groups of channels.
    group = max(1, NORM_CHUNK // (B * n))
    squares = (tile if group >= C else tile[:, :group]).square()
    for c in range(group, C, group):
        part = tile[:, c : c + group]
        squares[:, : part.shape[1]].addcmul_(part, part)
    return squares.sum(dim=1, keepdim=True).sqrt_()
