"""Heading 3, the SSA half: seeds of the caller's own, and Grad-CAM seeds of whatever a network returns.

The class of inputs: CAMs of other packages as they come (torch-cam's list, pytorch-grad-cam's NumPy, Captum's signed
tensors with a graph), with or without classes, on networks with and without logits; and targets, callables from the
model's output for one image to a scalar, as torch-cam and pytorch-grad-cam have them: for logits, segmentation heads,
embeddings and dicts. What is right is what those packages themselves compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ssa_fast import SSA, InputWarning, LargeImageSSA, polish
from ssa_fast.models import describe
from tests.networks import DeepHead, Pyramid, positive_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

torchcam = pytest.importorskip("torchcam.methods", reason="needs torch-cam")
grad_cam = pytest.importorskip("pytorch_grad_cam", reason="needs pytorch-grad-cam")
model_targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets", reason="needs pytorch-grad-cam")
captum = pytest.importorskip("captum.attr", reason="needs Captum")
timm = pytest.importorskip("timm", reason="needs timm")
transformers = pytest.importorskip("transformers", reason="needs transformers")

pytestmark = pytest.mark.filterwarnings("error::ssa_fast.InputWarning")  # a note that no test expects is an error

ROUNDING = {"rtol": 0.0, "atol": 1e-6}
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3)).double()
MASK = np.zeros((64, 96))
MASK[10:40, 20:90] = 1


def minmax(maps: Tensor) -> Tensor:
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return ((maps - low) / (high - low).clamp_min(1e-300)).float()


class Segmenter(Pyramid):
    """A head of class scores per pixel of the image, as a tensor or in a dict beside others."""

    def __init__(self, kind: str = "tensor") -> None:
        super().__init__()
        last = positive_weights(nn.Conv2d(20, 4, 1))  # evidence for every class
        self.head = nn.Sequential(positive_weights(nn.Conv2d(20, 20, 3, padding=1)), nn.GELU(), last)
        self.kind = kind

    def forward(self, images: Tensor) -> Any:
        maps = F.interpolate(self.head(self.features(images)), images.shape[2:], mode="bilinear", align_corners=False)
        return maps if self.kind == "tensor" else {"out": maps, "size": images.shape[2:], "none": None}


class Embedder(Pyramid):
    """An embedding (B, D) of two layers after the pooling; ``fc`` makes the vectors that it is compared with."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 8))

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.features(images).mean((2, 3)))


CONCEPT = torch.randn(8, generator=torch.Generator().manual_seed(5)).double()


def similarity(embedding: Tensor) -> Tensor:
    return torch.cosine_similarity(embedding, CONCEPT, dim=0)


class Likeness(nn.Module):
    """``similarity`` as a module, which is a callable, too."""

    def forward(self, embedding: Tensor) -> Tensor:
        return similarity(embedding)


