"""What a large image needs before the first tile: options that go together, and how it is cut."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.large.probe import probe
from ssa_fast.large.tiles import MARGIN
from ssa_fast.streaming import parse_bytes

if TYPE_CHECKING:
    import numpy as np

    from ssa_fast.ssa import SSA

HELD = 5.0
"""The largest output's bytes that a forward holds at its worst: in- and output, and the convolution's copies of both."""
SHARE = 0.6
"""Of the memory that is left, what the forward may take: the rest is for records, windows and the allocator."""
LARGEST = 8192


@dataclass(frozen=True)
class Cut:
    """How an image is cut: a tile's side and the halo around it in pixels, the maps' strides, and if that is exact."""

    tile: int
    halo: int
    strides: dict[str, int]
    exact: bool


def check(ssa: SSA, seed: torch.Tensor | np.ndarray | None, classes: Any, key_stride: int) -> None:
    """Refuse what cannot be done in tiles.

    Raises:
        ValueError: with the reason and what to do.
    """
    if ssa.scales != (1.0,) or ssa.flip:
        raise ValueError(
            f"scales: expected SSA with scales=(1.0,) and flip=False, got {ssa.scales} and {ssa.flip}; a large image "
            "is seen once, at its own size"
        )
    if isinstance(key_stride, bool) or not isinstance(key_stride, int) or key_stride < 1:
        raise ValueError(f"key_stride: expected a whole number > 0, got {key_stride!r}")
    if ssa.anatomy.fixed_size is not None:
        raise ValueError("image: the model takes one size only, so that no large image can be cut for it; resize it")
    if seed is None:
        if ssa.anatomy.seed.kind != "cam":
            raise ValueError(
                "seed: expected a head whose CAM is exact, got Grad-CAM, whose weights are means over the whole image; "
                "pass seed=(K, h, w), made at a size that fits, with classes=[...]"
            )
        return
    if seed.ndim != 3:
        raise ValueError(f"seed: expected (K, h, w) of the whole image, got {tuple(seed.shape)}")
    listed = not isinstance(classes, str) and classes is not None
    if not listed or len(torch.as_tensor(classes).flatten()) != len(seed):
        raise ValueError(f"classes: expected {len(seed)} indices, one per map of the seed, got {classes!r}")


def cut(ssa: SSA, size: tuple[int, int], *, tile: int | str, halo: int | str, memory: int, with_seed: bool) -> Cut:
    """Halo and tiles for an image of ``size`` (H, W) within ``memory`` bytes for the whole process.

    Raises:
        ValueError: a wrong option, a network that feels everything everywhere, or too little memory for any tile.
    """
    sources = dict(ssa.anatomy.stages)
    if with_seed:
        sources.setdefault(ssa.anatomy.seed.layer, ssa.anatomy.seed.source)
    reach = probe(ssa.model, sources, ssa.anatomy.in_channels, halo=True)
    around = _halo(halo, reach.halo, reach.stride)
    if with_seed:
        around += MARGIN * reach.stride
    exact = reach.halo is not None and around >= reach.halo
    if tile != "auto":
        if isinstance(tile, bool) or not isinstance(tile, int) or tile < reach.stride or tile % reach.stride:
            raise ValueError(
                f'tile: expected "auto" or a multiple of {reach.stride}, the coarsest map\'s stride, got {tile!r}'
            )
        return Cut(tile, around, reach.strides, exact)
    kept = 4 * sum(ssa.anatomy.stages[name].form.channels / reach.strides[name] ** 2 for name in ssa.stage_names)
    per_pixel = HELD * reach.bytes_per_pixel + 2 * kept + 4 * 3 * 4
    free = SHARE * (memory - resident())
    side = int(max(0.0, free / per_pixel) ** 0.5) - 2 * around
    side = min(side, LARGEST) // reach.stride * reach.stride
    if side < reach.stride:
        least = int(resident() + per_pixel * (reach.stride + 2 * around) ** 2 / SHARE)
        raise ValueError(
            f"memory: expected at least {least:,} bytes for this network's halo of {around} pixels, got {memory:,}; "
            "raise it, or pass a smaller halo, which is an approximation"
        )
    longest = -(-max(size) // reach.stride) * reach.stride
    return Cut(min(side, longest), around, reach.strides, exact)


def _halo(halo: int | str, reach: int | None, stride: int) -> int:
    if halo == "auto":
        if reach is None:
            raise ValueError(
                'halo: expected pixels, got "auto" for a network that feels every pixel everywhere (attention, '
                "squeeze-and-excitation); pass halo=512, say: what lies beyond is then left out, an approximation"
            )
        return reach
    if isinstance(halo, bool) or not isinstance(halo, int) or halo < 0:
        raise ValueError(f'halo: expected "auto" or pixels >= 0, got {halo!r}')
    return -(-halo // stride) * stride


def room(disk: int | str, scratch: Path) -> int:
    """Bytes that kept features may take: as said, or half of what is free."""
    if disk == "auto":
        return shutil.disk_usage(scratch).free // 2
    return 0 if disk == 0 else parse_bytes(disk)


def resident() -> int:
    """Bytes of memory that this process has now; an estimate where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 600 * 10**6
