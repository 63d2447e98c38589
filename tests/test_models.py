"""Test stages and seeds on every torchvision family and on small networks with difficult traits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ssa_fast import SSA, Affinity
from ssa_fast.models import describe, inspect_model, stage_affinity
from ssa_fast.models.class_spec import resolve_classes
from ssa_fast.models.layout import infer_layout
from ssa_fast.ops.cost_model import Problem
from ssa_fast.ops.dispatch import not_supported_reasons
from tests.networks import ChannelsLast, ClassMap, ConvHead, DeepHead, ExplicitAttention, Pyramid, Tokens
from tests.sweep_models import light_half, sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssa_fast.models import StageDescription

NN, SIGNED = "non-negative", "signed"

SIDES = (56, 28, 14, 7)
# The lightest member of each family: its stages (prefix|suffixes), their sides for 224 pixels, their signs, and the
# kind and layer of the seed.
FAMILIES: dict[str, tuple[str, Sequence[int], str, str, str]] = {
    "alexnet": ("features.|1 4 11", (55, 27, 13), "+++", "grad-cam", "features.11"),
    "convnext_tiny": ("features.|1 3 5 7", SIDES, "±±±±", "grad-cam", "features.7"),
    "densenet121": (
        "features.|transition1.relu transition2.relu transition3.relu norm5",
        SIDES,
        "++++",
        "cam",
        "features.norm5",
    ),
    "efficientnet_b0": ("features.|2 3 5 8", SIDES, "±±±±", "cam", "features.8"),
    "googlenet": ("|conv3 inception3b inception4e inception5b", SIDES, "++++", "cam", "inception5b"),
    "inception_v3": ("|Conv2d_4a_3x3 Mixed_5d Mixed_6e Mixed_7c", (52, 25, 12, 5), "++++", "cam", "Mixed_7c"),
    "maxvit_t": ("blocks.|0 1 2 3", SIDES, "±±±±", "grad-cam", "blocks.3"),
    "mnasnet0_5": ("layers.|8 9 11 16", SIDES, "±±±+", "cam", "layers.16"),
    "mobilenet_v2": ("features.|3 6 13 18", SIDES, "±±±+", "cam", "features.18"),
    "mobilenet_v3_small": ("features.|1 3 8 12", SIDES, "±±±±", "grad-cam", "features.12"),
    "regnet_x_400mf": ("trunk_output.block|1 2 3 4", SIDES, "++++", "cam", "trunk_output.block4"),
    "resnet18": ("layer|1 2 3 4", SIDES, "++++", "cam", "layer4"),
    "shufflenet_v2_x0_5": ("|maxpool stage2 stage3 conv5", SIDES, "++++", "cam", "conv5"),
    "squeezenet1_1": ("features.|1 4 7 12", (111, 55, 27, 13), "++++", "cam", "classifier.2"),
    "swin_t": ("features.|1 3 5 7", SIDES, "±±±±", "cam", "permute"),
    "swin_v2_t": ("features.|1 3 5 7", SIDES, "±±±±", "cam", "permute"),
    "vgg11": ("features.|4 9 14 19", (112, 56, 28, 14), "++++", "grad-cam", "features.19"),
    "vit_b_32": (
        "encoder.layers.encoder_layer_|2 5 8 11",
        (7,) * 4,
        "±±±±",
        "grad-cam",
        "encoder.layers.encoder_layer_11.ln_1",
    ),
}


def is_linear(stage: StageDescription) -> bool:
    """Return whether prototypes are exact for a stage's affinity and sign."""
    C, h, w = stage.shape
    problem = Problem(1, 20, C, h * w, stage.affinity, nonnegative=stage.sign == NN)
    return not_supported_reasons("prototypes", "torch", problem) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_family(name: str) -> None:
    stages, sides, signs, kind, layer = FAMILIES[name]
    prefix, suffixes = stages.split("|")
    (row,) = sweep([name])
    assert row.error is None
    assert row.description is not None
    found = row.description.stages
    assert [stage.name for stage in found] == [prefix + suffix for suffix in suffixes.split()]
    assert [stage.shape[1:] for stage in found] == [(side, side) for side in sides]
    assert [stage.sign for stage in found] == [{"+": NN, "±": SIGNED}[sign] for sign in signs]
    assert [stage.proved for stage in found] == [sign == "+" for sign in signs]
    assert all(is_linear(stage) for stage in found)
    assert (row.description.seed_kind, row.description.seed_layer) == (kind, layer)