def made(network: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return network().double().eval()


def ssa(model: nn.Module, **options: Any) -> SSA:
    return SSA(model, input_shape=64, **options)


TARGETS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "a logit": (Pyramid, model_targets.ClassifierOutputTarget(3)),
    "a logit behind two layers": (DeepHead, model_targets.ClassifierOutputTarget(3)),
    "a probability": (DeepHead, model_targets.ClassifierOutputSoftmaxTarget(2)),
    "a logit against others": (DeepHead, model_targets.FinerWeightedTarget(2, [0, 4], 0.6)),
    "a logit and its probability": (DeepHead, model_targets.ClassifierOutputReST(1)),
    "a binary head": (lambda: Pyramid(classes=1), model_targets.BinaryClassifierOutputTarget(1)),
    "the only output": (lambda: Pyramid(classes=1), model_targets.RawScoresOutputTarget()),
    "a region's class": (Segmenter, model_targets.SemanticSegmentationTarget(2, MASK)),
    "an embedding's likeness": (Embedder, similarity),
    "an embedding's entry against another": (Embedder, lambda embedding: embedding[3] - embedding[5]),
    "a module": (Embedder, Likeness()),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_give_the_seeds_of_torch_cam_and_pytorch_grad_cam(name: str) -> None:
    network, target = TARGETS[name]
    model = made(network)
    result = ssa(model, seed="blocks.3" if name != "a logit" else "auto")(IMAGES, targets=target)

    with torchcam.GradCAM(model, "blocks.3") as extractor:
        (expected,) = extractor(scores=model(IMAGES), targets=target)
    torch.testing.assert_close(result.seed[:, 0], minmax(expected), **ROUNDING)

    layer = model.get_submodule("blocks.3")
    with grad_cam.GradCAM(model, [layer]) as tool:
        tool(IMAGES, [target, target])
        kept = tool.activations_and_grads
        maps, gradients = (each[0].detach().numpy() for each in (kept.activations, kept.gradients))
        raw = tool.get_cam_image(IMAGES, layer, [target] * 2, maps, gradients)
    torch.testing.assert_close(result.seed[:, 0], minmax(torch.from_numpy(raw).relu()), **ROUNDING)

    values = [target(each).reshape(()) for each in model(IMAGES)]
    torch.testing.assert_close(result.scores[:, 0], torch.stack(values).detach().float())
    assert result.seed.amax() == 1


def as_ssa(run: SSA, cam: Tensor, stages: Any) -> Tensor:
    """Return CAMs (B, K, 64, 96) polished by ``polish`` with the options of an ``SSA``."""
    return polish(cam, stages, affinity=run.affinities, align_corners=run.align_corners, size=(64, 96))


def test_the_cams_are_the_seeds_polished_in_every_stage() -> None:
    run = ssa(made(Segmenter), flip=True, scales=(1.0, 0.5), seed="blocks.3")
    mask = torch.from_numpy(MASK)

    def region(output: Tensor) -> Tensor:
        scaled = F.interpolate(mask[None, None], output.shape[1:], mode="area")[0, 0]
        return (output[2] * scaled).mean()

    result = run(IMAGES, targets=region)
    sums = torch.zeros(2, 1, 64, 96, dtype=torch.float64)
    for scale in (1.0, 0.5):
        for flipped in (False, True):
            view = (
                IMAGES
                if scale == 1
                else F.interpolate(IMAGES, scale_factor=scale, mode="bilinear", align_corners=False, antialias=True)
            )
            view = view.flip(-1) if flipped else view
            with torchcam.GradCAM(run.model, "blocks.3") as extractor:
                output = run.model(view)
                upright = output.flip(-1) if flipped else output
                (seed,) = extractor(scores=upright, targets=region, normalized=False)
            polished = as_ssa(run, seed[:, None].detach(), run.features(view))
            sums += polished.flip(-1) if flipped else polished
    torch.testing.assert_close(result.cams, minmax(sums), **ROUNDING)


def test_mirrored_images_and_masks_give_mirrored_cams() -> None:
    run = ssa(made(Segmenter), flip=True, seed="blocks.3")
    target, mirrored = (model_targets.SemanticSegmentationTarget(1, mask) for mask in (MASK, MASK[:, ::-1].copy()))
    straight, other = run(IMAGES, targets=target), run(IMAGES.flip(-1), targets=mirrored)
    torch.testing.assert_close(other.cams.flip(-1), straight.cams, **ROUNDING)


def test_one_target_or_a_list_per_image_and_names() -> None:
    """A flat list is one per image, as in both packages; a dict gives several maps of every image."""
    run = ssa(made(Segmenter))
    first, second = (model_targets.SemanticSegmentationTarget(k, MASK) for k in (0, 2))
    both = run(IMAGES, targets={"road": first, "sky": second})
    assert both.names == [["road", "sky"]] * 2
    assert both.classes.tolist() == [[0, 1]] * 2
    each = run(IMAGES, targets=[second, first])
    torch.testing.assert_close(each.cams[:, 0], torch.stack([both.cams[0, 1], both.cams[1, 0]]), **ROUNDING)
    ragged = run(IMAGES, targets=[[second], (first, second)])
    assert ragged.valid.tolist() == [[True, False], [True, True]]
    assert ragged.classes.tolist() == [[0, -1], [0, 1]]
    assert ragged.names == [["target 0", ""], ["target 0", "target 1"]]
    assert ragged.cams[0, 1].eq(0).all()
    torch.testing.assert_close(ragged.cams[0, 0], both.cams[0, 1], **ROUNDING)
    torch.testing.assert_close(ragged.cams[1], both.cams[1], **ROUNDING)
    assert run(IMAGES, targets=[[], [first]]).valid.tolist() == [[False], [True]]
    assert run(IMAGES[:1], targets=[first, second]).classes.tolist() == [[0, 1]]
    assert len(both.panels(torch.rand(2, 3, 64, 96))) == 2


def test_outputs_in_dicts_dataclasses_and_tuples_are_given_image_by_image() -> None:
    plain = ssa(made(Segmenter))(IMAGES, targets=lambda output: output[2].mean())
    run = ssa(made(lambda: Segmenter("dict")))
    seen: list[Any] = []

    def target(output: Any) -> Tensor:
        seen.append(output)
        return output["out"][2].mean()

    torch.testing.assert_close(run(IMAGES, targets=target).cams, plain.cams, **ROUNDING)
    assert [(type(each), tuple(each["out"].shape), each["size"]) for each in seen] == [
        (dict, (4, 64, 96), (64, 96))
    ] * 2
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    result = SSA(model, input_shape=64)(IMAGES.float(), targets={"cat": lambda output: output["out"][8].mean()})
    assert result.seed.amax() == 1


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
VIT: dict[str, Any] = {**SIZES, "image_size": 64, "patch_size": 16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "target"),
    [
        (
            lambda: transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VIT, projection_dim=8)),
            lambda output: torch.cosine_similarity(output.image_embeds, CONCEPT.float(), dim=0),
        ),
        (lambda: transformers.Dinov2Model(transformers.Dinov2Config(**VIT)), lambda output: output.pooler_output[3]),
        (lambda: transformers.ViTModel(transformers.ViTConfig(**VIT)), lambda output: output.pooler_output.norm()),
        (
            lambda: transformers.SegformerForSemanticSegmentation(
                transformers.SegformerConfig(num_labels=5, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4)
            ),
            lambda output: output.logits[3].mean(),
        ),
        (
            lambda: timm.create_model(
                "vit_base_patch16_clip_224.openai", img_size=64, embed_dim=32, depth=3, num_heads=4
            ),
            lambda output: torch.cosine_similarity(output[:8], CONCEPT.float(), dim=0),
        ),
        (lambda: timm.create_model("test_resnet", num_classes=0), lambda output: output.norm()),
    ],
    ids=["CLIP", "DINOv2", "ViT", "SegFormer", "timm's CLIP", "timm's pooled features"],
)
def test_networks_of_transformers_and_timm(build: Callable[[], nn.Module], target: Any) -> None:
    """The layer is one that every output depends on: the class token alone knows no patch after the last block."""
    torch.manual_seed(0)
    result = SSA(build(), input_shape=64)(IMAGES[:, :, :, :64].float(), targets=target)
    assert result.cams.shape == (2, 1, 64, 64)
    assert result.seed.amax((2, 3)).eq(1).all()
    assert result.notes == ()


