"""Test the rows of the quality command: their maps are those of ``SSA`` and of other packages; what they cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from bench.quality import methods, networks
from bench.quality.networks import Sample, describe_stage
from ssa_fast import SSA, Affinity, polish
from ssa_fast.ops.resize import minmax, resize
from tests.test_bench_quality import MODEL, SIDE

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def load_sample(classes=(2,)):
    with torch.no_grad():
        return Sample(networks.load(MODEL), IMAGE, classes)


REFERENCES = {
    "SSA": {},
    "SSA, align_corners=True": {"align_corners": True},
    "SSA, power=2": {"affinity": Affinity("relu", 2)},
    "SSA, PAMR": {},
    "SSA of LayerCAM, center prior, PAMR": {"seed": "layercam", "prior": "center"},
    "SSA, center prior": {"prior": "center"},
    "SSA, several views": {"scales": (0.5, 1.0, 1.5, 2.0), "flip": True},
    "SSA of Grad-CAM": {"seed": "grad-cam"},
    "SSA of LayerCAM": {"seed": "layercam"},
    "SSA of LayerCAM, several views": {"scales": (0.5, 1.0, 1.5, 2.0), "flip": True, "seed": "layercam"},
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_maps_are_those_of_ssa(name):
    sample = load_sample((2, 4))
    with torch.no_grad():
        maps, _ = methods.METHODS[name].make(sample)
    ours = SSA(sample.ssa().model, **{"align_corners": False} | REFERENCES[name])(sample.images, [2, 4])
    if name.endswith("PAMR"):
        ours = ours.refine(sample.images)  # which this network takes in [0, 1]
    torch.testing.assert_close(maps, minmax(ours.cams))


def test_pcm_is_that_of_the_last_stage():
    sample = load_sample((2, 4))
    with torch.no_grad():
        maps, _ = methods.METHODS["PCM, last stage"].make(sample)
        pcm = polish(sample.seed("auto"), list(sample.stages.values())[-1])  # SEAM's, see its docstring
    rounding = float(2**-23 * pcm.max() / (pcm.amax((2, 3)) - pcm.amin((2, 3))).min())  # grows where a map is flat
    torch.testing.assert_close(maps, minmax(resize(pcm, sample.size)), atol=4 * rounding, rtol=0)


@pytest.mark.slow  # imports the package
def test_refine_cam_is_that_of_its_package():
    """The package's class, and the formula: the product of the stages' Grad-CAM++ maps."""
    package = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    sample = load_sample((1,))
    model, outputs, x = sample.ssa().model, [], sample.images.clone().requires_grad_()
    for block in model.blocks:
        x = block(x)
        x.retain_grad()
        outputs.append(x)
    model.fc(x.mean((2, 3)))[0, 1].backward()
    product = torch.ones(1, 1, SIDE, SIDE)
    for output in outputs:
        f, g = output.detach(), output.grad
        alpha = g**2 / (2 * g**2 + f.sum((2, 3), keepdim=True) * g**3 + 1e-6)
        alpha = torch.where(g != 0, alpha, 0)
        cam = ((alpha * g.relu()).sum((2, 3), keepdim=True) * f).sum(1, keepdim=True).relu()
        product *= minmax(F.interpolate(minmax(cam), (SIDE, SIDE), mode="bilinear"))
    with torch.no_grad():
        maps, _ = methods.METHODS["RefineCAM"].make(sample)
    torch.testing.assert_close(maps, minmax(product), atol=1e-3, rtol=1e-3)
    assert not model.blocks[0]._forward_hooks
    for base, row in (("GradCAMPlusPlus", "RefineCAM"), ("LayerCAM", "RefineCAM of LayerCAM")):
        theirs = package.RefineCAM(model, list(model.blocks), base_method=getattr(package, base))
        expected = theirs(sample.images.clone().requires_grad_(), [targets.ClassifierOutputTarget(1)])
        with torch.no_grad():
            ours, _ = methods.METHODS[row].make(sample)
        torch.testing.assert_close(ours[0], torch.from_numpy(expected).float(), atol=1e-5, rtol=1e-5)
    with package.LayerCAM(model, list(model.blocks)) as theirs:
        expected = theirs(sample.images.clone().requires_grad_(), [targets.ClassifierOutputTarget(1)])
    with torch.no_grad():
        ours, _ = methods.METHODS["LayerCAM of pytorch-grad-cam"].make(sample)
    torch.testing.assert_close(ours[0], minmax(torch.from_numpy(expected)[None].float())[0], atol=1e-5, rtol=1e-5)


def test_a_wrong_class_is_one_that_is_not_in_the_image():
    for classes in ((0,), (2, 4), (0, 1, 2, 3), (0, 1, 2, 3, 4)):
        sample = load_sample(classes)
        wrong = set(sample.wrong[0].tolist())
        assert wrong.isdisjoint(classes) or len(classes) == 5


def test_what_rows_share_is_made_once_and_costs_are_beyond_one_forward_pass(monkeypatch):
    """A row costs its source and its own work; of one that runs the network itself a forward pass is taken off."""
    clock = iter([0.0, 4.0, 10.0, 11.0, 20.0, 22.0, 30.0, 35.0, 40.0, 43.0, 50.0, 56.0])  # s: begin and end of each
    monkeypatch.setattr("bench.quality.networks.time.process_time", lambda: next(clock))

    def run_network(sample):
        sample.runs_network = True
        return torch.ones(1, 1, 4, 4)

    sample, peer = load_sample(), methods.Method("peer", run_network)
    with torch.no_grad():
        spent = [method.make(sample)[1] for method in (methods.METHODS["seed"], peer, methods.METHODS["SSA"])]
    assert sample.forward_ms == 4000
    assert spent == [1000 + 2000, 5000 - 4000 + 3000, 1000 + 6000]  # SSA's seed was made for the first


def test_what_is_said_of_a_stage():
    maps = torch.zeros(1, 2, 1, 4)
    maps[0, 0] = torch.tensor([3.0, 2.0, 5.0, -1.0])  # cosines 1 among three pixels, -1 with the fourth
    assert describe_stage(maps) == {"signed": 1.0, "mean_cosine_min": pytest.approx(-0.5, abs=1e-4)}