def test_light_half_holds_half_of_the_models() -> None:
    names = light_half()
    assert len(names) == len(torchvision.models.list_models(module=torchvision.models)) // 2
    assert "squeezenet1_1" in names
    assert "vit_h_14" not in names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", light_half())
def test_ssa_on_a_light_classifier(name: str) -> None:
    ssa = SSA(torchvision.models.get_model(name, weights=None))
    height, width = ssa.info.trace_size
    result = ssa(torch.randn(1, 3, height, width), classes="top5")
    assert result.cams.shape == (1, 5, height, width)
    assert result.logits.shape == (1, 1000)
    assert list(result.stages) == ssa.stage_names
    for maps in (result.cams, result.seed, *result.stages.values()):
        assert (maps >= 0).all()
        assert (maps <= 1).all()


def test_every_torchvision_classifier_belongs_to_a_family_above() -> None:
    def family(name: str) -> str:
        name = re.sub(r"^(resnext|wide_resnet)", "resnet", name)
        name = re.sub(r"^(efficientnet)_v2", r"\1", name)
        return re.match(r"[a-z]+(_v\d(?=_[a-z]+$))?", name)[0].rstrip("_")  # type: ignore[index]

    known = {family(name) for name in FAMILIES}
    names = torchvision.models.list_models(module=torchvision.models)
    assert len(names) >= 80
    assert [name for name in names if family(name) not in known] == []


def test_sweep_reports_a_failure_and_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    build = torchvision.models.get_model
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda name, **kw: nn.Identity() if name == "alexnet" else build(name, **kw)
    )
    failed, passed = sweep(["alexnet", "squeezenet1_1"])
    assert failed.description is None
    assert failed.error is not None
    assert failed.error.startswith("ValueError: model: expected logits of shape (B, num_classes)")
    assert passed.error is None


def test_sweep_fails_where_the_default_is_not_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    (passed,) = sweep(["mnasnet0_5"])
    assert passed.error is None
    monkeypatch.setattr(stage_affinity, "SIGNED_DEFAULT", Affinity())
    (failed,) = sweep(["mnasnet0_5"])
    assert failed.error is not None
    assert failed.error.startswith("ValueError: method='prototypes', backend='torch' cannot polish this stage")


def test_sweep_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match="got 'resnet51'; did you mean 'resnet5"):
        sweep(["resnet51"])


def cams(model: nn.Module, images: Tensor, classes: list[int], **options: object) -> Tensor:
    info = inspect_model(model, input_shape=(images.shape[-2], images.shape[-1]), **options)  # type: ignore[arg-type]
    index = torch.tensor(classes).expand(len(images), -1)
    return info.seed_maps(model, info.forward(model, images), index)


def double(model: nn.Module, batch: int = 2, size: tuple[int, int] = (64, 96)) -> tuple[nn.Module, Tensor]:
    """Return the model in evaluation mode and images, both float64 for tight default tolerances."""
    return model.double().eval(), torch.randn(batch, 3, *size, dtype=torch.float64)


@pytest.mark.parametrize("network", [Pyramid, ConvHead, ClassMap])
def test_cam_is_the_heads_weights_on_the_last_map(network: type[Pyramid]) -> None:
    model, images = double(network())
    with torch.no_grad():
        features = model.features(images)  # type: ignore[operator]
        expected = torch.einsum("kc,bchw->bkhw", model.fc.weight.flatten(1), features)  # type: ignore[union-attr, operator]
        if network is ClassMap:
            expected = expected + model.fc.bias[:, None, None]  # type: ignore[union-attr, index]
    torch.testing.assert_close(cams(model, images, [3, 1], seed="cam"), expected[:, [3, 1]].relu())


