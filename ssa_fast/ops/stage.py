"""Polish one stage: plan it (which method, on which backend), then run the plan."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from ssa_fast import reference
from ssa_fast.kernels.launch import call
from ssa_fast.ops import gpu_info, torch_backend, triton_backend
from ssa_fast.ops.cost_model import Problem
from ssa_fast.ops.dispatch import needs_sign, not_supported_reasons, plan
from ssa_fast.ops.features import NegativeFeatureError, UnitFeatures
from ssa_fast.ops.numerics import no_autocast
from ssa_fast.ops.resize import resize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from ssa_fast.ops.dispatch import Choice
    from ssa_fast.validation import StageRequest


@dataclass(frozen=True, eq=False)
class StagePlan:
    """A planned stage: the request, its numbers, and the choice made.

    ``check_sign`` is set where the choice is good for features ≥ 0 only, and running it will show whether they are.
    """

    request: StageRequest
    problem: Problem
    choice: Choice
    check_sign: bool = False

    @property
    def depends_on_data(self) -> bool:
        """Whether the features' sign was read for the choice."""
        return self.problem.nonnegative is not self.request.nonnegative

    def without_features(self) -> StagePlan:
        """Return the same plan, which may outlive the features."""
        return replace(self, request=replace(self.request, features=self.request.features.new_empty(0)))


def plan_stages(requests: Mapping[str, StageRequest], *, read_signs: bool = False) -> dict[str, StagePlan]:
    """Plan every stage before any is computed, so that a refusal costs nothing (one by ``run_stages`` costs a tile)."""
    return {name: plan_stage(request, read_sign=read_signs) for name, request in requests.items()}


def plan_stage(request: StageRequest, *, read_sign: bool = False) -> StagePlan:
    """Choose method and backend of a stage; read the features' sign where the host has to know it.

    On the CPU it need not, unless ``read_sign`` asks for the choice that the features lead to: the methods find a
    negative feature when they first read its tile, and ``run_stages`` then chooses again.

    Raises:
        ValueError: The method or backend named cannot polish this stage exactly, with the reasons.
    """
    features = request.features
    B, C, *sides = features.shape
    gpu, no_gpu = gpu_info.query(features.device)
    problem = Problem(
        B,
        request.K,
        C,
        prod(sides),
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
        if problem.device == "cpu" and not read_sign:
            choice = plan(replace(problem, nonnegative=True), request.method, request.backend)
            if choice.backend == "torch":
                reasons = not_supported_reasons(choice.method, "torch", replace(problem, nonnegative=False))
                return StagePlan(request, problem, choice, check_sign=bool(reasons))
        nonnegative = UnitFeatures(features, request.affinity, features.dtype).nonnegative()
        problem = replace(problem, nonnegative=nonnegative)
    return StagePlan(request, problem, plan(problem, request.method, request.backend))


def run_stages(cam: Tensor, features: Sequence[Tensor], stages: Sequence[StagePlan]) -> list[Tensor]:
    """Return the polished CAM of each stage; those that the kernels do share what they compute of the CAM.

    ``features`` are those that the stages were planned for, or others of the same shapes, strides and dtypes.

    Raises:
        ValueError: A feature is not ≥ 0, as a method that was asked for needs it.
    """
    pairs = list(zip(features, stages, strict=True))
    by_kernels = [_for_kernels(each, stage) for each, stage in pairs if stage.choice.backend == "triton"]
    polish = triton_backend.polish_stages if cam.ndim == 4 else triton_backend.polish_volumes
    polished = iter(polish(cam, by_kernels) if by_kernels else ())
    maps = []
    for each, stage in pairs:
        request, choice = stage.request, stage.choice
        if choice.backend == "triton":
            maps.append(next(polished))
        elif choice.backend == "reference":
            maps.append(_polish_by_reference(cam, request))
        else:
            arguments = (cam, each, request.affinity)
            options: dict[str, Any] = {"dtype": request.dtype, "align_corners": request.align_corners}
            if stage.check_sign:
                with suppress(NegativeFeatureError):
                    maps.append(
                        torch_backend.polish_stage(*arguments, method=choice.method, check_sign=True, **options)
                    )
                    continue
                choice = plan(replace(stage.problem, nonnegative=False), request.method, request.backend)
            maps.append(call(torch_backend.polish_stage, *arguments, method=choice.method, **options))
    return maps


def _for_kernels(features: Tensor, stage: StagePlan) -> triton_backend.Stage:
    request, choice = stage.request, stage.choice
    return triton_backend.Stage(
        features,
        request.affinity,
        choice.method,
        choice.fallback,
        request.precision,
        request.align_corners,
    )


def _polish_by_reference(cam: Tensor, request: StageRequest) -> Tensor:
    size = request.features.shape[2:]
    with no_autocast(cam.device):
        rows = resize(cam.to(request.dtype), size, request.align_corners).flatten(2)
        features = request.features.to(request.dtype).flatten(2)
        return reference.polish_stage(rows, features, request.affinity).unflatten(2, size)
