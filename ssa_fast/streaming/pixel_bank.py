"""``PixelBank``: the source pixels themselves, met by every target pixel block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.affinity import Affinity
from ssa_fast.io.sizes import parse_bytes
from ssa_fast.ops.features import UnitFeatures
from ssa_fast.streaming.base import Tiles, computing_dtype, divided, lasting_zeros, spans
from ssa_fast.streaming.spill_buffer import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

BLOCK = 4096  # most pixels of a block, of keys as of targets
SMALLEST = 256  # pixels of a block below which a memory budget is refused
WORKSPACE = 1 << 20  # bytes for what the matrix products pack their operands in, and for small objects
GROUP = 256  # keys that meet a block at once: their affinities stay in cache, and no float32 sum is longer than that


class PixelBank(Tiles):
    """One image's source pixels, gathered tile by tile and met by every target pixel: exact for any affinity.

    Signed and centred features, any φ. ``add`` keeps the pixels, in memory and beyond ``memory`` in a file; ``apply``
    streams them, block by block, against a tile of target pixels. The time is that of the full L² products.

    Args:
        K: CAM classes. C: channels of the features.
        affinity: any, of one step.
        stride: keep only every stride-th pixel in both directions as a source. **An approximation** (``exact`` is
            False): the mean over all pixels becomes the mean over a grid of them. On smooth generated features of
            64×64 pixels the polished CAM moved by 0.8 % of its range with 2, and by 3.6 % with 4
            (tests/test_streaming.py).
        memory: bytes that ``add`` and ``apply`` may hold in all beside the caller's tile and the map returned: kept
            pixels, the block read, and what it takes to compute with it, counted as if all were float64.
        scratch: folder of the file; default the system's temporary one.
        device: where tiles are computed; default the CPU, where the kept pixels are in any case.

    Attributes:
        pixels: how many pixels have been added. keys: how many of them are kept. exact: whether that is all of them.

    Raises:
        ValueError: a wrong option, or a budget too small for the smallest blocks, with the bytes needed.
        OSError: no file can be made in ``scratch``.
    """

    def __init__(
        self,
        K: int,
        C: int,
        *,
        affinity: Affinity = Affinity(),  # noqa: B008 - frozen
        stride: int = 1,
        memory: int | str = "1GB",
        scratch: str | Path | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(K, C, affinity, device)
        if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
            raise ValueError(f"stride: expected a whole number > 0, got {stride!r}")
        self.stride, self.keys = stride, 0
        budget = parse_bytes(memory)
        self._block = BLOCK
        while self._block > SMALLEST and self._work(self._block) > budget // 2:
            self._block //= 2
        if self._work(self._block) > budget:
            raise ValueError(
                f"memory: expected at least {self._work(SMALLEST):,} bytes for blocks of {SMALLEST} pixels with "
                f"C={C} and K={K}, got {budget:,}"
            )
        self._sum = lasting_zeros(C)  # of all pixels' features, where the affinity centres them
        self._store = Store(budget - self._work(self._block), scratch)  # n pixels each: [n, C] features, [K, n] CAM

    @property
    def exact(self) -> bool:
        """Whether every pixel is a source."""
        return self.stride == 1

    def _work(self, block: int) -> int:
        """Bytes held beside the kept pixels while targets are made unit features, or while keys meet them.

        ``add`` needs less: one block of features and CAM, and another of features in float64.
        """
        making = 5 * self.C * block  # read, centred twice (for norms as well), squared, scaled
        columns = self.C + 2 * (self.C + self.K)  # targets; keys and their CAM as read and in the targets' dtype
        sums = 2 * (self.K + 1) + 2
        affinities = GROUP + GROUP // 8  # and a mask of a byte each
        meeting = (columns + sums + affinities) * block + 3 * GROUP * self.C  # keys of a group centred, scaled
        return 8 * max(making, meeting) + WORKSPACE

    def _check_open(self, name: str, keys: PixelBank) -> None:
        if keys._store.closed:
            raise ValueError(
                f"{name}: expected open PixelBank, got closed ones, which keep nothing; make new PixelBank"
            )

    def add(self, cam: Tensor, feats: Tensor, *, at: tuple[int, int] = (0, 0)) -> None:
        """Keep a tile's pixels: ``cam`` ``(K, h, w)``, ``feats`` ``(C, h, w)``, floating, any strides.

        ``at`` is the (y, x) of its first pixel in the image's map, by which a ``stride`` > 1 chooses. A tile that
        cannot be kept as a whole leaves everything as it was.

        Raises:
            ValueError: other shapes, or after ``close``. TypeError: other dtypes.
            OSError: no room in ``scratch``, with the bytes needed there.
        """
        self._check_open("add", self)
        if feats.ndim != 3:
            raise ValueError(f"feats: expected one tile ({self.C}, h, w), got {tuple(feats.shape)}; add one at a time")
        cam_, feats_, _ = self._read(cam, feats)
        assert cam_ is not None
        dtype = computing_dtype(cam, feats)
        y, x = (-start % self.stride for start in at)
        f, v = (tensor[0, :, y :: self.stride, x :: self.stride] for tensor in (feats_, cam_))
        cuts = spans(f.shape[1:], self._block)
        blocks = (_packed(f[:, rows, columns], v[:, rows, columns], dtype) for rows, columns in cuts)
        total = self._total(feats)
        self._store.extend(blocks, f[0].numel() * (self.C + self.K) * dtype.itemsize)
        self._sum += total
        self.keys, self.pixels = self.keys + f[0].numel(), self.pixels + feats[0].numel()

    def merge(self, other: PixelBank) -> None:
        """Keep what another one has kept of the same image, too; the other one stays as it is.

        Raises:
            ValueError: other classes, channels, affinity or stride, the same keys, or closed ones.
            TypeError: no ``PixelBank``.
            OSError: no room in ``scratch``, with the bytes needed there; nothing is added then.
        """
        self._check_mergeable(other)
        self._check_open("merge", self)
        self._check_open("other", other)
        self._store.extend(self._recut(other), other._store.size)
        self._sum += other._sum
        self.keys, self.pixels = self.keys + other.keys, self.pixels + other.pixels

    def apply(self, feats: Tensor) -> Tensor:
        """The polished CAM of a tile: ``(C, h, w)`` → ``(K, h, w)``; float32, or float64 for float64 features.

        Raises:
            ValueError: nothing was added, or another shape, or after ``close``. TypeError: features not floating.
        """
        self._check_open("apply", self)
        if feats.ndim != 3:
            raise ValueError(
                f"feats: expected one tile ({self.C}, h, w), got {tuple(feats.shape)}; apply one at a time"
            )
        self._check_gathered()
        self._read(None, feats)
        dtype = computing_dtype(feats)
        mean = (self._sum / self.pixels).to(self.device, dtype)[:, None] if self.affinity.center else None
        out = torch.empty((self.K, *feats.shape[1:]), dtype=dtype, device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            for rows, columns in spans(feats.shape[1:], self._block):
                block = out[:, rows, columns]
                x_j = self._unit(feats[:, rows, columns].to(self.device, dtype).flatten(1), mean)
                block.copy_(divided(self._met(x_j, mean)[None], self.affinity).view_as(block))
        return out

    def _unit(self, f: Tensor, mean: Tensor | None) -> Tensor:
        """Unit features of ``[C, n]``."""
        pixels = UnitFeatures(f[None, :, None], self.affinity, f.dtype)
        pixels.mean = mean  # the image's, not the block's
        return pixels.unit(0, f.shape[1])[0]

    def _met(self, x_j: Tensor, mean: Tensor | None) -> Tensor:
        """``Σ_i v_ri φ(x_iᵀ x_j)`` over all keys, ``[K + 1, n]`` in float64, for unit features ``x_j`` ``[C, n]``."""
        sums = torch.zeros(self.K + 1, x_j.shape[1], dtype=torch.float64, device=x_j.device)
        for packed in self._store:
            self._meet(packed.to(x_j.device, x_j.dtype), x_j, mean, sums)
        return sums

    def _meet(self, packed: Tensor, x_j: Tensor, mean: Tensor | None, sums: Tensor) -> None:
        """Add to ``sums`` what one block of keys gives."""
        f, v = self._unpacked(packed)
        room = x_j.new_empty((min(GROUP, len(f)), x_j.shape[1]))
        for lo in range(0, len(f), GROUP):
            x_i = self._unit(f[lo : lo + GROUP].mT, mean).mT
            a = self.affinity.apply_(torch.mm(x_i, x_j, out=room[: len(x_i)]))
            sums[:-1] += v[:, lo : lo + GROUP] @ a
            sums[-1] += a.sum(dim=0)

    def close(self) -> None:
        """Let go of the kept pixels and the file; nothing can be added or applied any more."""
        self._store.close()
        self.keys = self.pixels = 0

    def __enter__(self) -> PixelBank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kind(self) -> str:
        return f"{super()._kind()}, stride={self.stride}"

    def _total(self, feats: Tensor) -> Tensor:
        """The sum over a tile's pixels ``[C]``, which only centring needs."""
        total = torch.zeros(self.C, dtype=torch.float64, device=feats.device)
        if self.affinity.center:
            for rows, columns in spans(feats.shape[1:], self._block):
                total += feats[:, rows, columns].sum(dim=(1, 2), dtype=torch.float64)
        return total.cpu()

    def _unpacked(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """A block's features ``[n, C]`` and CAM ``[K, n]``, as views."""
        n = packed.numel() // (self.C + self.K)
        return packed[: n * self.C].view(n, self.C), packed[n * self.C :].view(self.K, n)

    def _recut(self, other: PixelBank) -> Iterator[Tensor]:
        """Another one's blocks, none larger than the own ones."""
        for packed in other._store:
            f, v = self._unpacked(packed)
            for lo in range(0, len(f), self._block):
                part = slice(lo, lo + self._block)
                yield _packed(f[part].mT[:, None], v[:, None, part], packed.dtype)


def _packed(f: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """``[C, h, w]`` features and ``[K, h, w]`` CAM as one block of h·w pixels on the CPU, copied once."""
    (C, h, w), K = f.shape, len(v)
    packed = torch.empty((C + K) * h * w, dtype=dtype)
    packed[: C * h * w].view(h, w, C).copy_(f.permute(1, 2, 0))
    packed[C * h * w :].view(K, h, w).copy_(v)
    return packed
