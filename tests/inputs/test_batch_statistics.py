"""Test networks whose result depends on more than the image, and modules of other kinds (heading 8).

The class: what a network returns for one image depends on the batch it is in (BatchNorm without running statistics,
means or ranks over the batch in forward, quantization ranges), on chance (a dropout that never ends), or, for the tiles
of a large image, on the whole image (GroupNorm, attention, a mean in forward, whether it skips NaN or not). And modules
whose layers call no hooks, have no weights yet or have no gradient: TorchScript, exported, quantized, lazy, on the meta
device, built under inference mode.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils.prune import l1_unstructured

from ssa_fast import SSA
from ssa_fast.large.receptive_field import measure_receptive_field
from ssa_fast.large.tiling import make_tiling
from ssa_fast.models import inspect_model
from tests.networks import ChannelsLast, DeepHead, Pyramid, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE = 64


class Between(Pyramid):
    """``Pyramid`` with a function between its second and third block."""

    def __init__(self, function: Callable[[Tensor], Tensor], training: bool = False) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.function = function
        self.train(training)

    def features(self, x: Tensor) -> Tensor:
        x = self.function(self.blocks[1](self.blocks[0](x)))
        return self.blocks[3](self.blocks[2](x))


class Inside(Between):
    """The same function as a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)


def draw(count: int) -> Tensor:
    """Return images each of which is stronger than the one before."""
    images = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return images * 3.0 ** torch.arange(count)[:, None, None, None]


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


def shuffled(x: Tensor) -> Tensor:
    """Return half of the channels of the image before, as temporal shifts do."""
    return torch.cat([x[:, :6], x.roll(1, 0)[:, 6:]], 1)


