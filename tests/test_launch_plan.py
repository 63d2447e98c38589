"""A replayed call gives what the call itself would have given, bit for bit, whatever changed in between."""

from __future__ import annotations

import gc
import multiprocessing
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssa_fast import Affinity, InputWarning, polish
from ssa_fast.kernels.launch import call
from ssa_fast.ops import launch_plan
from ssa_fast.ops import polish as polish_module
from ssa_fast.ops.launch_recorder import ALIGNMENT, Recorder, Region, lay_out
from ssa_fast.ops.polish import polish_each_and_fuse, rescale_each
from ssa_fast.ops.resize import minmax
from ssa_fast.validation import FusionOptions, StageRequest

moments = pytest.importorskip("ssa_fast.kernels.moments", reason="needs Triton")
pytestmark = pytest.mark.interpreter

SHIFTED = Affinity("shifted", center=True)


@pytest.fixture(autouse=True)
def _poisoned():
    """Start without plans; fill the memory of ``torch.empty`` with NaN, so that what no step wrote cannot pass."""
    launch_plan.PLANS.clear()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    launch_plan.PLANS.clear()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stages(seed: int) -> list[torch.Tensor]:
    signed = draw(2, 24, 5, 7, seed=seed)
    signed[seed % 2, 3, 2, 1] = -0.5
    return [signed, draw(2, 40, 3, 4, seed=seed, dtype=torch.float16)]


def the_plan() -> launch_plan.LaunchPlan:
    (plan,) = launch_plan.PLANS.values()
    return plan


def computed_anew(*args, **options) -> torch.Tensor:
    launch_plan.PLANS.clear()
    return polish(*args, backend="triton", **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "prototypes", "nonnegative": True},
        {"method": "prototypes", "affinity": replace(SHIFTED, steps=2)},
        {"method": "tiled", "affinity": Affinity(steps=2, center=True)},
        {"method": "tiled", "affinity": Affinity("exp", temperature=0.2), "precision": "high"},
        {"method": "resident", "affinity": replace(SHIFTED, steps=3)},
        {"fuse": "product", "size": (9, 8), "rescale": True},
        {"size": (9, 8)},
    ],
    ids=str,
)
@pytest.mark.parametrize("several", [False, True], ids=["one-stage", "fused"])
def test_a_replay_is_the_call_itself(options, several):
    first, second = (stages(seed) if several else stages(seed)[0] for seed in (0, 1))
    cam, other = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    polish(cam, first, backend="triton", **options)
    plan = the_plan()
    replayed = polish(other, second, backend="triton", **options)
    assert {next(iter(launch_plan.PLANS)): plan} == launch_plan.PLANS
    assert torch.equal(replayed, computed_anew(other, second, **options))


def test_stages_and_fusion_in_pytorch_are_replayed_too():
    """Of three stages the kernels do the first; all are returned, beside a fusion that PyTorch computes."""
    options = FusionOptions("mean", (1.0, 2.0, 1.0), rescale=True, size=(6, 6), backend="torch")

    def run(seed: int) -> list[torch.Tensor]:
        shape = {"K": 3, "dtype": torch.float32, "nonnegative": True}
        requests = {
            "kernels": StageRequest(draw(1, 16, 4, 5, seed=seed), Affinity(), backend="triton", **shape),
            "dense": StageRequest(draw(1, 16, 3, 3, seed=seed), Affinity(), method="dense", backend="torch", **shape),
            "same size": StageRequest(draw(1, 8, 6, 6, seed=seed), Affinity(), backend="triton", **shape),
        }
        maps, fused = polish_each_and_fuse(draw(1, 3, 2, 2, seed=seed).double().float(), requests, options)
        assert list(maps) == list(requests)
        return [*maps.values(), fused]

    run(0)
    assert len(the_plan().steps) > the_plan().results == 2
    replayed = run(1)
    launch_plan.PLANS.clear()
    assert all(map(torch.equal, replayed, run(1)))


def nhwc(f: torch.Tensor) -> torch.Tensor:
    return f.to(memory_format=torch.channels_last)


def moved_by_one(f: torch.Tensor) -> torch.Tensor:
    """Return a copy that starts 4 bytes after a multiple of 16."""
    return torch.empty(f.numel() + 1)[1:].view(f.shape).copy_(f)


