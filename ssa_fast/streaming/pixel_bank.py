"""``PixelBank``: the source pixels themselves, compared with every target pixel block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.affinity import Affinity
from ssa_fast.io.sizes import parse_bytes
from ssa_fast.ops.features import UnitFeatures
from ssa_fast.ops.numerics import divide_by_sum
from ssa_fast.streaming.base import _Accumulator, check_positive, iter_blocks
from ssa_fast.streaming.feature_mean import FeatureMean
from ssa_fast.streaming.spill_buffer import SpillBuffer
from ssa_fast.validation import result_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from ssa_fast.layouts import Size

BLOCK = 4096  # most pixels of a block, of sources as of targets
SMALLEST_BLOCK = 256  # pixels of a block below which a memory budget is refused
WORKSPACE = 1 << 20  # bytes for what the matrix products pack their operands in, and for small objects
GROUP = 256  # source pixels per product: their affinities stay in cache, and no float32 sum is longer than that


class PixelBank(_Accumulator):
    """One image's source pixels, stored tile by tile; exact for any affinity, in L² time.

    Works for features of any sign and any φ; where ``Prototypes`` take the affinity, they give the same in linear time
    and next to no memory. ``add`` stores the pixels, in memory and beyond ``memory`` in a file; ``apply`` compares them
    with a tile of target pixels, block by block.

    Args:
        K: CAM classes.
        C: Channels of the features.
        affinity: Any, of one step.
        layout: Of the features, as in ``Prototypes``.
        grid: Of the features, as in ``Prototypes``.
        stride: Store only every stride-th pixel in both directions. **An approximation** (``exact`` is False): the
            mean over all pixels becomes the mean over a grid of them. On smooth generated features of 64×64 pixels the
            polished CAM moved by 0.8 % of its range with 2, and by 3.6 % with 4 (tests/test_streaming.py).
        memory: Bytes that ``add`` and ``apply`` may hold in all beside the caller's tile and the map returned: stored
            pixels, the block read, and what computing with it takes, counted as if all were float64.
        scratch: Folder of the file; default the system's temporary one.
        device: Where tiles are computed; default the CPU, where the stored pixels are in any case.

    Attributes:
        pixels, stored: Numbers of pixels added, and of those stored.
        exact: Whether every pixel is stored.

    Raises:
        ValueError: A wrong option, or a budget too small for the smallest blocks, with the bytes needed.
        OSError: No file can be made in ``scratch``.
    """

    def __init__(
        self,
        K: int,
        C: int,
        *,
        affinity: Affinity = Affinity(),  # noqa: B008 - frozen
        layout: str = "nchw",
        grid: Size | None = None,
        stride: int = 1,
        memory: int | str = "1GB",
        scratch: str | Path | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(K, C, affinity, device, layout, grid)
        check_positive("stride", stride)
        self.stride, self.stored = stride, 0
        budget = parse_bytes(memory)
        self._block = BLOCK
        while self._block > SMALLEST_BLOCK and self._working_bytes(self._block) > budget // 2:
            self._block //= 2
        if self._working_bytes(self._block) > budget:
            raise ValueError(
                f"memory: expected at least {self._working_bytes(SMALLEST_BLOCK):,} bytes for blocks of "
                f"{SMALLEST_BLOCK} pixels with C={C} and K={K}, got {budget:,}"
            )
        self._mean = FeatureMean(C)  # filled if the affinity centres
        self._buffer = SpillBuffer(budget - self._working_bytes(self._block), scratch)  # blocks as made by _pack

    @property
    def exact(self) -> bool:
        """True if every pixel is stored."""
        return self.stride == 1

    def _working_bytes(self, block: int) -> int:
        """Return the bytes that ``apply``, which needs more than ``add``, holds beside the stored pixels."""
        unit_features = 5 * self.C * block  # read, centred twice (for norms as well), squared, scaled
        columns = self.C + 2 * (self.C + self.K)  # targets; sources and their CAM as read and in the targets' dtype
        sums = 2 * (self.K + 1) + 2
        affinities = GROUP + GROUP // 8  # and a mask of a byte each
        products = (columns + sums + affinities) * block + 3 * GROUP * self.C  # sources of a group centred, scaled
        return 8 * max(unit_features, products) + WORKSPACE

    def _check_open(self, name: str, bank: PixelBank) -> None:
        if bank._buffer.closed:
            raise ValueError(
                f"{name}: expected an open PixelBank, got a closed one, which stores nothing; make a new one"
            )

    def _check_tile(self, feats: Tensor, cam: Tensor | None) -> None:
        if feats.ndim != 3:
            raise ValueError(f"feats: expected one tile ({self.C}, h, w), got {tuple(feats.shape)}; pass one at a time")
        super()._check_tile(feats, cam)

    def add(self, cam: Tensor, feats: Tensor, *, at: tuple[int, int] = (0, 0)) -> None:
        """Store a tile's pixels; a tile that cannot be stored as a whole changes nothing.

        Args:
            cam: ``(K, h, w)`` at the stage's resolution, floating, any strides.
            feats: ``(C, h, w)``, floating, any strides.
            at: (y, x) of the tile's first pixel in the image's map; a ``stride`` > 1 counts from the map's first.

        Raises:
            ValueError: Other shapes, or after ``close``.
            TypeError: Other dtypes.
            OSError: ``scratch`` is full; the message says how many bytes are needed there.
        """
        self._check_open("add", self)
        feats, cam = self._read_tile(feats, cam)
        dtype = result_dtype(cam.dtype, feats.dtype)
        y, x = (-start % self.stride for start in at)
        f, v = (tensor[:, y :: self.stride, x :: self.stride] for tensor in (feats, cam))
        windows = iter_blocks(f.shape[1:], self._block)
        blocks = (_pack(f[:, rows, columns], v[:, rows, columns], dtype) for rows, columns in windows)
        self._buffer.extend(blocks, f[0].numel() * (self.C + self.K) * dtype.itemsize)
        if self.affinity.center:
            self._mean.add(feats)
        self.stored, self.pixels = self.stored + f[0].numel(), self.pixels + feats[0].numel()

    def merge(self, other: PixelBank) -> None:
        """Also store the pixels of ``other``, made from other tiles of the image.

        Raises:
            ValueError: Other classes, channels, affinity or stride, the same object, or a closed one.
            TypeError: Not a ``PixelBank``.
            OSError: ``scratch`` is full, with the bytes needed there; nothing is added then.
        """
        self._check_mergeable(other)
        self._check_open("merge", self)
        self._check_open("other", other)
        self._buffer.extend(self._rechunk(other), other._buffer.size)
        self._mean.merge(other._mean)
        self.stored, self.pixels = self.stored + other.stored, self.pixels + other.pixels

    def apply(self, feats: Tensor) -> Tensor:
        """Return the polished CAM ``(K, h, w)`` of features ``(C, h, w)``: float32, or float64 for float64 features.

        Raises:
            ValueError: Nothing was added, another shape, or after ``close``.
            TypeError: Features that are not floating.
        """
        self._check_open("apply", self)
        self._check_not_empty()
        (feats,) = self._read_tile(feats)
        dtype = result_dtype(feats.dtype)
        mean = self._mean.value.to(self.device, dtype)[:, None] if self.affinity.center else None
        out = torch.empty((self.K, *feats.shape[1:]), dtype=dtype, device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            for rows, columns in iter_blocks(feats.shape[1:], self._block):
                block = out[:, rows, columns]
                x_j = self._unit(feats[:, rows, columns].to(self.device, dtype).flatten(1), mean)
                sums = self._accumulate(x_j, mean)
                block.copy_(divide_by_sum(sums[:-1], sums[-1:], self.affinity).view_as(block))
        return out

    def _unit(self, f: Tensor, mean: Tensor | None) -> Tensor:
        """Return the unit features of ``[C, n]``."""
        pixels = UnitFeatures(f[None, :, None], self.affinity, f.dtype)
        pixels.mean = mean  # the image's, not the block's
        return pixels.unit(0, f.shape[1])[0]

    def _accumulate(self, x_j: Tensor, mean: Tensor | None) -> Tensor:
        """Return ``Σ_i v_ri φ(x_iᵀ x_j)`` over all stored pixels, ``[K + 1, n]``, for ``x_j`` ``[C, n]``."""
        sums = torch.zeros(self.K + 1, x_j.shape[1], dtype=torch.float64, device=x_j.device)
        affinities = x_j.new_empty((GROUP, x_j.shape[1]))
        for packed in self._buffer:
            for group in packed.to(x_j.device, x_j.dtype).view(-1, self.C + self.K).split(GROUP):
                x_i = self._unit(group[:, : self.C].mT, mean).mT
                a = self.affinity.apply_(torch.mm(x_i, x_j, out=affinities[: len(x_i)]))
                sums[:-1] += group[:, self.C :].mT @ a
                sums[-1] += a.sum(dim=0)
            del group  # its block, before the next one is read
        return sums

    def close(self) -> None:
        """Discard the stored pixels and the file; afterwards nothing can be added or applied."""
        self._buffer.close()
        self.stored = self.pixels = 0

    def __enter__(self) -> PixelBank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signature(self) -> str:
        return f"{super()._signature()}, stride={self.stride}"

    def _rechunk(self, other: PixelBank) -> Iterator[Tensor]:
        """Yield copies of the blocks of ``other``, cut where they are larger than this bank's."""
        for packed in other._buffer:
            yield from map(torch.clone, packed.split(self._block * (self.C + self.K)))


def _pack(f: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy ``[C, h, w]`` features and a ``[K, h, w]`` CAM into one block ``[h · w · (C + K)]`` on the CPU."""
    (C, h, w), K = f.shape, len(v)
    packed = torch.empty((h, w, C + K), dtype=dtype)
    packed[..., :C].copy_(f.permute(1, 2, 0))
    packed[..., C:].copy_(v.permute(1, 2, 0))
    return packed.flatten()