def test_networks_without_logits_are_taken_but_have_no_classes(tmp_path: Path) -> None:
    run = ssa(made(Segmenter))
    assert (run.info.num_classes, run.seed_kind, run.names) == (0, "grad-cam", ())
    reason = r"model: expected logits of shape \(B, num_classes\), got \(1, 4, 64, 64\); pass a classifier, or .*"
    for classes in (None, "top1", [1]):
        with pytest.raises(ValueError, match=rf"{reason}; or pass targets= or cam= with the images"):
            run(IMAGES, classes)
    with pytest.raises(ValueError, match=rf"{reason}; leave classes out"):
        run(IMAGES, [1], cam=torch.rand(2, 1, 4, 6))
    with pytest.raises(ValueError, match=reason):
        describe(made(Segmenter), input_shape=64)
    with pytest.raises(ValueError, match=reason):
        LargeImageSSA(run)
    with pytest.raises(ValueError, match="expected a head for which a CAM is exact, but the model returns no logits"):
        ssa(made(Segmenter), seed="cam")
    with pytest.raises(
        ValueError, match=rf"{reason.replace('1, 4', '1, 3')}; or, for targets= and cam=, stages: expected"
    ):
        ssa(nn.Identity())
    features = run.features(IMAGES)
    assert features.logits.shape == run(IMAGES, targets=lambda output: output[0].mean()).logits.shape == (2, 0)


