"""Compute a view from kept features: as ``SSA`` does, stage by stage, each with its method, time and cost."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import avg_pool2d, interpolate

from ssa_fast.localize import PostprocessOptions, background_of
from ssa_fast.localize.threshold import BOX_POWER, self_weighted_mean
from ssa_fast.models.scores import probabilities
from ssa_fast.models.stage_affinity import choose_affinities
from ssa_fast.ops.dispatch import estimate
from ssa_fast.ops.fusion import fuse
from ssa_fast.ops.polish import rescale_each
from ssa_fast.ops.prior import apply_prior, check_prior
from ssa_fast.ops.stage import plan_stage, run_stages
from ssa_fast.result import SSAResult
from ssa_fast.validation import StageRequest, check_fuse, check_weights, result_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ssa_fast.explore.settings import ViewSettings
    from ssa_fast.models.extract import Features
    from ssa_fast.ops.dispatch import Choice
    from ssa_fast.ops.stage import StagePlan
    from ssa_fast.ssa import SSA

FAST = 0.08
"""Seconds, by the cost model, above which a preview goes first; two cores may take four times as long."""

SEED, CAMS = "the seed", "the fused CAMs"  # beside the stages' names, which hold no space


@dataclass(frozen=True, eq=False)
class StageReport:
    """How one stage was polished.

    Attributes:
        size: (height, width) of the stage, in a preview of the coarser one.
        choice: Method, backend and the reason.
        milliseconds: What it took.
        dense_bytes: What the affinity matrix would have held, in full.
        seconds: What it takes in full by the cost model.
    """

    size: tuple[int, int]
    choice: Choice
    milliseconds: float
    dense_bytes: int
    seconds: float


@dataclass(frozen=True, eq=False)
class View:
    """A computed view.

    Attributes:
        settings: What was asked for.
        result: Seed, stages and fused CAMs, these at the size that the image is shown at.
        cams: (1, K, h, w) float32, the fused CAMs as ``SSA(size="stage")`` returns them.
        stages: Stage name -> report.
        seed_kind: "cam", "grad-cam" or "layercam".
        polish_ms, features_ms: What polishing took, and the network (0: its features were kept).
        preview: Why this is a preview of coarser stages, "" if it is not.
        levels: Per class, the level above which a pixel is in a box; the background's for the mask.
        background: The mask's automatic background score.
    """

    settings: ViewSettings
    result: SSAResult
    cams: Tensor
    stages: dict[str, StageReport]
    seed_kind: str
    polish_ms: float
    features_ms: float
    preview: str
    levels: tuple[float, ...]
    background: float

    @property
    def nbytes(self) -> int:
        """Bytes of all maps."""
        maps = (self.result.cams, self.result.seed, *self.result.stages.values(), self.cams)
        return sum(each.numel() * each.element_size() for each in maps)


def variant(ssa: SSA, settings: ViewSettings) -> SSA:
    """Return an ``SSA`` with the settings' affinity, fusion and prior, without inspecting the network again.

    Raises:
        ValueError, TypeError: As ``SSA`` raises for these options.
    """
    other = copy.copy(ssa)
    other.affinity = settings.affinities
    other.affinities = choose_affinities(other.affinity, ssa.info.signs)
    weights = check_weights(settings.weights, ssa.info.stages)
    other.fusion = replace(ssa.fusion, fuse=check_fuse(settings.fuse), weights=weights)
    other.prior = check_prior(settings.prior)
    return other


def compute(
    ssa: SSA, features: Features, seed: Tensor, settings: ViewSettings, size: tuple[int, int], features_ms: float
) -> View:
    """Polish a seed (1, K, h, w) in every stage of an image's features, and fuse: what ``ssa`` does with the image.

    Where that takes long by the cost model and ``settings.full`` does not ask for it, the stages' features are averaged
    over squares of pixels first: a preview.

    Args:
        ssa: From ``variant``, with ``size="stage"``.
        features: Of one image, with logits.
        seed: Of ``settings.classes``.
        settings: The view's.
        size: (height, width) at which the image is shown.
        features_ms: What the network took for it, 0 if that was kept.
    """
    start = time.perf_counter()
    with torch.no_grad(), torch.autocast(seed.device.type, enabled=False):
        cam = apply_prior(seed, ssa.prior)
        full = {name: _plan(ssa, name, features.maps[name], features, cam) for name in ssa.stage_names}
        plans = full if settings.full else _coarsen(full)
        maps, stages = {}, {}
        for name, plan in plans.items():
            began = time.perf_counter()
            (maps[name],) = run_stages(cam, [plan.request.features], [plan])
            _wait(cam)
            milliseconds = 1e3 * (time.perf_counter() - began)
            problem = full[name].problem
            dense, shape = problem.L**2 * problem.itemsize, plan.request.features.shape
            stages[name] = StageReport((shape[2], shape[3]), plan.choice, milliseconds, dense, _seconds(full[name]))
        fused = fuse(maps, replace(ssa.fusion, size=None))
        rescaled = {name: each.float().cpu() for name, each in rescale_each({SEED: seed, **maps, CAMS: fused}).items()}
        polish_ms = 1e3 * (time.perf_counter() - start)
        cams = rescaled[CAMS]
        shown = interpolate(cams, size, mode="bilinear", align_corners=ssa.align_corners).clamp_(0.0, 1.0)
        index = torch.tensor([settings.classes])
        logits = features.logits.detach().float().cpu()
        result = SSAResult(
            cams=shown,
            seed=rescaled[SEED],
            stages={name: rescaled[name] for name in ssa.stage_names},
            logits=logits,
            classes=index,
            valid=torch.ones_like(index, dtype=torch.bool),
            scores=probabilities(logits, ssa.probability).gather(1, index),
            output_names=ssa.names,
            notes=(*ssa.info.notes, *([ssa.names_note] if ssa.names_note else [])),
        )
    return View(
        settings,
        result,
        cams,
        stages,
        ssa.seed_kind,
        polish_ms,
        features_ms,
        _reason(full, plans),
        tuple(self_weighted_mean(shown[0], BOX_POWER).tolist()),
        background_of(shown[0], PostprocessOptions()) or 0.0,
    )


def _plan(ssa: SSA, name: str, stage: Tensor, features: Features, cam: Tensor) -> StagePlan:
    """Plan a stage, its sign read: the same plan that ``ssa`` comes to."""
    request = StageRequest(
        stage,
        ssa.affinities[name],
        K=cam.shape[1],
        dtype=result_dtype(cam.dtype, stage.dtype),
        nonnegative=True if name in features.nonnegative else None,
        align_corners=ssa.align_corners,
    )
    return plan_stage(request, read_sign=True)


def _seconds(plan: StagePlan) -> float:
    return estimate(plan.choice.backend, plan.choice.cost, plan.problem.device)


def _coarsen(plans: Mapping[str, StagePlan]) -> dict[str, StagePlan]:
    """Return plans that together take about ``FAST``; those that take little of it stay as they are."""
    chosen = dict(plans)
    if sum(map(_seconds, plans.values())) <= FAST:
        return chosen
    for name, plan in plans.items():
        square = 1
        while _seconds(chosen[name]) > FAST / len(plans) and min(chosen[name].request.features.shape[2:]) > 2:
            square *= 2
            averages = avg_pool2d(plan.request.features, square, ceil_mode=True)
            nonnegative = plan.problem.nonnegative or None  # means of numbers >= 0 are; others may be or not
            chosen[name] = plan_stage(replace(plan.request, features=averages, nonnegative=nonnegative), read_sign=True)
    return chosen


def _reason(full: Mapping[str, StagePlan], plans: Mapping[str, StagePlan]) -> str:
    """Return why a view is a preview, "" if it is none."""
    coarser = [name for name in plans if plans[name] is not full[name]]
    if not coarser:
        return ""
    seconds = sum(_seconds(full[name]) for name in full)
    first = full[coarser[0]]
    squares = [
        math.ceil(full[name].request.features.shape[2] / plans[name].request.features.shape[2]) for name in coarser
    ]
    pooled = ", ".join(f"{name} over {n} x {n}" for name, n in zip(coarser, squares, strict=True))
    how = f"{first.choice.method} with affinity {first.request.affinity}"
    return (
        f"polishing by {how} takes about {max(0.1, seconds):.1f} s; this preview averages features first ({pooled} "
        "pixels)"
    )


def _wait(on: Tensor) -> None:
    if on.is_cuda:
        torch.cuda.synchronize(on.device)