def test_cam_of_channels_last_features() -> None:
    model, images = double(ChannelsLast())
    with torch.no_grad():
        features = model.norm(model.features(images).permute(0, 2, 3, 1))  # type: ignore[operator]
        expected = (features @ model.fc.weight.T).permute(0, 3, 1, 2)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(cams(model, images, [4], seed="cam"), expected[:, [4]].relu())


def test_cam_of_mean_pooled_tokens() -> None:
    model, images = double(Tokens(registers=3, pooled=True))
    taken: list[Tensor] = []
    with torch.no_grad(), model.norm.register_forward_hook(lambda *seen: taken.append(seen[2])):  # type: ignore[operator, union-attr]
        model(images)
    expected = (taken[0][:, 4:] @ model.head.weight.T).transpose(1, 2).unflatten(2, (8, 12))  # type: ignore[union-attr]
    torch.testing.assert_close(cams(model, images, [0, 2]), expected[:, [0, 2]].relu().detach())


def test_cam_of_densenet_reads_the_map_after_the_functional_relu() -> None:
    model, images = double(torchvision.models.densenet121(num_classes=5), batch=1)
    with torch.no_grad():
        expected = torch.einsum("kc,bchw->bkhw", model.classifier.weight, F.relu(model.features(images)))  # type: ignore[union-attr, operator]
    torch.testing.assert_close(cams(model, images, [0, 4]), expected[:, [0, 4]].relu())


def test_grad_cam_of_a_pooled_linear_head_is_its_cam_over_the_number_of_pixels() -> None:
    model, images = double(torchvision.models.resnet18(num_classes=5))
    cam = cams(model, images, [0, 3], seed="cam")
    assert cam.amax() > 0
    torch.testing.assert_close(cams(model, images, [0, 3], seed="grad-cam") * (2 * 3), cam)


@pytest.mark.parametrize("layer", ["blocks.3", "blocks.2.conv", "blocks.1"])
def test_grad_cam_equals_the_definition_with_plain_autograd(layer: str) -> None:
    """``blocks.2.conv`` is overwritten in place; Grad-CAM reads what the convolution returned."""
    model, images = double(DeepHead())
    taken: list[Tensor] = []

    def take(module: nn.Module, args: object, output: Tensor) -> Tensor:
        taken.append(output)
        return output.clone()

    with model.get_submodule(layer).register_forward_hook(take):  # type: ignore[attr-defined]
        logits = model(images)
    expected = []
    for k in (2, 4):
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), taken[0], retain_graph=True)
        expected.append(torch.einsum("bc,bchw->bhw", gradient.mean((2, 3)), taken[0]).relu())
    torch.testing.assert_close(cams(model, images, [2, 4], seed=layer), torch.stack(expected, 1).detach())


@pytest.mark.slow
def test_grad_cam_before_an_in_place_relu_reads_the_map_after_it() -> None:
    model, images = double(torchvision.models.vgg11(num_classes=5))
    before, after = (cams(model, images, [1], seed=layer) for layer in ("features.18", "features.19"))
    assert after.amax() > 0
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("registers", [0, 4])
def test_seed_of_a_class_token_network_is_before_its_last_block(registers: int) -> None:
    model = Tokens(registers).eval()
    info = inspect_model(model, input_shape=(64, 96))
    assert list(info.stages) == ["layers.0", "layers.2", "layers.3", "layers.5"]
    assert info.seed.layer == "layers.5.norm"
    assert {(ref.layout.prefix, ref.layout.shape) for ref in info.stages.values()} == {(1 + registers, (16, 8, 12))}
    extracted = info.forward(model, torch.randn(2, 3, 128, 64))  # not the sample image's patch grid
    assert extracted.maps["layers.2"].shape == (2, 16, 16, 8)
    seeds = info.seed_maps(model, extracted, torch.tensor([[0, 1], [2, 3]]))
    assert (seeds.amax((2, 3)) > 0).any()


def test_attention_matrices_are_not_stages() -> None:
    info = inspect_model(ExplicitAttention())
    assert list(info.stages) == [f"layers.{i}" for i in range(4)]
    assert (info.seed.kind, info.seed.layer) == ("grad-cam", "layers.3.0")


