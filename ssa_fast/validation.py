"""Every check of a caller's input, once: arguments in, a ``Request`` out that the rest of the package trusts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ssa_fast.affinity import Affinity

ArrayLike: TypeAlias = "Tensor | np.ndarray[Any, Any]"
StagesLike: TypeAlias = "ArrayLike | Sequence[ArrayLike] | Mapping[str, ArrayLike]"
Affinities: TypeAlias = "Affinity | Sequence[Affinity] | Mapping[str, Affinity]"
Fuse: TypeAlias = Literal["mean", "max", "sum", "product"]
Weights: TypeAlias = "Sequence[float] | Mapping[str, float] | None"

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FUSES = ("mean", "max", "sum", "product")
METHODS = ("auto", "dense", "prototypes", "second_order", "tiled", "resident")
BACKENDS = ("auto", "torch", "triton", "reference")
PRECISIONS = ("default", "high")


class InputWarning(UserWarning):
    """An input could be read in more than one way; the message says how it was read, and how to say otherwise."""


@dataclass(frozen=True, eq=False)
class StageRequest:
    """One stage to polish: features ``(B, C, H, W)`` and the options of ``polish``.

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
    size: tuple[int, int] | None
    align_corners: bool = True
    backend: str = "auto"


@dataclass(frozen=True, eq=False)
class Request:
    """A checked call of ``polish``: the CAM as ``(B, K, h, w)``, a request per stage, and how to fuse them."""

    cam: Tensor
    stages: dict[str, StageRequest]
    fusion: FusionOptions
    rank: int
    is_numpy: bool

    def restore(self, polished: Tensor) -> ArrayLike:
        """Return ``(B, K, H, W)`` with the rank and the kind of array that the caller's CAM had."""
        for _ in range(4 - self.rank):
            polished = polished[0]
        return polished.cpu().numpy() if self.is_numpy else polished


def validate(
    cam: ArrayLike,
    feats: StagesLike,
    *,
    affinity: Affinities = Affinity(),  # noqa: B008 - frozen
    fuse: Fuse = "mean",
    weights: Weights = None,
    rescale: bool | None = None,
    size: tuple[int, int] | None = None,
    align_corners: bool = True,
    nonnegative: bool | None = None,
    method: str = "auto",
    backend: str = "auto",
    precision: str = "default",
) -> Request:
    """Check the arguments of ``polish`` and bring them into one form; raise what ``polish`` documents."""
    device = _device_of(feats)
    tensor = as_tensor("cam", cam, device)
    rank = tensor.ndim
    if rank not in (2, 3, 4):
        raise ValueError(f"cam: expected shape (h, w), (K, h, w) or (B, K, h, w), got {tuple(tensor.shape)}")
    if tensor.numel() == 0:
        raise ValueError(f"cam: expected at least one class and one pixel, got shape {tuple(tensor.shape)}")
    tensor = tensor.reshape((1,) * (4 - rank) + tuple(tensor.shape))
    stages = read_stages(feats, tensor.device)
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
        size=None if size is None else check_size("size", size),
        align_corners=align_corners,
        backend=backend,
    )
    affinities = per_stage("affinity", affinity, stages, Affinity)
    for name, stage in stages.items():
        if stage.shape[0] != tensor.shape[0]:
            raise ValueError(
                f"feats: expected the CAM's batch of {tensor.shape[0]}, got {stage.shape[0]} in stage {name!r} "
                f"(cam {tuple(tensor.shape)}, stage {tuple(stage.shape)})"
            )
        if stage.device != tensor.device:
            raise ValueError(
                f"feats: expected the CAM's device {tensor.device}, got {stage.device} in stage {name!r}; "
                "move one of them"
            )
    if backend != "reference":
        check_no_grad({"cam": tensor, **{f"feats ({name})": stage for name, stage in stages.items()}})
    requests = {
        name: StageRequest(
            stage,
            affinities[name],
            K=tensor.shape[1],
            dtype=result_dtype(tensor.dtype, stage.dtype),
            nonnegative=nonnegative,
            method=method,
            backend=backend,
            precision=precision,
            align_corners=align_corners,
        )
        for name, stage in stages.items()
    }
    return Request(tensor, requests, fusion, rank, isinstance(cam, np.ndarray))


