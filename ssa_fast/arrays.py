"""Read a caller's arrays as tensors: CAMs in the forms that other packages return, and stages."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ssa_fast.layouts import DOUBTFUL, RANKS, find_doubt, is_nchw, misfit, view_as_stage

if TYPE_CHECKING:
    from collections.abc import Collection

    from ssa_fast.layouts import Doubt, Size

ArrayLike: TypeAlias = "Tensor | np.ndarray[Any, Any]"
CamLike: TypeAlias = "ArrayLike | Sequence[ArrayLike]"
StagesLike: TypeAlias = "ArrayLike | Sequence[ArrayLike] | Mapping[str, ArrayLike]"

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class InputWarning(UserWarning):
    """An input could be read in more than one way; the message says how it was read, and how to say otherwise."""


class Stage(NamedTuple):
    """One stage as ``(B, C, H, W)``, whether the caller's has a batch axis, and a note on how it was read, or None.

    Volumes are ``(B, C, D, H, W)``, always with their batch axis.
    """

    map: Tensor
    batched: bool
    note: str | None


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


def read_cams(cam: CamLike, device: torch.device | None) -> list[Tensor]:
    """Return the CAM as a list of one, or torch-cam's list of a CAM per target layer, all of one rank."""
    if not isinstance(cam, (list, tuple)):
        tensors = [as_tensor("cam", cam, device)]
    else:
        if not cam:
            raise ValueError(f"cam: expected at least one CAM, got an empty {type(cam).__name__}")
        if not all(isinstance(each, (Tensor, np.ndarray)) for each in cam):
            as_tensor("cam", cam)  # a list of numbers
        tensors = [as_tensor(f"cam[{i}]", each, device) for i, each in enumerate(cam)]
    several = isinstance(cam, (list, tuple))
    for tensor in tensors:
        if not 2 + several <= tensor.ndim <= 5 or tensor.ndim != tensors[0].ndim:
            expected = "(h, w), (K, h, w) or (B, K, h, w), or (B, K, d, h, w) of volumes"
            if several:
                expected = (
                    "(N, h, w) or (B, K, h, w), or (B, K, d, h, w) of volumes, of every layer (stack the maps of "
                    "several classes)"
                )
            raise ValueError(f"cam: expected shape {expected}, got {tuple(tensor.shape)}")
        if tensor.numel() == 0:
            raise ValueError(f"cam: expected at least one class and one pixel, got shape {tuple(tensor.shape)}")
    return tensors


def unbatch_cam(polished: Tensor, rank: int) -> Tensor:
    """Return ``(B, K, H, W)`` with the rank that the caller's CAM had; see ``match``. Volumes stay as they are."""
    if rank >= 4:
        return polished
    return polished[:, 0] if rank == 3 and polished.shape[0] > 1 else polished[(0,) * (4 - rank)]


def name_stages(feats: StagesLike) -> dict[str, tuple[str, ArrayLike]]:
    """Return what the caller calls each stage, and the stage, by name (``"0"``, ``"1"``, … for a sequence)."""
    if isinstance(feats, (Tensor, np.ndarray)):
        return {"0": ("feats", feats)}
    if isinstance(feats, Mapping):
        named = {name: (f"feats[{name!r}]", value) for name, value in feats.items()}
    elif isinstance(feats, (list, tuple)):
        named = {str(i): (f"feats[{i}]", value) for i, value in enumerate(feats)}
    else:
        raise TypeError(f"feats: expected a tensor or a list, tuple or dict of stages, got {type(feats).__name__}")
    if not named:
        raise ValueError(f"feats: expected at least one stage, got an empty {type(feats).__name__}")
    return named


def device_of(feats: StagesLike) -> torch.device | None:
    """Return the device of the first tensor among the stages, None if all are NumPy arrays."""
    each = feats.values() if isinstance(feats, Mapping) else feats if isinstance(feats, (list, tuple)) else [feats]
    for stage in each:  # a loop, since PyTorch 2.6 compiles no next()
        if isinstance(stage, Tensor):
            return stage.device
    return None