@pytest.mark.parametrize(
    ("targets", "error", "text"),
    [
        (3, TypeError, "expected callables from an image's output to a scalar, got int"),
        (["a", "b"], TypeError, "expected callables from an image's output to a scalar, got 'a'"),
        ([similarity], ValueError, "expected one per image, 2, got 1; pass a dict by name"),
        ([similarity] * 3, ValueError, "expected one per image, 2, got 3"),
        ({}, ValueError, "expected at least one, got none"),
        ([[], []], ValueError, "expected at least one, got none"),
        (lambda output: output, ValueError, r"expected a scalar tensor per image, 'target 0' gave shape \(8,\); take"),
        ({"a": lambda output: 3.0}, ValueError, "'a' gave float"),
        ({"a": lambda output: output[:, 3].sum()}, ValueError, r"'a' failed \(IndexError: .*shape \(8,\); it gets"),
        ({"a": lambda output: output.detach().sum()}, ValueError, "values that depend on the model's output, 'a' does"),
        ({"a": lambda output: torch.zeros((), requires_grad=True) * 2}, ValueError, "depend on the Grad-CAM layer"),
    ],
)
def test_wrong_targets(targets: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"targets: .*{text}"):
        ssa(made(Embedder))(IMAGES, targets=targets)


def test_targets_go_with_neither_classes_nor_a_cam_and_flips_with_maps_only() -> None:
    run = ssa(made(Pyramid))
    for wrong in ({"classes": [1]}, {"cam": torch.rand(2, 1, 4, 6)}):
        with pytest.raises(ValueError, match="targets: expected them without classes and cam"):
            run(IMAGES, targets=lambda output: output[0], **wrong)
    tokens = transformers.ViTModel(transformers.ViTConfig(**VIT))
    with pytest.raises(ValueError, match=r"for flip=True, got \(2, 17, 32\), which cannot be flipped back; leave flip"):
        SSA(tokens, flip=True, input_shape=64)(IMAGES[..., :64].float(), targets=lambda output: output.pooler_output[0])


def test_a_target_without_evidence_is_named() -> None:
    run = ssa(made(Segmenter), seed="blocks.3")
    empty = model_targets.SemanticSegmentationTarget(1, np.zeros((64, 96)))
    with pytest.warns(InputWarning, match="target 'nothing' has no evidence in any image at 'blocks.3'") as seen:
        result = run(IMAGES, targets={"some": lambda output: output[2].mean(), "nothing": empty})
    assert len(seen) == 1
    assert result.notes == (str(seen[0].message),)
    assert result.cams[:, 1].eq(0).all()
    assert result.cams[:, 0].amax() == 1


def torch_cams(model: nn.Module) -> Any:
    with torchcam.LayerCAM(model, "blocks.3") as extractor:
        return extractor([3, 1], model(IMAGES))  # [(N, h, w)]


def pytorch_grad_cams(model: nn.Module) -> Any:
    targets = [model_targets.ClassifierOutputTarget(k) for k in (3, 1)]
    with grad_cam.GradCAM(model, [model.get_submodule("blocks.3")]) as tool:
        return tool(IMAGES.float().double(), targets)  # (N, H, W) NumPy at the image's size


def captum_attributions(model: nn.Module) -> Any:
    return captum.LayerGradCam(model, model.get_submodule("blocks.3")).attribute(IMAGES, target=torch.tensor([3, 1]))


