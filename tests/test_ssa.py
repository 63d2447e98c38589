"""SSA on whole classifiers: equal to its parts composed by hand, in whatever mode it is called."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import ssa_fast
from ssa_fast import SSA, Affinity, SSAResult, reference
from ssa_fast.cli.run import command as run_command
from ssa_fast.io.cam_files import CamFile
from ssa_fast.models.stage_affinity import SIGNED_DEFAULT
from ssa_fast.ops import gpu_info
from tests.networks import ClassMap, DeepHead, Pyramid, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from ssa_fast.models.class_spec import Classes
    from ssa_fast.ops.triton_backend import Stage
    from ssa_fast.validation import FusionOptions

ROUNDING = {"rtol": 0.0, "atol": 4 * torch.finfo(torch.float32).eps}  # of float64 numbers in [0, 1] to float32
IMAGES = torch.randn(2, 3, 64, 96, dtype=torch.float64)


def trained(network: type[nn.Module] = Pyramid) -> nn.Module:
    """Return a float64 network, so that rounding does not hide the algorithm."""
    torch.manual_seed(1)
    return network().double()


def ssa(model: nn.Module, **options: object) -> SSA:
    return SSA(model, input_shape=64, **options)  # type: ignore[arg-type]


def minmax(maps: Tensor) -> Tensor:
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-300)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def test_resnet_by_hand() -> None:
    """Compose CAM, the reference in every stage, min-max, resize and mean."""
    model = torchvision.models.resnet18(num_classes=6).double().eval()
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        stages = {}
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = stages[name] = getattr(model, name)(x)
        logits = model.fc(x.mean((2, 3)))
        classes = logits.topk(2).indices
        seed = torch.einsum("bkc,bchw->bkhw", model.fc.weight[classes], x).relu()
        polished = {}
        for name, features in stages.items():
            size = tuple(features.shape[2:])
            rows = upsample(seed, size).flatten(2)
            polished[name] = minmax(reference.polish_stage(rows, features.flatten(2), Affinity()).unflatten(2, size))
        fused = sum(upsample(maps, (96, 64)) for maps in polished.values())

    result = SSA(model)(images, "top2")
    assert result.classes.tolist() == classes.tolist()
    torch.testing.assert_close(result.logits, logits.float())
    torch.testing.assert_close(result.seed, minmax(seed).float(), **ROUNDING)
    assert list(result.stages) == list(polished)
    for name, maps in polished.items():
        torch.testing.assert_close(result.stages[name], maps.float(), **ROUNDING)
    torch.testing.assert_close(result.cams, minmax(fused).float(), **ROUNDING)


@pytest.mark.parametrize("network", [Pyramid, DeepHead, ClassMap, Tokens])
def test_results_have_the_promised_shapes_and_range(network: type[nn.Module]) -> None:
    run = ssa(network(), flip=True)
    result = run(torch.randn(2, 3, 64, 64), [[0, 1, 2], [4, 3, 2]])
    assert result.cams.shape == (2, 3, 64, 64)
    assert result.logits.shape == (2, 5)
    assert result.classes.tolist() == [[0, 1, 2], [4, 3, 2]]
    assert list(result.stages) == run.stage_names
    for maps in (result.cams, result.seed, *result.stages.values()):
        assert maps.dtype == torch.float32
        assert not maps.requires_grad
        assert maps.amin() == 0
        assert maps.amax() == 1
        assert set(maps.amax((2, 3)).flatten().tolist()) <= {0.0, 1.0}  # a class without evidence is 0 everywhere


def test_each_image_and_class_is_as_if_alone() -> None:
    run = ssa(trained(DeepHead))
    both = run(IMAGES, [[0, 3], [2, 1]])
    alone = run(IMAGES[1:], [1])
    torch.testing.assert_close(both.cams[1:, 1:], alone.cams, **ROUNDING)
    torch.testing.assert_close(both.seed[1:, 1:], alone.seed, **ROUNDING)


def test_flip_makes_results_of_flipped_images_flipped() -> None:
    run = ssa(trained(), flip=True, scales=(1.0, 0.5))
    straight, mirrored = run(IMAGES, [0, 1, 2]), run(IMAGES.flip(-1), [0, 1, 2])
    torch.testing.assert_close(mirrored.cams.flip(-1), straight.cams, **ROUNDING)
    torch.testing.assert_close(mirrored.seed.flip(-1), straight.seed, **ROUNDING)
    torch.testing.assert_close(mirrored.stages["blocks.2"].flip(-1), straight.stages["blocks.2"], **ROUNDING)
    once = ssa(trained(), scales=(1.0, 0.5))
    assert (once(IMAGES.flip(-1), [0]).cams.flip(-1) - once(IMAGES, [0]).cams).abs().max() > 0.01


@pytest.mark.parametrize("options", [{}, {"seed": "grad-cam"}, {"flip": True, "scales": (1.0, 0.5)}], ids=str)
def test_a_prior_weights_what_is_polished_not_the_seed_that_is_returned(options: dict[str, object]) -> None:
    plain, weighted = ssa(trained(), **options), ssa(trained(), prior="center", **options)
    classes = [0, 2, 3]
    y, x = (torch.arange(-size + 1, size, 2, dtype=torch.float64) / size for size in (4, 6))
    falloff = torch.exp(-(y[:, None] ** 2) - x**2)
    expected, result = plain(IMAGES, classes), weighted(IMAGES, classes)
    torch.testing.assert_close(result.seed, expected.seed, **ROUNDING)
    assert (result.cams - expected.cams).abs().max() > 0.01
    extracted = plain.info.forward(plain.model, IMAGES)
    with torch.no_grad():
        maps = plain.info.seed_maps(plain.model, extracted, result.classes).detach()
    given = ssa(trained(), **options | {"seed": None, "flip": False, "scales": (1.0,)})(IMAGES, cam=maps * falloff)
    alone = ssa(trained(), prior="center", **options | {"flip": False, "scales": (1.0,)})(IMAGES, classes)
    torch.testing.assert_close(alone.cams, given.cams, **ROUNDING)


@pytest.mark.parametrize("corners", [True, False])
def test_scales_are_summed_after_polishing(corners: bool) -> None:
    model = trained()
    result = ssa(model, scales=(0.5, 1.0, 1.5), align_corners=corners)(IMAGES, [2, 3])
    seed, cams = torch.zeros(2, 2, 4, 6, dtype=torch.float64), torch.zeros(2, 2, 64, 96, dtype=torch.float64)
    info = ssa(model).info
    for height, width in ((64, 96), (32, 48), (96, 144)):
        shrunk = height < 64
        view = F.interpolate(IMAGES, (height, width), mode="bilinear", align_corners=False, antialias=shrunk)
        extracted = info.forward(model, view)
        found = info.seed_maps(model, extracted, result.classes)
        features = {name: extracted.maps[name] for name in info.stages}
        seed += F.interpolate(found, (4, 6), mode="bilinear", align_corners=corners)
        cams += ssa_fast.polish(found, features, size=(64, 96), align_corners=corners)
    torch.testing.assert_close(result.seed, minmax(seed).float(), **ROUNDING)
    torch.testing.assert_close(result.cams, minmax(cams).float(), **ROUNDING)
    torch.testing.assert_close(result.logits, model.eval()(IMAGES).float())


def test_without_scale_one_the_first_scale_gives_logits_and_sizes() -> None:
    model = trained()
    result = ssa(model, scales=(0.5, 2.0), size="stage")(IMAGES, [0])
    small = F.interpolate(IMAGES, (32, 48), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(result.logits, model.eval()(small).float())
    assert result.cams.shape[2:] == result.stages["blocks.0"].shape[2:] == (16, 24)


@pytest.mark.parametrize(("size", "expected"), [("input", (64, 96)), ("stage", (32, 48)), ((10, 20), (10, 20))])
def test_size(size: str | tuple[int, int], expected: tuple[int, int]) -> None:
    assert ssa(trained(), size=size)(IMAGES, [0]).cams.shape == (2, 1, *expected)


def test_affinity_fuse_and_weights_reach_the_operator() -> None:
    model = trained()
    affinities = [Affinity(power=2), Affinity(), Affinity(center=True), Affinity(phi="exp", temperature=0.5)]
    run = ssa(model, affinity=affinities, fuse="max", weights=[1, 2, 0, 1])
    result = run(IMAGES, [1])
    extracted = run.info.forward(model, IMAGES)
    found = run.info.seed_maps(model, extracted, result.classes)
    features = {name: extracted.maps[name] for name in run.stage_names}
    options = {"affinity": affinities, "fuse": "max", "weights": [1, 2, 0, 1], "size": (64, 96)}
    expected = ssa_fast.polish(found, features, rescale=True, align_corners=False, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(result.cams, minmax(expected).float(), **ROUNDING)


SIGNS = {"blocks.0": "non-negative", "blocks.1.conv": "signed", "blocks.2": "non-negative", "blocks.3.conv": "signed"}


def by_hand(run: SSA, affinities: dict[str, Affinity]) -> tuple[dict[str, Tensor], Tensor]:
    """Return stages and CAMs of class 1, polished by the dense definition."""
    extracted = run.info.forward(run.model, IMAGES)
    found = run.info.seed_maps(run.model, extracted, torch.tensor([[1], [1]]))
    features = {name: extracted.maps[name] for name in run.stage_names}
    polished = {
        name: minmax(ssa_fast.polish(found, stage, affinity=affinities[name], backend="reference", align_corners=False))
        for name, stage in features.items()
    }
    return polished, minmax(sum(upsample(maps, (64, 96)) for maps in polished.values()))  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["auto", Affinity()])
def test_the_affinity_of_a_stage_follows_its_sign_unless_it_is_given(given: Affinity | Literal["auto"]) -> None:
    run = ssa(trained(), stages=list(SIGNS), affinity=given)
    expected = {
        name: SIGNED_DEFAULT if given == "auto" and sign == "signed" else Affinity() for name, sign in SIGNS.items()
    }
    assert run.info.signs == SIGNS
    assert run.affinity == given
    assert run.affinities == expected
    result = run(IMAGES, [1])
    stages, cams = by_hand(run, expected)
    for name, maps in stages.items():
        torch.testing.assert_close(result.stages[name], maps.float(), **ROUNDING)
    torch.testing.assert_close(result.cams, cams.float(), **ROUNDING)


def test_auto_is_the_default_and_linear_where_relu_is_not() -> None:
    run = ssa(trained(), stages=list(SIGNS))
    assert run.affinity == "auto"
    extracted = run.info.forward(run.model, torch.randn(1, 3, 512, 512, dtype=torch.float64)).maps
    features = {name: extracted[name] for name in SIGNS}
    auto, relu = (
        ssa_fast.explain(torch.rand(1, 20, 4, 4), features, affinity=affinities)
        for affinities in (run.affinities, Affinity())
    )
    assert {name: choice.method for name, choice in auto.items()} == dict.fromkeys(SIGNS, "prototypes")
    linear = {name: "non-negative" for name, choice in relu.items() if choice.method == "prototypes"}
    assert {**dict.fromkeys(SIGNS, "signed"), **linear} == SIGNS


def test_repr_says_which_affinity_each_stage_has_and_why() -> None:
    model = trained()
    lines = repr(ssa(model, stages=["blocks.0", "blocks.1.conv"])).splitlines()
    assert lines[:3] == ["SSA(", "  model: Pyramid, images of 64 × 64", "  seed: cam at blocks.3"]
    why = "(auto: linear time, as the ReLU never acts)"
    assert lines[3] == f"  blocks.0: 8 × 32 × 32, non-negative (by construction), phi=relu {why}"
    assert lines[4].startswith(f"  blocks.1.conv: 12 × 16 × 16, signed, {SIGNED_DEFAULT} (auto: linear time for ")
    asked = repr(ssa(model, stages=["blocks.0"], affinity=[Affinity(power=2)])).splitlines()
    assert asked[3] == "  blocks.0: 8 × 32 × 32, non-negative (by construction), power=2 (asked for)"


@pytest.mark.parametrize("network", [Pyramid, DeepHead])
def test_results_do_not_depend_on_the_callers_mode(network: type[nn.Module]) -> None:
    model = trained(network).train()
    run = ssa(model, flip=True)
    expected = run(IMAGES, "top2")
    with torch.no_grad():
        torch.testing.assert_close(run(IMAGES, "top2").cams, expected.cams, rtol=0, atol=0)
    with torch.inference_mode():
        images = IMAGES.clone()
        assert images.is_inference()
        inferred = run(images, expected.classes.clone())
        made_here = ssa(model, flip=True)(images, "top2")
    torch.testing.assert_close(inferred.cams, expected.cams, rtol=0, atol=0)
    torch.testing.assert_close(made_here.cams, expected.cams, rtol=0, atol=0)
    assert not inferred.cams.is_inference()
    assert torch.is_grad_enabled()
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert run(IMAGES.requires_grad_(False), "top2").cams.grad_fn is None


def test_the_backbone_runs_once_per_scale_and_flip_whatever_the_number_of_classes() -> None:
    model = DeepHead()
    run = ssa(model, flip=True, scales=(1.0, 0.5))
    calls: list[tuple[int, ...]] = []
    with model.blocks[0].register_forward_hook(lambda module, args, output: calls.append(tuple(args[0].shape))):  # type: ignore[attr-defined]
        run(torch.randn(2, 3, 64, 64), "top5")
    assert calls == [(2, 3, 64, 64)] * 2 + [(2, 3, 32, 32)] * 2


@pytest.mark.parametrize("autocast", [True, False])
def test_low_precision_features_are_polished_in_float32(autocast: bool) -> None:
    images = torch.randn(1, 3, 64, 64)
    model = trained().to(torch.float32 if autocast else torch.bfloat16)
    images = images if autocast else images.bfloat16()
    run = ssa(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        result = run(images, [0, 1])
        extracted = run.info.forward(model, images)
    features = {name: extracted.maps[name] for name in run.stage_names}
    assert {maps.dtype for maps in features.values()} == {torch.bfloat16}
    rows = model.fc.weight[[0, 1]].detach().float()
    seed = torch.einsum("kc,bchw->bkhw", rows, features["blocks.3"].float()).relu()
    expected = minmax(ssa_fast.polish(seed, features, size=(64, 64), align_corners=False))
    assert result.cams.dtype == result.logits.dtype == torch.float32
    torch.testing.assert_close(result.cams, expected, **ROUNDING)


def test_images_of_another_number_of_channels() -> None:
    result = SSA(Pyramid(channels=1), input_shape=64)(torch.randn(1, 1, 48, 48))
    assert result.cams.shape == (1, 1, 48, 48)


def test_attributes() -> None:
    run = ssa(DeepHead(), stages=["blocks.1", "blocks.3"], seed="blocks.2")
    assert (run.stage_names, run.seed_kind, run.seed_layer) == (["blocks.1", "blocks.3"], "grad-cam", "blocks.2")
    run = ssa(Pyramid())
    assert (run.seed_kind, run.seed_layer) == ("cam", "blocks.3")


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (torch.zeros(3, 64, 64), ValueError, r"expected shape \(B, 3, H, W\), got \(3, 64, 64\); add a batch axis"),
        (torch.zeros(1, 4, 64, 64), ValueError, r"got \(1, 4, 64, 64\)"),
        (torch.zeros(0, 3, 64, 64), ValueError, "at least one image and pixel"),
        (torch.zeros(1, 3, 64, 0), ValueError, "at least one image and pixel"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "expected torch.float32 .* got torch.uint8"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.float64), TypeError, "got torch.float64"),
        (torch.zeros(1, 3, 64, 64, device="meta"), ValueError, "model's device cpu, got meta"),
        (torch.zeros(1, 3, 64, 64, requires_grad=True), ValueError, "without grad, got requires_grad=True"),
        (torch.zeros(1, 3, 64, 64).numpy(), TypeError, "expected a torch tensor, got ndarray"),
    ],
)
def test_wrong_images(images: Tensor, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"images: .*{text}"):
        ssa(Pyramid())(images)


def test_images_that_require_grad_are_taken_without_grad_mode() -> None:
    with torch.no_grad():
        assert ssa(Pyramid())(torch.zeros(1, 3, 64, 64, requires_grad=True)).cams.requires_grad is False


def test_a_class_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"classes: expected indices in 0..4, the model's outputs, got 5"):
        ssa(Pyramid())(torch.zeros(1, 3, 64, 64), [5])


def test_nan_images_give_nan_maps() -> None:
    images = torch.zeros(2, 3, 64, 64)
    images[1, 0, 0, 0] = torch.nan
    result = ssa(trained().float())(images, [0])
    assert result.cams[0].isfinite().all()
    assert result.cams[1].isnan().all()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"scales": ()}, ValueError, "scales: expected at least one finite factor > 0"),
        ({"scales": (0.0,)}, ValueError, "scales: "),
        ({"scales": 2.0}, TypeError, "scales: expected a sequence of numbers"),
        ({"scales": "1"}, TypeError, "scales: "),
        ({"size": "image"}, ValueError, 'size: expected "input", "stage" or'),
        ({"size": (0, 4)}, ValueError, "size: "),
        ({"fuse": "median"}, ValueError, "fuse: .* got 'median'"),
        ({"prior": "blob"}, ValueError, "prior: expected None or one of center, got 'blob'"),
        ({"weights": [1, 2]}, ValueError, "weights: expected 4, one per stage, got 2"),
        (
            {"affinity": "relu"},
            ValueError,
            "affinity: expected 'auto', an Affinity or one per stage, got 'relu'; ssa_fast",
        ),
        ({"affinity": None}, TypeError, "affinity: expected one value, a sequence or a dict by stage, got NoneType"),
        ({"affinity": ["auto"] * 4}, TypeError, "affinity: expected Affinity for stage 'blocks.0', got str"),
        ({"affinity": [Affinity()] * 3}, ValueError, "affinity: expected 4, one per stage, got 3"),
    ],
)
def test_wrong_options(options: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ssa(Pyramid(), **options)


def test_networks_of_one_size_say_so() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3)
    assert SSA(model, flip=True)(torch.zeros(1, 3, 32, 32)).cams.shape == (1, 1, 32, 32)
    with pytest.raises(ValueError, match=r"scales: expected \(1.0,\), as the model takes images of 32 x 32 only"):
        SSA(model, scales=(0.5, 1))
    with pytest.raises(ValueError, match="images: expected 32 x 32, the only size this model takes, got 64 x 32"):
        SSA(model)(torch.zeros(1, 3, 64, 32))


def test_a_size_that_the_network_cannot_take_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 3))
    run = SSA(model, input_shape=32)
    assert run(torch.zeros(1, 3, 32, 32)).cams.shape == (1, 1, 32, 32)
    with pytest.raises(ValueError, match=r"expected 32 x 32, the only size this model takes, got 48 x 40; resize"):
        run(torch.zeros(1, 3, 48, 40))
    multiples = nn.Sequential(nn.PixelUnshuffle(8), nn.Conv2d(192, 4, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    run = SSA(nn.Sequential(multiples, nn.Flatten(), nn.Linear(4, 3)), input_shape=(3, 64, 64))
    with pytest.raises(
        ValueError, match=r"size that the model takes, such as 64 x 64, but its forward failed at 60 x 40 \("
    ):
        run(torch.zeros(1, 3, 60, 40))


@pytest.fixture
def result() -> SSAResult:
    return ssa(Pyramid())(torch.randn(2, 3, 64, 64), "top2")


def test_boxes_and_masks_of_a_result(result: SSAResult) -> None:
    found = result.boxes(box_threshold=0.5, components="all")
    assert [len(image) for image in found] == [2, 2]
    assert all(corners.shape[1:] == (4,) for image in found for corners in image)
    labels = result.masks(background=0.25)
    assert labels.shape == (2, 64, 64)
    expected = torch.where(result.cams.amax(1) > 0.25, result.cams.argmax(1) + 1, 0)
    assert torch.equal(labels, expected.to(torch.uint8))
    assert (result.masks(alpha=4, ignore=16) == 255).any()


def test_repr_of_a_result_is_a_line_per_field(result: SSAResult) -> None:
    lines = repr(result).splitlines()
    assert lines[0] == "SSAResult("
    assert lines[1] == "  cams: 2 × 2 × 64 × 64, float32, cpu"
    stages = [
        f"  stages[{name!r}]: 2 × 2 × {s.shape[2]} × {s.shape[3]}, float32, cpu" for name, s in result.stages.items()
    ]
    assert lines[3:-5] == stages
    assert lines[-5:-2] == [
        "  logits: 2 × 5, float32, cpu",
        "  classes: 2 × 2, int64, cpu",
        "  valid: 2 × 2, bool, cpu",
    ]
    assert lines[-2:] == ["  scores: 2 × 2, float32, cpu", ")"]


def test_panels_of_a_result(result: SSAResult) -> None:
    panels = result.panels(torch.rand(2, 3, 64, 64), names=["a", "b", "c", "d", "e"])
    assert len(panels) == 2
    assert all(isinstance(panel, Image.Image) and panel.mode == "RGB" for panel in panels)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_network_is_the_network(in_place: bool) -> None:
    """After its first call a compiled network no longer looks for hooks."""
    model = trained().eval()
    expected = ssa(model)(IMAGES, classes=[1]).cams
    if in_place:
        model.compile(backend="aot_eager")
        compiled = model
    else:
        compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        compiled(IMAGES)
        compiled(IMAGES)
    torch.testing.assert_close(ssa(compiled)(IMAGES, classes=[1]).cams, expected, **ROUNDING)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused() -> None:
    with pytest.raises(TypeError, match="model: expected a network in Python, got TorchScript"):
        ssa(torch.jit.trace(trained().eval(), IMAGES))(IMAGES)


class NoWait(TorchDispatchMode):
    """Fails where a copy between host and device would wait; reading data fails under ``FakeTensorMode`` itself."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [each for each in (*args, out) if isinstance(each, Tensor)]
        if len({each.device for each in tensors if each.ndim}) > 1:
            source = tensors[1] if func is torch.ops.aten.copy_.default else tensors[0]
            assert source.device.type == "cpu", f"{func} waits for the device"
            assert {True} & {*args[2:], (kwargs or {}).get("non_blocking")}, f"{func} waits for the copy"
        return out


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Pretend that there is a GPU, whose kernels return memory as it is; list their methods and fallbacks."""
    seen: list[tuple[str, str | None]] = []

    def polish_stages(cam: Tensor, stages: list[Stage]) -> list[Tensor]:
        seen.extend((each.method, each.fallback) for each in stages)
        sizes = [each.features.shape[2:] for each in stages]
        return [cam.new_empty((*cam.shape[:2], *size), dtype=torch.float32) for size in sizes]

    def fuse(maps: list[Tensor], options: FusionOptions, size: tuple[int, int]) -> Tensor:
        seen.append(("fuse", None))
        return maps[0].new_empty((*maps[0].shape[:2], *size))

    def query(device: torch.device) -> tuple[gpu_info.Gpu | None, str]:
        return (gpu_info.DEFAULT_GPU, "") if device.type == "cuda" else (None, "not a GPU")

    monkeypatch.setattr("ssa_fast.ops.triton_backend.polish_stages", polish_stages)
    monkeypatch.setattr("ssa_fast.ops.triton_backend.fuse", fuse)
    monkeypatch.setattr("ssa_fast.ops.gpu_info.query", query)
    # On a CPU, where nobody waits, norms and sums are read; those of fake tensors cannot be.
    monkeypatch.setattr("ssa_fast.ops.features._find_unusual", lambda norms: None)
    monkeypatch.setattr("ssa_fast.ops.resize._takes_products", lambda maps: False)
    return seen


@pytest.mark.parametrize("classes", [None, "top2", [1, 4], [[0, 3], [2, 1]], [[0, 3], [2]]], ids=str)
@pytest.mark.parametrize(
    ("network", "device"), [(Pyramid, "cuda"), (ClassMap, "cuda"), (Pyramid, "cpu"), (DeepHead, "cpu")]
)
def test_nothing_waits_for_the_gpu(
    network: type[nn.Module], device: str, classes: Classes, calls: list[tuple[str, str | None]]
) -> None:
    """Without a driver there is no backward pass on "cuda", so the seed of ``DeepHead``, Grad-CAM, is made on "cpu"."""
    stages = ["blocks.0", "blocks.1.down", "blocks.3"]
    if device == "cuda":
        stages.append("blocks.2.conv")  # of unknown sign; the CPU would read it
    run = ssa(network(), stages=stages, scales=(1.0, 0.5), flip=True, affinity=Affinity())
    assert run.seed_kind == ("grad-cam" if network is DeepHead else "cam")
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device(device):
            run.model = network()
        images = torch.randn(2, 3, 64, 64, device=device)
        forwards: list[object] = []
        run.model.blocks[1].conv.register_forward_pre_hook(lambda *call: forwards.append(call))  # type: ignore[index, union-attr]
        with NoWait():
            result = run(images, classes)
    assert result.cams.shape == (2, 1 if classes is None else 2, 64, 64)
    assert {maps.device.type for maps in (result.cams, result.seed, result.logits, result.classes)} == {device}
    assert len(forwards) == 4
    fusions = 4 + 2 + len(stages)  # one per view, and one per map of the result that is rescaled; two launches each
    assert [method for method, _ in calls].count("fuse") == (fusions if device == "cuda" else 0)


def test_no_fallback_is_launched_for_stages_that_are_proved(calls: list[tuple[str, str | None]]) -> None:
    run = ssa(Pyramid(), stages=["blocks.0", "blocks.1.conv", "blocks.2"], affinity=Affinity())
    with FakeTensorMode():
        with torch.device("cuda"):
            run.model = Pyramid()
        run(torch.randn(1, 3, 2048, 2048, device="cuda"))
    assert calls == [("prototypes", None), ("prototypes", "tiled"), ("prototypes", None), *[("fuse", None)] * 6]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: x.cpu(),
        lambda x: torch.ones(3).copy_(x),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: torch.ones(3).to("cuda"),
        lambda x: torch.tensor([1, 2], device="cuda"),
    ],
)
def test_waiting_would_be_seen(wait: Callable[[Tensor], object]) -> None:
    with FakeTensorMode(), NoWait():
        x = torch.ones(3, device="cuda")
        with pytest.raises((AssertionError, DataDependentOutputException, DynamicOutputShapeException)):
            wait(x)


def test_ssa_runs_and_cam_files_resize_alike_by_default() -> None:
    """A CAM that is stored small and enlarged later is the one that SSA would have enlarged itself."""
    defaults = [inspect.signature(each).parameters["align_corners"].default for each in (SSA, CamFile, run_command)]
    assert defaults == [False] * 3
