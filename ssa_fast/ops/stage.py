"""Polish one stage: plan it (which method, on which backend), then run the plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ssa_fast import reference
from ssa_fast.ops import gpu_info, torch_backend, triton_backend
from ssa_fast.ops.cost_model import Problem
from ssa_fast.ops.dispatch import needs_sign, plan
from ssa_fast.ops.features import UnitFeatures
from ssa_fast.ops.resize import resize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ssa_fast.ops.dispatch import Choice
    from ssa_fast.validation import StageRequest


@dataclass(frozen=True, eq=False)
class StagePlan:
    """A stage's request, its numbers, and the choice that was made for it."""

    request: StageRequest
    problem: Problem
    choice: Choice


def plan_stages(requests: Mapping[str, StageRequest]) -> dict[str, StagePlan]:
    """Plan every stage before any is computed, so that a refusal costs nothing."""
    return {name: plan_stage(request) for name, request in requests.items()}


def plan_stage(request: StageRequest) -> StagePlan:
    """Choose method and backend of a stage; read the features' sign where the host has to know it.

    Raises:
        ValueError: The method or backend named cannot polish this stage exactly, with the reasons.
    """
    features = request.features
    B, C, H, W = features.shape
    gpu, no_gpu = gpu_info.query(features.device)
    problem = Problem(
        B,
        request.K,
        C,
        H * W,
        request.affinity,
        request.nonnegative,
        itemsize=request.dtype.itemsize,
        device=features.device.type,
        dtype=str(features.dtype).removeprefix("torch."),
        precision=request.precision,
        gpu=gpu,
        no_gpu=no_gpu,
    )
    if needs_sign(problem, request.method, request.backend):
        nonnegative = UnitFeatures(features, request.affinity, features.dtype).nonnegative()
        problem = replace(problem, nonnegative=nonnegative)
    return StagePlan(request, problem, plan(problem, request.method, request.backend))


def run_stage(cam: Tensor, stage: StagePlan) -> Tensor:
    """Return the stage's polished CAM at its own size, not rescaled: ``(B, K, h, w)`` → ``(B, K, H, W)``."""
    request, choice = stage.request, stage.choice
    features, affinity, align_corners = request.features, request.affinity, request.align_corners
    with torch.autocast(cam.device.type, enabled=False):  # autocast would take float32 out of the accumulation
        if choice.backend == "triton":
            return triton_backend.polish_stage(
                cam,
                features,
                affinity,
                method=choice.method,
                fallback=choice.fallback,
                precision=request.precision,
                align_corners=align_corners,
            )
        if choice.backend == "torch":
            return torch_backend.polish_stage(
                cam, features, affinity, method=choice.method, dtype=request.dtype, align_corners=align_corners
            )
        size = (features.shape[2], features.shape[3])
        rows = resize(cam.to(request.dtype), size, align_corners).flatten(2)
        polished = reference.polish_stage(rows, features.to(request.dtype).flatten(2), affinity)
        return polished.unflatten(2, size)
