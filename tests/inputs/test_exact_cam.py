"""Test that a CAM is called exact only if it is at every size (heading 16, second half).

The class: heads whose input is the mean of the last map on the sample image and something else on another: pooling with
a fixed window, a mean over a crop or over strided pixels, a sum over the pixels of one size; and last layers that do
more than their weight and bias say (normalised, scaled, changed by a hook). Where the network takes one size only, the
proof at that size is enough; where it was seen to average the whole map, no second size is run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ssa_fast import SSA
from ssa_fast.models import inspect_model
from tests.networks import ClassMap, ConvHead, Pyramid, Tokens, positive_weights

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE, MAP = 112, 7  # of the sample image, of its last map


class Pooled(Pyramid):
    """``Pyramid`` whose last map is pooled by a function, and read by ``fc``."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.pool = pool
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.features(x)))


def sizes_run(model: nn.Module, **options: object) -> tuple[list[tuple[int, ...]], str]:
    """Return the shapes of the images that an inspection runs, and the kind of the seed."""
    shapes: list[tuple[int, ...]] = []
    with model.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape))):
        info = inspect_model(model, input_shape=SIDE, **options)  # type: ignore[arg-type]
    return shapes, info.seed.kind


FIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "window, then mean": lambda x: F.avg_pool2d(x, MAP).mean((2, 3)),
    "window of stride 1, then mean": lambda x: F.avg_pool2d(x, MAP, 1).mean((2, 3)),
    "window, then flatten": lambda x: F.avg_pool2d(x, MAP).flatten(1)[:, :20],
    "window, then largest": lambda x: F.avg_pool2d(x, MAP).amax((2, 3)),
    "crop": lambda x: x[..., :MAP, :MAP].mean((2, 3)),
    "crop of columns": lambda x: x[..., :MAP].mean((2, 3)),
    "narrowed rows": lambda x: x.narrow(2, 0, MAP).mean((2, 3)),
    "sum over the pixels of one size": lambda x: x.sum((2, 3)) / MAP**2,
    "first pixels": lambda x: x.flatten(2)[..., : MAP**2].mean(-1),
    "strided pixels of larger maps": lambda x: x[..., :: max(1, x.shape[-1] // MAP), :][..., :MAP].mean((2, 3)),
}


@pytest.mark.parametrize("name", FIXED)
def test_pooling_with_a_fixed_window_has_no_exact_cam(name: str) -> None:
    model = Pooled(FIXED[name])
    assert inspect_model(model, input_shape=SIDE).seed.kind == "grad-cam"
    with pytest.raises(
        ValueError,
        match=r"seed: expected a head .*, but the input of 'fc' is not the mean of 'blocks.3' on an image of 1",
    ):
        inspect_model(model, seed="cam", input_shape=SIDE)


@pytest.mark.parametrize("name", ["window, then mean", "crop", "sum over the pixels of one size"])
def test_grad_cam_in_its_place_is_right_at_both_sizes(name: str) -> None:
    """Grad-CAM is what plain autograd gives; at the sample image's size it is the CAM."""
    model, plain = Pooled(FIXED[name]).double(), Pooled(WHOLE["mean"]).double()
    ssa, exact = SSA(model, input_shape=SIDE), SSA(plain, input_shape=SIDE)
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    torch.testing.assert_close(ssa(images, [0, 2]).cams, exact(images, [0, 2]).cams)
    larger = torch.randn(1, 3, 2 * SIDE + 16, 2 * SIDE, dtype=torch.float64)
    with torch.no_grad():
        features = model.features(larger)
    leaf = features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.fc(model.pool(leaf))[0, 2], leaf)
    expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu()
    expected = (expected - expected.amin()) / (expected.amax() - expected.amin())
    torch.testing.assert_close(ssa(larger, [2]).seed[0], expected.float(), rtol=0, atol=1e-4)


WHOLE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)),
    "mean of negative axes": lambda x: x.mean(dim=(-1, -2), keepdim=True).flatten(1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "adaptive, dropout": lambda x: F.dropout(F.adaptive_avg_pool2d(x, (1, 1))[:, :, 0, 0], 0.5, training=False),
    "module": lambda x: nn.AdaptiveAvgPool2d(1)(x).squeeze(-1).squeeze(-1),
}
UNSEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "window of the map's size": lambda x: F.avg_pool2d(x, x.shape[2:]).flatten(1),
    "mean of pixels": lambda x: x.flatten(2).mean(-1),
    "twice": lambda x: x.mean(3).mean(2),
    "sum": lambda x: x.sum((2, 3)) / (x.shape[2] * x.shape[3]),
    "einsum": lambda x: torch.einsum("bchw->bc", x) / x[0, 0].numel(),
    "channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "copy": lambda x: x.clone().mean((2, 3)),
}


