"""Heading 1: features whose axes are not (B, C, H, W) are read as announced, or refused; none passes for (C, H, W).

The class: channels-last maps (Swin, Hiera and MambaOut in timm, torchvision's Swin, Keras arrays), single or batched;
tokens with 0 to 8 before the patches (class, distillation, registers), of square and other grids; tuples of hidden
states, dicts and lists of stages of several layouts; flattened maps (B, C, N), tokens first (N, B, C), tokens with an
axis of 1; a CAM with its classes last; NCHW in channels_last memory, which needs nothing. Against them: true stages of
any network, image size, channel count and CAM size, none of which may be refused.
"""

from __future__ import annotations

import contextlib
import functools
import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from torchvision.models.feature_extraction import create_feature_extractor

from ssa_fast import Affinity, FeatureMean, InputWarning, PixelBank, Prototypes, correlation, explain, polish
from ssa_fast.ops import launch_plan
from ssa_fast.validation import validate

rand = torch.rand


@pytest.fixture(autouse=True)
def _every_warning_fails():
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        yield


def as_tokens(f: torch.Tensor, prefix: int) -> torch.Tensor:
    """Return maps (B, C, H, W) as tokens (B, N, C), with large numbers before the patches that would be noticed."""
    tokens = f.flatten(2).mT
    return torch.cat([torch.full_like(tokens[:, :1], 50.0).expand(-1, prefix, -1), tokens], dim=1)


# What is announced


