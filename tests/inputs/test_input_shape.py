"""Heading 5: networks whose images have another number of channels or another size than RGB at 224 pixels.

The class of inputs: networks of any number of channels, whether or not their configuration tells it, whose convolutions
may be registered in another order than they are called; networks for one size, for multiples of one, and for any size,
with and without an attribute that names one; and patch grids at sizes that are no multiple of the patch, where patch
embeddings floor and halvings ceil.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ssa_fast import SSA
from ssa_fast.models import describe, inspect_model
from ssa_fast.models.input_shape import named_channels, named_sizes, parse_input_shape
from ssa_fast.models.layout import TensorLayout
from tests.networks import Pyramid, Tokens

timm = pytest.importorskip("timm", reason="timm comes with the extra of the test environment")
transformers = pytest.importorskip("transformers", reason="transformers comes with the extra of the test environment")

PLAIN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, (None, None)),
        (96, (None, (96, 96))),
        ((64, 96), (None, (64, 96))),
        ([12, 64, 96], (12, (64, 96))),
        (torch.Size([5, 32, 48]), (5, (32, 48))),
        ({"height": 64, "width": 96}, (None, (64, 96))),
        ({"shortest_edge": 256}, (None, (256, 256))),
        ({"input_size": (3, 288, 288), "mean": (0.5,) * 3}, (3, (288, 288))),
    ],
)
def test_input_shape_in_every_form(value: object, expected: object) -> None:
    assert tuple(parse_input_shape(value)) == expected  # type: ignore[arg-type]


def test_the_sizes_of_an_image_processor() -> None:
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 96})
    assert parse_input_shape(processor).size == (64, 96)
    cropping = SimpleNamespace(
        size={"shortest_edge": 256}, do_center_crop=True, crop_size={"height": 224, "width": 224}
    )
    assert parse_input_shape(cropping).size == (224, 224)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["224", 2.5, (1, 2, 3, 4), True, {"longest_edge": 3}])
def test_input_shape_of_another_kind(value: object) -> None:
    with pytest.raises(TypeError, match="input_shape: expected"):
        inspect_model(Pyramid(), input_shape=value)  # type: ignore[arg-type]


class HeadFirst(nn.Module):
    """Convolutions registered in the opposite order of their calls, one of them with few channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(2, 1, 7, padding=3)
        self.head, self.body = nn.Conv2d(16, 5, 1), nn.Conv2d(channels, 16, 3, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(images).relu()
        x = x * self.gate(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        return self.head(x).mean((2, 3))


class SpaceToDepth(nn.Module):
    """Its first convolution takes 16 times the channels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(48, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(nn.functional.pixel_unshuffle(images, 4)).relu().mean((2, 3)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 12])
def test_the_first_convolution_that_is_called_tells_the_channels(channels: int) -> None:
    model = HeadFirst(channels)
    info = inspect_model(model, input_shape=32)
    assert info.in_channels == channels
    assert info.forward(model, torch.randn(1, channels, 32, 48)).logits.shape == (1, 5)


def test_channels_that_no_convolution_tells() -> None:
    assert inspect_model(SpaceToDepth(), input_shape=32).in_channels == 3
    grey = nn.Sequential(nn.Upsample(scale_factor=1), Pyramid(channels=1))
    assert inspect_model(grey, input_shape=32).in_channels == 1


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("channels", [1, 4, 12])
def test_timm_with_any_number_of_channels(name: str, channels: int) -> None:
    model = timm.create_model(name, in_chans=channels, num_classes=5)
    result = SSA(model)(torch.randn(1, channels, *inspect_model(model).trace_size), classes=[1])
    assert result.cams.shape[:2] == (1, 1)


@pytest.mark.slow
def test_the_issues_efficientnet() -> None:
    info = inspect_model(timm.create_model("efficientnet_b0", in_chans=12, num_classes=5), input_shape=64)
    assert (info.in_channels, info.trace_size) == (12, (64, 64))


def test_what_is_told_is_taken_or_refused_with_fitting_advice() -> None:
    assert describe(Pyramid(channels=6), input_shape=(6, 64, 96)).input_size == (64, 96)
    with pytest.raises(ValueError, match=r"its first convolution takes 6 channels: pass input_shape=\(6, H, W\)$"):
        inspect_model(Pyramid(channels=6), input_shape=(3, 64, 64))
    with pytest.raises(ValueError, match=r"; pass input_shape=\(H, W\) that the network accepts$"):
        inspect_model(nn.Sequential(Pyramid(), nn.Unflatten(1, (7, 7))), input_shape=64)
    two = type("Two", (Pyramid,), {"forward": lambda self, images, lengths: images})()
    with pytest.raises(ValueError, match=r"; wrap the network in a module whose forward takes the images alone$"):
        inspect_model(two, input_shape=64)


def test_what_configurations_name() -> None:
    assert named_sizes(timm.create_model("test_vit"))[0] == (160, 160)
    config = transformers.ViTConfig(image_size=48, patch_size=8, num_channels=5, **PLAIN)
    model = transformers.ViTForImageClassification(config)
    assert (named_channels(model)[0], named_sizes(model)[0]) == (5, (48, 48))
    wrapped = nn.Sequential(model)
    assert (named_channels(wrapped)[0], named_sizes(wrapped)[0]) == (5, (48, 48))
    info = inspect_model(model)
    assert (info.in_channels, info.trace_size, info.fixed_size) == (5, (48, 48), (48, 48))


class Named(Pyramid):
    """A fully convolutional network with an attribute that names a size."""

    def __init__(self, **attributes: object) -> None:
        super().__init__()
        vars(self).update(attributes)


class Flat(nn.Module):
    """A network for images of 32 x 32 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()), nn.Linear(8 * 16 * 16, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images).flatten(1))