CAM, FEATURES = draw(1, 3, 4, 4), draw(1, 16, 5, 6)


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({"cam": draw(1, 3, 4, 4, seed=7), "feats": draw(1, 16, 5, 6, seed=7)}, True),
        ({"feats": FEATURES * 0.5}, True),
        ({"feats": draw(1, 16, 6, 5)}, False),
        ({"feats": draw(1, 15, 5, 6)}, False),
        ({"feats": nhwc(FEATURES)}, False),
        ({"feats": FEATURES.half()}, False),
        ({"feats": moved_by_one(FEATURES)}, False),
        ({"feats": draw(1, 16, 5, 12)[..., ::2]}, False),
        ({"feats": [FEATURES]}, False),
        ({"feats": {"a": FEATURES}}, False),
        ({"cam": draw(1, 4, 4, 4)}, False),
        ({"cam": draw(3, 4, 4)}, False),
        ({"cam": CAM.double().to(torch.float16)}, False),
        ({"cam": CAM.mT}, False),
        ({"affinity": Affinity(power=2)}, False),
        ({"align_corners": False}, False),
        ({"rescale": True}, False),
        ({"size": (7, 7)}, False),
        ({"nonnegative": True}, False),
        ({"method": "tiled"}, False),
        ({"precision": "high"}, False),
    ],
    ids=lambda changed: ", ".join(changed) if isinstance(changed, dict) else "",
)
def test_what_a_call_depends_on(changed, again):
    usual = {"cam": CAM, "feats": FEATURES}
    polish(**usual, backend="triton")
    given = usual | changed
    out = polish(**given, backend="triton")
    assert len(launch_plan.PLANS) == (1 if again else 2)
    launch_plan.PLANS.clear()
    assert torch.equal(out, polish(**given, backend="triton"))


def test_numbers_that_are_equal_but_of_another_type_are_still_refused():
    polish(CAM, FEATURES, backend="triton", align_corners=True)
    with pytest.raises(TypeError, match="align_corners"):
        polish(CAM, FEATURES, backend="triton", align_corners=1)


def test_a_lost_gradient_is_noted_every_time_although_there_is_a_plan():
    expected = polish(CAM, FEATURES, backend="triton")
    for _ in range(2):
        with pytest.warns(InputWarning, match="requires_grad"):
            assert torch.equal(polish(CAM.clone().requires_grad_(), FEATURES, backend="triton"), expected)


def test_lower_ranks_numpy_and_inference_mode():
    expected = polish(CAM, FEATURES, backend="triton")
    for cam, feats in ((CAM[0], FEATURES[0]), (CAM[0, :1].squeeze(0), FEATURES)):
        once, again = polish(cam, feats, backend="triton"), polish(cam, feats, backend="triton")
        assert once.shape == again.shape == (*cam.shape[:-2], 5, 6)
        assert torch.equal(once, again)
        assert torch.equal(once.reshape(-1, 5, 6)[0], expected[0, 0])
    with torch.inference_mode():
        assert torch.equal(polish(CAM, FEATURES, backend="triton"), expected)
    assert torch.equal(torch.from_numpy(polish(CAM.numpy(), FEATURES.numpy(), backend="triton")), expected)


def test_a_lazily_negated_view():
    """Kernels read memory, in which its numbers are not negated yet."""
    cam = torch.complex(CAM, -CAM).conj().imag
    assert cam.is_neg()
    for _ in range(2):
        assert torch.equal(polish(cam, FEATURES, backend="triton"), polish(CAM, FEATURES, backend="triton"))


def test_stages_that_share_their_memory():
    both = draw(1, 32, 5, 6)
    given = [both[:, :16], both[:, 16:]]
    once = polish(CAM, given, backend="triton")
    assert torch.equal(polish(CAM, given, backend="triton"), once)
    assert torch.equal(once, polish(CAM, [f.clone() for f in given], backend="triton"))


def in_a_fork(pipe) -> None:
    torch.set_num_threads(1)
    pipe.send((len(launch_plan.PLANS), polish(CAM, FEATURES, backend="triton").tolist()))


def test_a_forked_process_makes_plans_of_its_own():
    expected = polish(CAM, FEATURES, backend="triton")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=in_a_fork, args=(theirs,))
    process.start()
    assert ours.poll(60), "the forked process did not answer"
    plans, out = ours.recv()
    process.join(60)
    assert plans == 0
    assert torch.equal(torch.tensor(out), expected)