def test_a_signed_stage_is_not_taken_after_the_next_convolution() -> None:
    def conv(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, 3, stride, 1)

    following = nn.Sequential(conv(8, 8, 1), nn.ReLU(), conv(8, 8, 2), nn.BatchNorm2d(8), nn.ReLU())
    before_norm = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, 2))
    for second, expected in ((following, ["0", "1"]), (before_norm, ["1.1", "1"])):
        model = nn.Sequential(conv(3, 8, 2), second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        assert list(inspect_model(model, input_shape=32).stages) == expected


@pytest.mark.parametrize("inference", [False, True])
def test_grad_cam_at_the_image_itself(inference: bool) -> None:
    model = nn.Sequential(nn.Identity(), Pyramid()).double().eval()
    with torch.inference_mode(inference):
        images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 2].sum(), leaf)
    expected = torch.einsum("bc,bchw->bhw", gradient.mean((2, 3)), images.clone()).relu()[:, None]
    torch.testing.assert_close(cams(model, images, [2], seed="0"), expected)
    assert not images.requires_grad


def test_token_map_has_patch_i_j_at_i_j() -> None:
    layout = infer_layout((1, 1 + 6, 5), (32, 48), [(2, 3)])
    assert layout is not None
    tokens = torch.arange(7.0)[None, :, None].expand(1, 7, 5)
    assert layout.view(tokens, (32, 48))[0, 4].tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(ValueError, match=r"expected 1 \+ 4 x 3 tokens for images of 64 x 48, got 7"):
        layout.view(tokens, (64, 48))


@pytest.mark.parametrize(
    ("shape", "kind", "chw"),
    [
        ((1, 64, 56, 56), "nchw", (64, 56, 56)),
        ((1, 56, 56, 96), "nhwc", (96, 56, 56)),
        ((1, 7, 7, 768), "nhwc", (768, 7, 7)),
        ((1, 512, 1, 1), "nchw", (512, 1, 1)),
        ((1, 56, 56, 56), "nchw", (56, 56, 56)),
        ((1, 784, 192), "tokens", (192, 28, 28)),
        ((1, 261, 384), "tokens", (384, 16, 16)),
    ],
)
def test_layouts_at_224(shape: tuple[int, ...], kind: str, chw: tuple[int, int, int]) -> None:
    layout = infer_layout(shape, (224, 224))
    assert layout is not None
    assert (layout.kind, layout.shape) == (kind, chw)


@pytest.mark.parametrize("shape", [(1, 10), (64, 49, 96), (4, 3, 14, 14), (1, 2, 3, 4, 5)])
def test_outputs_that_are_not_maps(shape: tuple[int, ...]) -> None:
    assert infer_layout(shape, (224, 224)) is None


def test_a_stage_is_the_output_of_its_module_unless_a_relu_overwrote_it() -> None:
    model = Pyramid().eval()
    images = torch.randn(1, 3, 64, 64)
    info = inspect_model(model, stages=["blocks.1.down", "blocks.1.conv", "blocks.1"], input_shape=64)
    maps = info.forward(model, images).maps
    with torch.no_grad():
        down = model.blocks[1].down(model.blocks[0](images)).relu()
        conv = model.blocks[1].conv(down)
    torch.testing.assert_close(maps["blocks.1.down"], down, rtol=0, atol=0)
    torch.testing.assert_close(maps["blocks.1.conv"], conv, rtol=0, atol=0)
    torch.testing.assert_close(maps["blocks.1"], (conv + down).relu(), rtol=0, atol=0)
    assert info.signs == {"blocks.1.down": NN, "blocks.1.conv": SIGNED, "blocks.1": NN}


def test_stages_share_memory_with_the_outputs_of_the_modules() -> None:
    model = torchvision.models.swin_t(num_classes=2)
    taken: list[Tensor] = []
    with model.features[3].register_forward_hook(lambda *seen: taken.append(seen[2])):
        info = inspect_model(model, stages=["features.3"])
        taken.clear()
        maps = info.forward(model, torch.randn(1, 3, 64, 64)).maps
    assert maps["features.3"].data_ptr() == taken[0].data_ptr()
    assert maps["features.3"].shape == (1, 192, 8, 8)