def _read_stage(
    argument: str,
    features: Tensor,
    layout: str | None,
    grid: Size | None,
    aspect: Size | None,
    batches: Collection[int],
) -> Stage:
    """Return a stage as a view ``(B, C, [D,] H, W)``; without a layout it is NCHW, unless that cannot be.

    Args:
        argument: What the caller calls it.
        features, layout, grid: As the caller gave them.
        aspect: ``([d,] h, w)`` of the CAM, None if there is none.
        batches: Numbers of images that the CAM may have.
    """
    stage, note = view_as_stage(argument, features, layout or "nchw", grid, aspect), None
    doubt = find_doubt(stage.shape, aspect, batches) if layout is None else None
    if doubt is not None or (layout == "nhwc" and is_nchw(features.shape, aspect)):
        note = _note(argument, features, stage, aspect, doubt)  # texts are made here only: torch.compile joins none
    batched = features.ndim >= RANKS[layout or "nchw"]
    return Stage(stage if batched else stage[None], batched, note)


def _note(argument: str, features: Tensor, stage: Tensor, aspect: Size | None, doubt: Doubt | None) -> str:
    """Return a note on how features were read; raise ValueError if they cannot be a stage."""
    axes = "(B, C, D, H, W)" if stage.ndim == 5 else "(B, C, H, W)"
    C, (H, W) = stage.shape[1 if stage.ndim == 5 else -3], stage.shape[-2:]
    beside = f" beside a CAM of {' × '.join(map(str, aspect))}" if aspect else ""
    got = f"{tuple(features.shape)}{beside}"
    if doubt is None:
        return (
            f"{argument}: {got} is read as H = {H}, W = {W} and C = {C}, though it looks like {axes}; if it has "
            "these axes in channels_last memory, leave layout out"
        )
    advice = f'{doubt.looks}; pass {doubt.advice}, or layout="nchw" if C = {C}, H = {H} and W = {W}'
    axes = axes if stage.ndim == 5 else f"{axes} or (C, H, W)"
    if doubt.refuse:
        raise ValueError(f"{argument}: expected {axes}, got {got}, which looks like {advice}")
    return f"{argument}: {got} is read as {axes}, though it looks like {advice}"


def read_stages(
    named: Mapping[str, tuple[str, ArrayLike]],
    layouts: Mapping[str, str | None],
    grids: Mapping[str, Size | None],
    cams: Sequence[Tensor],
    device: torch.device | None,
    size: Size | None,
) -> dict[str, Stage]:
    """Return the stages of ``name_stages``, all of one batch size.

    Args:
        named, layouts, grids: By name.
        cams: The CAM or one per stage, of rank 2 to 5; stages that were not announced should have its aspect ratio.
        device: Where NumPy arrays go.
        size: ``(H, W)`` of the image or ``(D, H, W)`` of the volume, if there is no CAM.

    Raises:
        ValueError: Stages of another batch size, or of volumes beside those or a CAM of images.
    """
    if len(cams) > 1 and len(cams) != len(named):
        raise ValueError(
            f"cam: expected one CAM, or one per stage ({len(named)}), got {len(cams)}; pass one of them, such as cam[0]"
        )
    stages: dict[str, Stage] = {}
    for i, (name, (argument, value)) in enumerate(named.items()):
        aspect, batches = size, {1}
        if cams:
            cam = cams[i % len(cams)]
            aspect = tuple(cam.shape[2:]) if cam.ndim == 5 else (cam.shape[-2], cam.shape[-1])
            batches = {cam.shape[0]} if cam.ndim >= 4 else {1, cam.shape[0]} if cam.ndim == 3 else {1}
        features, layout, grid = as_tensor(argument, value, device), layouts[name], grids[name]
        if cams and (layout != "tokens" or grid) and (cams[0].ndim == 5) != (5 in (features.ndim, 2 + len(grid or ()))):
            raise ValueError(_mixed_ranks(features, cams[0]))
        stage = _read_stage(argument, features, layout, grid, aspect, batches)
        first = next(iter((stages or {name: stage}).values()))  # PyTorch 2.6 compiles no next() with a default
        if stage.map.ndim != first.map.ndim:
            raise ValueError(
                f"{argument}: expected {'volumes' if first.map.ndim == 5 else 'images'} like the first stage, "
                f"{tuple(first.map.shape)}, got {tuple(stage.map.shape)}; pass them in a call of their own"
            )
        if len(stage.map) != len(first.map):
            raise ValueError(
                f"{argument}: expected a batch of {len(first.map)} like the first stage, got {len(stage.map)}"
            )
        stages[name] = stage
    return stages