@pytest.mark.parametrize("make", [torch_cams, pytorch_grad_cams, captum_attributions])
def test_cams_of_other_packages_go_straight_in(make: Callable[[nn.Module], Any]) -> None:
    model = made(DeepHead)
    cam = make(model)
    plain = torch.as_tensor(cam[0] if isinstance(cam, list) else cam).detach()
    plain = plain if plain.ndim == 4 else plain[:, None]
    run = ssa(model)
    if getattr(cam, "requires_grad", False):
        with pytest.warns(InputWarning, match="cam required grad and was detached"):
            result = run(IMAGES, [[3], [1]], cam=cam)
        assert any("detached" in note for note in result.notes)
    else:
        result = run(IMAGES, [[3], [1]], cam=cam)
    expected = as_ssa(run, plain, run.features(IMAGES))
    torch.testing.assert_close(result.cams, minmax(expected), **ROUNDING)
    torch.testing.assert_close(result.seed, minmax(plain), **ROUNDING)
    assert result.classes.tolist() == [[3], [1]]
    torch.testing.assert_close(result.scores, result.logits.softmax(1).gather(1, result.classes))


def test_captums_signed_cam_requires_grad_and_says_so() -> None:
    """Negative evidence stays negative until the result is rescaled, as in ``polish``."""
    model = made(DeepHead)
    layer = model.get_submodule("blocks.3")
    signed = captum.LayerGradCam(model, layer).attribute(IMAGES, target=torch.tensor([3, 1]))
    signed = signed - signed.mean()
    assert signed.requires_grad
    assert signed.lt(0).any()
    run = ssa(model)
    with pytest.warns(InputWarning, match="cam required grad and was detached"):
        result = run(IMAGES, cam=signed)
    assert not result.cams.requires_grad
    torch.testing.assert_close(result.seed, minmax(signed.detach()), **ROUNDING)
    with torch.no_grad():
        assert run(IMAGES, cam=signed.detach()).notes == ()


def test_the_ranks_of_a_given_cam() -> None:
    run = ssa(made(Pyramid))
    cam = torch.rand(2, 3, 5, 7)
    all_three = run(IMAGES, cam=cam)
    assert all_three.cams.shape == (2, 3, 64, 96)
    forms = [(IMAGES, cam[:, 0], all_three.cams[:, :1]), (IMAGES[:1], cam[0], all_three.cams[:1])]
    forms += [(IMAGES[1:], cam[1, 2], all_three.cams[1:, 2:]), (IMAGES, cam.numpy(), all_three.cams)]
    forms += [(IMAGES, cam.to(memory_format=torch.channels_last), all_three.cams), (IMAGES, (cam,), all_three.cams)]
    for images, given, expected in forms:
        torch.testing.assert_close(run(images, cam=given).cams, expected, **ROUNDING)


