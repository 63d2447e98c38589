"""Check what a large image needs, and choose its tiles and halo."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.io.sizes import resident_bytes
from ssa_fast.large.receptive_field import ReceptiveField, measure_receptive_field
from ssa_fast.large.resample import resize_margin
from ssa_fast.models.class_spec import asks_for_top, resolve_classes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ssa_fast.ssa import SSA

ACTIVATION_FACTOR = 5.0  # a forward's peak bytes over its largest output's: both ends of a convolution and copies
FORWARD_SHARE = 0.6  # of the free memory, for a forward; the rest is for tile features, windows and the allocator
LARGEST_TILE = 8192


@dataclass(frozen=True, eq=False)
class Tiling:
    """Division of an image into tiles."""

    field: ReceptiveField
    sizes: dict[str, tuple[int, int]]  # map -> (h, w) for the whole image
    tile: int  # pixels of a tile's side
    halo: int  # pixels around it that the network also sees
    margin: int | None  # pixels around a tile's own in the seed layer's map that resizing reads; None without that map
    exact: bool  # whether the halo covers the receptive field


def check_pixels(name: str, value: int | str, least: int) -> None:
    """Raise ValueError unless ``value`` is "auto" or a whole number of pixels >= ``least``."""
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ValueError(f'{name}: expected "auto" or pixels >= {least}, got {value!r}')


def check_model(ssa: SSA) -> None:
    """Raise ValueError, with what to do, for an SSA that cannot be run in tiles."""
    if ssa.scales != (1.0,) or ssa.flip:
        raise ValueError(
            f"scales: expected SSA with scales=(1.0,) and flip=False, got {ssa.scales} and {ssa.flip}; a large image "
            "is processed once, at its own size"
        )
    if ssa.prior is not None:
        raise ValueError(f"prior: expected SSA with prior=None, got {ssa.prior!r}; weight a seed of your own by it")
    if ssa.info.no_logits is not None:
        raise ValueError(ssa.info.no_logits)
    if ssa.info.dims != 2:
        raise ValueError("model: expected one for images, got one for volumes; call SSA on them, or use Prototypes")
    if ssa.info.in_channels != 3:
        raise ValueError(f"model: expected one for RGB images, got one for {ssa.info.in_channels} channels")
    if ssa.info.window is not None:
        raise ValueError(
            "model: expected one whose maps cover the whole image, got one that crops or pads it in forward"
        )
    if ssa.info.fixed_size is not None:
        raise ValueError("model: expected one for any image size, got one for a single size; resize the image")


def check_seed(ssa: SSA, seed: torch.Tensor | np.ndarray | None, classes: Any, names: Sequence[str]) -> None:
    """Raise ValueError or TypeError, with what to do, for a wrong seed, or where one is needed."""
    if seed is None:
        if ssa.info.seed.kind == "layercam":
            raise ValueError(
                "seed: expected the classifier's own CAM, got LayerCAM, which needs gradients of the whole image; "
                'use SSA(seed="auto"), or pass seed=(K, h, w), made at a size that fits, with classes=[...]'
            )
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
    logits = torch.zeros(1, ssa.info.num_classes)
    count = 0 if asks_for_top(classes) else resolve_classes(classes, logits, names).index.shape[1]
    if count != len(seed):
        raise ValueError(f"classes: expected {len(seed)} indices, one per map of the seed, got {classes!r}")


def measure_field(ssa: SSA, with_seed: bool) -> ReceptiveField:
    """Return the receptive field of an SSA's stages and, if asked for, of its seed layer's map."""
    seed = {ssa.info.seed.layer: ssa.info.seed.ref} if with_seed else {}
    return measure_receptive_field(ssa.model, {**ssa.info.stages, **seed})


def make_tiling(
    ssa: SSA,
    field: ReceptiveField,
    size: tuple[int, int],
    *,
    tile: int | str,
    halo: int | str,
    memory: int,
    with_seed: bool,
) -> Tiling:
    """Choose the tiles and the halo of an image of ``size`` (H, W) for the bytes ``memory`` of the whole process."""
    if halo != "auto":
        around = -(-int(halo) // field.stride) * field.stride
    elif field.halo is not None:
        around = field.halo
    else:
        place = field.global_from and f", first {field.global_from}"
        raise ValueError(
            'halo: expected pixels, got "auto", which needs a finite receptive field, but this model\'s maps depend on '
            f"the whole image{place}, as with attention, squeeze-and-excitation or normalisation over all pixels; "
            "pass halo=512, for example, for an approximation"
        )
    exact = field.halo is not None and around >= field.halo
    field.check_windows(size)
    sizes, margin = field.map_sizes(size), None
    if with_seed:
        layer = ssa.info.seed.layer
        margin = max(
            resize_margin(source, target, field.strides[name] / field.strides[layer], ssa.align_corners)
            for name in ssa.stage_names
            for source, target in zip(sizes[layer], sizes[name], strict=True)
        )
        around += -(-margin * field.strides[layer] // field.stride) * field.stride
    if tile == "auto":
        tile = _largest_tile(ssa, size, field, around, memory)
    elif int(tile) % field.stride:
        raise ValueError(
            f'tile: expected "auto" or a multiple of {field.stride}, the coarsest map\'s stride, got {tile}'
        )
    tile = int(tile)
    return Tiling(field, sizes, tile, around, margin, exact or tile >= max(size))


def _largest_tile(ssa: SSA, size: tuple[int, int], field: ReceptiveField, around: int, memory: int) -> int:
    """Return the largest side, a multiple of the coarsest stride, whose forward fits ``memory``."""
    features = 4 * sum(ssa.info.stages[name].layout.channels / field.strides[name] ** 2 for name in ssa.stage_names)
    per_pixel = ACTIVATION_FACTOR * field.bytes_per_pixel + 2 * features + 4 * 3 * 4
    used = resident_bytes()
    free = float(memory - used)
    device = next(p for p in ssa.model.parameters() if p.is_floating_point()).device
    if device.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])

    def forward_bytes(side: int) -> float:
        return per_pixel * math.prod(min(side + 2 * around, length) for length in size) / FORWARD_SHARE

    longest = min(-(-max(size) // field.stride), LARGEST_TILE // field.stride) * field.stride
    for side in range(longest, 0, -field.stride):
        if forward_bytes(side) <= free:
            return side
    least = math.ceil(used + forward_bytes(field.stride))
    raise ValueError(
        f"memory: expected at least {least:,} bytes for this network's halo of {around} pixels, got {memory:,}; "
        "raise it, or pass a smaller halo, which is an approximation"
    )