def _state(model: nn.Module) -> tuple[object, ...]:
    return (
        [module.training for module in model.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("network", [Pyramid, DeepHead, Tokens])
def test_the_model_and_the_random_state_are_restored(network: type[nn.Module]) -> None:
    model = network().train()
    next(model.children()).eval()
    next(model.parameters()).requires_grad_(False)
    before = _state(model)
    info = inspect_model(model, input_shape=64)
    image = torch.zeros(1, 3, 64, 64)
    info.seed_maps(model, info.forward(model, image), torch.tensor([[0]]))
    assert _state(model) == before


def test_the_model_is_restored_after_a_forward_that_fails() -> None:
    model = DeepHead().train()
    info = inspect_model(model, input_shape=64)
    before = _state(model)
    with pytest.raises(RuntimeError, match="channels"):
        info.forward(model, torch.zeros(1, 4, 64, 64))
    with pytest.raises(
        ValueError,
        match=r"a forward pass on a sample image of shape \(1, 3, 2, 2\), got an error \(.*; pass input_shape",
    ):
        inspect_model(nn.Sequential(nn.AvgPool2d(4), model).train(), input_shape=2)
    assert _state(model) == before


def test_frozen_parameters_do_not_change_grad_cam() -> None:
    model, images = double(DeepHead())
    expected = cams(model, images, [0, 1])
    model.requires_grad_(False)
    torch.testing.assert_close(cams(model, images, [0, 1]), expected, rtol=0, atol=0)
    assert expected.amax() > 0


def test_a_cam_that_is_not_exact_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"its last linear layer, 'fc', is not the mean of a map over its pixels; use"):
        inspect_model(DeepHead(), seed="cam", input_shape=64)


def test_a_layer_without_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gradient at 'layers.5' is zero on every pixel; name an earlier layer"):
        inspect_model(Tokens(), seed="layers.5", input_shape=64)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"stages": ["layer33"]}, ValueError, r"stages: .* got 'layer33'; name another, such as .*layer3"),
        ({"stages": ["fc"]}, ValueError, r"'fc' returned \(1, 1000\) for one image"),
        ({"stages": []}, ValueError, "at least one module name"),
        ({"stages": ["layer1", "layer1"]}, ValueError, "distinct"),
        ({"stages": "layer1"}, ValueError, r"write \['layer1'\]"),
        ({"seed": "layer5"}, ValueError, r"seed: .* got 'layer5'; name another, such as .*layer4"),
        ({"seed": 3}, TypeError, "got int"),
        ({"input_shape": 0}, ValueError, r"input_shape: expected \(H, W\) of at least 1, got \(0, 0\)"),
    ],
)
def test_wrong_options(options: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        inspect_model(RESNET, **options)  # type: ignore[arg-type]


RESNET = torchvision.models.resnet18()


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        ("resnet18", TypeError, "model: expected a torch.nn.Module, got str"),
        (nn.Conv2d(3, 4, 1), ValueError, r"logits of shape \(B, num_classes\), got \(1, 4, 64, 64\)"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)),
            ValueError,
            "stages: expected a network whose modules",
        ),
    ],
)
def test_models_that_cannot_be_used(model: nn.Module, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        inspect_model(model, input_shape=64)


def test_the_stages_of_a_flat_network_of_one_resolution_follow_its_relus() -> None:
    layers: list[nn.Module] = [layer for _ in range(3) for layer in (nn.LazyConv2d(6, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    model(torch.randn(1, 3, 16, 16))
    info = inspect_model(model, input_shape=16)
    assert list(info.stages) == ["1", "3", "5"]
    assert (info.seed.kind, info.seed.layer, info.seed.head) == ("cam", "5", "8")


def test_describe_with_given_stages_and_size() -> None:
    description = describe(
        Pyramid(classes=7), stages=["blocks.2", "blocks.0.conv"], seed="grad-cam", input_shape=(64, 96)
    )
    assert [(s.name, s.shape, s.sign) for s in description.stages] == [
        ("blocks.2", (16, 8, 12), NN),
        ("blocks.0.conv", (8, 32, 48), SIGNED),
    ]
    assert (description.seed_kind, description.seed_layer) == ("grad-cam", "blocks.2")
    assert (description.input_size, description.num_classes) == ((64, 96), 7)
    assert description.parameters == sum(p.numel() for p in Pyramid(classes=7).parameters())


@pytest.mark.parametrize("affinity", ["auto", Affinity(phi="exp", temperature=0.5)])
def test_describe_with_an_affinity(affinity: Affinity | Literal["auto"]) -> None:
    stages = describe(Pyramid(), stages=["blocks.1", "blocks.1.conv"], affinity=affinity, input_shape=512).stages
    assert [stage.sign for stage in stages] == [NN, SIGNED]
    if affinity == "auto":
        assert [str(stage.affinity) for stage in stages] == ["phi=relu", str(stage_affinity.SIGNED_DEFAULT)]
        assert [is_linear(stage) for stage in stages] == [True, True]
        assert [stage.method for stage in stages] == ["prototypes"] * 2
        assert [stage.why for stage in stages] == [stage_affinity.REASONS[NN], stage_affinity.REASONS[SIGNED]]
    else:
        assert [(stage.affinity, stage.why, stage.method) for stage in stages] == [(affinity, "asked for", "tiled")] * 2


def test_classes_in_every_form() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.0], [5.0, -1.0, 4.0]])

    def resolved(classes: Any) -> list[list[int]]:
        return resolve_classes(classes, logits).index.tolist()

    assert resolved(None) == resolved("predicted") == [[1], [0]]
    assert resolved("top2") == [[1, 2], [0, 2]]
    assert resolved([2, 0]) == [[2, 0], [2, 0]]
    assert resolved([[2], [1]]) == [[2], [1]]
    assert resolved([[0], [1, 2]]) == [[0, -1], [1, 2]]
    assert resolved(torch.tensor([[2], [1]])) == [[2], [1]]
    assert resolved(torch.tensor([1]).numpy()) == [[1], [1]]


@pytest.mark.parametrize(
    ("classes", "error", "text"),
    [
        ("top4", ValueError, "expected top1 to top3 for this model, got 'top4'"),
        ("best", ValueError, "got 'best'"),
        ([3], ValueError, r"expected indices in 0..2, the model's outputs, got 3"),
        ([-1], ValueError, "got -1"),
        ([], ValueError, "at least one class"),
        ([[0], [1, 2], []], ValueError, r"one list per image, 2, got 3"),
        ([[0], [1], [2]], ValueError, r"B = 2 images, got \(3, 1\)"),
        ([0.5], TypeError, "integers, got float64"),
        ([True], TypeError, "integers, got bool"),
        (["cat"], ValueError, "no names for its outputs, got 'cat'"),
        ([[0], 1], TypeError, "expected integers"),
        (1, TypeError, r"write \[index\] for a single class"),
    ],
)
def test_wrong_classes(classes: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"classes: .*{text}"):
        resolve_classes(classes, torch.zeros(2, 3))  # type: ignore[arg-type]


class MappingOutput(nn.Module):
    """A classifier that returns a mapping in which another tensor precedes the logits."""

    def __init__(self, first: str) -> None:
        super().__init__()
        self.net, self.first = Pyramid(), first

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.net(images)
        return {"first": logits.repeat(1, 3) if self.first == "vector" else images, "logits": logits}


@pytest.mark.parametrize("first", ["vector", "map"])
def test_logits_are_found_by_their_name(first: str) -> None:
    model = MappingOutput(first)
    assert inspect_model(model).num_classes == model.net(torch.zeros(1, 3, 64, 64)).shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_exact_cam_is_found_in_half_precision(dtype: torch.dtype) -> None:
    assert inspect_model(torchvision.models.resnet18(weights=None).to(dtype)).seed.kind == "cam"


def test_logits_modified_in_place_do_not_prove_a_cam() -> None:
    class Negated(Pyramid):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).mul_(-1)

    assert inspect_model(Negated()).seed.kind == "grad-cam"


def test_a_head_registered_first_is_not_taken_for_the_input() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Conv2d(16, 5, 1), nn.Conv2d(3, 16, 3, stride=2)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(images).relu()).mean((2, 3))

    assert inspect_model(HeadFirst()).in_channels == 3
