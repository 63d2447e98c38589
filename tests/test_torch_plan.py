"""On a CPU a call like an earlier one is not checked and planned again, and gives what the call itself would give."""

from __future__ import annotations

import weakref

import pytest
import torch

from ssa_fast import Affinity, InputWarning, polish
from ssa_fast.ops import launch_plan
from ssa_fast.ops.polish import TorchPlan


@pytest.fixture(autouse=True)
def _no_plans():
    launch_plan.PLANS.clear()
    yield
    launch_plan.PLANS.clear()


def draw(seed: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    stages = [torch.rand(2, C, side, side, generator=generator) for C, side in ((6, 20), (12, 10), (70, 5))]
    return torch.rand(2, 3, 5, 5, generator=generator), stages


def computed_anew(*args, **options) -> torch.Tensor:
    launch_plan.PLANS.clear()
    return polish(*args, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nonnegative": True, "size": (30, 31), "fuse": "max"},
        {"affinity": Affinity("shifted", center=True), "weights": (1.0, 2.0, 0.5)},
        {"method": "tiled", "align_corners": False},
    ],
    ids=str,
)
def test_a_replay_is_the_call_itself(options, monkeypatch):
    (cam, stages), (other, others) = draw(0), draw(1)
    for first, second in ((stages, others), (tuple(stages), tuple(others)), (stages[0], others[0])):
        if "weights" in options and first is stages[0]:
            continue
        polish(cam, first, **options)
        with monkeypatch.context() as patch:
            patch.setattr("ssa_fast.api.validate", lambda *_, **__: pytest.fail("checked again"))
            patch.setattr("ssa_fast.ops.polish.plan_stages", lambda *_: pytest.fail("planned again"))
            replayed = polish(other, second, **options)
        assert torch.equal(replayed, computed_anew(other, second, **options))


def test_layouts_and_ranks_are_views_again():
    cam, f = torch.rand(3, 4, 4), torch.rand(17, 32)
    for seed in (0, 1):
        f = torch.rand(17, 32, generator=torch.Generator().manual_seed(seed))
        found = polish(cam, f, layout="tokens")
        assert len(launch_plan.PLANS) == 1
        torch.testing.assert_close(found, polish(cam, f[1:].mT.unflatten(1, (4, 4)), backend="reference"))


def test_a_negative_feature_is_found_in_a_replay():
    cam, stages = draw(0)
    polish(cam, stages)
    for stage in stages:
        stage[1, 3, 2, 1] = -0.5
    replayed = polish(cam, stages)
    assert torch.equal(replayed, computed_anew(cam, stages))
    polish(cam, stages[0].abs(), method="prototypes")
    with pytest.raises(ValueError, match="not all known to be >= 0"):
        polish(cam, stages[0], method="prototypes")


def test_a_plan_holds_no_features():
    cam, (stage, *_) = draw(0)
    polish(cam, stage)
    (plan,) = launch_plan.PLANS.values()
    assert isinstance(plan, TorchPlan)
    gone = weakref.ref(stage)
    del stage, _
    assert gone() is None


def test_what_is_noted_is_noted_every_time():
    cam, (stage, *_) = draw(0)
    for _ in range(2):
        with pytest.warns(InputWarning, match="requires_grad"):
            polish(cam, stage.clone().requires_grad_())


@pytest.mark.parametrize("changed", [torch.Tensor.double, torch.Tensor.half, lambda f: f.mT, lambda f: f[:, :, 1:]])
def test_other_inputs_are_other_calls(changed):
    cam, (stage, *_) = draw(0)
    polish(cam, stage)
    assert torch.equal(polish(cam, changed(stage)), computed_anew(cam, changed(stage)))
