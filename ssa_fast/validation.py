"""What callers pass in, checked and brought to one form: CAMs ``(B, K, h, w)``, stages by name ``(B, C, H, W)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

Array: TypeAlias = "Tensor | np.ndarray[Any, Any]"
Features: TypeAlias = "Array | Sequence[Array] | Mapping[str, Array]"

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Cam:
    """A caller's CAM as ``(B, K, h, w)``, and how to hand a result back the way it came."""

    tensor: Tensor
    rank: int
    is_numpy: bool

    def restore(self, polished: Tensor) -> Array:
        """``(B, K, H, W)`` with the axes and the kind of array that the caller's CAM had."""
        for _ in range(4 - self.rank):
            polished = polished[0]
        return polished.cpu().numpy() if self.is_numpy else polished


def to_tensor(argument: str, value: object, device: torch.device | None = None) -> Tensor:
    """A floating tensor from a tensor (as it is) or a NumPy array (sharing memory where NumPy's layout allows)."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fbiuc":
            raise TypeError(f"{argument}: expected a floating array, got dtype {value.dtype}")
        if not _torch_can_share(value):
            value = value.astype(value.dtype.newbyteorder("="), order="C", copy=True)
        value = torch.from_numpy(value).to(device)
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: expected a torch tensor or a NumPy array, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        advice = "take .abs() or .real first" if value.is_complex() else "convert it with .float()"
        raise TypeError(f"{argument}: expected float16, bfloat16, float32 or float64, got {value.dtype}; {advice}")
    return value


def _torch_can_share(array: np.ndarray[Any, Any]) -> bool:
    return array.flags.writeable and array.dtype.isnative and all(stride >= 0 for stride in array.strides)


def read_cam(cam: Array, device: torch.device | None = None) -> Cam:
    """Check a CAM of shape ``(h, w)``, ``(K, h, w)`` or ``(B, K, h, w)``; a NumPy one is put on ``device``."""
    tensor = to_tensor("cam", cam, device)
    rank = tensor.ndim
    if rank not in (2, 3, 4):
        raise ValueError(f"cam: expected shape (h, w), (K, h, w) or (B, K, h, w), got {tuple(tensor.shape)}")
    if tensor.numel() == 0:
        raise ValueError(f"cam: expected at least one class and one pixel, got shape {tuple(tensor.shape)}")
    return Cam(tensor.reshape((1,) * (4 - rank) + tuple(tensor.shape)), rank, isinstance(cam, np.ndarray))


def read_stages(feats: Features, device: torch.device | None = None) -> dict[str, Tensor]:
    """Stages by name (``"0"``, ``"1"``, … for a sequence), each ``(B, C, H, W)``, all of one batch size and device."""
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
    stages = [_read_stage(argument, value, device) for argument, value in named.items()]
    for argument, stage in zip(named, stages, strict=True):
        if stage.shape[0] != stages[0].shape[0]:
            raise ValueError(f"{argument}: expected a batch of {len(stages[0])} like the first stage, got {len(stage)}")
    names = list(feats) if isinstance(feats, Mapping) else [str(i) for i in range(len(stages))]
    return dict(zip(names, stages, strict=True))


def _read_stage(argument: str, value: object, device: torch.device | None) -> Tensor:
    stage = to_tensor(argument, value, device)
    if stage.ndim not in (3, 4):
        raise ValueError(f"{argument}: expected shape (B, C, H, W) or (C, H, W), got {tuple(stage.shape)}")
    if stage.numel() == 0:
        raise ValueError(f"{argument}: expected at least one channel and one pixel, got shape {tuple(stage.shape)}")
    return stage if stage.ndim == 4 else stage[None]


def check_together(cam: Tensor, stages: Mapping[str, Tensor]) -> None:
    """The CAM and every stage share batch size and device."""
    for name, stage in stages.items():
        if stage.shape[0] != cam.shape[0]:
            raise ValueError(
                f"feats: expected the CAM's batch of {cam.shape[0]}, got {stage.shape[0]} in stage {name!r} "
                f"(cam {tuple(cam.shape)}, stage {tuple(stage.shape)})"
            )
        if stage.device != cam.device:
            raise ValueError(
                f"feats: expected the CAM's device {cam.device}, got {stage.device} in stage {name!r}; move one of them"
            )


def check_no_grad(tensors: Mapping[str, Tensor]) -> None:
    """Refuse an input whose gradient would silently be lost: every backend but the reference is inference only."""
    for argument, tensor in tensors.items():
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(
                f"{argument}: expected a tensor without grad, got requires_grad=True; call under torch.no_grad(), pass "
                f".detach(), or use backend='reference', which is differentiable"
            )


def check_size(argument: str, size: object) -> tuple[int, int]:
    """``(H, W)`` of two positive ints."""
    if not isinstance(size, (tuple, list, torch.Size)) or len(size) != 2 or not all(_is_int(n) for n in size):
        raise TypeError(f"{argument}: expected (H, W), two ints, got {size!r}")
    if min(size) < 1:
        raise ValueError(f"{argument}: expected (H, W) of at least 1, got {tuple(size)}")
    return int(size[0]), int(size[1])


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def per_stage(argument: str, value: Any, stages: Mapping[str, Tensor], kind: type | tuple[type, ...]) -> dict[str, Any]:
    """One value per stage, from one value for all, a sequence in the stages' order, or a dict by their names."""
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
