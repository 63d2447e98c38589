"""One image, polished from tiles that are never in memory together: gather all of them, then apply to each.

What a target pixel needs of all the source pixels is a sum over them, so it can be gathered tile by tile, in any order,
by any number of processes. ``Prototypes`` keeps that sum where it has a closed form, in ``(K + 1)·C`` numbers; ``Keys``
keeps the source pixels themselves, for features and affinities without one. Both give the whole image's answer.
"""

from __future__ import annotations

import re
import tempfile
import weakref
from typing import TYPE_CHECKING, Any

import torch

from ssa_fast import inputs, paths
from ssa_fast.affinity import Affinity
from ssa_fast.paths import prototypes
from ssa_fast.paths.products import grouped_bmm, set_apart

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

__all__ = ["Keys", "Prototypes", "parse_bytes"]

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
BLOCK = 4096  # most pixels of a block, of keys as of targets
SMALLEST = 256  # pixels of a block below which a memory budget is refused
GROUP = 256  # see paths.products.grouped_bmm


def parse_bytes(size: int | str) -> int:
    """Bytes from a number, or from text such as "4GB" (10⁹) or "4GiB" (2³⁰).

    Raises:
        ValueError: anything else, or nothing above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(size).lower())
    count = int(float(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
    if isinstance(size, bool) or count <= 0:
        raise ValueError(f'memory: expected bytes > 0, as a number or such as "4GB" or "512MiB", got {size!r}')
    return count


class _Tiles:
    """What ``Prototypes`` and ``Keys`` share: the checks, and a tile as rows of pixels."""

    def __init__(self, K: int, C: int, affinity: Affinity, device: torch.device | str | None) -> None:
        for name, value in (("K", K), ("C", C)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number > 0, got {value!r}")
        if affinity.steps > 1:
            raise ValueError(
                f"affinity: expected steps=1, got {affinity.steps}; a step begins when the one before has reached all "
                "tiles: gather the results again"
            )
        self.K, self.C, self.affinity = K, C, affinity
        self.device = torch.device(device) if device is not None else torch.device("cpu")
        self.pixels = 0

    def _read(self, cam: Tensor | None, feats: Tensor) -> tuple[Tensor | None, Tensor, bool]:
        """A tile as ``(n, K, h, w)`` and ``(n, C, h, w)``, and whether it came without the batch dimension."""
        given = {"feats": feats} if cam is None else {"cam": cam, "feats": feats}
        inputs.check_no_grad(given)
        single = feats.ndim == 3
        for (name, tensor), rows in zip(given.items(), ([self.C] if cam is None else [self.K, self.C]), strict=True):
            like = "" if single else "n, "
            if tensor.ndim != (3 if single else 4) or tensor.shape[-3] != rows:
                raise ValueError(f"{name}: expected ({like}{rows}, h, w), got {tuple(tensor.shape)}")
            if not tensor.is_floating_point():
                raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}; convert it")
        if cam is not None and (cam.shape[-2:] != feats.shape[-2:] or cam.shape[:-3] != feats.shape[:-3]):
            raise ValueError(
                f"cam: expected the tile's own pixels, {tuple(feats.shape[-2:])}, as feats has, got "
                f"{tuple(cam.shape)} for feats {tuple(feats.shape)}; resize the CAM to the stage first"
            )
        feats = (feats[None] if single else feats).to(self.device)
        return None if cam is None else (cam[None] if single else cam).to(self.device), feats, single

    def _pixels(self, feats: Tensor, dtype: torch.dtype) -> paths.Pixels:
        return paths.Pixels(feats, self.affinity, dtype)


class Prototypes(_Tiles):
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
        affinity: with φ = relu, power 1, no threshold and no centring; else use ``Keys``.
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
                "Keys is exact for any affinity"
            )
        self.sums = torch.zeros(K + 1, C, dtype=torch.float64, device=self.device)

    def add(self, cam: Tensor, feats: Tensor, *, nonnegative: bool | None = None) -> None:
        """Gather a tile: ``cam`` ``(K, h, w)`` at the stage's resolution, ``feats`` ``(C, h, w)``; any strides.

        With a batch dimension in front, ``(n, K, h, w)`` and ``(n, C, h, w)``, they are n tiles of the same image.
        ``nonnegative=True`` promises that no feature is negative; else it is read from the data. NaN goes through.

        Raises:
            ValueError: a negative feature, for which the ReLU acts and no such sum exists (nothing is gathered then);
                other shapes.
            TypeError: tensors that are not floating.
        """
        cam_, feats, _ = self._read(cam, feats)
        assert cam_ is not None
        if nonnegative is not True and (nonnegative is False or bool((feats < 0).any())):
            raise ValueError(
                "feats: expected features >= 0, got negative ones, whose affinity the ReLU cuts off pair by pair, so "
                "that no sum over pixels can stand for them; Keys is exact for signed features"
            )
        dtype = _dtype(cam_, feats)
        with torch.autocast(feats.device.type, enabled=False):
            pixels = self._pixels(feats, dtype)
            v = torch.cat([cam_.to(dtype), torch.ones_like(cam_[:, :1], dtype=dtype)], dim=1).flatten(2)
            for lo, hi in pixels.tiles():
                part = v.new_zeros((len(v), self.K + 1, self.C))
                prototypes.gather(v[:, :, lo:hi], pixels, lo, hi, part)
                self.sums += part.sum(dim=0, dtype=torch.float64)
        self.pixels += v.shape[0] * v.shape[2]

    def merge(self, other: Prototypes) -> None:
        """Add what another one has gathered of the same image.

        Raises:
            ValueError: other classes, channels or affinity.
        """
        if (other.K, other.C, other.affinity) != (self.K, self.C, self.affinity):
            raise ValueError(
                f"other: expected K={self.K}, C={self.C}, {self.affinity}, got K={other.K}, C={other.C}, "
                f"{other.affinity}; merge prototypes of one stage"
            )
        self.sums += other.sums.to(self.device)
        self.pixels += other.pixels

    def all_reduce(self, group: Any = None) -> None:
        """Sum over the processes of a torch.distributed group, after which each has gathered the whole image.

        Call it once: a second call would count everything again.
        """
        import torch.distributed as dist

        packed = torch.cat([self.sums.flatten(), self.sums.new_tensor([float(self.pixels)])])
        dist.all_reduce(packed, group=group)
        self.sums = packed[:-1].view_as(self.sums)
        self.pixels = int(packed[-1].item())

    def apply(self, feats: Tensor) -> Tensor:
        """The polished CAM of a tile: ``(C, h, w)`` → ``(K, h, w)``, or ``(n, C, h, w)`` → ``(n, K, h, w)``.

        float32, or float64 for float64 features.
        """
        _, feats, single = self._read(None, feats)
        dtype = _dtype(feats)
        with torch.autocast(feats.device.type, enabled=False):
            pixels = self._pixels(feats, dtype)
            sums = self.sums.clone()[:, None]  # [K + 1, 1, C]
            share = set_apart(sums).movedim(0, 1).to(dtype)  # [1, K, 1]
            gathered = sums.movedim(0, 1).to(dtype).expand(len(feats), -1, -1)
            out = gathered.new_empty((len(feats), self.K + 1, pixels.L))
            for lo, hi in pixels.tiles():
                prototypes.apply(gathered, share, pixels, lo, hi, out[:, :, lo:hi])
            polished = _divided(out, self.affinity).unflatten(2, feats.shape[2:])
        return polished[0] if single else polished

    def state_dict(self) -> dict[str, Any]:
        """Everything that was gathered, as tensors and numbers: what ``torch.save`` keeps."""
        return {"sums": self.sums.cpu().clone(), "pixels": self.pixels, "affinity": str(self.affinity)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what was gathered by what a ``state_dict`` holds.

        Raises:
            ValueError: that of another stage or affinity.
        """
        if tuple(state["sums"].shape) != (self.K + 1, self.C) or state["affinity"] != str(self.affinity):
            raise ValueError(
                f"state: expected sums of shape {(self.K + 1, self.C)} with {self.affinity}, got "
                f"{tuple(state['sums'].shape)} with {state['affinity']}"
            )
        self.sums = state["sums"].to(self.device, torch.float64)
        self.pixels = int(state["pixels"])


