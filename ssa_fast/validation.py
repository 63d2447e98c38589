"""Every check of a caller's input, once: arguments in, a ``Request`` out that the rest of the package trusts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ssa_fast import arrays
from ssa_fast.affinity import Affinity
from ssa_fast.arrays import InputWarning, device_of, name_stages, read_cams, unbatch_cam
from ssa_fast.layouts import RANKS

if TYPE_CHECKING:
    from ssa_fast.arrays import ArrayLike, CamLike, Stage, StagesLike
    from ssa_fast.layouts import Size

__all__ = ["InputWarning"]  # beside what is defined here

Layouts: TypeAlias = "str | Sequence[str | None] | Mapping[str, str | None] | None"
Grids: TypeAlias = "Size | Sequence[Size] | Mapping[str, Size] | None"
Affinities: TypeAlias = "Affinity | Sequence[Affinity] | Mapping[str, Affinity]"
Fuse: TypeAlias = Literal["mean", "max", "sum", "product"]
Weights: TypeAlias = "Sequence[float] | Mapping[str, float] | None"

FUSES = ("mean", "max", "sum", "product")
METHODS = ("auto", "dense", "prototypes", "second_order", "tiled", "resident")
BACKENDS = ("auto", "torch", "triton", "reference")
PRECISIONS = ("default", "high")


@dataclass(frozen=True, eq=False)
class StageRequest:
    """One stage to polish: features ``(B, C, H, W)`` or ``(B, C, D, H, W)``, and the options of ``polish``.

    ``K`` classes of the CAM and ``dtype`` of the computation belong to the request; the CAM itself does not.
    """

    features: Tensor
    affinity: Affinity
    K: int
    dtype: torch.dtype
    nonnegative: bool | None = None
    method: str = "auto"
    backend: str = "auto"
    precision: str = "default"
    align_corners: bool = True


@dataclass(frozen=True)
class FusionOptions:
    """Options of the fusion of polished CAMs, as in ``polish``.

    ``weights`` holds one number per stage, in the stages' order. ``size`` None is that of the stage with most pixels.
    """

    fuse: Fuse
    weights: tuple[float, ...]
    rescale: bool
    size: Size | None
    align_corners: bool = True
    backend: str = "auto"


@dataclass(frozen=True, eq=False)
class Request:
    """A checked call of ``polish``: CAMs ``(B, K, [d,] h, w)``, a request per stage, how to fuse them, and notes.

    There is one CAM for all stages, or one for each, in order. ``notes`` say how an input was read.
    """

    cams: list[Tensor]
    stages: dict[str, StageRequest]
    fusion: FusionOptions
    rank: int
    is_numpy: bool
    notes: list[str]

    def restore(self, polished: Tensor) -> ArrayLike:
        """Return ``(B, K, [D,] H, W)`` with the rank and the kind of array that the caller's CAM had."""
        polished = unbatch_cam(polished, self.rank)
        return polished.cpu().numpy() if self.is_numpy else polished