def _mixed_ranks(features: Tensor, cam: Tensor) -> str:
    """Return why a CAM of images cannot be polished along volumes, or one of volumes along images."""
    if cam.ndim < 5:
        return (
            f"cam: expected shape (B, K, d, h, w) beside volumes {tuple(features.shape)}, got {tuple(cam.shape)}; add "
            "the missing axis: cam[:, None] for one map (B, d, h, w) per volume, cam[None] for K maps (K, d, h, w) of "
            "a single one"
        )
    return (
        f"cam: expected shape (B, K, h, w) beside features {tuple(features.shape)}, got {tuple(cam.shape)} of volumes; "
        "their features are (B, C, D, H, W), those of a single volume with [None]"
    )


def match(cams: Sequence[Tensor], stages: Mapping[str, Stage]) -> list[Tensor]:
    """Return CAMs of rank 2 to 4 as ``(B, K, h, w)``, where they have one K, and the stages' B and device.

    Those of volumes are ``(B, K, d, h, w)`` already. Rank 3 is one map for each of B images, as other packages return
    it, or K maps for one image.
    """
    B = len(next(iter(stages.values())).map)
    of_images = B > 1 and cams[0].ndim == 3 and len(cams[0]) == B
    matched = [cam[:, None] if of_images else cam.reshape((1,) * (4 - cam.ndim) + tuple(cam.shape)) for cam in cams]
    for i, cam in enumerate(matched):
        if cam.shape[:2] != matched[0].shape[:2]:
            raise ValueError(f"cam[{i}]: expected the first CAM's images and classes, got shape {tuple(cams[i].shape)}")
    for name, stage in stages.items():
        if len(matched[0]) != B:
            hint = f"; a CAM (N, h, w) of N images needs N = {B}" if cams[0].ndim == 3 else ""
            hint = hint if stage.batched else "; features of rank 3 are (C, H, W): for (B, N, C) pass layout='tokens'"
            raise ValueError(
                f"feats: expected the CAM's batch of {len(matched[0])}, got {B} in stage {name!r} "
                f"(cam {tuple(cams[0].shape)}, stage {tuple(stage.map.shape)}){hint}"
            )
        if stage.map.device != cams[0].device:
            raise ValueError(
                f"feats: expected the CAM's device {cams[0].device}, got {stage.map.device} in stage {name!r}; "
                "move one of them"
            )
    return matched


def note_classes_last(cams: Sequence[Tensor], stages: Mapping[str, Stage]) -> list[str]:
    """Return a note on each CAM that would have the stages' aspect ratio as ``([d,] h, w, K)`` and does not have it."""
    sizes = [(stage.map.shape[-2], stage.map.shape[-1]) for stage in stages.values()]
    notes = []
    for cam in cams:
        if cam.ndim == 2:
            continue
        y, h, w = cam.shape[-3:]
        if all(misfit((h, w), size) > DOUBTFUL and misfit((y, h), size) == 0 for size in sizes):
            axis = -4 if cam.ndim == 5 else -3
            K, *own = cam.shape[axis:]
            read, other = " × ".join(map(str, own)), " × ".join(map(str, cam.shape[axis:-1]))
            notes.append(
                f"cam: {tuple(cam.shape)} is read as {K} maps of {read}, though {w} maps of {other} would fit the "
                f"stages; if classes come last, move them with movedim(-1, {axis})"
            )
    return notes


def detach(arguments: Sequence[str], tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[str]]:
    """Return tensors without the gradient that a result would lose, and a note that names them, if there are any."""
    grads = [torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]
    if not any(grads):
        return list(tensors), []
    named = ", ".join(dict.fromkeys(name for name, grad in zip(arguments, grads, strict=True) if grad))
    note = (
        f"{named}: requires_grad=True, but the result has no gradient (it was detached); call under torch.no_grad() or "
        "pass .detach(), or use polish(…, backend='reference'), which is differentiable"
    )
    return [tensor.detach() if grad else tensor for tensor, grad in zip(tensors, grads, strict=True)], [note]


def give(notes: Sequence[str], stacklevel: int) -> None:
    """Warn of how inputs were read; refuse them where PyTorch compiles, as nobody would be warned in later calls."""
    for note in notes:
        if torch.compiler.is_compiling():
            raise ValueError(note)
        warnings.warn(note, InputWarning, stacklevel=stacklevel + 1)
