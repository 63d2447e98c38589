"""``Prototypes``: the contribution of all source pixels as one sum of ``(K + 1)·C`` numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.affinity import Affinity
from ssa_fast.ops import prototypes
from ssa_fast.ops.features import UnitFeatures
from ssa_fast.ops.numerics import split_off_mean
from ssa_fast.streaming.base import _Accumulator, lasting_zeros, normalize
from ssa_fast.validation import result_dtype

if TYPE_CHECKING:
    from torch import Tensor


class Prototypes(_Accumulator):
    """One image's class prototypes, summed tile by tile; exact for non-negative features and φ(c) = c.

    ::

        prototypes = Prototypes(K, C)
        for cam, feats in tiles:                 # any tiling, any order
            prototypes.add(cam, feats)
        prototypes.all_reduce()                  # if several processes each had a share of the tiles
        polished = [prototypes.apply(feats) for _, feats in tiles]

    gives what ``polish`` gives for the whole image: ``out = (G x)[:K] / ((G x)[K] + sum_eps)``, with ``G`` the sum over
    all pixels of ``[cam; 1] xᵀ``. Sums are kept in float64.

    Args:
        K: CAM classes.
        C: Channels of the features.
        affinity: One with φ = relu, power 1, no threshold and no centring; for others use ``PixelBank``.
        device: Where the sums are kept and tiles are computed; default the CPU.

    Attributes:
        pixels: Number of pixels added.

    Raises:
        ValueError: An affinity that has no such sum.
    """

    def __init__(
        self,
        K: int,
        C: int,
        *,
        affinity: Affinity = Affinity(),  # noqa: B008 - frozen
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(K, C, affinity, device)
        if affinity.degree != 1 or affinity.center:
            raise ValueError(
                f"affinity: expected φ = relu with power 1, no threshold and no centring, got {affinity}; "
                "PixelBank is exact for any affinity"
            )
        self.sums = lasting_zeros(K + 1, C, device=self.device)

    def add(self, cam: Tensor, feats: Tensor, *, nonnegative: bool | None = None) -> None:
        """Add a tile's pixels to the sums.

        Args:
            cam: ``(K, h, w)`` at the stage's resolution, floating, any strides; or ``(n, K, h, w)``, n tiles at once.
            feats: ``(C, h, w)`` or ``(n, C, h, w)``. NaN propagates.
            nonnegative: True promises that no feature is negative; None reads it from the data.

        Raises:
            ValueError: A negative feature (nothing is added then), ``nonnegative=False``, or other shapes.
            TypeError: Tensors that are not floating.
        """
        self._check_tile(feats, cam)
        if nonnegative is False:
            raise ValueError(
                "nonnegative: expected True or None, got False; signed features have no such sum: use PixelBank, or "
                "pass None to have the features read"
            )
        if feats.ndim == 3:
            cam, feats = cam[None], feats[None]
        cam, feats = cam.to(self.device), feats.to(self.device)
        if nonnegative is not True and bool((feats < 0).any()):
            raise ValueError(
                "feats: expected features >= 0, got negative ones, where the ReLU acts on each pair and no sum over "
                "pixels exists; PixelBank is exact for signed features"
            )
        dtype = result_dtype(cam.dtype, feats.dtype)
        with torch.autocast(feats.device.type, enabled=False):
            pixels = UnitFeatures(feats, self.affinity, dtype)
            v = torch.cat([cam.to(dtype), torch.ones_like(cam[:, :1], dtype=dtype)], dim=1).flatten(2)
            for lo, hi in pixels.tiles():
                part = v.new_zeros((len(v), self.K + 1, self.C))
                prototypes.gather(v[:, :, lo:hi], pixels, lo, hi, part)
                self.sums += part.sum(dim=0, dtype=torch.float64)
        self.pixels += v.shape[0] * v.shape[2]

    def merge(self, other: Prototypes) -> None:
        """Add the sums of ``other``, made from other tiles of the same image.

        Raises:
            ValueError: Other classes, channels or affinity, or the same object.
            TypeError: Not ``Prototypes``.
        """
        self._check_mergeable(other)
        self.sums += other.sums.to(self.device)
        self.pixels += other.pixels

    def all_reduce(self, group: Any = None) -> None:
        """Sum over a torch.distributed group; call it once, or everything would be counted again."""
        import torch.distributed as dist

        packed = torch.cat([self.sums.flatten(), self.sums.new_tensor([self.pixels])])
        dist.all_reduce(packed, group=group)
        self.sums.copy_(packed[:-1].view_as(self.sums))
        self.pixels = int(packed[-1].item())

    def apply(self, feats: Tensor) -> Tensor:
        """Return the polished CAM ``([n,] K, h, w)`` of features ``([n,] C, h, w)``: float32, float64 for float64.

        Raises:
            ValueError: Nothing was added, or another shape.
            TypeError: Features that are not floating.
        """
        self._check_not_empty()
        self._check_tile(feats)
        single = feats.ndim == 3
        feats = (feats[None] if single else feats).to(self.device)
        dtype = result_dtype(feats.dtype)
        with torch.autocast(feats.device.type, enabled=False):
            pixels = UnitFeatures(feats, self.affinity, dtype)
            sums = self.sums.clone()[:, None]  # [K + 1, 1, C]
            coefficients = split_off_mean(sums).movedim(0, 1).to(dtype)  # [1, K, 1]
            gathered = sums.movedim(0, 1).to(dtype).expand(len(feats), -1, -1)
            out = gathered.new_empty((len(feats), self.K + 1, pixels.L))
            for lo, hi in pixels.tiles():
                prototypes.apply(gathered, coefficients, pixels, lo, hi, out[:, :, lo:hi])
            polished = normalize(out, self.affinity).unflatten(2, feats.shape[2:])
        return polished[0] if single else polished

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, the pixel count and the affinity, as tensors, numbers and text for ``torch.save``."""
        return {"sums": self.sums.cpu().clone(), "pixels": self.pixels, "affinity": str(self.affinity)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the sums and the pixel count by copies of those in ``state``.

        Raises:
            ValueError: Not a ``state_dict``, or that of another stage or affinity.
        """
        sums = state.get("sums") if isinstance(state, dict) else None
        if not isinstance(sums, torch.Tensor) or not {"pixels", "affinity"} <= state.keys():
            got = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
            raise ValueError(
                "state: expected a dict with the tensor 'sums', and with 'pixels' and 'affinity', as state_dict() "
                f"gives, got {got}"
            )
        if tuple(sums.shape) != (self.K + 1, self.C) or state["affinity"] != str(self.affinity):
            raise ValueError(
                f"state: expected sums of shape {(self.K + 1, self.C)} with {self.affinity}, got "
                f"{tuple(sums.shape)} with {state['affinity']}"
            )
        self.sums.copy_(sums)
        self.pixels = int(state["pixels"])