def validate(
    cam: CamLike,
    feats: StagesLike,
    *,
    affinity: Affinities = Affinity(),  # noqa: B008 - frozen
    fuse: Fuse = "mean",
    weights: Weights = None,
    rescale: bool | None = None,
    size: Size | None = None,
    align_corners: bool = True,
    nonnegative: bool | None = None,
    layout: Layouts = None,
    grid: Grids = None,
    method: str = "auto",
    backend: str = "auto",
    precision: str = "default",
) -> Request:
    """Check the arguments of ``polish`` and bring them into one form; raise what ``polish`` documents."""
    is_numpy = isinstance(cam[0] if isinstance(cam, (list, tuple)) and cam else cam, np.ndarray)
    given = read_cams(cam, device_of(feats))
    cams, stages, notes = _read(given, feats, layout, grid, keep_grad=backend == "reference" and not is_numpy)
    _check_flag("rescale", rescale, optional=True)
    _check_flag("align_corners", align_corners)
    _check_flag("nonnegative", nonnegative, optional=True)
    for argument, value, known in (
        ("method", method, METHODS),
        ("backend", backend, BACKENDS),
        ("precision", precision, PRECISIONS),
    ):
        if value not in known:
            raise ValueError(f"{argument}: expected one of {', '.join(known)}, got {value!r}")
    fusion = FusionOptions(
        fuse=check_fuse(fuse),
        weights=check_weights(weights, stages),
        rescale=len(stages) > 1 if rescale is None else rescale,
        size=None if size is None else check_size("size", size, cams[0].ndim - 2),
        align_corners=align_corners,
        backend=backend,
    )
    affinities = per_stage("affinity", affinity, stages, Affinity)
    requests = {
        name: StageRequest(
            stage,
            affinities[name],
            K=cams[0].shape[1],
            dtype=result_dtype(cams[i % len(cams)].dtype, stage.dtype),
            nonnegative=nonnegative,
            method=method,
            backend=backend,
            precision=precision,
            align_corners=align_corners,
        )
        for i, (name, stage) in enumerate(stages.items())
    }
    return Request(cams, requests, fusion, given[0].ndim, is_numpy, notes)


def _read(
    given: Sequence[Tensor], feats: StagesLike, layout: Layouts, grid: Grids, *, keep_grad: bool
) -> tuple[list[Tensor], dict[str, Tensor], list[str]]:
    """Return CAMs ``(B, K, [d,] h, w)`` and stages that go together, and notes on how they were read."""
    read = read_stages(feats, layout, grid, cams=given)
    notes = [stage.note for stage in read.values() if stage.note] + arrays.note_classes_last(given, read)
    cams, maps = arrays.match(given, read), [stage.map for stage in read.values()]
    if not keep_grad:
        names = [*(["cam"] * len(cams)), *(f"feats ({name})" for name in read)]
        detached, lost = arrays.detach(names, [*cams, *maps])
        cams, maps, notes = detached[: len(cams)], detached[len(cams) :], notes + lost
    return cams, dict(zip(read, maps, strict=True)), notes


def read_stages(
    feats: StagesLike,
    layout: Layouts = None,
    grid: Grids = None,
    *,
    cams: Sequence[Tensor] = (),
    size: Size | None = None,
) -> dict[str, Stage]:
    """Return the stages by name, all of one batch size; of ``cams`` or an image of ``size`` they have the aspect."""
    named = name_stages(feats)
    layouts, grids = check_layouts(layout, grid, named)
    return arrays.read_stages(named, layouts, grids, cams, cams[0].device if cams else device_of(feats), size)


def check_layouts(
    layout: Layouts, grid: Grids, stages: Mapping[str, object]
) -> tuple[dict[str, str | None], dict[str, Size | None]]:
    """Return layout and grid of each stage, None where they were not given."""
    layouts = per_stage("layout", layout, stages, (str, type(None)))
    for value in layouts.values():
        if value not in (*RANKS, None):
            raise ValueError(f"layout: expected one of {', '.join(RANKS)}, got {value!r}")
    by_stage = isinstance(grid, Mapping) or (isinstance(grid, (list, tuple)) and not any(map(_is_int, grid)))
    given = list(grid) if isinstance(grid, tuple) else grid
    grids = per_stage("grid", given, stages, (tuple, type(None))) if by_stage else dict.fromkeys(stages, grid)
    if any(each is not None for each in grids.values()) and "tokens" not in layouts.values():
        raise ValueError(f"grid: expected None where no stage has layout='tokens', got {grid}; pass layout='tokens'")
    return layouts, {name: None if each is None else _check_grid(each) for name, each in grids.items()}


def _check_grid(grid: object) -> Size:
    volume = isinstance(grid, (tuple, list, torch.Size)) and len(grid) == 3
    return check_size("grid", grid, 3 if volume else 2)


