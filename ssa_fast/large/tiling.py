"""What a large image needs before the first tile: options that go together, and how it is cut."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.io.sizes import parse_bytes, resident_bytes
from ssa_fast.large.receptive_field import check_windows, probe, whole_sizes
from ssa_fast.large.resample import drift

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from ssa_fast.large.receptive_field import Reach
    from ssa_fast.ssa import SSA

HELD = 5.0
"""The largest output's bytes that a forward holds at its worst: input, output, and the convolution's copies of both."""
SHARE = 0.6
"""Of the memory that is left, what the forward may take: the rest is for records, windows and the allocator."""
LARGEST = 8192


@dataclass(frozen=True)
class Cut:
    """How an image is cut.

    ``tile``: pixels of a side. ``halo``: pixels around it, the margin's among them. ``strides``, ``sizes``: of the
    maps, the size (h, w) of the whole. ``margin``: pixels of the seed layer's map around a tile's own that resizing it
    to the stages reaches. ``exact``: whether the network feels nothing beyond the halo.
    """

    tile: int
    halo: int
    strides: dict[str, int]
    sizes: dict[str, tuple[int, int]]
    margin: int
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
    if ssa.info.in_channels != 3:
        raise ValueError(f"model: expected one of RGB images, got one of {ssa.info.in_channels} channels")
    if ssa.info.fixed_size is not None:
        raise ValueError("image: the model takes one size only, so that no large image can be cut for it; resize it")
    if seed is None:
        if ssa.info.seed.kind != "cam":
            raise ValueError(
                "seed: expected a head whose CAM is exact, got Grad-CAM, whose weights are means over the whole image; "
                "pass seed=(K, h, w), made at a size that fits, with classes=[...]"
            )
        return
    if not hasattr(seed, "shape"):
        raise TypeError(f"seed: expected a tensor or array, got {type(seed).__name__}")
    if len(seed.shape) != 3 or 0 in seed.shape:
        raise ValueError(f"seed: expected (K, h, w) of the whole image, got {tuple(seed.shape)}")
    if not bool(torch.as_tensor(seed).isfinite().all()):
        raise ValueError("seed: expected finite numbers, got NaN or infinity")
    listed = not isinstance(classes, str) and classes is not None
    if not listed or len(torch.as_tensor(classes).flatten()) != len(seed):
        raise ValueError(f"classes: expected {len(seed)} indices, one per map of the seed, got {classes!r}")


def cut(ssa: SSA, size: tuple[int, int], *, tile: int | str, halo: int | str, memory: int, with_seed: bool) -> Cut:
    """Halo and tiles for an image of ``size`` (H, W) within ``memory`` bytes for the whole process.

    Raises:
        ValueError: a wrong option, a network that feels everything everywhere, or too little memory for any tile.
    """
    sources = dict(ssa.info.stages)
    if with_seed:
        sources.setdefault(ssa.info.seed.layer, ssa.info.seed.ref)
    model, channels, layer = ssa.model, ssa.info.in_channels, ssa.info.seed.layer
    reach = probe(model, sources, channels)
    around = _halo(halo, reach.halo, reach.stride)
    exact = reach.halo is not None and around >= reach.halo
    check_windows(model, sources, channels, reach, size)
    sizes = whole_sizes(model, sources, channels, reach, size)
    margin = _margin(ssa, reach, sizes) if with_seed else 0
    around += -(-margin * reach.strides.get(layer, 1) // reach.stride) * reach.stride
    if tile == "auto":
        tile = _largest_tile(ssa, size, reach, around, memory)
    elif isinstance(tile, bool) or not isinstance(tile, int) or tile < reach.stride or tile % reach.stride:
        raise ValueError(
            f'tile: expected "auto" or a multiple of {reach.stride}, the coarsest map\'s stride, got {tile!r}'
        )
    return Cut(tile, around, reach.strides, sizes, margin, exact or tile >= max(size))


def _margin(ssa: SSA, reach: Reach, sizes: dict[str, tuple[int, int]]) -> int:
    layer = ssa.info.seed.layer
    return max(
        drift(source, target, reach.strides[name] / reach.strides[layer], ssa.align_corners)
        for name in ssa.stage_names
        for source, target in zip(sizes[layer], sizes[name], strict=True)
    )


def _largest_tile(ssa: SSA, size: tuple[int, int], reach: Reach, around: int, memory: int) -> int:
    """The largest side, a multiple of the coarsest stride, whose windows go through the network within ``memory``."""
    kept = 4 * sum(ssa.info.stages[name].layout.channels / reach.strides[name] ** 2 for name in ssa.stage_names)
    per_pixel = HELD * reach.bytes_per_pixel + 2 * kept + 4 * 3 * 4
    used = resident_bytes()
    free = float(memory - used)
    device = next(p for p in ssa.model.parameters() if p.is_floating_point()).device
    if device.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])

    def bytes_of(side: int) -> float:
        H, W = (min(side + 2 * around, length) for length in size)
        return per_pixel * H * W / SHARE

    longest = -(-max(size) // reach.stride) * reach.stride
    side = min(longest, LARGEST // reach.stride * reach.stride)
    while side >= reach.stride and bytes_of(side) > free:
        side -= reach.stride
    if side < reach.stride:
        least = math.ceil(used + bytes_of(reach.stride))
        raise ValueError(
            f"memory: expected at least {least:,} bytes for this network's halo of {around} pixels, got {memory:,}; "
            "raise it, or pass a smaller halo, which is an approximation"
        )
    return side


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
    if disk == 0:
        return 0
    try:
        return parse_bytes(disk)
    except ValueError:
        raise ValueError(f'disk: expected bytes, as a number or such as "40GB", or "auto", got {disk!r}') from None
