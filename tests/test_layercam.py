"""LayerCAM over the stages: equal to its formula with plain autograd, to other packages, and without side effects."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssa_fast import SSA, LargeImageSSA
from ssa_fast.models import inspect_model
from ssa_fast.models.layercam import iter_batched_gradients, iter_gradients
from tests.networks import ChannelsLast, DeepHead, Pyramid, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
CLOSE = {"rtol": 0.0, "atol": 4 * torch.finfo(torch.float32).eps}


def made(network: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return network().double().eval()


def ssa(model: nn.Module, **options: Any) -> SSA:
    return SSA(model, seed="layercam", input_shape=(64, 96), geometry="resize", **options)


def minmax(maps: Tensor) -> Tensor:
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-300)


def literal(model: nn.Module, layers: dict[str, Callable[[Tensor], Tensor]], classes: list[int]) -> Tensor:
    """Return LayerCAM (B, K, h, w) by hooks and plain autograd; each layer comes with what makes it (B, C, h, w)."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: object, output: Any) -> Any:
            kept[name] = output[0] if isinstance(output, tuple) else output
            copy = kept[name].clone()  # which may be overwritten
            return (copy, *output[1:]) if isinstance(output, tuple) else copy

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    output = model(IMAGES.clone().requires_grad_())
    logits = output["logits"] if isinstance(output, dict) else output
    for handle in handles:
        handle.remove()
    maps = []
    for k in classes:
        scaled = []
        for name, view in layers.items():
            (gradient,) = torch.autograd.grad(logits[:, k].sum(), kept[name], retain_graph=True)
            one = (view(gradient).clamp_min(0) * view(kept[name])).sum(1, keepdim=True).clamp_min(0)
            one = torch.tanh(2 * one / one.amax((1, 2, 3), keepdim=True).clamp_min(1e-300))
            scaled.append(one.detach())
        size = max((each.shape[2:] for each in scaled), key=lambda size: size[0] * size[1])
        scaled = [F.interpolate(each, size=size, mode="bilinear", align_corners=False) for each in scaled]
        maps.append(sum(scaled) / len(scaled))
    return torch.cat(maps, 1)  # type: ignore[arg-type]


def plain(maps: Tensor) -> Tensor:
    return maps


def patches(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].mT.unflatten(2, (8, 12))


LAYOUTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Callable[[Tensor], Tensor]]]] = {
    "an exact head": (Pyramid, {f"blocks.{k}": plain for k in range(4)}),
    "a deep head": (DeepHead, {f"blocks.{k}": plain for k in range(4)}),
    "a class token": (
        Tokens,
        {"layers.0": patches, "layers.2": patches, "layers.3": patches, "layers.5.norm": patches},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_seeds_are_those_of_plain_autograd(name: str) -> None:
    network, layers = LAYOUTS[name]
    model = made(network)
    run = ssa(model)
    assert (run.seed_kind, run.seed_layer.split(", ")) == ("layercam", list(layers))
    result = run(IMAGES, [[3, 1], [3, 1]])
    assert result.seed.amax() == 1
    torch.testing.assert_close(result.seed, minmax(literal(model, layers, [3, 1])).float(), **CLOSE)


def test_channels_last_maps() -> None:
    """Torchvision's Swin hands on (B, H, W, C)."""
    model = made(ChannelsLast)
    run = ssa(model, stages=["blocks.1", "norm"])
    assert run.info.stages["norm"].layout.kind == "nhwc"
    layers = {"blocks.1": plain, "norm": lambda maps: maps.permute(0, 3, 1, 2)}
    torch.testing.assert_close(run(IMAGES, [[3], [3]]).seed, minmax(literal(model, layers, [3])).float(), **CLOSE)


@pytest.mark.parametrize("stages", [["blocks.1.down", "blocks.3"], ["blocks.2.conv", "blocks.3"], ["blocks.0.conv"]])
def test_stages_that_are_overwritten_in_place(stages: list[str]) -> None:
    """``down``'s ReLU is in place, so its map is the one after it; an addition overwrites ``conv``, which is kept."""
    model = made(DeepHead)
    layers = {name: F.relu if name.endswith("down") else plain for name in stages}
    expected = literal_after_relu(model, stages) if "blocks.1.down" in stages else literal(model, layers, [2])
    result = ssa(model, stages=stages[::-1])(IMAGES, [[2], [2]])
    torch.testing.assert_close(result.seed, minmax(expected).float(), **CLOSE)


def literal_after_relu(model: nn.Module, stages: list[str]) -> Tensor:
    """Return class 2's LayerCAM of ``blocks.1.down`` after its ReLU: of a module of its own in a copy of the block."""
    block = model.blocks[1]  # type: ignore[index]
    block.down = nn.Sequential(block.down, nn.ReLU())
    maps = literal(model, {"blocks.1.down": plain, "blocks.3": plain}, [2])
    block.down = block.down[0]
    return maps


@pytest.mark.slow
def test_one_layer_is_the_layercam_of_other_packages() -> None:
    """torch-cam rescales by the maximum; pytorch-grad-cam's map is the formula itself. tanh keeps the order."""
    torchcam = pytest.importorskip("torchcam.methods", reason="needs torch-cam")
    grad_cam = pytest.importorskip("pytorch_grad_cam", reason="needs pytorch-grad-cam")
    model = made(DeepHead)
    run = ssa(model, stages=["blocks.2"])
    ours = run.info.seed_maps(model, run.info.forward(model, IMAGES), torch.tensor([[3], [3]]))[:, 0]
    raw = torch.atanh(ours) / 2
    with torchcam.LayerCAM(model, "blocks.2") as extractor:
        (theirs,) = extractor(3, model(IMAGES), normalized=False)
    torch.testing.assert_close(raw, (theirs / theirs.amax((1, 2), keepdim=True)).detach())
    layer = model.get_submodule("blocks.2")
    with grad_cam.LayerCAM(model, [layer]) as tool:
        tool(IMAGES, [lambda output: output[3]] * 2)
        kept = tool.activations_and_grads
        maps, gradients = (each[0].detach().numpy() for each in (kept.activations, kept.gradients))
        found = torch.from_numpy(tool.get_cam_image(IMAGES, layer, [], maps, gradients, eigen_smooth=False)).relu()
    torch.testing.assert_close(raw, found / found.amax((1, 2), keepdim=True))


def test_several_classes_are_each_as_if_alone_and_padded_lists_are_zero() -> None:
    run = ssa(made(DeepHead), flip=True, scales=(1.0, 0.5))
    both, alone = run(IMAGES, [[0, 3], [2]]), run(IMAGES[1:], [[2]])
    torch.testing.assert_close(both.cams[1:, :1], alone.cams, **CLOSE)
    torch.testing.assert_close(both.seed[:1, 1:], run(IMAGES[:1], [[3]]).seed, **CLOSE)
    assert both.cams[1, 1].amax() == 0
    mirrored = run(IMAGES.flip(-1), [[0, 3], [2]])
    torch.testing.assert_close(mirrored.seed.flip(-1), both.seed, **CLOSE)
    torch.testing.assert_close(mirrored.cams.flip(-1), both.cams, **CLOSE)


class Cubed(torch.autograd.Function):
    """A function without a rule for ``vmap``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        assert bool(x.isfinite().all() & gradients[0].isfinite().all())  # depends on the data, which vmap refuses
        return 3 * x**2 * gradients[0]


@pytest.mark.parametrize("cube", [lambda x: x**3, Cubed.apply], ids=["vmap", "one by one"])
def test_gradients_of_several_scores_at_once(cube: Callable[[Tensor], Tensor]) -> None:
    """Eleven scores are two passes; the third leaf is not in the graph."""
    first = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    unused = torch.randn(1, dtype=torch.float64, requires_grad=True)
    second = cube(first)
    weights = torch.randn(11, 2, 4, dtype=torch.float64)
    scores = [(second * each).sum() for each in weights]
    leaves = [first, second, unused]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = list(iter_batched_gradients(scores, leaves))
    assert len(found) == 11
    for ours, plain_ones in zip(found, iter_gradients(scores, leaves), strict=True):
        assert ours[2] is plain_ones[2] is None
        torch.testing.assert_close(ours[:2], plain_ones[:2])


def test_batched_seeds_equal_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a GPU batches classes by itself."""
    model, classes = made(Tokens), torch.tensor([[0, 3, 1], [2, 2, 4]])
    info = ssa(model).info
    expected = info.seed_maps(model, info.forward(model, IMAGES), classes)
    calls: list[int] = []

    def batched(scores: Any, leaves: Any) -> Any:
        calls.append(len(scores))
        return iter_batched_gradients(scores, leaves)

    monkeypatch.setattr("ssa_fast.models.seed_cam.iter_gradients", batched)
    torch.testing.assert_close(info.seed_maps(model, info.forward(model, IMAGES), classes), expected)
    assert calls == [3]


@pytest.mark.parametrize("inference", [True, False])
def test_nothing_of_the_model_or_the_images_changes(inference: bool) -> None:
    model = made(DeepHead)
    expected = ssa(model)(IMAGES, [[1, 2], [1, 2]]).cams
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    model.blocks[2].requires_grad_(False)  # type: ignore[index]
    model.blocks[1].train()  # type: ignore[index]
    asked = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    with torch.inference_mode(inference):
        images = IMAGES.clone()
        result = ssa(model)(images, [[1, 2], [1, 2]])
        assert torch.is_inference_mode_enabled() == inference
    torch.testing.assert_close(result.cams, expected, rtol=0, atol=0)
    assert not images.requires_grad
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert [module.training for module in model.modules()] == modes
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == ["fc.weight"]
    assert model.fc.weight.grad.eq(1).all()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()


class Segmenter(Pyramid):
    """A map of scores per class, as large as the images: no logits."""

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.einsum("kc,bchw->bkhw", self.fc.weight, self.features(x))
        return F.interpolate(scores, x.shape[2:], mode="bilinear")


def test_targets() -> None:
    """A class's logit as a target is that class; without logits targets are the only way."""
    model = made(DeepHead)
    run = ssa(model)
    named = run(IMAGES, targets={"a": lambda output: output[3], "b": lambda output: output[1]})
    torch.testing.assert_close(named.cams, run(IMAGES, [[3, 1], [3, 1]]).cams, **CLOSE)
    with pytest.raises(ValueError, match=r"^targets: expected values that depend on the LayerCAM layer 'blocks.0, bl"):
        run(IMAGES, targets=lambda output: torch.zeros((), requires_grad=True) * 2)
    segmented = ssa(made(Segmenter))(IMAGES, targets=lambda output: output[2].mean())
    assert segmented.seed.shape == (2, 1, 32, 48)
    assert segmented.cams.amax() == 1


def test_half_precision_keeps_small_gradients() -> None:
    """Gradients of about 1e-7 are zero in float16 unless the scores are scaled."""
    model = made(DeepHead)
    with torch.no_grad():
        model.fc.weight.mul_(1e-4)
    expected = ssa(model)(IMAGES, [[1], [1]]).seed
    found = SSA(model.half(), seed="layercam", input_shape=(64, 96))(IMAGES.half(), [[1], [1]]).seed
    assert (found - expected).abs().mean() < 0.01


class Cropped(Pyramid):
    """Sees the centred square of an image."""

    def forward(self, x: Tensor) -> Tensor:
        side, left = x.shape[2], (x.shape[3] - x.shape[2]) // 2
        return super().forward(x[..., left : left + side])


def test_where_forward_crops_the_seed_is_laid_over_its_part_of_the_image() -> None:
    result = SSA(made(Cropped), seed="layercam", input_shape=64, geometry="center-crop")(IMAGES, [[1], [1]])
    assert result.seed.shape == (2, 1, 64, 96)
    assert result.seed[..., :16].amax() == result.seed[..., 80:].amax() == 0
    assert result.seed[..., 16:80].amax() == 1


class Overwriting(Pyramid):
    """Overwrites what its own backward pass needs, which inference does not mind."""

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.sigmoid(self.blocks[0](x))
        x = self.blocks[1](kept)
        kept.zero_()
        for block in list(self.blocks)[2:]:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gradients reach the first stage, 'blocks.0', but the backward pass failed"):
        ssa(made(Overwriting), stages=["blocks.0", "blocks.3"])
    late = ssa(made(Overwriting), stages=["blocks.1", "blocks.3"])  # what the message advises
    assert late(IMAGES, [[1], [1]]).cams.amax() == 1
    with pytest.raises(ValueError, match=r"seed: .* 'blocks.9'"):
        inspect_model(made(Pyramid), seed="blocks.9", input_shape=64)


def test_large_images_refuse_it(tmp_path: Any) -> None:
    large = LargeImageSSA(SSA(Pyramid(), seed="layercam", input_shape=64))
    image = torch.randint(0, 255, (80, 96, 3), dtype=torch.uint8).numpy()
    with pytest.raises(ValueError, match="seed: expected the classifier's own CAM, got LayerCAM, which needs"):
        large(image, [1], out=tmp_path / "a.tif")
    assert large(image, [1], out=tmp_path / "b.tif", seed=torch.rand(1, 5, 6)).classes == [1]