BATCHES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "BatchNorm2d": (
        lambda: Inside(batch_norm(12)),
        "in 'function' (BatchNorm2d), which has no running statistics",
    ),
    "BatchNorm2d everywhere": (
        lambda: torchvision.models.resnet18(num_classes=5, norm_layer=batch_norm),
        "in 'bn1' (BatchNorm2d), which has no running statistics",
    ),
    "functional batch norm": (
        lambda: Between(lambda x: F.batch_norm(x, None, None, training=True)),
        "before 'blocks.2' (Block)",
    ),
    "standardisation": (lambda: Between(standardised), "before 'blocks.2' (Block)"),
    "mean of the batch": (lambda: Between(lambda x: x - x.mean(0)), "before 'blocks.2' (Block)"),
    "largest of the batch": (lambda: Between(lambda x: x / x.amax()), "before 'blocks.2' (Block)"),
    "shuffled images": (lambda: Between(shuffled), "before 'blocks.2' (Block)"),
    "softmax over the batch": (lambda: Inside(nn.Softmax(0)), "in 'function' (Softmax)"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_result_that_depends_on_the_batch_is_noted_with_its_place(name: str) -> None:
    build, place = BATCHES[name]
    torch.manual_seed(0)
    model = build().eval()
    ssa = SSA(model, input_shape=SIDE)
    together, alone = ssa(draw(2)), ssa(draw(2)[:1])
    assert not torch.allclose(together.logits[:1], alone.logits, rtol=1e-2)
    expected = (
        f"model: its result for an image depends on the other images of the batch, first {place}; "
        "pass images one by one for results of their own"
    )
    assert together.notes == ssa.info.notes == (expected,)


def test_statistics_of_the_logits_are_noted_as_after_the_last_layer() -> None:
    class Contrast(Pyramid):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits - logits.amax() + logits

    (note,) = inspect_model(Contrast(), input_shape=SIDE).notes
    assert "first after its last layer, in forward itself;" in note


def test_logits_less_their_mean_are_zero_for_an_image_alone() -> None:
    class Contrast(Pyramid):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits - logits.mean(0)

    with pytest.raises(ValueError, match=r"gradient is zero .*; all logits of an image alone are 0, as where the mean"):
        inspect_model(Contrast(), input_shape=SIDE)


@pytest.mark.parametrize(
    "build",
    [
        Pyramid,
        DeepHead,
        ChannelsLast,
        Tokens,
        lambda: Inside(nn.BatchNorm2d(12)),
        lambda: Inside(nn.InstanceNorm2d(12)),
        lambda: Inside(nn.GroupNorm(3, 12)),
        lambda: Inside(nn.Dropout(0.5)),
        lambda: Between(lambda x: F.dropout(x, 0.5, training=False), training=True),
        lambda: Between(lambda x: x - x.mean((2, 3), keepdim=True)),
        lambda: Pyramid().to(torch.bfloat16),
        lambda: Pyramid().to(torch.float64),
        lambda: Inside(nn.BatchNorm2d(12)).train(),
    ],
)
def test_images_that_are_independent_have_no_note(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert inspect_model(build(), input_shape=(64, 96)).notes == ()


def test_chance_in_evaluation_mode_is_noted_as_such() -> None:
    torch.manual_seed(0)
    (note,) = inspect_model(Between(lambda x: F.dropout(x, 0.5)), input_shape=SIDE).notes
    assert (
        note == "model: it is random in evaluation mode: two runs of one image differ, first before 'blocks.2' (Block)"
    )


def test_a_network_for_one_image_takes_them_one_by_one() -> None:
    model = Between(lambda x: x.view(1, 12, *x.shape[2:]))
    ssa = SSA(model, input_shape=SIDE)
    (note,) = ssa(draw(1)).notes
    assert note.startswith("model: it takes one image per call; two together fail (shape '[1, 12, 16, 16]' is invalid")
    with pytest.raises(
        ValueError, match="images: expected one, as the model failed with two at once, got 3; pass them"
    ):
        ssa(draw(3))


def test_a_network_of_fixed_size_is_tried_at_that_size() -> None:
    class Fixed(Between):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-2:] == (128, 128)
            return super().forward(x)

    (note,) = inspect_model(Fixed(lambda x: x - x.mean(0)), input_shape=128).notes
    assert "first before 'blocks.2' (Block)" in note
    assert inspect_model(Fixed(lambda x: x), input_shape=128).notes == ()


GLOBAL: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "GroupNorm": (lambda: Inside(nn.GroupNorm(3, 12)), "in 'function' (GroupNorm)"),
    "InstanceNorm": (lambda: Inside(nn.InstanceNorm2d(12)), "in 'function' (InstanceNorm2d)"),
    "LayerNorm over pixels": (lambda: Between(lambda x: F.layer_norm(x, x.shape[1:])), "before 'blocks.2' (Block)"),
    "mean": (lambda: Between(lambda x: x - x.mean()), "before 'blocks.2' (Block)"),
    "standardisation": (
        lambda: Between(lambda x: (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)),
        "before 'blocks.2' (Block)",
    ),
    "largest": (lambda: Between(lambda x: x / x.amax((2, 3), keepdim=True)), "before 'blocks.2' (Block)"),
    "mean without NaN": (lambda: Between(lambda x: x - x.nanmean()), "before 'blocks.2' (Block)"),
    "largest without NaN": (lambda: Between(lambda x: x / x.nan_to_num().amax()), "before 'blocks.2' (Block)"),
    "gate": (
        lambda: Inside(torchvision.ops.SqueezeExcitation(12, 3)),
        "in 'function' (SqueezeExcitation)",
    ),
    "softmax over pixels": (
        lambda: Between(lambda x: x * x.flatten(2).softmax(-1).view_as(x)),
        "before 'blocks.2' (Block)",
    ),
    "image less its mean": (
        lambda: nn.Sequential(Centred(), Between(lambda x: x)),
        "in '0' (Centred)",
    ),
}


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.nanmean((2, 3), keepdim=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", GLOBAL)
def test_maps_that_depend_on_the_whole_image_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, place = GLOBAL[name]
    torch.manual_seed(0)
    ssa = SSA(build().eval(), input_shape=SIDE)
    field = measure_receptive_field(ssa.model, ssa.info.stages)
    assert (field.halo, field.global_from) == (None, place)
    with pytest.raises(ValueError, match=r"halo: expected pixels, got \"auto\".*whole image, first (in|before) '"):
        make_tiling(ssa, field, (900, 900), tile=256, halo="auto", memory=10**10, with_seed=False)
    assert not make_tiling(ssa, field, (900, 900), tile=256, halo=64, memory=10**10, with_seed=False).exact


@pytest.mark.parametrize(
    "function", [lambda x: x, lambda x: F.local_response_norm(x, 3), lambda x: x - F.avg_pool2d(x, 5, 1, 2)]
)
def test_local_normalisation_keeps_its_receptive_field(function: Callable[[Tensor], Tensor]) -> None:
    model = Between(function)
    field = measure_receptive_field(model, inspect_model(model, input_shape=SIDE).stages)
    assert field.halo is not None
    assert field.global_from == ""


def quietly(build: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function of PyTorch whose deprecation is not of interest here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build(*args, **options)


def export(model: nn.Module, batch: int = 2) -> Any:
    free = {0: torch.export.Dim.DYNAMIC} if batch > 1 else {}
    return quietly(torch.export.export, model.eval(), (draw(batch),), dynamic_shapes=(free,))


def quantize_statically() -> nn.Module:
    model = torchvision.models.quantization.resnet18(quantize=False, num_classes=5).eval()
    model.fuse_model()
    model.qconfig = torch.ao.quantization.default_qconfig
    torch.ao.quantization.prepare(model, inplace=True)
    model(draw(1))
    return torch.ao.quantization.convert(model, inplace=True)


def lazy() -> nn.Module:
    model = Pyramid()
    model.fc = nn.LazyLinear(5)
    return model


def with_script() -> nn.Module:
    model = Pyramid()
    model.blocks[2] = torch.jit.script(model.blocks[2])
    return model


def on_two_devices() -> nn.Module:
    model = nn.DataParallel(Pyramid())
    model.device_ids = [0, 1]
    return model


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "scripted": (lambda: torch.jit.script(Pyramid()), TypeError, "got TorchScript, whose layers call no hooks"),
    "traced": (lambda: torch.jit.trace(Pyramid(), draw(1)), TypeError, "got TorchScript, whose layers"),
    "scripted inside": (
        with_script,
        TypeError,
        r"got TorchScript at 'blocks\.2', whose layers call no hooks; pass the",
    ),
    "exported": (
        lambda: export(Pyramid()).module(),
        TypeError,
        r"one graph of operators \(torch.export, make_fx\), which",
    ),
    "exported inside": (
        lambda: nn.Sequential(export(Pyramid()).module()),
        TypeError,
        r"one graph of operators at '0' .*; pass the original network or torch.export.unflatten",
    ),
    "a program": (lambda: export(Pyramid()), TypeError, "a torch.nn.Module, got ExportedProgram"),
    "static int8": (quantize_statically, TypeError, r"got a statically quantized one at 'conv1' \(ConvReLU2d\), whose"),
    "lazy": (lazy, ValueError, r"'fc.weight' has no shape yet, as its layer is lazy; run one image through the model"),
    "meta": (lambda: Pyramid().to("meta"), ValueError, r"'blocks.0.down.weight' is on the meta device and holds no"),
    "a class": (lambda: Pyramid, TypeError, "a torch.nn.Module, got type; pass the network itself"),
    "several devices": (on_two_devices, ValueError, r"got nn.DataParallel on 2, which runs copies; pass its .module"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_modules_that_cannot_be_read_say_why(name: str) -> None:
    build, error, text = REFUSED[name]
    model = quietly(build)
    with pytest.raises(error, match=f"model: expected .*{text}"):
        inspect_model(model, input_shape=SIDE)


def weight_norm_as_before(model: Pyramid) -> nn.Module:
    model.fc = nn.utils.weight_norm(model.fc)
    return model


def parametrized(model: Pyramid) -> nn.Module:
    nn.utils.parametrizations.weight_norm(model.fc)
    return model


def pruned(model: Pyramid) -> nn.Module:
    l1_unstructured(model.fc, "weight", 0.3)
    return model


READ: dict[str, Callable[[Pyramid], nn.Module]] = {
    "in training, with dropout": lambda model: model.train(),
    "frozen": lambda model: model.requires_grad_(False),
    "weight norm": weight_norm_as_before,
    "parametrized": parametrized,
    "pruned": pruned,
    "traced by fx": torch.fx.symbolic_trace,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": lambda model: (model.compile(backend="eager"), model)[1],
    "DataParallel": nn.DataParallel,
    "unflattened export": lambda model: torch.export.unflatten(export(model)),
    "quantized dynamically": lambda model: torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear}),
}


@pytest.mark.parametrize("name", READ)
def test_modules_that_are_read_as_the_network_they_hold(name: str) -> None:
    torch.manual_seed(0)
    original = Pyramid()
    model = quietly(READ[name], copy.deepcopy(original))
    if name == "pruned":
        original.fc.weight.data = model.fc.weight.detach()
    found, expected = (SSA(each, input_shape=SIDE)(draw(1), [0, 3]).cams for each in (model, original))
    tolerance = 0.03 if name == "quantized dynamically" else 1e-4
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert found.amax() > 0


def test_a_dynamically_quantized_head_has_the_cam_of_its_weights() -> None:
    torch.manual_seed(0)
    model = quietly(torch.ao.quantization.quantize_dynamic, Pyramid().eval(), {nn.Linear})
    ssa = SSA(model, input_shape=SIDE)
    assert (ssa.seed_kind, ssa.info.seed.head) == ("cam", "fc")
    info = ssa.info
    with torch.no_grad():
        features = model.features(draw(1))
        expected = torch.einsum("kc,bchw->bkhw", model.fc.weight().dequantize(), features).relu()
    seed = info.seed_maps(model, info.forward(model, draw(1)), torch.tensor([[4, 1]]))
    torch.testing.assert_close(seed, expected[:, [4, 1]])


def test_grad_cam_through_dynamically_quantized_layers_is_refused() -> None:
    model = quietly(torch.ao.quantization.quantize_dynamic, DeepHead().eval(), {nn.Linear})
    with pytest.raises(
        ValueError, match=r"seed: expected weights through which .*, but 'fc' is quantized; pass the floating-po"
    ):
        inspect_model(model, input_shape=SIDE)


@pytest.mark.parametrize("network", [Pyramid, DeepHead])
def test_networks_built_under_inference_mode(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        model = network().eval()
    if network is Pyramid:
        assert SSA(model, input_shape=SIDE)(draw(2)).cams.amax() > 0
    with pytest.raises(ValueError, match=r"weights through which gradients can be computed, but 'blocks.0.down.we"):
        inspect_model(model, seed="grad-cam", input_shape=SIDE)
    normal = copy.deepcopy(model)  # what the message advises
    ssa = SSA(normal, seed="grad-cam", input_shape=SIDE)
    with torch.inference_mode():
        assert ssa(draw(2)).cams.amax() > 0


def test_an_export_for_one_image_says_so() -> None:
    model = torch.export.unflatten(export(Pyramid(), batch=1))
    ssa = SSA(model, input_shape=SIDE)
    assert ssa.info.takes_one
    with pytest.raises(ValueError, match="images: expected one, as the model failed with two at once, got 2"):
        ssa(draw(2))


def test_an_error_of_a_hook_is_the_reason_given() -> None:
    def fail(*call: Any) -> None:
        raise RuntimeError("no feature store")

    model = Pyramid()
    model.blocks[1].register_forward_hook(fail)
    with pytest.raises(ValueError, match=r"model: expected a forward pass .* \(no feature store\)"):
        inspect_model(model, input_shape=SIDE)


def test_a_network_of_two_dtypes_takes_images_as_its_first_weight_is() -> None:
    class Mixed(Pyramid):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.features(x).mean((2, 3)).double())

    torch.manual_seed(0)
    model = Mixed()
    model.fc.double()
    ssa = SSA(model, input_shape=SIDE)
    assert ssa.seed_kind == "cam"
    assert ssa(draw(2)).cams.amax() > 0


class Shrinking(nn.Module):
    """A pooling window that shrinks to a smaller map for good, as the windows of Hugging Face's Swin do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 8, 1), nn.Linear(8, 4)
        self.window = 14

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).relu()
        self.window = min(self.window, *maps.shape[2:])
        return self.fc(F.avg_pool2d(maps, self.window, 1).mean((2, 3)))


def test_trials_at_other_sizes_leave_a_network_as_it_was() -> None:
    model = Shrinking()
    info = inspect_model(model, input_shape=112)
    assert (model.window, info.seed.kind) == (14, "grad-cam")
