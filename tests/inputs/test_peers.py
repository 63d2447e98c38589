"""Heading 3, polish: what torch-cam, pytorch-grad-cam and Captum return goes straight in, with features hooked beside.

The class: a list of CAMs (N, h, w), one per target layer, with one stage or one each; one map per image as an array of
the image's size, single or batched; signed attributions (N, 1, h, w) that require grad, summed or not; features that
require grad because a hook kept them inside the context, or that the package itself keeps. Every result is that of the
hand-made tensor (B, K, h, w) without a gradient.
"""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from captum.attr import LayerActivation, LayerAttribution, LayerGradCam
from pytorch_grad_cam import GradCAM, HiResCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchcam import methods

from ssa_fast import InputWarning, Prototypes, correlation, explain, polish
from ssa_fast.ops.fusion import fuse
from ssa_fast.validation import FusionOptions


class Net(nn.Module):
    """Two stages, and hooks that keep what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(16, 5)
        self.kept: dict[str, torch.Tensor] = {}
        for name in ("low", "high"):
            getattr(self, name).register_forward_hook(lambda _, args, out, name=name: self.kept.update({name: out}))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.high(self.low(images)).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    return Net().eval()


def images(N: int = 2) -> torch.Tensor:
    return torch.randn(N, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def same(out: object, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(out), expected)
    assert not torch.as_tensor(out).requires_grad


# torch-cam


@pytest.mark.parametrize("N", [1, 2, 3])
@pytest.mark.parametrize("method", ["CAM", "GradCAM", "LayerCAM", "SmoothGradCAMpp"])
def test_a_list_of_one_cam(net, method, N):
    with getattr(methods, method)(net, target_layer="high") as extractor:
        scores = net(images(N))
        cams = extractor(scores.argmax(1).tolist(), scores)
    assert isinstance(cams, list)
    assert cams[0].shape == (N, 8, 12)
    high, low = net.kept["high"].detach(), net.kept["low"].detach()
    expected = polish(cams[0][:, None].detach(), high)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(polish(cams, high), expected[:, 0])
        same(polish(cams[0], high), expected[:, 0])
        same(polish(cams, {"low": low, "high": high}), polish(cams[0][:, None], [low, high])[:, 0])
        same(polish([cam.numpy() for cam in cams], high), expected[:, 0])


def test_a_cam_of_each_layer_is_polished_in_its_own_stage(net):
    with methods.GradCAM(net, target_layer=["low", "high"]) as extractor:
        scores = net(images())
        cams = extractor([1, 2], scores)
        hooked = [each.detach().clone() for each in extractor.hook_a]
    assert [cam.shape for cam in cams] == [(2, 16, 24), (2, 8, 12)]
    alone = {name: polish(cam[:, None], f) for name, cam, f in zip("ab", cams, hooked, strict=True)}
    for weights in ((1.0, 1.0), (3.0, 1.0)):
        expected = fuse(alone, FusionOptions("mean", weights, rescale=True, size=None))
        same(polish(cams, hooked, weights=weights), expected[:, 0])
        same(polish(tuple(cams), dict(zip("ab", hooked, strict=True)), weights=weights), expected[:, 0])
    with pytest.warns(InputWarning, match=r"^feats \(0\), feats \(1\): requires_grad=True"):
        same(polish(cams, list(net.kept.values())), polish(cams, hooked))
    assert set(explain(cams, hooked)) == {"0", "1"}


def test_a_single_image_and_several_maps_of_it(net):
    """Beside one image the first axis of rank 3 is that of the classes, as ever."""
    with methods.CAM(net, target_layer="high", fc_layer="fc") as extractor:
        scores = net(images(1))
        cams = [extractor(k, scores)[0] for k in range(3)]
    high = net.kept["high"].detach()
    stacked = torch.cat(cams)
    same(polish(stacked, high), polish(stacked[None], high)[0])
    same(polish(stacked, high[0]), polish(stacked[None], high)[0])
    with pytest.raises(ValueError, match=r"^cam: expected one CAM, or one per stage \(1\), got 3; pass one of them"):
        polish(cams, high)


# pytorch-grad-cam


@pytest.mark.parametrize("N", [1, 2, 3])
@pytest.mark.parametrize("method", [GradCAM, HiResCAM])
def test_one_array_of_the_images_size(net, method, N):
    with method(model=net, target_layers=[net.high]) as cam:
        maps = cam(input_tensor=images(N), targets=[ClassifierOutputTarget(k) for k in range(N)])
        activations = list(cam.activations_and_grads.activations)
    assert isinstance(maps, np.ndarray)
    assert (maps.shape, maps.dtype) == ((N, 32, 48), np.float32)
    assert net.kept["high"].requires_grad
    high, by_hand = net.kept["high"].detach(), torch.from_numpy(maps)[:, None]
    expected = polish(by_hand, high)[:, 0]
    out = polish(maps, high)
    assert isinstance(out, np.ndarray)
    same(out, expected)
    same(polish(maps, activations), expected)
    same(polish(maps, high, size=(32, 48)), polish(by_hand, high, size=(32, 48))[:, 0])
    same(polish(maps, high.permute(0, 2, 3, 1).numpy(), layout="nhwc"), expected)
    with pytest.warns(InputWarning, match=r"^feats \(0\): requires_grad=True.*detach") as caught:
        same(polish(maps, net.kept["high"]), expected)
    assert caught[0].filename == __file__
    if N > 1:
        same(polish(maps[0], high[0]), expected[0])
        for wrong in (maps[:0], maps[: N - 1]):
            with pytest.raises(ValueError, match=r"^(feats|cam): expected "):
                polish(wrong, high)


def test_a_wrong_number_of_maps_is_told():
    message = (
        "feats: expected the CAM's batch of 1, got 2 in stage '0' (cam (3, 4, 4), stage (2, 8, 4, 4)); a CAM (N, h, w)"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        polish(torch.rand(3, 4, 4), torch.rand(2, 8, 4, 4))


# Captum


@pytest.mark.parametrize("options", [{}, {"relu_attributions": True}, {"attr_dim_summation": False}], ids=str)
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_signed_attributions_that_require_grad(net, options, backend):
    maps = LayerGradCam(net, net.high).attribute(images(), target=1, **options)
    assert maps.requires_grad
    assert bool((maps < 0).any()) == ("relu_attributions" not in options)
    high = net.kept["high"].detach()
    expected = polish(maps.detach().numpy(), high)
    with pytest.warns(InputWarning, match=r"^cam: requires_grad=True, but the result has no gradient") as caught:
        out = polish(maps, high, backend=backend)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    same(out, torch.from_numpy(expected))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        same(polish(maps, net.kept["high"], backend=backend), torch.from_numpy(expected))


def test_a_signed_cam_keeps_its_negatives(net):
    """Polishing is linear in the CAM: what speaks against the class is spread like what speaks for it."""
    maps = LayerGradCam(net, net.high).attribute(images(), target=1).detach()
    high = net.kept["high"].detach()
    out = polish(maps, high)
    torch.testing.assert_close(out, polish(maps.relu(), high) - polish((-maps).relu(), high), rtol=1e-4, atol=1e-7)
    assert out.amin() < 0


def test_interpolated_attributions_and_their_layers_activations(net):
    maps = LayerAttribution.interpolate(LayerGradCam(net, net.high).attribute(images(), target=1), (32, 48))
    stages = LayerActivation(net, [net.low, net.high]).attribute(images())
    with pytest.warns(InputWarning, match=r"^cam: requires_grad=True"):
        out = polish(maps, stages)
    same(out, polish(maps.detach(), [net.kept["low"].detach(), net.kept["high"].detach()]))


def test_the_reference_keeps_the_gradient(net):
    maps = LayerGradCam(net, net.high).attribute(images(), target=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = polish(maps, net.kept["high"], backend="reference")
        per_layer = polish([maps, maps], [net.kept["low"], net.kept["high"]], backend="reference")
    for result in (out, per_layer):
        gradient = torch.autograd.grad(result.square().sum(), net.low[0].weight, retain_graph=True)[0]
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


# Everything else that takes a CAM or features


def test_other_functions_drop_a_gradient_with_a_note_too(net):
    net(images(1))
    high = net.kept["high"]
    with pytest.warns(InputWarning, match=r"^feats \(0\): requires_grad=True") as caught:
        same(correlation(high, (0.5, 0.5)), correlation(high.detach(), (0.5, 0.5)))
    assert caught[0].filename == __file__
    with pytest.warns(InputWarning, match=r"^feats \(0\): requires_grad=True") as caught:
        explain(torch.rand(1, 8, 12), high)
    assert caught[0].filename == __file__
    prototypes = Prototypes(1, 16)
    with pytest.warns(InputWarning, match=r"^feats: requires_grad=True"):
        prototypes.add(torch.rand(1, 8, 12), high[0])
    with torch.no_grad():
        assert prototypes.apply(high[0]).shape == (1, 8, 12)


WRONG = {
    "nothing": ([], ValueError, r"^cam: expected at least one CAM, got an empty list"),
    "numbers": ([[1.0]], TypeError, r"^cam: expected a torch tensor or a NumPy array, got list"),
    "None": ([torch.rand(2, 4, 4), None], TypeError, r"^cam: expected a torch tensor or a NumPy array, got list"),
    "one map per class": ([torch.rand(4, 4)] * 2, ValueError, r"^cam: expected shape \(N, h, w\) .*stack the maps"),
    "ranks": ([torch.rand(2, 4, 4), torch.rand(2, 1, 4, 4)], ValueError, r"^cam: expected shape .*got \(2, 1, 4, 4\)"),
    "images": ([torch.rand(2, 4, 4), torch.rand(3, 4, 4)], ValueError, r"^cam\[1\]: expected the first CAM's images"),
    "integers": ([torch.ones(2, 4, 4, dtype=torch.uint8)], TypeError, r"^cam\[0\]: expected float.*got torch.uint8"),
    "three for two": ([torch.rand(2, 4, 4)] * 3, ValueError, r"^cam: expected one CAM, or one per stage \(2\), got 3"),
}


@pytest.mark.parametrize(("cam", "error", "message"), WRONG.values(), ids=WRONG)
def test_lists_that_are_no_cams(cam, error, message):
    with pytest.raises(error, match=message):
        polish(cam, [torch.rand(2, 8, 4, 4), torch.rand(2, 8, 2, 2)])
