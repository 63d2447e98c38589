"""``Prototypes``: the contribution of all source pixels as one sum of ``(K + 1)·(C + 1)`` numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.affinity import Affinity
from ssa_fast.ops import prototypes
from ssa_fast.ops.features import UnitFeatures
from ssa_fast.streaming.base import _Accumulator, lasting_zeros
from ssa_fast.validation import result_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.layouts import Size


class Prototypes(_Accumulator):
    """One image's class prototypes, summed tile by tile; exact for features of any sign under the shifted cosine.

        prototypes = Prototypes(K, C, affinity=Affinity(phi="shifted"))
        for cam, feats in tiles:                 # any tiling, any order
            prototypes.add(cam, feats)
        prototypes.all_reduce()                  # if several processes each had a share of the tiles
        polished = [prototypes.apply(feats) for _, feats in tiles]

    gives what ``polish`` gives for the whole image: ``out = (G x + s·S)[:K] / ((G x + s·S)[K] + (1 + s)·sum_eps)``,
    with ``G`` the sum over all pixels of ``[cam; 1] xᵀ``, ``S`` that of ``[cam; 1]`` and ``s`` the affinity's shift (0
    under the ReLU, which is exact for features ≥ 0). Sums are kept in float64.

    A sum over pixels knows no dimension: slabs of a volume are added and applied as ``(n, C, d, h, w)``, n of one shape
    at once, with CAMs ``(n, K, d, h, w)``.

    Args:
        K: CAM classes.
        C: Channels of the features.
        affinity: φ = shifted, or φ = relu without threshold and centring; of power 1. For others use ``PixelBank``.
        mean: ``(C,)`` floating, the mean feature of the whole image (``FeatureMean``). Needed with ``center=True``, and
            before the first tile: unit features depend on it.
        layout: Of the features: ``"nchw"`` is ``([n,] C, h, w)``, ``"nhwc"`` ``([n,] h, w, C)``, and ``"tokens"``
            ``([n,] N, C)``, of which up to 8 tokens before the patches are dropped. Of volumes ``(n, C, d, h, w)`` and
            ``(n, d, h, w, C)``.
        grid: ``(h, w)`` of a tile's patches, for tokens. Default: that of the tile's CAM, and square without one. Of
            volumes ``(d, h, w)``, without a default.
        device: Where the sums are kept and tiles are computed; default the CPU.

    Attributes:
        sums: ``(K + 1, C + 1)`` float64: ``G``, and ``S`` as the last column.
        pixels: Number of pixels added.

    Raises:
        ValueError: An affinity that has no such sum; a mean that is missing, unused or of another shape.
    """

    def __init__(
        self,
        K: int,
        C: int,
        *,
        affinity: Affinity = Affinity(),  # noqa: B008 - frozen
        mean: Tensor | None = None,
        layout: str = "nchw",
        grid: Size | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(K, C, affinity, device, layout, grid)
        if affinity.degree != 1:
            raise ValueError(
                "affinity: expected phi='shifted', or phi='relu' without threshold and centring, both of power 1, got "
                f"{affinity}; PixelBank is exact for any affinity"
            )
        if (mean is None) == affinity.center or (mean is not None and tuple(mean.shape) != (C,)):
            expected = f"the image's mean feature, ({C},)," if affinity.center else "None"
            got = "None" if mean is None else f"shape {tuple(mean.shape)}"
            raise ValueError(f"mean: expected {expected} with center={affinity.center}, got {got}; see FeatureMean")
        self.mean = None if mean is None else lasting_zeros(C, device=self.device).copy_(mean.detach())
        self.sums = lasting_zeros(K + 1, C + 1, device=self.device)

    def add(self, cam: Tensor, feats: Tensor, *, nonnegative: bool | None = None) -> None:
        """Add a tile's pixels to the sums.

        Args:
            cam: ``(K, h, w)`` at the stage's resolution, floating, any strides; or ``(n, K, h, w)``, n tiles at once;
                of volumes ``(n, K, d, h, w)``.
            feats: ``(C, h, w)`` or ``(n, C, h, w)``; of volumes ``(n, C, d, h, w)``. NaN propagates.
            nonnegative: True promises that no feature is negative; None reads it from the data. Only the ReLU asks.

        Raises:
            ValueError: A negative feature under the ReLU, or ``nonnegative=False`` (nothing is added then), or other
                shapes.
            TypeError: Tensors that are not floating.
        """
        feats, cam = self._read_tile(feats, cam)
        if feats.ndim == 3:
            cam, feats = cam[None], feats[None]
        cam, feats = cam.to(self.device), feats.to(self.device)
        self._check_sign(feats, nonnegative)
        dtype = result_dtype(cam.dtype, feats.dtype)
        with torch.autocast(feats.device.type, enabled=False):
            pixels = self._unit_features(feats, dtype)
            cam = cam.to(dtype).flatten(2)
            mean = cam.mean(dim=2, keepdim=True)  # of this tile; in float64 it cancels with the image's
            total = torch.zeros_like(self.sums)
            for lo, hi in pixels.tiles(rows=self.K + 1):
                part = prototypes.gather(cam, mean, pixels, lo, hi).double()
                part[:, :-1].addcmul_(mean.double(), part[:, -1:])
                total[:, :-1] += part.sum(dim=0)
                total[:-1, -1] += cam[:, :, lo:hi].sum(dim=(0, 2), dtype=torch.float64)
            total[-1, -1] = len(cam) * pixels.L
            self.sums += total
        self.pixels += len(cam) * pixels.L

    def _check_sign(self, feats: Tensor, nonnegative: bool | None) -> None:
        """Refuse features that are not all ≥ 0, or not promised to be, if φ is the ReLU."""
        if self.affinity.any_sign or nonnegative is True:
            return
        advice = "use phi='shifted', or PixelBank, which is exact for any affinity"
        if nonnegative is False:
            raise ValueError(
                f"nonnegative: expected True or None, got False; signed features have no such sum: {advice}"
            )
        if bool((feats < 0).any()):
            raise ValueError(
                "feats: expected features >= 0, got negative ones, where the ReLU acts on each pair and no sum over "
                f"pixels exists; {advice}"
            )

    def _unit_features(self, feats: Tensor, dtype: torch.dtype) -> UnitFeatures:
        """Return a tile's unit features, centred on the mean of the whole image."""
        pixels = UnitFeatures(feats, self.affinity, dtype)
        if self.mean is not None:
            pixels.mean = self.mean.to(dtype)[:, None]
        return pixels

    def merge(self, other: Prototypes) -> None:
        """Add the sums of ``other``, made from other tiles of the same image.

        Raises:
            ValueError: Other classes, channels, affinity or mean feature, or the same object.
            TypeError: Not ``Prototypes``.
        """
        self._check_mergeable(other)
        if self.mean is not None and not torch.equal(_bits(self.mean), _bits(other.mean).to(self.device)):
            raise ValueError("other: expected the same mean feature, got another; take that of the whole image")
        self.sums += other.sums.to(self.device)
        self.pixels += other.pixels

    def all_reduce(self, group: Any = None) -> None:
        """Sum over a torch.distributed group; call it once, or everything would be counted again.

        Raises:
            ValueError: Processes with different mean features (in all of them).
        """
        import torch.distributed as dist

        if self.mean is not None:
            bits = _bits(self.mean)
            extremes = torch.stack([bits, ~bits])  # ~ reverses the order: both extremes by one maximum
            dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
            if not torch.equal(extremes[0], ~extremes[1]):
                raise ValueError(
                    "mean: expected the same mean feature in all processes, got different ones; take that of the whole "
                    "image: FeatureMean.all_reduce"
                )
        dist.all_reduce(self.sums, group=group)
        self.pixels = round(self.sums[-1, -1].item())

    def apply(self, feats: Tensor) -> Tensor:
        """Return the polished CAM ``([n,] K, h, w)`` of features ``([n,] C, h, w)``: float32, float64 for float64.

        Of volumes it is ``(n, K, d, h, w)``, of ``(n, C, d, h, w)``.

        Raises:
            ValueError: Nothing was added, or another shape.
            TypeError: Features that are not floating.
        """
        self._check_not_empty()
        (feats,) = self._read_tile(feats)
        single = feats.ndim == 3
        feats = (feats[None] if single else feats).to(self.device)
        dtype = result_dtype(feats.dtype)
        with torch.autocast(feats.device.type, enabled=False):
            pixels = self._unit_features(feats, dtype)
            sums, mean = self.sums[:, :-1].clone(), self.sums[:-1, -1:] / self.pixels  # mean: [K, 1]
            sums[:-1].addcmul_(mean, sums[-1:], value=-1.0)
            scaled, constant = prototypes.scale_by_shift(sums, self.pixels, self.affinity)
            scaled, mean = scaled.to(dtype).expand(len(feats), -1, -1), mean.to(dtype)[None]
            polished = scaled.new_empty((len(feats), self.K, *feats.shape[2:]))
            out = polished.flatten(2)
            for lo, hi in pixels.tiles(rows=self.K + 1):
                prototypes.apply(scaled, constant, mean, pixels, lo, hi, out[:, :, lo:hi])
        return polished[0] if single else polished

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, the affinity and the mean feature, as tensors, text and None for ``torch.save``."""
        mean = None if self.mean is None else self.mean.cpu().clone()
        return {"sums": self.sums.cpu().clone(), "affinity": str(self.affinity), "mean": mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the sums and the mean feature by copies of those in ``state``.

        Raises:
            ValueError: Not a ``state_dict``, or that of another stage or affinity.
        """
        sums = state.get("sums") if isinstance(state, dict) else None
        if not isinstance(sums, torch.Tensor) or not {"affinity", "mean"} <= state.keys():
            got = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
            raise ValueError(
                "state: expected a dict with the tensor 'sums', and with 'affinity' and 'mean', as state_dict() "
                f"gives, got {got}"
            )
        if tuple(sums.shape) != (self.K + 1, self.C + 1) or state["affinity"] != str(self.affinity):
            raise ValueError(
                f"state: expected sums of shape {(self.K + 1, self.C + 1)} with {self.affinity}, got "
                f"{tuple(sums.shape)} with {state['affinity']}"
            )
        if self.mean is not None:
            self.mean.copy_(state["mean"])
        self.sums.copy_(sums)
        self.pixels = round(self.sums[-1, -1].item())


def _bits(mean: Tensor | None) -> Tensor:
    """Return a mean feature as integers, which compare NaN like any number."""
    assert mean is not None
    return mean.view(torch.int64)