@pytest.mark.parametrize("size", [(6, 6), (5, 8), (1, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("B", [1, 3])
def test_channels_last_is_the_same_as_its_permuted_map(B, size):
    f, cam = rand(B, 16, *size), rand(B, 2, *size)
    expected = polish(cam, f)
    last = f.permute(0, 2, 3, 1).contiguous()
    torch.testing.assert_close(polish(cam, last, layout="nhwc"), expected)
    as_numpy = polish(cam.numpy(), last.numpy(), layout="nhwc")
    np.testing.assert_allclose(as_numpy, expected.numpy(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(polish(cam[0], last[:1], layout="nhwc"), expected[0])
    torch.testing.assert_close(polish(cam[0], last[0], layout="nhwc"), expected[0])


@pytest.mark.parametrize("prefix", [0, 1, 2, 4, 5, 8])
@pytest.mark.parametrize("size", [(6, 6), (5, 8)], ids=str)
def test_tokens_lose_what_is_before_the_patches(prefix, size):
    f, cam = rand(2, 16, *size), rand(2, 2, *size)
    expected, tokens = polish(cam, f), as_tokens(f, prefix)
    torch.testing.assert_close(polish(cam, tokens, layout="tokens", grid=size), expected)
    torch.testing.assert_close(polish(cam, tokens, layout="tokens"), expected)  # the grid is the CAM's own
    torch.testing.assert_close(polish(cam[1], tokens[1], layout="tokens", grid=list(size)), expected[1])
    whole = rand(2, 2, 16 * size[0], 16 * size[1])  # a CAM of the image's size has the grid's ratio
    torch.testing.assert_close(polish(whole, tokens, layout="tokens"), polish(whole, f))


def test_layouts_and_grids_of_several_stages():
    a, b, c, cam = rand(2, 8, 8, 12), rand(2, 12, 4, 6), rand(2, 4, 2, 3), rand(2, 3, 4, 6)
    expected = polish(cam, [a, b, c])
    mixed = {"a": as_tokens(a, 1), "b": b.permute(0, 2, 3, 1), "c": c}
    layouts = {"c": "nchw", "a": "tokens", "b": "nhwc"}
    torch.testing.assert_close(polish(cam, mixed, layout=layouts), expected)
    torch.testing.assert_close(polish(cam, list(mixed.values()), layout=["tokens", "nhwc", None]), expected)
    tokens = tuple(as_tokens(each, prefix) for each, prefix in ((a, 1), (b, 0), (c, 5)))
    torch.testing.assert_close(polish(cam, tokens, layout="tokens"), expected)
    for grids in ([(8, 12), (4, 6), (2, 3)], ((8, 12), (4, 6), (2, 3))):
        torch.testing.assert_close(polish(cam, tokens, layout="tokens", grid=grids), expected)


def test_layouts_are_views():
    last, tokens = rand(2, 5, 6, 16), rand(2, 31, 16)
    for f, options, first in ((last, {"layout": "nhwc"}, 0), (tokens, {"layout": "tokens", "grid": (5, 6)}, 16)):
        (stage,) = validate(rand(2, 3, 5, 6), f, **options).stages.values()
        assert stage.features.shape == (2, 16, 5, 6)
        assert stage.features.data_ptr() == f.data_ptr() + 4 * first
        assert stage.features.stride(1) == 1


def test_explain_and_correlation_take_them_too(capsys):
    f = rand(2, 16, 5, 8)
    last, tokens = f.permute(0, 2, 3, 1), as_tokens(f, 1)
    point = (0.3, 0.6)
    expected = correlation(f, point)
    torch.testing.assert_close(correlation(last, point, layout="nhwc"), expected)
    torch.testing.assert_close(correlation(tokens, point, layout="tokens", grid=(5, 8)), expected)
    torch.testing.assert_close(correlation(tokens[0], point, layout="tokens", grid=(5, 8)), expected[0])
    pixel = (24, 76)
    found = correlation(tokens, pixel, size=(80, 128), layout="tokens")  # the grid has the ratio of the image
    torch.testing.assert_close(found, correlation(f, pixel, size=(80, 128)))
    choice = explain(rand(2, 3, 5, 8), tokens, layout="tokens")
    assert choice.problems["0"].L == 40
    assert "40" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [Prototypes, PixelBank])
@pytest.mark.parametrize("layout", ["nhwc", "tokens"])
def test_tiles_of_another_layout(kind, layout):
    K, C, affinity = 2, 16, Affinity("shifted", center=True)
    tiles = [(rand(K, h, w), rand(C, h, w)) for h, w in ((4, 6), (4, 3), (5, 5))]
    tiles = [(cam, feats.mul(2).sub(1)) for cam, feats in tiles]
    told = [as_tokens(f[None], 1)[0] if layout == "tokens" else f.permute(1, 2, 0) for _, f in tiles]
    means = FeatureMean(C), FeatureMean(C, layout=layout)
    for (_, f), other in zip(tiles[2:], told[2:], strict=True):  # a square tile: without its CAM others have no grid
        means[0].add(f)
        means[1].add(other)
    torch.testing.assert_close(means[1].value, means[0].value)
    options = {"affinity": affinity} | ({"mean": means[0].value} if kind is Prototypes else {})
    plain, other = kind(K, C, **options), kind(K, C, layout=layout, **options)
    for (cam, f), g in zip(tiles, told, strict=True):
        plain.add(cam, f)
        other.add(cam, g)
    torch.testing.assert_close(other.apply(told[2]), plain.apply(tiles[2][1]))
    with_grid = kind(K, C, layout=layout, grid=(4, 6) if layout == "tokens" else None, **options)
    with_grid.merge(plain)
    torch.testing.assert_close(with_grid.apply(told[0]), plain.apply(tiles[0][1]))
    with pytest.raises(ValueError, match=r"^feats: expected .*16, h, w\), got .*pass layout='nhwc' or 'tokens'"):
        kind(K, C, **options).add(tiles[0][0], told[0][None, :24] if layout == "tokens" else told[0])


# What networks and packages give


def swin(size=(64, 96)) -> dict[str, torch.Tensor]:
    net = torchvision.models.SwinTransformer([4, 4], 32, [1, 1, 1], [2, 2, 2], [4, 4]).eval()
    with torch.no_grad():
        return create_feature_extractor(net, ["features.1", "features.3", "features.5"])(rand(1, 3, *size))


def test_torchvision_swin_features():
    maps = swin()
    cam = rand(1, 2, 4, 6)
    expected = polish(cam, [f.permute(0, 3, 1, 2) for f in maps.values()])
    torch.testing.assert_close(polish(cam, maps, layout="nhwc"), expected)
    with pytest.raises(ValueError, match=r"feats\['features.3'\]: .*looks like \(B, H, W, C\).*layout=\"nhwc\""):
        polish(cam, maps)


def test_timm_features_and_intermediates():
    net = timm.create_model(
        "swin_tiny_patch4_window7_224", features_only=True, embed_dim=16, depths=(1, 1), num_heads=(1, 2), img_size=112
    )
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=48, num_heads=3, img_size=(64, 96))
    with torch.no_grad():
        maps = net.eval()(rand(2, 3, 112, 112))
        images = rand(2, 3, 64, 96)
        whole = vit.eval().forward_features(images)
        stages = vit.forward_intermediates(images, intermediates_only=True)
        nlc = vit.forward_intermediates(images, intermediates_only=True, output_fmt="NLC")
    cam = rand(2, 3, 14, 14)
    torch.testing.assert_close(polish(cam, maps, layout="nhwc"), polish(cam, [f.movedim(-1, 1) for f in maps]))
    cam = rand(2, 3, 4, 6)
    expected = polish(cam, stages)
    torch.testing.assert_close(polish(cam, nlc, layout="tokens"), expected)
    with pytest.raises(ValueError, match=r"^feats\[0\]: .*tokens \(B, N, C\).*layout=\"tokens\", grid=\(4, 6\)"):
        polish(cam, nlc)
    by_hand = whole[:, 1:].mT.unflatten(2, (4, 6))
    torch.testing.assert_close(polish(cam, whole, layout="tokens"), polish(cam, by_hand))


@pytest.mark.slow
def test_hidden_states_of_transformers():
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.Dinov2WithRegistersConfig(image_size=56, patch_size=14, num_register_tokens=4, **small)
    dino = transformers.Dinov2WithRegistersModel(config).eval()
    config = transformers.SwinConfig(image_size=64, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2])
    net = transformers.SwinModel(config).eval()
    with torch.no_grad():
        states = dino(rand(2, 3, 56, 84), output_hidden_states=True).hidden_states
        out = net(rand(2, 3, 64, 64), output_hidden_states=True)
    states, cam = [state.double() for state in states], rand(2, 3, 4, 6)
    by_hand = [state[:, 5:].mT.unflatten(2, (4, 6)) for state in states]
    torch.testing.assert_close(polish(cam, states, layout="tokens"), polish(cam, by_hand))
    torch.testing.assert_close(polish(cam, states[-1], layout="tokens", grid=(4, 6)), polish(cam, by_hand[-1]))
    with pytest.raises(ValueError, match=r"^feats\[0\]: .*got \(2, 29, 32\).*grid=\(4, 6\)"):
        polish(cam, states)
    cam = rand(2, 3, 8, 8).double()
    expected = polish(cam, out.reshaped_hidden_states)
    torch.testing.assert_close(polish(cam, out.hidden_states, layout="tokens"), expected, rtol=1e-6, atol=1e-6)


# What is not announced

CANNOT_BE = {  # shapes of the CAM and the features -> what to pass
    "deit-tiny": ((1, 3, 14, 14), (1, 197, 192), 'layout="tokens", grid=(14, 14)'),
    "beside a CAM of another network": ((1, 3, 7, 7), (1, 197, 192), 'layout="tokens", grid=(14, 14)'),
    "beside a CAM of the image's size": ((1, 3, 224, 224), (1, 197, 192), 'layout="tokens", grid=(14, 14)'),
    "vit-base, K maps": ((3, 14, 14), (1, 197, 768), 'layout="tokens", grid=(14, 14)'),
    "one map": ((14, 14), (1, 197, 768), 'layout="tokens", grid=(14, 14)'),
    "without class token": ((1, 3, 16, 16), (1, 256, 1152), 'layout="tokens", grid=(16, 16)'),
    "distilled": ((1, 3, 14, 14), (1, 198, 192), 'layout="tokens", grid=(14, 14)'),
    "registers": ((1, 3, 37, 37), (1, 1374, 384), 'layout="tokens", grid=(37, 37)'),
    "not square": ((1, 3, 16, 8), (1, 129, 64), 'layout="tokens", grid=(16, 8)'),
    "a grid that is not the CAM's": ((1, 3, 224, 300), (1, 253, 384), 'layout="tokens", grid=(H, W)'),
    "a batch": ((2, 3, 14, 14), (2, 197, 192), 'layout="tokens", grid=(14, 14)'),
    "a map per image": ((2, 14, 14), (2, 197, 192), 'layout="tokens", grid=(14, 14)'),
    "flattened": ((1, 3, 14, 14), (1, 192, 196), "unflatten(2, (14, 14))"),
    "tokens first": ((1, 3, 14, 14), (197, 1, 192), 'transpose(0, 1) with layout="tokens"'),
    "an axis of 1": ((2, 3, 14, 14), (2, 197, 1, 768), 'squeeze(2) with layout="tokens"'),
    "a head's axis": ((1, 3, 14, 14), (1, 1, 197, 768), 'squeeze(1) with layout="tokens"'),
    "swin, first": ((1, 3, 7, 7), (1, 56, 56, 96), 'layout="nhwc"'),
    "swin, third": ((1, 3, 7, 7), (1, 14, 14, 384), 'layout="nhwc"'),
    "swin, batch": ((4, 3, 224, 224), (4, 7, 7, 768), 'layout="nhwc"'),
    "swin, not square": ((1, 3, 6, 8), (1, 12, 16, 384), 'layout="nhwc"'),
    "Keras": ((1, 7, 7), (7, 7, 2048), 'layout="nhwc"'),
    "hiera": ((1, 3, 7, 7), (1, 7, 7, 768), 'layout="nhwc"'),
}


@pytest.mark.parametrize(("cam", "feats", "advice"), CANNOT_BE.values(), ids=CANNOT_BE)
def test_what_cannot_be_a_stage_is_refused_with_what_to_pass(cam, feats, advice):
    with pytest.raises(ValueError, match=r"^feats: expected .*got \(.*, which looks like ") as caught:
        polish(rand(cam), rand(feats))
    assert f"pass {advice}" in str(caught.value)
    assert 'layout="nchw"' in str(caught.value)
    assert "\n" not in str(caught.value)
    if feats[0] in (1, cam[0]) and len(feats) - len(cam) in (0, 1):
        assert polish(rand(cam), rand(feats)[:, :20, :20], layout="nchw").ndim == len(cam)  # the way out


@pytest.mark.parametrize("shape", [(1, 197, 192), (1, 197, 768), (1, 14, 14, 384), (1, 28, 28, 192)], ids=str)
def test_correlation_refuses_them_without_a_cam(shape):
    with pytest.raises(ValueError, match=r"^feats: expected .*which looks like .*layout="):
        correlation(rand(shape), (0.5, 0.5))
    with pytest.raises(ValueError, match=r"^feats: expected .*which looks like .*layout="):
        correlation(rand(shape), (50, 50), size=(224, 224))


DOUBTFUL = {
    "one channel whose rows are tokens": (dict(cam=rand(1, 2, 4, 4), feats=rand(1, 64, 64)), "tokens.*grid=\\(8, 8\\)"),
    "small Swin": (dict(cam=rand(1, 2, 1, 1), feats=rand(1, 8, 8, 96)), "channels last.*nhwc"),
    "classes last": (dict(cam=rand(14, 14, 20), feats=rand(1, 8, 7, 7)), r"^cam: \(14, 14, 20\) .*movedim"),
    "NCHW announced as NHWC": (dict(cam=rand(1, 2, 14, 14), feats=rand(1, 64, 7, 7), layout="nhwc"), "channels_last"),
}


@pytest.mark.parametrize(("given", "message"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_may_be_a_stage_is_read_with_a_note(given, message):
    for function in (polish, explain):
        with pytest.warns(InputWarning, match=message) as caught:
            function(**given)
        assert caught[0].filename == __file__
    with pytest.warns(InputWarning, match="channels last"):
        correlation(rand(1, 64, 64, 96), (0.5, 0.5))


WRONG = {
    "unknown": (dict(layout="NHWC"), r"^layout: expected one of nchw, nhwc, tokens, got 'NHWC'"),
    "rank of tokens": (dict(layout="tokens", feats=rand(2, 4, 4, 8)), r"^feats: expected shape \(B, N, C\) or"),
    "rank of nhwc": (dict(layout="nhwc"), r"^cam|^feats: expected"),
    "two axes": (dict(feats=rand(17, 8), cam=rand(4, 4)), r"got \(17, 8\); for tokens \(N, C\) pass layout='tokens'"),
    "a grid alone": (dict(grid=(4, 4)), r"^grid: expected None where no stage has layout='tokens'"),
    "another grid": (dict(layout="tokens", grid=(3, 2)), r"^grid: .*17 tokens with at most 8 .*got 3 × 2 = 6"),
    "a grid too large": (dict(layout="tokens", grid=(5, 5)), r"^grid: .*got 5 × 5 = 25"),
    "no grid": (dict(layout="tokens", cam=rand(2, 3, 5, 7)), r"^grid: .*may have none .*5 : 7; pass grid=\(H, W\)"),
    "several grids": (
        dict(layout="tokens", feats=rand(2, 9, 8), cam=rand(2, 3, 8, 8)),
        r"^grid: .*may have one of 3 × 3, 2 × 2",
    ),
    "one number": (dict(layout="tokens", grid=4), r"^grid: expected \(H, W\), two ints, got 4"),
    "numbers of grids": (dict(layout="tokens", grid=[(4, 4)] * 2), r"^grid: expected 1, one per stage, got 2"),
    "numbers of layouts": (dict(layout=["tokens"] * 2), r"^layout: expected 1, one per stage, got 2"),
    "names of layouts": (dict(layout={"b": "tokens"}), r"^layout: expected the stages 0, got b"),
}


@pytest.mark.parametrize(("changed", "message"), WRONG.values(), ids=WRONG)
def test_wrong_layouts_and_grids(changed, message):
    with pytest.raises((ValueError, TypeError), match=message):
        polish(**({"cam": rand(2, 3, 4, 4), "feats": rand(2, 17, 8)} | changed))


# True stages

SIZES = [(224, 224), (256, 272), (300, 400), (97, 129), (224, 672), (32, 32)]
NETWORKS = [
    "alexnet", "convnext_tiny", "efficientnet_b0", "inception_v3", "resnet18", "shufflenet_v2_x0_5", "vgg11",
]  # fmt: skip


@functools.cache
def maps_of(name: str, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Return the shapes (C, H, W) of all that the convolutions of a network return; none if it takes no such size."""
    with torch.device("meta"):
        untrained = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        net = torchvision.models.get_model(name, **untrained).eval()
    shapes: dict[tuple[int, ...], None] = {}
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, args, out: shapes.setdefault(tuple(out.shape[1:])))
    with torch.no_grad(), contextlib.suppress(RuntimeError, ValueError):
        net(torch.empty(1, 3, *size, device="meta"))
        return list(shapes)
    return []


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_no_true_stage_is_doubted(name):
    """Beside a CAM of a late layer or of the image's size; maps are batched, single and of one channel.

    The same holds for all 80 networks at 15 sizes, beside a CAM of any layer's size: 385,356 pairs.
    """
    tried = 0
    for size in SIZES:
        shapes = maps_of(name, size)
        sizes = {shape[1:] for shape in shapes} | {size}
        for h, w in {shape[1:] for shape in shapes[-2:]} | {size}:
            cam = torch.empty(1, 2, h, w, device="meta")
            for C, H, W in {*shapes, *((1, *each) for each in sizes), (3, *size)}:
                f = torch.empty(1, C, H, W, device="meta")
                assert validate(cam, f).notes == []
                if C > 1:
                    assert validate(cam, f[0]).notes == []
                else:
                    validate(cam, f[0])  # a note at most
                tried += 1
    assert tried > 50


@pytest.mark.parametrize("C", [1, 2, 3, 8, 64, 192, 768, 2048])
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (2, 3), (3, 2), (1, 50), (768, 1024), (16, 16), (197, 192)], ids=str)
def test_a_stage_beside_a_cam_of_its_image_is_read_as_it_is(C, size):
    f = torch.empty(1, C, *size, device="meta")
    for cam in (size, tuple(4 * side for side in size), tuple(32 * side for side in size)):
        assert validate(torch.empty(1, 2, *cam, device="meta"), f).notes == []
        (stage,) = validate(torch.empty(2, *cam, device="meta"), f).stages.values()
        assert stage.features.shape == (1, C, *size)
    assert validate(torch.empty(size, device="meta"), f[0]).notes == []


def test_channels_last_memory_needs_no_layout():
    f, cam = rand(2, 16, 5, 6), rand(2, 3, 5, 6)
    torch.testing.assert_close(polish(cam, f.to(memory_format=torch.channels_last)), polish(cam, f))


# Plans and compilation


@pytest.mark.interpreter
def test_layouts_of_calls_that_are_repeated():
    """A plan is found by layout and grid, too, and starts after the tokens before the patches."""
    pytest.importorskip("ssa_fast.kernels.moments", reason="needs Triton")
    cams, launched = [rand(1, 3, 4, 4), rand(1, 3, 4, 4)], {"backend": "triton", "method": "prototypes"}
    calls = [
        ({"layout": "nhwc"}, [rand(1, 4, 4, 4) for _ in cams]),
        ({"layout": "nchw"}, [rand(1, 4, 4, 4) for _ in cams]),
        ({"layout": "tokens"}, [rand(1, 17, 8) for _ in cams]),
        ({"layout": "tokens", "grid": (2, 8)}, [rand(1, 17, 8) for _ in cams]),
        ({"layout": "tokens", "grid": (8, 2)}, [rand(1, 17, 8) for _ in cams]),
    ]
    launch_plan.PLANS.clear()
    for repeat in range(2):
        for options, feats in calls:
            f, grid = feats[repeat], options.get("grid", (4, 4))
            as_map = {"nhwc": f.movedim(-1, 1), "nchw": f}.get(options["layout"])
            as_map = f[:, 1:].mT.unflatten(2, grid) if as_map is None else as_map
            out = polish(cams[repeat], f, nonnegative=True, **launched, **options)
            torch.testing.assert_close(out, polish(cams[repeat], as_map.contiguous(), backend="torch", layout="nchw"))
    launches = [plan for plan in launch_plan.PLANS.values() if isinstance(plan, launch_plan.LaunchPlan)]
    assert len(launches) == len(calls)  # PyTorch's calls have plans of their own
    launch_plan.PLANS.clear()


@pytest.mark.slow
def test_layouts_under_compile():
    def call(cam, last, tokens):
        return polish(cam, last, layout="nhwc"), polish(cam, tokens, layout="tokens", grid=(4, 6))

    given = rand(2, 3, 4, 6), rand(2, 8, 12, 16), rand(2, 25, 16)
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    for out, expected in zip(compiled(*given), call(*given), strict=True):
        torch.testing.assert_close(out, expected)
    unannounced = torch.compile(lambda cam, f: polish(cam, f), backend="eager")
    with pytest.raises(ValueError, match="looks like tokens"):
        unannounced(rand(1, 3, 4, 4), rand(1, 17, 32))
