"""``FeatureMean``: the mean feature of an image, which ``Prototypes`` of a centred affinity need beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.streaming.base import _TileSum, iter_blocks, lasting_zeros

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.layouts import Size

BLOCK_ELEMENTS = 1 << 16  # summed at once: PyTorch first copies them to float64


class FeatureMean(_TileSum):
    """Mean feature of one image, summed in float64 tile by tile, in any order, by any number of processes.

        mean = FeatureMean(C)
        for feats in tiles:
            mean.add(feats)
        mean.all_reduce()                        # if several processes each had a share of the tiles
        prototypes = Prototypes(K, C, affinity=Affinity(phi="shifted", center=True), mean=mean.value)

    Args:
        C: Channels of the features.
        layout: Of the features, as in ``Prototypes``.
        grid: Of the features, as in ``Prototypes``.
        device: Where the sum is kept; default the CPU.

    Attributes:
        sum: ``(C,)`` float64.
        pixels: Number of pixels added.

    Raises:
        ValueError: ``C`` is not a whole number > 0.
    """

    def __init__(
        self,
        C: int,
        *,
        layout: str = "nchw",
        grid: Size | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(C, device, layout, grid)
        self.sum = lasting_zeros(C, device=self.device)

    def add(self, feats: Tensor) -> None:
        """Add a tile's features ``(C, h, w)``, or those of n tiles ``(n, C, h, w)``: floating, any strides; NaN stays.

        Slabs of volumes are ``(n, C, d, h, w)``.

        Raises:
            ValueError: Another shape.
            TypeError: Features that are not floating.
        """
        (feats,) = self._read_tile(feats)
        tiles = feats if feats.ndim > 3 else feats[None]
        total = torch.zeros(self.C, dtype=torch.float64, device=feats.device)
        for plane in tiles.unbind(2) if tiles.ndim == 5 else [tiles]:
            for rows, columns in iter_blocks(plane.shape[2:], max(1, BLOCK_ELEMENTS // max(1, len(plane) * self.C))):
                total += plane[:, :, rows, columns].sum(dim=(0, 2, 3), dtype=torch.float64)
        self.sum += total.to(self.device)
        self.pixels += tiles[:, 0].numel()

    def merge(self, other: FeatureMean) -> None:
        """Add the sum of ``other``, made from other tiles of the same image.

        Raises:
            ValueError: Another number of channels, or the same object.
            TypeError: Not a ``FeatureMean``.
        """
        self._check_mergeable(other)
        self.sum += other.sum.to(self.device)
        self.pixels += other.pixels

    def all_reduce(self, group: Any = None) -> None:
        """Sum over a torch.distributed group; call it once, or everything would be counted again."""
        import torch.distributed as dist

        packed = torch.cat([self.sum, self.sum.new_tensor([self.pixels])])
        dist.all_reduce(packed, group=group)
        self.sum.copy_(packed[:-1])
        self.pixels = round(packed[-1].item())

    @property
    def value(self) -> Tensor:
        """The mean feature, ``(C,)`` float64; ValueError if nothing was added."""
        self._check_not_empty()
        return self.sum / self.pixels
