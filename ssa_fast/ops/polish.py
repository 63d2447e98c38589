"""Polish a CAM in every stage and fuse the stages; replay the launches of an earlier call that was like it."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from ssa_fast.ops import gpu_info, launch_plan, launch_recorder
from ssa_fast.ops.fusion import fuse
from ssa_fast.ops.launch_plan import View
from ssa_fast.ops.stage import StagePlan, plan_stages, run_stages
from ssa_fast.validation import FusionOptions, StageRequest

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from torch import Tensor

OPTIONS = [field.name for field in fields(StageRequest) if field.name != "features"]
UNFUSED = FusionOptions("mean", (1.0,), rescale=False, size=None)
RESCALED = FusionOptions("max", (1.0,), rescale=True, size=None)  # a single map, at its own size


class TorchPlan(NamedTuple):
    """A call that PyTorch computes on a CPU, checked and planned, to be repeated with other inputs.

    Attributes:
        cam: The CAM ``(B, K, h, w)``, as a view of an input.
        features: The stages ``(B, C, H, W)`` by name, as views of inputs.
        stages: How each is polished, without its features.
        options: Of the fusion.
        keep_stages: Whether the stages' polished CAMs are returned, too.
    """

    cam: View
    features: dict[str, View]
    stages: list[StagePlan]
    options: FusionOptions
    keep_stages: bool

    @classmethod
    def make(
        cls,
        cam: Tensor,
        plans: Mapping[str, StagePlan],
        options: FusionOptions,
        inputs: Sequence[Tensor],
        keep_stages: bool,
    ) -> TorchPlan:
        """Make the plan of a call from that of its stages, which hold views of the inputs, in order."""
        features = [plan.request.features for plan in plans.values()]
        views = [View.within(each, i, inputs[i]) for i, each in enumerate([cam, *features])]
        stages = [plan.without_features() for plan in plans.values()]
        return cls(views[0], dict(zip(plans, views[1:], strict=True)), stages, options, keep_stages)

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Repeat the call with other inputs of the same signatures; return its results."""
        features = [view.of(inputs) for view in self.features.values()]
        maps = run_stages(self.cam.of(inputs), features, self.stages)
        fused = fuse(dict(zip(self.features, maps, strict=True)), self.options)
        return [*maps, fused] if self.keep_stages else [fused]


def polish_and_fuse(
    cam: Tensor,
    requests: Mapping[str, StageRequest],
    options: FusionOptions,
    key: Hashable | None,
    inputs: Sequence[Tensor],
    *,
    keep_stages: bool = False,
) -> list[Tensor]:
    """Return the fused CAM ``(B, K, *size)`` of a CAM ``(B, K, h, w)`` polished in every stage, as the last of a list.

    Args:
        cam, requests, options: The CAM, the stages by name, and how to fuse them.
        key: The name of the plan by which calls like this one can be replayed, if it can; see ``launch_plan``.
        inputs: The tensors that a replay will get, of which the CAM and the stages are views.
        keep_stages: Return the stages' polished CAMs too, before it.

    Raises:
        ValueError: A method or backend that was asked for cannot polish a stage exactly; nothing is computed then, but
            for what precedes a negative feature on the CPU.
    """
    plans, features = plan_stages(requests), [request.features for request in requests.values()]

    def run() -> list[Tensor]:
        maps = run_stages(cam, features, list(plans.values()))
        fused = fuse(dict(zip(plans, maps, strict=True)), options)
        return [*maps, fused] if keep_stages else [fused]

    if key is None or any(plan.depends_on_data for plan in plans.values()):
        return run()
    backends = {plan.choice.backend for plan in plans.values()}
    if cam.is_cpu and backends == {"torch"} and options.backend != "triton":
        launch_plan.keep(key, TorchPlan.make(cam, plans, options, inputs, keep_stages))
    if cam.is_cpu and "triton" not in backends:
        return run()
    return launch_recorder.record(key, inputs, run)


def polish_own_and_fuse(cams: Sequence[Tensor], requests: Mapping[str, StageRequest], options: FusionOptions) -> Tensor:
    """Return the fused CAM of stages that have a CAM ``(B, K, h, w)`` each."""
    plans = plan_stages(requests)
    maps = {
        name: run_stages(cam, [plan.request.features], [plan])[0]
        for cam, (name, plan) in zip(cams, plans.items(), strict=True)
    }
    return fuse(maps, options)


def polish_each_and_fuse(
    cam: Tensor, requests: Mapping[str, StageRequest], options: FusionOptions
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the polished CAM of every stage, by name, and their fusion; see ``polish_and_fuse``."""
    features = [request.features for request in requests.values()]
    of_stages: tuple[Any, ...] = tuple(getattr(each, name) for each in requests.values() for name in OPTIONS)
    key = launch_plan.call_key(cam, features, (options, *of_stages))
    if plan := launch_plan.find(key):
        *maps, fused = plan.replay([cam, *features])
    else:
        *maps, fused = polish_and_fuse(cam, requests, options, key, [cam, *features], keep_stages=True)
    return dict(zip(requests, maps, strict=True)), fused


def polish_one(cam: Tensor, request: StageRequest) -> Tensor:
    """Return the polished CAM of one stage, at its own size and not rescaled."""
    return polish_each_and_fuse(cam, {"": request}, UNFUSED)[1]


def rescale_each(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every map ``(B, K, H, W)`` min–max rescaled per image and class, on a GPU by the kernels of the fusion."""
    first, *others = maps.values()

    def run() -> list[Tensor]:
        return [fuse({"": each}, RESCALED) for each in maps.values()]

    key = launch_plan.call_key(first, others, (RESCALED,)) if gpu_info.query(first.device)[0] else None
    if plan := launch_plan.find(key):
        rescaled = plan.replay([first, *others])
    else:
        rescaled = run() if key is None else launch_recorder.record(key, [first, *others], run)
    return dict(zip(maps, rescaled, strict=True))