def result_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return float64 if one of the inputs' dtypes is, else float32, in which half and bfloat16 are accumulated too."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def check_fuse(fuse: str) -> Fuse:
    """Return ``fuse`` if it is a known fusion."""
    if fuse not in FUSES:
        raise ValueError(f"fuse: expected one of {', '.join(FUSES)}, got {fuse!r}")
    return fuse  # type: ignore[return-value]


def check_weights(weights: Weights, stages: Mapping[str, object]) -> tuple[float, ...]:
    """Return one weight per stage, 1 each by default."""
    if weights is None:
        return (1.0,) * len(stages)
    numbers = tuple(float(weight) for weight in per_stage("weights", weights, stages, Real).values())
    if not all(weight >= 0 for weight in numbers) or not 0 < sum(numbers) < float("inf"):
        raise ValueError(f"weights: expected finite numbers >= 0, at least one > 0, got {list(numbers)}")
    return numbers


def check_size(argument: str, size: object, dims: int = 2) -> Size:
    """Return ``(H, W)`` if ``size`` is two positive ints, or ``(D, H, W)`` if it is three of them and ``dims`` is 3."""
    axes, number = ("(H, W)", "two") if dims == 2 else ("(D, H, W)", "three")
    if not isinstance(size, (tuple, list, torch.Size)) or len(size) != dims or not all(_is_int(n) for n in size):
        raise TypeError(f"{argument}: expected {axes}, {number} ints, got {size!r}")
    if min(size) < 1:
        raise ValueError(f"{argument}: expected {axes} of at least 1, got {tuple(size)}")
    return tuple(map(int, size))


def check_output_size(size: object, dims: int = 2) -> str | Size:
    """Return ``size`` if it is ``"input"``, ``"stage"`` or ``(H, W)``, of volumes ``(D, H, W)``."""
    if isinstance(size, str):
        if size not in ("input", "stage"):
            axes = "(H, W)" if dims == 2 else "(D, H, W)"
            raise ValueError(f'size: expected "input", "stage" or {axes}, got {size!r}; choose one of them')
        return size
    return check_size("size", size, dims)


def check_scales(scales: object) -> tuple[float, ...]:
    """Return the scales as floats if they are finite numbers > 0."""
    if (
        isinstance(scales, str)
        or not isinstance(scales, Sequence)
        or not all(isinstance(s, int | float) for s in scales)
    ):
        raise TypeError(
            f"scales: expected a sequence of numbers such as (0.5, 1, 1.5, 2), got {scales!r}; pass a tuple"
        )
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(f"scales: expected at least one finite factor > 0, got {tuple(scales)}; pass (1.0,) for none")
    return tuple(float(scale) for scale in scales)