def as_tensor(argument: str, value: object, device: torch.device | None = None) -> Tensor:
    """Return a floating tensor: a tensor as it is, a NumPy array on ``device``, its memory shared where possible."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fbiuc":
            raise TypeError(f"{argument}: expected a floating array, got dtype {value.dtype}")
        if not (value.flags.writeable and value.dtype.isnative and all(stride >= 0 for stride in value.strides)):
            value = value.astype(value.dtype.newbyteorder("="), order="C", copy=True)  # PyTorch cannot share it
        value = torch.from_numpy(value).to(device)
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: expected a torch tensor or a NumPy array, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        advice = "take .abs() or .real first" if value.is_complex() else "convert it with .float()"
        raise TypeError(f"{argument}: expected float16, bfloat16, float32 or float64, got {value.dtype}; {advice}")
    return value.resolve_neg()  # the memory of a lazily negated view has the other sign


def read_stages(feats: StagesLike, device: torch.device | None = None) -> dict[str, Tensor]:
    """Return the stages by name (``"0"``, ``"1"``, … for a sequence), each ``(B, C, H, W)``, all of one batch size."""
    if isinstance(feats, (Tensor, np.ndarray)):
        named: dict[str, Any] = {"feats": feats}
    elif isinstance(feats, Mapping):
        named = {f"feats[{name!r}]": value for name, value in feats.items()}
    elif isinstance(feats, (list, tuple)):
        named = {f"feats[{i}]": value for i, value in enumerate(feats)}
    else:
        raise TypeError(f"feats: expected a tensor or a list, tuple or dict of stages, got {type(feats).__name__}")
    if not named:
        raise ValueError(f"feats: expected at least one stage, got an empty {type(feats).__name__}")
    stages = []
    for argument, value in named.items():
        stage = as_tensor(argument, value, _device_of(feats) if device is None else device)
        if stage.ndim not in (3, 4):
            raise ValueError(f"{argument}: expected shape (B, C, H, W) or (C, H, W), got {tuple(stage.shape)}")
        if stage.numel() == 0:
            raise ValueError(f"{argument}: expected at least one channel and one pixel, got shape {tuple(stage.shape)}")
        stages.append(stage if stage.ndim == 4 else stage[None])
        if len(stages[-1]) != len(stages[0]):
            raise ValueError(
                f"{argument}: expected a batch of {len(stages[0])} like the first stage, got {len(stages[-1])}"
            )
    names = list(feats) if isinstance(feats, Mapping) else [str(i) for i in range(len(stages))]
    return dict(zip(names, stages, strict=True))


def _device_of(feats: StagesLike) -> torch.device | None:
    """Return the device of the first tensor among the stages, None if all are NumPy arrays."""
    each = feats.values() if isinstance(feats, Mapping) else feats if isinstance(feats, (list, tuple)) else [feats]
    for stage in each:  # a loop, since PyTorch 2.6 compiles no next()
        if isinstance(stage, Tensor):
            return stage.device
    return None


def check_no_grad(tensors: Mapping[str, Tensor]) -> None:
    """Refuse an input whose gradient would silently be lost: every backend but the reference is inference only."""
    for argument, tensor in tensors.items():
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(
                f"{argument}: expected a tensor without grad, got requires_grad=True; call under torch.no_grad(), pass "
                f".detach(), or use backend='reference', which is differentiable"
            )


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


def check_size(argument: str, size: object) -> tuple[int, int]:
    """Return ``(H, W)`` if ``size`` is two positive ints."""
    if not isinstance(size, (tuple, list, torch.Size)) or len(size) != 2 or not all(_is_int(n) for n in size):
        raise TypeError(f"{argument}: expected (H, W), two ints, got {size!r}")
    if min(size) < 1:
        raise ValueError(f"{argument}: expected (H, W) of at least 1, got {tuple(size)}")
    return int(size[0]), int(size[1])


def check_output_size(size: object) -> str | tuple[int, int]:
    """Return ``size`` if it is ``"input"``, ``"stage"`` or ``(H, W)``."""
    if isinstance(size, str):
        if size not in ("input", "stage"):
            raise ValueError(f'size: expected "input", "stage" or (H, W), got {size!r}; choose one of them')
        return size
    return check_size("size", size)


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


def check_images(images: object, channels: int, weight: Tensor, only_size: tuple[int, int] | None) -> Tensor:
    """Return ``images`` if a model can take them.

    Args:
        images: What the caller passed.
        channels: Of the images that the model takes.
        weight: One of the model's floating weights: images have its dtype (unless autocast converts them) and device.
        only_size: The only ``(H, W)`` that the model takes, or None.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images: expected a torch tensor, got {type(images).__name__}; use torch.from_numpy")
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(
            f"images: expected shape (B, {channels}, H, W), got {tuple(images.shape)}; add a batch axis with "
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
    if only_size is not None and tuple(images.shape[-2:]) != only_size:
        raise ValueError(
            f"images: expected {only_size[0]} x {only_size[1]}, the only size this model takes, got "
            f"{images.shape[-2]} x {images.shape[-1]}; resize the images"
        )
    return images


def check_point(point: object, size: tuple[int, int] | None) -> tuple[float, float]:
    """Return ``(y, x)`` as fractions of height and width; a pixel of an image of ``size`` counts by its centre."""
    if not isinstance(point, (tuple, list)) or len(point) != 2 or not all(isinstance(n, Real) for n in point):
        raise TypeError(f"point: expected (y, x), two numbers, got {point!r}")
    y, x = float(point[0]), float(point[1])
    if size is None:
        if not (0 <= y <= 1 and 0 <= x <= 1):
            raise ValueError(f"point: expected fractions in [0, 1], got {point}; give size=(H, W) for pixels")
        return y, x
    H, W = check_size("size", size)
    if not (0 <= y < H and 0 <= x < W):
        raise ValueError(f"point: expected (y, x) inside the {H}×{W} image, got {point}")
    return (y + 0.5) / H, (x + 0.5) / W


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