@pytest.mark.parametrize("name", [*WHOLE, *UNSEEN])
def test_the_mean_of_the_whole_map_is_exact_and_a_second_size_is_run_only_where_that_is_not_seen(name: str) -> None:
    model = Pooled({**WHOLE, **UNSEEN}[name])
    shapes, kind = sizes_run(model)
    second = (1, 3, SIDE + 16, SIDE + 16)
    assert kind == "cam"
    assert (second in shapes) == (name in UNSEEN)
    others = [(SIDE // 2, SIDE)] * 2 + [(64, 64)] * 2  # of the geometry: as it is and altered; of the batch
    assert [shape[2:] for shape in shapes if shape != second] == [(SIDE, SIDE), *others]


@pytest.mark.parametrize("build", [ConvHead, ClassMap, lambda: Tokens(pooled=True)])
def test_other_heads_stay_exact(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert inspect_model(build(), input_shape=SIDE).seed.kind == "cam"


def test_a_class_map_with_a_fixed_window() -> None:
    class Windowed(ClassMap):
        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool2d(self.fc(self.features(x)), MAP).amax((2, 3))

    torch.manual_seed(0)
    model = Windowed()
    assert inspect_model(model, input_shape=SIDE).seed.kind == "grad-cam"
    with pytest.raises(
        ValueError, match=r"the output is not the mean of 'fc' on an image of 128 x 128 \(a fixed window"
    ):
        inspect_model(model, seed="cam", input_shape=SIDE)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.avg_pool2d(x, MAP).flatten(1),
        lambda x: F.avg_pool2d(x, MAP).squeeze(3).squeeze(2),
        lambda x: x.view(-1, 20, MAP**2).mean(2)[: len(x)],
    ],
)
def test_a_network_that_takes_one_size_only_keeps_its_cam(pool: Callable[[Tensor], Tensor]) -> None:
    class OneSize(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-2:] != (SIDE, SIDE):
                raise ValueError("a size of its own")
            return super().forward(x)

    ssa = SSA(OneSize(pool), input_shape=SIDE)
    exact = SSA(Pooled(lambda x: x.mean((2, 3))), input_shape=SIDE)
    assert ssa.seed_kind == "cam"
    images = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(ssa(images, [1]).cams, exact(images, [1]).cams, rtol=0, atol=1e-4)


def test_a_network_that_takes_doubled_sizes_only_is_proved_there() -> None:
    class Doubled(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-1] % SIDE == 0
            return super().forward(x)

    assert sizes_run(Doubled(UNSEEN["sum"]))[1] == "cam"
    assert sizes_run(Doubled(FIXED["crop"]))[1] == "grad-cam"


class NormalisedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 16 * F.linear(F.normalize(x), F.normalize(self.weight))


class ScaledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5 + 1


class NormalisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.normalize(x))


@pytest.mark.parametrize("head", [NormalisedLinear, ScaledLinear])
def test_a_last_layer_that_does_more_than_its_weights_say_has_no_exact_cam(head: type[nn.Linear]) -> None:
    model = Pooled(lambda x: x.mean((2, 3)))
    model.fc = positive_weights(head(20, 5))
    assert inspect_model(model, input_shape=SIDE).seed.kind == "grad-cam"
    with pytest.raises(
        ValueError, match=r"its last layer, 'fc', does more than multiply by its weight and add its bias"
    ):
        inspect_model(model, seed="cam", input_shape=SIDE)


def test_a_last_convolution_of_normalised_features_has_no_exact_cam() -> None:
    model = Pooled(lambda x: x.mean((2, 3), keepdim=True))
    model.fc = nn.Sequential(positive_weights(NormalisedConv(20, 5, 1)), nn.Flatten())
    assert inspect_model(model, input_shape=SIDE).seed.kind == "grad-cam"


def test_a_new_head_of_zeros_is_as_exact_as_any() -> None:
    model = Pooled(lambda x: x.mean((2, 3)))
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    assert inspect_model(model, input_shape=SIDE).seed.kind == "cam"


def test_a_hook_that_changes_the_logits_is_seen() -> None:
    model = Pooled(lambda x: x.mean((2, 3)))
    model.fc.register_forward_hook(lambda module, args, output: 2 * output.relu())
    assert inspect_model(model, input_shape=SIDE).seed.kind == "grad-cam"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    assert inspect_model(Pooled(UNSEEN["sum"]).to(dtype), input_shape=SIDE).seed.kind == "cam"
    assert inspect_model(Pooled(FIXED["crop"]).to(dtype), input_shape=SIDE).seed.kind == "grad-cam"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "swin_t", "efficientnet_b0", "googlenet"])
def test_networks_of_torchvision_need_no_second_size(name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    shapes: list[tuple[int, ...]] = []
    with model.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape))):
        assert inspect_model(model).seed.kind == "cam"
    assert shapes == [(1, 3, 224, 224), (1, 3, 112, 224), (1, 3, 112, 224), (1, 3, 64, 64), (2, 3, 64, 64)]