@pytest.mark.parametrize(
    ("cam", "error", "text"),
    [
        (torch.rand(3, 5, 7), ValueError, r"with B = 2 images, .* got \(3, 5, 7\)"),
        (torch.rand(5, 7), ValueError, r"got \(5, 7\)"),
        (torch.rand(1, 3, 5, 7), ValueError, r"got \(1, 3, 5, 7\)"),
        (torch.rand(2, 0, 5, 7), ValueError, "at least one class and one pixel"),
        (torch.ones(2, 1, 5, 7, dtype=torch.int64), TypeError, "got torch.int64"),
        ([torch.rand(2, 5, 7)] * 2, ValueError, "expected one tensor, got a list of 2; pass one layer's CAMs"),
        ([], ValueError, "got a list of 0"),
        ("cam", TypeError, "got str"),
        (torch.rand(2, 1, 5, 7, device="meta"), ValueError, "images' device cpu, got meta"),
    ],
)
def test_wrong_cams(cam: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^cam: .*{text}"):
        ssa(made(Pyramid))(IMAGES, cam=cam)


def test_the_classes_of_a_given_cam() -> None:
    """Those that are given; those of all outputs if there are as many; else nobody knows."""
    run = ssa(made(Pyramid), names=list("abcde"))
    unknown = run(IMAGES, cam=torch.rand(2, 2, 4, 6))
    assert unknown.classes.tolist() == [[-1, -1]] * 2
    assert unknown.valid.all()
    assert unknown.scores.isnan().all()
    assert unknown.names == [["map 0", "map 1"]] * 2
    assert len(unknown.panels(torch.rand(2, 3, 64, 96))) == 2
    assert all(len(found) for image in unknown.boxes() for found in image)
    every = run(IMAGES, cam=torch.rand(2, 5, 4, 6))
    assert every.names == [list("abcde")] * 2
    torch.testing.assert_close(every.scores, every.logits.softmax(1))
    cam = torch.rand(2, 2, 4, 6)
    ragged = run(IMAGES, [["c"], ["e", "a"]], cam=cam)
    assert ragged.classes.tolist() == [[2, -1], [4, 0]]
    assert ragged.cams[0, 1].eq(0).all()
    predicted = run(IMAGES, cam=cam[:, :1], classes="predicted")
    assert predicted.classes.tolist() == predicted.logits.topk(1).indices.tolist()
    with pytest.raises(ValueError, match="classes: expected 2 per image, one per map of cam, got 1; pass as many"):
        run(IMAGES, [3], cam=cam)


def test_a_given_cam_follows_flips_and_scales() -> None:
    cam = torch.rand(2, 1, 4, 6, dtype=torch.float64)
    run = ssa(made(Pyramid), flip=True, scales=(1.0, 0.5))
    straight, mirrored = run(IMAGES, cam=cam), run(IMAGES.flip(-1), cam=cam.flip(-1))
    torch.testing.assert_close(mirrored.cams.flip(-1), straight.cams, **ROUNDING)
    torch.testing.assert_close(straight.seed, minmax(cam), **ROUNDING)


def test_a_network_whose_seed_cannot_be_found_takes_a_given_one() -> None:
    """``seed=None`` looks for none: no gradient is needed, as of a head that cuts the graph."""

    class Cut(Pyramid):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([self.features(images).detach().amax((1, 2, 3)).round()] * 3, 1)

    with pytest.raises(ValueError, match="seed: expected a layer that the logits depend on"):
        ssa(made(Cut))
    run = ssa(made(Cut), seed=None)
    assert (run.seed_kind, "seed: given" in repr(run)) == ("given", True)
    cam = torch.rand(2, 1, 4, 6)
    assert run(IMAGES, cam=cam).cams.amax() == 1
    for wrong in ({}, {"classes": [1]}, {"targets": lambda output: output[0]}):
        with pytest.raises(ValueError, match="cam: expected one, as SSA was made with seed=None"):
            run(IMAGES, **wrong)


@pytest.mark.parametrize("network", [Pyramid, DeepHead, Segmenter])
def test_features_are_the_stages_and_the_logits(network: Callable[[], nn.Module]) -> None:
    model = made(network)
    run = ssa(model, stages=["blocks.1", "blocks.2", "blocks.3"])
    kept: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda *call, name=name: kept.update({name: call[2].clone()}))
        for name in run.stage_names
    ]
    with torch.no_grad():
        output = model(IMAGES)
    for handle in handles:
        handle.remove()
    features = run.features(IMAGES)
    assert isinstance(features, dict)
    assert list(features) == run.stage_names
    for name, stage in features.items():
        assert torch.equal(stage, kept[name])
        assert not stage.requires_grad
    assert torch.equal(features.logits, output.float() if output.ndim == 2 else torch.zeros(2, 0).double().float())
    seed = torch.rand(2, 3, 4, 6, dtype=torch.float64)
    polished = as_ssa(run, seed, features)
    torch.testing.assert_close(run(IMAGES, cam=seed).cams, minmax(polished), **ROUNDING)
    with pytest.raises(ValueError, match="images: expected shape"):
        run.features(IMAGES[0])


def test_targets_leave_the_model_as_it_was() -> None:
    model = made(Segmenter).train()
    run = ssa(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        inferred = run(IMAGES.clone(), targets=lambda output: output[2].mean())
    result = run(IMAGES, targets=lambda output: output[2].mean())
    torch.testing.assert_close(inferred.cams, result.cams, **ROUNDING)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert not result.cams.requires_grad
    assert not result.scores.requires_grad
