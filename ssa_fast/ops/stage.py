"""One stage from the decision to the result: which way, then that way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ssa_fast import reference
from ssa_fast.ops import gpu_info, torch_backend, triton_backend
from ssa_fast.ops.cost_model import Problem
from ssa_fast.ops.dispatch import plan, reads_sign
from ssa_fast.ops.fusion import resize

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.affinity import Affinity
    from ssa_fast.ops.dispatch import Choice


@dataclass(frozen=True)
class StagePlan:
    """One stage ``(B, C, H, W)`` with all that was decided about it."""

    stage: Tensor
    problem: Problem
    choice: Choice

    def run(self, cam: Tensor, align_corners: bool) -> Tensor:
        """The stage's polished CAM, ``(B, K, h, w)`` → ``(B, K, H, W)``."""
        with torch.autocast(cam.device.type, enabled=False):  # it would take the float32 out of the accumulation
            return self._run(cam, align_corners)

    def _run(self, cam: Tensor, align_corners: bool) -> Tensor:
        H, W = self.stage.shape[2:]
        affinity = self.problem.affinity
        if self.choice.backend == "triton":
            return triton_backend.polish_stage(
                cam,
                self.stage,
                affinity,
                method=self.choice.method,
                otherwise=self.choice.otherwise,
                precision=self.problem.precision,
                align_corners=align_corners,
            )
        dtype = result_dtype(cam, self.stage)
        rows = resize(cam.to(dtype), (H, W), align_corners).flatten(2)  # [B, K, L]
        if self.choice.backend == "reference":
            polished = reference.polish_stage(rows, self.stage.to(dtype).flatten(2), affinity)
        else:
            polished = torch_backend.polish_stage(
                rows, torch_backend.Pixels(self.stage, affinity, dtype), self.choice.method
            )
        return polished.unflatten(2, (H, W))


def decide(
    cam: Tensor,
    stage: Tensor,
    affinity: Affinity,
    *,
    nonnegative: bool | None,
    method: str,
    backend: str,
    precision: str,
) -> StagePlan:
    """Choose the way of a stage; reads the features' sign where the host has to know it.

    Raises:
        ValueError: a way that was named cannot do this stage, with the reasons.
    """
    B, C, H, W = stage.shape
    gpu, no_gpu = gpu_info.query(stage.device)
    problem = Problem(
        B,
        cam.shape[1],
        C,
        H * W,
        affinity,
        nonnegative,
        itemsize=result_dtype(cam, stage).itemsize,
        device=stage.device.type,
        dtype=str(stage.dtype).removeprefix("torch."),
        precision=precision,
        gpu=gpu,
        no_gpu=no_gpu,
    )
    if reads_sign(problem, method, backend):
        problem = replace(problem, nonnegative=torch_backend.Pixels(stage, affinity, stage.dtype).nonnegative())
    return StagePlan(stage, problem, plan(problem, method, backend))


def result_dtype(cam: Tensor, stage: Tensor) -> torch.dtype:
    """float64 if either is, else float32, which also accumulates half and bfloat16."""
    return torch.float64 if torch.float64 in (cam.dtype, stage.dtype) else torch.float32