class Keys(_Tiles):
    """One image's source pixels, gathered tile by tile and met by every target pixel: exact for any affinity.

    Signed and centred features, any φ. ``add`` keeps the pixels, in memory and beyond ``memory`` in a file; ``apply``
    streams them, block by block, against a tile of target pixels. The time is that of the full L² products.

    Args:
        K: CAM classes. C: channels of the features.
        affinity: any, of one step.
        stride: keep only every stride-th pixel in both directions as a source. **An approximation** (``exact`` is
            False): the mean over all pixels becomes the mean over a grid of them. On smooth generated features of
            64×64 pixels the polished CAM moved by 0.8 % of its range with 2, and by 3.6 % with 4 (tests/test_streaming.py).
        memory: bytes that ``add`` and ``apply`` may hold in all: kept pixels, the block read, and the affinity's tile.
        scratch: folder of the file; default the system's temporary one.
        device: where tiles are computed; default the CPU, where the kept pixels are in any case.

    Attributes:
        pixels: how many pixels have been added. keys: how many of them are kept. exact: whether that is all of them.

    Raises:
        ValueError: a wrong option, or a budget too small for the smallest blocks, with the bytes needed.
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
        self._room = budget - self._work(self._block)
        self._held: list[tuple[Tensor, Tensor]] = []  # [n, C] features, [K, n] CAM
        self._sum = torch.zeros(C, dtype=torch.float64)
        self._file = tempfile.TemporaryFile(dir=scratch, prefix="ssa-fast-keys-")  # noqa: SIM115 - lives as long as self
        self._stored: list[tuple[int, torch.dtype]] = []
        self._finalizer = weakref.finalize(self, self._file.close)

    @property
    def exact(self) -> bool:
        """Whether every pixel is a source."""
        return self.stride == 1

    def _work(self, block: int) -> int:
        """Bytes held while a block of keys meets a block of targets: both, their unit forms, and affinities twice."""
        return 8 * (2 * block * (2 * self.C + 2 * self.K + 2) + 2 * block * block)

    def add(self, cam: Tensor, feats: Tensor, *, at: tuple[int, int] = (0, 0)) -> None:
        """Keep a tile's pixels: ``cam`` ``(K, h, w)``, ``feats`` ``(C, h, w)``, floating, any strides.

        ``at`` is the (y, x) of its first pixel in the image's map, by which a ``stride`` > 1 chooses.

        Raises:
            ValueError, TypeError: other shapes or dtypes. OSError: no room in ``scratch``.
        """
        if feats.ndim != 3:
            raise ValueError(f"feats: expected one tile ({self.C}, h, w), got {tuple(feats.shape)}; add one at a time")
        cam_, feats, _ = self._read(cam, feats)
        assert cam_ is not None
        dtype = _dtype(cam_, feats)
        self._sum += feats[0].sum(dim=(1, 2), dtype=torch.float64).cpu()
        self.pixels += feats[0, 0].numel()
        y, x = (-start % self.stride for start in at)
        kept = [tensor[0, :, y :: self.stride, x :: self.stride].flatten(1) for tensor in (feats, cam_)]
        f, v = kept[0].mT.to("cpu", dtype).contiguous(), kept[1].to("cpu", dtype).contiguous()
        for lo in range(0, len(f), self._block):
            self._keep(f[lo : lo + self._block], v[:, lo : lo + self._block])

    def _keep(self, f: Tensor, v: Tensor) -> None:
        self.keys += len(f)
        size = (f.numel() + v.numel()) * f.element_size()
        if size <= self._room and not self._stored:
            self._held.append((f.clone(), v.clone()))
            self._room -= size
            return
        packed = torch.cat([f.flatten(), v.flatten()])
        self._file.seek(0, 2)
        self._file.write(packed.numpy().tobytes())
        self._stored.append((len(f), f.dtype))

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The kept pixels, block by block: ``[n, C]`` features and ``[K, n]`` CAM."""
        yield from self._held
        self._file.seek(0)
        for n, dtype in self._stored:
            packed = bytearray(self._file.read(n * (self.C + self.K) * dtype.itemsize))
            values = torch.frombuffer(packed, dtype=dtype)
            yield values[: n * self.C].view(n, self.C), values[n * self.C :].view(self.K, n)

    def apply(self, feats: Tensor) -> Tensor:
        """The polished CAM of a tile: ``(C, h, w)`` → ``(K, h, w)``; float32, or float64 for float64 features.

        Raises:
            ValueError: nothing was added, or another shape.
        """
        if feats.ndim != 3:
            raise ValueError(
                f"feats: expected one tile ({self.C}, h, w), got {tuple(feats.shape)}; apply one at a time"
            )
        if not self.keys:
            raise ValueError("feats: nothing was added yet, so there is nothing to spread; call add first")
        _, feats, _ = self._read(None, feats)
        dtype = _dtype(feats)
        mean = (self._sum / self.pixels).to(self.device, dtype)[None, :, None] if self.affinity.center else None
        with torch.autocast(feats.device.type, enabled=False):
            pixels = self._pixels(feats, dtype)
            pixels.mean = mean  # the image's, not the tile's
            out = feats.new_empty((1, self.K + 1, pixels.L), dtype=dtype)
            for lo in range(0, pixels.L, self._block):
                hi = min(lo + self._block, pixels.L)
                out[0, :, lo:hi] = self._met(pixels.unit(lo, hi)[0], mean)
            return _divided(out, self.affinity)[0].unflatten(1, feats.shape[2:])

    def _met(self, x_j: Tensor, mean: Tensor | None) -> Tensor:
        """``Σ_i v_ri φ(x_iᵀ x_j)`` over all keys, ``[K + 1, n]``, for unit features ``x_j`` ``[C, n]``."""
        sums = torch.zeros(self.K + 1, x_j.shape[1], dtype=torch.float64, device=x_j.device)
        for f, v in self._blocks():
            keys = self._pixels(f.to(x_j.device, x_j.dtype).mT[None, :, None, :], x_j.dtype)
            keys.mean = mean
            a = self.affinity.apply_(keys.unit(0, len(f))[0].mT @ x_j)  # [n keys, n targets]
            sums[:-1] += grouped_bmm(v.to(x_j.device, x_j.dtype)[None], a[None], GROUP)[0]
            sums[-1] += a.sum(dim=0)
        return sums.to(x_j.dtype)

    def close(self) -> None:
        """Let go of the kept pixels and the file."""
        self._held.clear()
        self._stored.clear()
        self.keys = self.pixels = 0
        self._finalizer()

    def __enter__(self) -> Keys:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _divided(summed: Tensor, affinity: Affinity) -> Tensor:
    """``out_kj = Σ_i cam_ki a_ij / (Σ_i a_ij + sum_eps)`` from the sums, the last row being the denominator's."""
    denominator = (summed[:, -1:] + affinity.sum_eps).clamp_min_(torch.finfo(summed.dtype).tiny)
    return summed[:, :-1].div_(denominator)
