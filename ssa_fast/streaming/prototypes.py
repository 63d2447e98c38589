"""``Prototypes``: what all source pixels give a target, as one sum in ``(K + 1)·C`` numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.affinity import Affinity
from ssa_fast.ops import prototypes
from ssa_fast.ops.features import UnitFeatures
from ssa_fast.ops.numerics import split_off_mean
from ssa_fast.streaming.base import Tiles, computing_dtype, divided, lasting_zeros

if TYPE_CHECKING:
    from torch import Tensor


class Prototypes(Tiles):
    """One image's class prototypes, gathered tile by tile; exact for non-negative features and φ(c) = c.

    ::

        prototypes = Prototypes(K, C)
        for cam, feats in tiles:                 # any tiling, any order
            prototypes.add(cam, feats)
        prototypes.all_reduce()                  # where several processes each had a share of the tiles
        polished = [prototypes.apply(feats) for _, feats in tiles]

    gives what ``polish`` gives for the whole image: ``out = (G x)[:K] / ((G x)[K] + sum_eps)``, with ``G`` the sum over
    all pixels of ``[cam; 1] xᵀ``. Sums are kept in float64, whatever the number of tiles.

    Args:
        K: CAM classes. C: channels of the features.
        affinity: with φ = relu, power 1, no threshold and no centring; else use ``PixelBank``.
        device: where the sums are kept and tiles are computed; default the CPU.

    Attributes:
        pixels: how many pixels have been gathered.

    Raises:
        ValueError: an affinity that has no such sum.
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
        """Gather a tile: ``cam`` ``(K, h, w)`` at the stage's resolution, ``feats`` ``(C, h, w)``; any strides.

        With a batch dimension in front, ``(n, K, h, w)`` and ``(n, C, h, w)``, they are n tiles of the same image.
        ``nonnegative=True`` promises that no feature is negative; None reads it from the data. NaN goes through.

        Raises:
            ValueError: a negative feature, for which the ReLU acts and no such sum exists (nothing is gathered then);
                ``nonnegative=False``; other shapes.
            TypeError: tensors that are not floating.
        """
        cam_, feats, _ = self._read(cam, feats)
        assert cam_ is not None
        if nonnegative is False:
            raise ValueError(
                "nonnegative: expected True or None, got False; of signed features no sum over pixels can stand for "
                "their affinity: use PixelBank, or pass None to have the features read"
            )
        cam_, feats = cam_.to(self.device), feats.to(self.device)
        if nonnegative is not True and bool((feats < 0).any()):
            raise ValueError(
                "feats: expected features >= 0, got negative ones, whose affinity the ReLU cuts off pair by pair, so "
                "that no sum over pixels can stand for them; PixelBank is exact for signed features"
            )
        dtype = computing_dtype(cam_, feats)
        with torch.autocast(feats.device.type, enabled=False):
            pixels = UnitFeatures(feats, self.affinity, dtype)
            v = torch.cat([cam_.to(dtype), torch.ones_like(cam_[:, :1], dtype=dtype)], dim=1).flatten(2)
            for lo, hi in pixels.tiles():
                part = v.new_zeros((len(v), self.K + 1, self.C))
                prototypes.gather(v[:, :, lo:hi], pixels, lo, hi, part)
                self.sums += part.sum(dim=0, dtype=torch.float64)
        self.pixels += v.shape[0] * v.shape[2]

    def merge(self, other: Prototypes) -> None:
        """Add what another one has gathered of the same image.

        Raises:
            ValueError: other classes, channels or affinity, or the same prototypes. TypeError: no ``Prototypes``.
        """
        self._check_mergeable(other)
        self.sums += other.sums.to(self.device)
        self.pixels += other.pixels

    def all_reduce(self, group: Any = None) -> None:
        """Sum over the processes of a torch.distributed group, after which each has gathered the whole image.

        Call it once: a second call would count everything again.
        """
        import torch.distributed as dist

        packed = torch.cat([self.sums.flatten(), self.sums.new_tensor([float(self.pixels)])])
        dist.all_reduce(packed, group=group)
        self.sums.copy_(packed[:-1].view_as(self.sums))
        self.pixels = int(packed[-1].item())

    def apply(self, feats: Tensor) -> Tensor:
        """The polished CAM of a tile: ``(C, h, w)`` → ``(K, h, w)``, or ``(n, C, h, w)`` → ``(n, K, h, w)``.

        float32, or float64 for float64 features.

        Raises:
            ValueError: nothing was gathered, or another shape. TypeError: features that are not floating.
        """
        self._check_gathered()
        _, feats, single = self._read(None, feats)
        feats = feats.to(self.device)
        dtype = computing_dtype(feats)
        with torch.autocast(feats.device.type, enabled=False):
            pixels = UnitFeatures(feats, self.affinity, dtype)
            sums = self.sums.clone()[:, None]  # [K + 1, 1, C]
            share = split_off_mean(sums).movedim(0, 1).to(dtype)  # [1, K, 1]
            gathered = sums.movedim(0, 1).to(dtype).expand(len(feats), -1, -1)
            out = gathered.new_empty((len(feats), self.K + 1, pixels.L))
            for lo, hi in pixels.tiles():
                prototypes.apply(gathered, share, pixels, lo, hi, out[:, :, lo:hi])
            polished = divided(out, self.affinity).unflatten(2, feats.shape[2:])
        return polished[0] if single else polished

    def state_dict(self) -> dict[str, Any]:
        """Everything that was gathered, as tensors and numbers: what ``torch.save`` keeps."""
        return {"sums": self.sums.cpu().clone(), "pixels": self.pixels, "affinity": str(self.affinity)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what was gathered by a copy of what a ``state_dict`` holds.

        Raises:
            ValueError: that of another stage or affinity, or no such dict.
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