@pytest.mark.parametrize("attribute", [{"image_size": 64}, {"img_size": (64, 64)}, {"image_size": [64, 64]}])
def test_a_named_size_is_not_the_only_size_of_a_convolutional_network(attribute: dict[str, object]) -> None:
    model = Named(**attribute)
    info = inspect_model(model)
    assert (info.trace_size, info.fixed_size) == ((64, 64), None)
    assert SSA(model, scales=(0.5, 1.0))(torch.randn(1, 3, 48, 80), classes=[0]).cams.shape == (1, 1, 48, 80)


def test_configured_sizes_of_transformers_are_tried() -> None:
    resnet = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, layer_type="basic", num_labels=3, image_size=64
    )
    assert inspect_model(transformers.ResNetForImageClassification(resnet)).fixed_size is None
    swin = transformers.SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 1], num_labels=3)
    assert inspect_model(transformers.SwinForImageClassification(swin)).fixed_size is None
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=64, patch_size=16, **PLAIN))
    run = SSA(vit)
    assert run.info.fixed_size == (64, 64)
    with pytest.raises(ValueError, match="64"):
        run(torch.randn(1, 3, 64, 96))


def test_a_size_that_only_trials_find() -> None:
    info = inspect_model(Flat())
    assert (info.trace_size, info.fixed_size) == ((32, 32), (32, 32))


def test_a_model_is_left_as_it_was_by_trials_at_other_sizes() -> None:
    class Shrinking(Pyramid):
        window = 64

        def forward(self, images: Tensor) -> Tensor:
            self.window = min(self.window, *images.shape[-2:])
            return super().forward(images)

    model = Shrinking()
    inspect_model(model, input_shape=64)
    assert model.window == 64


@pytest.mark.parametrize(
    ("sample", "grid", "size", "expected"),
    [
        ((224, 224), (16, 16), (192, 256), (13, 18)),  # patches of 14 floor
        ((518, 518), (37, 37), (195, 196), (13, 14)),
        ((384, 384), (27, 27), (384, 512), (27, 36)),  # 14 does not divide 384
        ((224, 224), (4, 4), (160, 224), (3, 4)),  # LeViT: 14, 7, 4 by halving
        ((224, 224), (7, 7), (200, 330), (7, 11)),  # paddings ceil: 6.25 and 10.3
        ((224, 224), (28, 28), (225, 300), (28, 37)),
        ((64, 96), (8, 12), (128, 64), (16, 8)),
        ((224, 224), (18, 18), (448, 448), (37, 37)),  # patches of 16 every 12 pixels overlap
    ],
)
def test_token_grids_at_other_sizes(
    sample: tuple[int, int], grid: tuple[int, int], size: tuple[int, int], expected: tuple[int, int]
) -> None:
    layout = TensorLayout("tokens", (2, *grid), sample, prefix=1)
    patches = expected[0] * expected[1]
    tokens = torch.arange(patches + 1.0)[None, :, None].expand(1, -1, 2)
    view = layout.view(tokens, size)
    assert view.shape == (1, 2, *expected)
    assert view[0, 1].flatten().tolist() == list(range(1, patches + 1))


def test_a_number_of_tokens_that_is_no_grid() -> None:
    with pytest.raises(ValueError, match=re.escape("expected 0 + 13 x 18 tokens for images of 192 x 256, got 235")):
        TensorLayout("tokens", (2, 16, 16), (224, 224)).view(torch.zeros(1, 235, 2), (192, 256))


@pytest.mark.parametrize("size", [(192, 256), (96, 70), (75, 110)])
def test_dinov2_at_sizes_that_are_no_multiple_of_its_patch(size: tuple[int, int]) -> None:
    config = transformers.Dinov2Config(image_size=70, patch_size=14, **PLAIN)
    model = transformers.Dinov2ForImageClassification(config)
    run = SSA(model)
    result = run(torch.randn(2, 3, *size), classes=[0, 2])
    assert result.cams.shape == (2, 2, *size)
    assert all(maps.shape[-2:] == (size[0] // 14, size[1] // 14) for maps in result.stages.values())


@pytest.mark.parametrize("size", [(64, 64), (60, 90), (33, 70)])
def test_patches_at_sizes_that_are_no_multiple(size: tuple[int, int]) -> None:
    result = SSA(Tokens(), input_shape=64)(torch.randn(1, 3, *size), classes=[0])
    assert {tuple(maps.shape[-2:]) for maps in result.stages.values()} == {(size[0] // 8, size[1] // 8)}