def test_a_plan_keeps_no_tensor():
    cam, f = draw(1, 3, 4, 4), draw(1, 16, 5, 6)
    out = polish(cam, [f, f.half()], backend="triton")
    alive = [weakref.ref(each) for each in (cam, f, out)]
    assert the_plan()
    del cam, f, out
    gc.collect()
    assert [each() for each in alive] == [None] * 3


def test_the_number_of_plans_is_bounded(monkeypatch):
    monkeypatch.setattr(launch_plan, "MAX_PLANS", 2)
    for side in (2, 3, 4, 5, 6):
        polish(CAM, draw(1, 4, side, side), backend="triton")
        assert len(launch_plan.PLANS) <= 2


@pytest.mark.parametrize("by_call", [True, False])
def test_what_pytorch_computes_unnoticed_is_not_replayed(by_call):
    """A host function that doubled the CAM by an operator of its own would be wrong the second time."""

    def double(cam: torch.Tensor) -> torch.Tensor:
        return cam * 2

    def run() -> list[torch.Tensor]:
        return [moments.find_moments(call(double, CAM) if by_call else double(CAM), mean=True).mean]

    results, plan = Recorder([CAM]).run(run)
    torch.testing.assert_close(results[0], 2 * CAM.mean((2, 3)))  # in another order, so it may round differently
    assert (plan is not None) == by_call
    if plan is not None:
        other = draw(1, 3, 4, 4, seed=5)
        torch.testing.assert_close(plan.replay([other])[0], 2 * other.mean((2, 3)))


def test_a_call_whose_result_is_a_view_of_its_argument():
    def run() -> list[torch.Tensor]:
        part = call(torch.narrow, CAM, 1, 1, 2)
        return [moments.find_moments(call(torch.clone, part), mean=False).peak, part]

    _, plan = Recorder([CAM]).run(run)
    other = draw(1, 3, 4, 4, seed=5)
    peak, part = plan.replay([other])
    assert torch.equal(peak, other[:, 1:].amax((2, 3)))
    assert part.data_ptr() == other[:, 1:].data_ptr()


def test_a_view_may_have_the_shape_of_its_source_and_other_strides():
    def run() -> list[torch.Tensor]:
        turned = call(torch.clone, square.mT, memory_format=torch.contiguous_format)
        return [moments.find_moments(turned[None, None], mean=False).peak, turned]

    square, other = draw(4, 4), draw(4, 4, seed=5)
    _, plan = Recorder([square]).run(run)
    assert torch.equal(plan.replay([other])[1], other.mT)


def test_stages_use_one_workspace_one_after_the_other():
    features = draw(1, 64, 6, 6)
    polish(CAM, features, method="tiled", backend="triton")
    alone = the_plan().workspace
    launch_plan.PLANS.clear()
    polish(CAM, [features.clone() for _ in range(4)], method="tiled", backend="triton")
    maps = 4 * 3 * 36 * 4
    assert the_plan().workspace <= alone + maps + 8 * ALIGNMENT < 2 * alone


def regions() -> st.SearchStrategy[Region]:
    steps = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted)
    return st.builds(lambda nbytes, steps: Region(0, nbytes, *steps), st.integers(1, 2000), steps)


@given(st.lists(regions(), max_size=12))
def test_no_two_regions_that_are_in_use_at_once_share_a_byte(drawn):
    size = lay_out(drawn)
    for number, one in enumerate(drawn):
        assert one.offset % ALIGNMENT == 0
        assert one.offset + one.nbytes <= size
        for other in drawn[:number]:
            at_once = one.first <= other.last and other.first <= one.last
            apart = one.offset + one.nbytes <= other.offset or other.offset + other.nbytes <= one.offset
            assert apart or not at_once
    assert size <= sum(-(-region.nbytes // ALIGNMENT) * ALIGNMENT for region in drawn)


def test_maps_are_rescaled_by_a_replay(monkeypatch):
    monkeypatch.setattr(polish_module, "RESCALED", replace(polish_module.RESCALED, backend="triton"))
    first, second = ({"seed": draw(2, 3, 4, 4, seed=seed), "stage": draw(2, 3, 9, 7, seed=seed)} for seed in (0, 1))
    rescale_each(first)
    assert len(the_plan().steps) == 4
    replayed = rescale_each(second)
    assert len(launch_plan.PLANS) == 1
    for name, maps in second.items():
        torch.testing.assert_close(replayed[name], minmax(maps), rtol=0, atol=1e-6)
