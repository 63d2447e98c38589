"""From the stages' polished CAMs to one: rescale, resize, fuse."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
import torch.nn.functional as F

from ssa_fast import validation
from ssa_fast.ops import gpu_info, triton_backend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

Fuse: TypeAlias = Literal["mean", "max", "sum", "product"]
FUSES = ("mean", "max", "sum", "product")
Weights: TypeAlias = "Sequence[float] | Mapping[str, float] | None"


def fuse_stages(
    maps: Mapping[str, Tensor],
    *,
    size: tuple[int, int] | None = None,
    fuse: Fuse = "mean",
    weights: Weights = None,
    rescale: bool = True,
    align_corners: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Rescale, resize and fuse polished CAMs ``{stage: (B, K, H, W)}`` into one ``(B, K, *size)``; see ``polish``."""
    size, weight = options(maps, size, fuse, weights)
    if not rescale and len(maps) == 1 and set(weight.values()) == {1.0}:
        return resize(next(iter(maps.values())), size, align_corners)
    if _fuses_in_kernels(maps, backend):
        return triton_backend.fuse_stages(
            list(maps.values()),
            weights=list(weight.values()),
            fuse=fuse,
            rescale=rescale,
            size=size,
            align_corners=align_corners,
        )
    fused: Tensor | None = None
    for name, polished in maps.items():
        polished = resize(minmax(polished) if rescale else polished, size, align_corners)
        if weight[name] != 1.0:
            polished = polished ** weight[name] if fuse == "product" else polished * weight[name]
        if fused is None:
            fused = polished
        elif fuse == "max":
            fused = torch.maximum(fused, polished)
        else:
            fused = fused * polished if fuse == "product" else fused + polished
    assert fused is not None
    return fused / sum(weight.values()) if fuse == "mean" else fused


def minmax(maps: Tensor) -> Tensor:
    """``(maps − min) / (max − min)`` over the last two dimensions; a constant map becomes 0, one with NaN all NaN.

    Constant means: but for the rounding of float32 sums, which a rescaling would otherwise blow up to a whole map.
    """
    # Not aminmax, whose derivative PyTorch 2.6 lacks: the reference backend is differentiable to the end.
    return rescale(maps, maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True))


def rescale(maps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``(maps − low) / (high − low)``, with the extremes ``(…, 1, 1)`` of the maps that these may be windows of."""
    span = high - low
    rounding = 32 * torch.finfo(torch.float32).eps * torch.maximum(low.abs(), high.abs())
    # Divided by infinity a constant map is 0, one with NaN stays NaN, and every gradient is finite.
    return (maps - low) / span.masked_fill(span <= rounding, float("inf"))


def resize(maps: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    """Bilinear ``(B, K, h, w)`` → ``(B, K, *size)``; as it is if it has that size."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


def options(
    maps: Mapping[str, Tensor], size: tuple[int, int] | None, fuse: Fuse, weights: Weights
) -> tuple[tuple[int, int], dict[str, float]]:
    """The options of fusion, checked: size of the result and weight by stage. ``maps`` or stages, for their sizes."""
    if fuse not in FUSES:
        raise ValueError(f"fuse: expected one of {', '.join(FUSES)}, got {fuse!r}")
    if size is None:
        size = (0, 0)
        for polished in maps.values():  # a loop, since torch.compile knows no max() by symbolic sizes
            H, W = polished.shape[2:]
            if size[0] * size[1] < H * W:
                size = (H, W)
    return validation.check_size("size", size), _weights(weights, maps)


def _weights(weights: Weights, maps: Mapping[str, Tensor]) -> dict[str, float]:
    values = validation.per_stage("weights", [1.0] * len(maps) if weights is None else weights, maps, Real)
    numbers = {name: float(weight) for name, weight in values.items()}
    if not all(weight >= 0 for weight in numbers.values()) or not 0 < sum(numbers.values()) < float("inf"):
        raise ValueError(f"weights: expected finite numbers >= 0, at least one > 0, got {list(numbers.values())}")
    return numbers


def _fuses_in_kernels(maps: Mapping[str, Tensor], backend: str) -> bool:
    """Whether the fusion kernels can take these maps, and nobody asked for PyTorch instead."""
    if torch.compiler.is_compiling():
        return False  # the compiler fuses what is written in PyTorch
    first = next(iter(maps.values()))
    suitable = all(polished.dtype == torch.float32 and not polished.requires_grad for polished in maps.values())
    if backend == "triton":
        return suitable
    return backend == "auto" and suitable and first.device.type != "cpu" and gpu_info.query(first.device)[0] is not None
