"""What is non-negative by construction is proved on each forward pass, and nothing else is."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode

from ssa_fast import SSA, Affinity
from ssa_fast.models import inspect_model
from ssa_fast.models.extract import extract_features
from ssa_fast.models.signs import SignTracker
from ssa_fast.ops.stage import plan_stages
from tests.networks import DeepHead, Pyramid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ssa_fast.models import ModelInfo
    from ssa_fast.ops.stage import StagePlan
    from ssa_fast.validation import StageRequest

IMAGES = torch.randn(2, 3, 32, 32)


class Made(nn.Module):
    """Returns what a function makes of its input."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return self.make(x)


class OneStage(nn.Module):
    """A convolution, the module ``stage``, then ``head``."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.conv, self.stage, self.after = nn.Conv2d(3, 8, 4, 4), stage, nn.Identity()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.stage(self.conv(x))).mean((2, 3)))


def trace(stage: nn.Module) -> tuple[OneStage, ModelInfo]:
    torch.manual_seed(3)
    model = OneStage(stage).eval()
    return model, inspect_model(model, stages=["stage"], input_shape=32)


def is_proved(model: OneStage, info: ModelInfo) -> bool:
    features = extract_features(model, IMAGES, info.stages)
    nonnegative = bool((features.maps["stage"] >= 0).all())
    assert nonnegative or not features.nonnegative, "a wrong proof"
    return features.nonnegative == {"stage"}


def shuffled(x: Tensor) -> Tensor:
    a, b = F.relu(x).chunk(2, dim=1)
    x = torch.cat((a, b.relu()), 1).view(len(x), 2, 4, *x.shape[2:])
    return torch.transpose(x, 1, 2).contiguous().flatten(1, 2)


HONEST: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "relu_": lambda x: x.relu_(),
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "nn.ReLU6": nn.ReLU6(),
    "Hardtanh": nn.Hardtanh(0.0, 2.0),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_": lambda x: x.clamp_(0.0, 3.0),
    "clip": lambda x: torch.clip(x, 0),
    "sigmoid": torch.sigmoid,
    "hardsigmoid": nn.Hardsigmoid(),
    "softmax": nn.Softmax(dim=1),
    "cat": lambda x: torch.cat([F.relu(x[:, :4]), torch.sigmoid(x[:, 4:])], dim=1),
    "views and shuffling": shuffled,
    "max pooling": nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    "average pooling": nn.Sequential(nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(2)),
    "dropout": nn.Sequential(nn.ReLU(), nn.Dropout(), nn.Identity()),
    "a read in between": lambda x: (y := F.relu(x), y - 1)[0],
}


@pytest.mark.parametrize("make", HONEST.values(), ids=HONEST)
def test_non_negative_by_construction(make: Callable[[Tensor], Tensor]) -> None:
    model, info = trace(Made(make))
    assert info.signs == {"stage": "non-negative"}
    assert is_proved(model, info)


def in_inference_mode(x: Tensor) -> Tensor:
    y = F.relu(x)
    with torch.inference_mode():
        y[:, :1].sub_(1)
    return y


def done(x: Tensor, write: Callable[[Tensor], object]) -> Tensor:
    """Return the ReLU of ``x`` after something was written into it."""
    y = F.relu(x)
    write(y)
    return y


LIARS: dict[str, Callable[[Tensor], Tensor]] = {
    "in place": lambda x: F.relu(x).sub_(1),
    "in place addition": lambda x: done(x, lambda y: y.add_(x)),
    "a view written": lambda x: done(x, lambda y: y[:, :1].sub_(1)),
    "a detached tensor written": lambda x: done(x, lambda y: y.detach().sub_(1)),
    "an element set": lambda x: done(x, lambda y: y.__setitem__((0, 0, 0, 0), -1.0)),
    "out": lambda x: done(x, lambda y: torch.sub(y, 1, out=y)),
    "foreach": lambda x: done(x, lambda y: torch._foreach_sub_([y], 1.0)),
    "in inference mode": in_inference_mode,
    ".data": lambda x: done(x, lambda y: y.data.sub_(1)),
    ".data of a view": lambda x: done(x, lambda y: y[:, :2].data.sub_(1)),
    ".data set": lambda x: done(x, lambda y: setattr(y, "data", -torch.ones_like(y))),
    "NumPy": lambda x: done(x, lambda y: y.numpy().__isub__(1)),
    "DLPack": lambda x: done(x, lambda y: torch.from_dlpack(y).sub_(1)),
    "the storage": lambda x: done(x, lambda y: torch.empty(0).set_(y.untyped_storage()).sub_(1)),
    "clamp at −1": lambda x: x.clamp(min=-1),
    "clamp with a negative maximum": lambda x: x.clamp(min=0, max=-0.5),
    "clamp by a tensor": lambda x: torch.clamp(x, min=-torch.ones(())),
    "Hardtanh": nn.Hardtanh(),
    "leaky ReLU": nn.LeakyReLU(),
    "hardswish": nn.Hardswish(),
    "GELU": nn.GELU(),
    "cat": lambda x: torch.cat([F.relu(x[:, :4]), x[:, 4:]], dim=1),
    "a difference": lambda x: F.relu(x) - 0.1,
    "a divisor": lambda x: F.avg_pool2d(F.relu(x), 2, divisor_override=-1),
}


@pytest.mark.parametrize("make", LIARS.values(), ids=LIARS)
def test_signed_after_all(make: Callable[[Tensor], Tensor]) -> None:
    model, info = trace(Made(make))
    with torch.no_grad():
        assert (model.stage(model.conv(IMAGES)) < 0).any(), "no liar"
    assert info.stages["stage"].nonnegative_from is None
    assert not is_proved(model, info)
    forced = {"stage": replace(info.stages["stage"], nonnegative_from="")}  # as if its trace had lied
    assert extract_features(model, IMAGES, forced).nonnegative == frozenset()


def test_what_only_looks_like_a_view_or_a_maximum() -> None:
    with SignTracker() as signs:
        y = F.relu(torch.tensor([[[[1.0001]]]]))
        bits, padding = y.view(torch.float16), F.max_pool2d(y, 2, stride=1, padding=1, dilation=2)
    assert signs.holds(y)
    assert not signs.holds(padding)
    assert padding.item() < 0
    assert not signs.holds(bits)


def rewritten(model: OneStage) -> None:
    model.stage.make = lambda x: F.relu(x) - 1


def replaced(model: OneStage) -> None:
    model.stage = nn.LeakyReLU()


def patched(model: OneStage) -> None:
    model.stage.forward = lambda x: x


def followed_by_a_writer(model: OneStage) -> None:
    model.after = Made(lambda x: x.sub_(1))


def write_past_the_version(module: nn.Module, args: object, output: Tensor) -> None:
    output.data.sub_(1)


def hooked(hook: Callable[..., Any]) -> Callable[[OneStage], object]:
    return lambda model: model.stage.register_forward_hook(hook)


CHANGES: dict[str, Callable[[OneStage], object]] = {
    "rewritten": rewritten,
    "replaced": replaced,
    "patched": patched,
    "followed by a writer": followed_by_a_writer,
    "a hook that returns": hooked(lambda module, args, output: output - 1),
    "a hook that writes": hooked(lambda module, args, output: output.sub_(1)),
    "a hook past the version": hooked(write_past_the_version),
    "a later hook": lambda model: model.after.register_forward_pre_hook(lambda module, args: (args[0].sub_(1),)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("inside", [True, False], ids=["a ReLU in the stage", "a function"])
def test_a_model_changed_after_its_trace_has_no_proof(inside: bool, change: Callable[[OneStage], object]) -> None:
    model, info = trace(nn.Sequential(nn.Identity(), nn.ReLU()) if inside else Made(F.relu))
    assert info.stages["stage"].nonnegative_from == ("stage.1" if inside else "stage")
    assert is_proved(model, info)
    change(model)
    assert not is_proved(model, info) or (inside and change is rewritten)  # that edit has no effect there


def test_the_branch_that_an_image_takes_counts() -> None:
    model, info = trace(Made(lambda x: F.relu(x) if x.abs().amax() < 100 else x))
    assert is_proved(model, info)
    large = extract_features(model, 1e4 * IMAGES, info.stages)
    assert large.maps["stage"].amin() < 0
    assert large.nonnegative == frozenset()


@pytest.mark.parametrize("layer", ["blocks.3", "blocks.1.down", "blocks.2.conv"])
def test_maps_that_grad_cam_begins_at_or_that_are_overwritten(layer: str) -> None:
    """An in-place ReLU overwrites ``down``; ``conv`` is copied before another addition is written into it."""
    model = DeepHead()
    stages = ["blocks.0", "blocks.1.down", "blocks.2.conv", "blocks.3"]
    info = inspect_model(model, stages=stages, seed=layer, input_shape=64)
    assert info.forward(model, torch.randn(1, 3, 64, 64)).nonnegative == {*stages} - {"blocks.2.conv"}


def test_a_copy_is_proved_though_its_source_is_overwritten() -> None:
    model, info = trace(nn.Sequential(nn.Identity(), nn.ReLU()))
    model.after = Made(lambda x: x.sub_(1))
    info = inspect_model(model, stages=["stage"], input_shape=32)
    assert info.stages["stage"].needs_copy
    assert is_proved(model, info)


def test_functions_are_followed_where_the_proof_lies_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[Any] = []
    follow = SignTracker.__torch_function__

    def record(self: SignTracker, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        followed.append(func)
        return follow(self, func, types, args, kwargs)

    model = Pyramid()
    run = SSA(model, input_shape=64)
    monkeypatch.setattr(SignTracker, "__torch_function__", record)
    run.info.forward(model, torch.randn(1, 3, 64, 64))
    assert [func for func in followed if func in (F.relu, torch.conv2d)] == [F.relu, torch.conv2d, F.relu] * 4
    assert len(followed) == 16
    followed.clear()
    convnext, info = trace(nn.GELU())
    followed.clear()
    info.forward(convnext, IMAGES)
    assert followed == []
    with pytest.raises(RuntimeError, match="channels"):
        run.info.forward(model, torch.zeros(1, 4, 64, 64))
    model.blocks[1].relu.register_forward_hook(lambda *call: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.info.forward(model, torch.zeros(1, 3, 64, 64))
    followed.clear()
    F.relu(torch.zeros(1))
    assert followed == []
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()) == 1


def test_ssa_promises_what_is_proved_and_results_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = Pyramid(), torch.randn(2, 3, 128, 128)
    run = SSA(model, stages=["blocks.0", "blocks.1", "blocks.2.conv"], input_shape=64, affinity=Affinity())
    promises: list[bool | None] = []

    def record(requests: Mapping[str, StageRequest]) -> dict[str, StagePlan]:
        promises.extend(request.nonnegative for request in requests.values())
        return plan_stages(requests)

    monkeypatch.setattr("ssa_fast.ops.polish.plan_stages", record)
    proved = run(images, [1, 3])
    assert promises == [True, True, None]
    unproved = {name: replace(ref, nonnegative_from=None) for name, ref in run.info.stages.items()}
    run.info = replace(run.info, stages=unproved)
    read = run(images, [1, 3])
    assert promises[3:] == [None] * 3
    for name in run.stage_names:
        assert torch.equal(proved.stages[name], read.stages[name])
    assert torch.equal(proved.cams, read.cams)


class OwnMode(nn.Module):
    """Begins or ends a proof inside a mode of its own; modes are left in the order in which they were entered."""

    def __init__(self, begins: bool) -> None:
        super().__init__()
        self.first, self.second, self.begins = nn.ReLU(), nn.Identity(), begins

    def forward(self, x: Tensor) -> Tensor:
        modes = nullcontext(), torch.device("meta")
        with modes[self.begins]:
            x = self.first(x)
        with modes[not self.begins]:
            x = self.second(x)
            assert torch.empty(0).is_meta is not self.begins
        assert torch.empty(0).device.type == "cpu"
        return x


@pytest.mark.parametrize("begins", [False, True])
def test_modes_of_the_models_own_are_left_alone(begins: bool) -> None:
    stage = OwnMode(begins)
    model, info = trace(stage)
    named = {"stage.second": replace(info.stages["stage"], name="stage.second")}
    assert info.stages["stage"].nonnegative_from == "stage.first"
    features = extract_features(model, IMAGES, named)
    assert features.nonnegative == (frozenset() if begins else named.keys())
    assert _get_current_function_mode() is None


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize(
    "name", ["densenet121", "googlenet", "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x0_5", "squeezenet1_1"]
)
def test_what_is_proved_in_the_trace_is_proved_on_other_images(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None)
    info = inspect_model(model, input_shape=64)
    nonnegative = {stage for stage, sign in info.signs.items() if sign == "non-negative"}
    assert info.forward(model, torch.randn(2, 3, 96, 64)).nonnegative & info.stages.keys() == nonnegative
    assert {stage for stage, ref in info.stages.items() if ref.nonnegative_from is not None} == nonnegative