def check_images(images: object, channels: int, weight: Tensor, only_size: Size | None, dims: int = 2) -> Tensor:
    """Return ``images`` if a model can take them.

    Args:
        images: What the caller passed.
        channels: Of the images that the model takes.
        weight: One of the model's floating weights: images have its dtype (unless autocast converts them) and device.
        only_size: The only ``(H, W)`` that the model takes, of volumes ``(D, H, W)``; or None.
        dims: 3 of a model that takes volumes.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images: expected a torch tensor, got {type(images).__name__}; use torch.from_numpy")
    if images.ndim != 2 + dims or images.shape[1] != channels:
        axes = "H, W" if dims == 2 else "D, H, W"
        raise ValueError(
            f"images: expected shape (B, {channels}, {axes}), got {tuple(images.shape)}; add a batch axis with "
            "images[None] or bring the channels to the front"
        )
    if images.numel() == 0:
        raise ValueError(f"images: expected at least one image and pixel, got shape {tuple(images.shape)}")
    if images.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "images: expected a tensor without grad, got requires_grad=True; SSA is inference only: call under "
            "torch.no_grad() or pass images.detach()"
        )
    if images.dtype != weight.dtype and not (
        images.is_floating_point() and torch.is_autocast_enabled(images.device.type)
    ):
        raise TypeError(
            f"images: expected {weight.dtype} like the model's weights, got {images.dtype}; "
            f"convert with images.to({weight.dtype}) and normalise as the model wants"
        )
    if images.device != weight.device:
        raise ValueError(
            f"images: expected the model's device {weight.device}, got {images.device}; move them with .to()"
        )
    if only_size is not None and tuple(images.shape[2:]) != only_size:
        raise ValueError(
            f"images: expected {' x '.join(map(str, only_size))}, the only size this model takes, got "
            f"{' x '.join(map(str, images.shape[2:]))}; resize the images"
        )
    return images


def check_point(point: object, size: Size | None) -> tuple[float, ...]:
    """Return ``(y, x)`` or ``(z, y, x)`` as fractions of the sides; a pixel of an image of ``size`` is its centre."""
    if not isinstance(point, (tuple, list)) or len(point) not in (2, 3) or not all(isinstance(n, Real) for n in point):
        raise TypeError(f"point: expected (y, x), two numbers, got {point!r}; of volumes it is (z, y, x)")
    dims, numbers = len(point), [float(number) for number in point]
    point_axes, axes = ("(y, x)", "(H, W)") if dims == 2 else ("(z, y, x)", "(D, H, W)")
    if size is None:
        if not all(0 <= number <= 1 for number in numbers):
            raise ValueError(f"point: expected fractions in [0, 1], got {point}; give size={axes} for pixels")
        return tuple(numbers)
    size = check_size("size", size, dims)
    if not all(0 <= number < side for number, side in zip(numbers, size, strict=True)):
        kind = "image" if dims == 2 else "volume"
        raise ValueError(f"point: expected {point_axes} inside the {'×'.join(map(str, size))} {kind}, got {point}")
    return tuple((number + 0.5) / side for number, side in zip(numbers, size, strict=True))


def check_same_dims(point: Sequence[float], stages: Mapping[str, Stage]) -> None:
    """Raise ValueError unless a checked ``point`` has as many numbers as the stages have axes of pixels."""
    for name, stage in stages.items():
        if len(point) != stage.map.ndim - 2:
            expected = "(z, y, x) for volumes" if stage.map.ndim == 5 else "(y, x) for images"
            raise ValueError(f"point: expected {expected}, as stage {name!r} holds, got {tuple(point)}")


def _check_flag(argument: str, value: object, *, optional: bool = False) -> None:
    if not isinstance(value, bool) and not (optional and value is None):
        expected = "True, False or None" if optional else "True or False"
        raise TypeError(f"{argument}: expected {expected}, got {value!r}; use bool(...)")


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def per_stage(argument: str, value: Any, stages: Mapping[str, object], kind: type | tuple[type, ...]) -> dict[str, Any]:
    """Return one value per stage, from one value for all, a sequence in the stages' order, or a dict by their names."""
    if isinstance(value, kind):
        return dict.fromkeys(stages, value)
    if isinstance(value, Mapping):
        if set(value) != set(stages):
            raise ValueError(
                f"{argument}: expected the stages {', '.join(map(str, stages))}, got {', '.join(map(str, value))}"
            )
        values = {name: value[name] for name in stages}
    elif isinstance(value, (list, tuple)):
        if len(value) != len(stages):
            raise ValueError(f"{argument}: expected {len(stages)}, one per stage, got {len(value)}")
        values = dict(zip(stages, value, strict=True))
    else:
        raise TypeError(f"{argument}: expected one value, a sequence or a dict by stage, got {type(value).__name__}")
    for name, each in values.items():
        if not isinstance(each, kind):
            expected = getattr(kind, "__name__", str(kind))
            raise TypeError(f"{argument}: expected {expected} for stage {name!r}, got {type(each).__name__}")
    return values
