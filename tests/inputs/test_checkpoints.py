"""Heading 15: weights files as training codes write them.

The class of inputs: a file holds the network that is asked for, but wrapped or with other things beside it:
dictionaries inside dictionaries, anything in front of the names (Lightning modules, DDP, torch.compile, FSDP, averaged
copies), hyperparameters of any class, optimizers, buffers of losses and metrics, safetensors. It is read, with a note
where something could be meant in two ways, or refused with the real reason.
"""

from __future__ import annotations

import argparse
import enum
import functools
import os
import warnings
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from ssa_fast import InputWarning
from ssa_fast.models import zoo

if TYPE_CHECKING:
    from collections.abc import Callable

NAME, CLASSES = "squeezenet1_1", 7


class Config:
    """Stands for a configuration class of a training code, which is not installed where the file is read."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class AttributeDict(dict[str, Any]):
    """As Lightning's hyperparameters: a subclass of dict."""


class Phase(enum.Enum):
    TRAIN = "train"


HYPERPARAMETERS: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=0.1, data=Path("data")),
    "config": Config(lr=0.1, layers=[1, 2]),
    "attributes": AttributeDict(lr=0.1, path=Path("data")),
    "enum": Phase.TRAIN,
    "partial": functools.partial(torch.optim.SGD, lr=0.1),
    "function": nn.functional.relu,
    "numpy": {"best": np.float64(0.7), "curve": np.arange(3)},
    "defaultdict": defaultdict(list, a=[1]),
    "class": nn.CrossEntropyLoss,
    "module": nn.CrossEntropyLoss(weight=torch.ones(CLASSES)),
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(3)
    return models.get_model(NAME, weights=None, num_classes=CLASSES)


@pytest.fixture
def load(tmp_path: Path, model: nn.Module) -> Callable[..., list[str]]:
    """Save a content, load it as the model's weights, compare them with the model's, and return the notes."""

    def call(content: Any, name: str = NAME) -> list[str]:
        torch.save(content, tmp_path / "w.ckpt")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", InputWarning)
            loaded = zoo.load(name, str(tmp_path / "w.ckpt"))
        assert len(loaded.categories) == CLASSES
        for key, value in model.state_dict().items():
            assert key.endswith("num_batches_tracked") or torch.equal(loaded.model.state_dict()[key], value), key
        return [str(warning.message) for warning in caught if issubclass(warning.category, InputWarning)]

    return call


def prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


PREFIXES = (
    *("model.", "net.", "backbone.", "encoder.", "module.", "model.module.", "module.model.", "_orig_mod."),
    *("model._orig_mod.", "_orig_mod.module.", "module._orig_mod.model.", "classifier_of_mine.x.y."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_anything_in_front_of_the_names(prefix: str, model: nn.Module, load: Callable[..., list[str]]) -> None:
    assert load(prefixed(prefix, model.state_dict())) == []


def test_wrapped_submodules(model: nn.Module, load: Callable[..., list[str]]) -> None:
    """torch.compile, FSDP or checkpointing of single submodules puts names into the middle."""
    names = {
        "features.3.": "features.3._orig_mod.",
        "features.4.": "_fsdp_wrapped_module.features._checkpoint_wrapped_module.4.",
    }
    state = {}
    for key, value in model.state_dict().items():
        start = next((start for start in names if key.startswith(start)), "")
        state["model." + names.get(start, "") + key.removeprefix(start)] = value
    assert load({"state_dict": state}) == []


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"net": state},
        lambda state: {"model_state": state, "epoch": 3},
        lambda state: {"params": {"network": {"weights": state}}},
        lambda state: {"ema": {"shadow": state}, "decay": 0.99},
        lambda state: {"epoch": 1, "best": torch.tensor(0.7), "model": OrderedDict(state)},
        lambda state: (state, {"epoch": 3}),
        lambda state: [{"epoch": 3}, {"state": state}],
        lambda state: {"module": prefixed("module.", state), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        lambda state: {"state_dict": prefixed("model.", state), "optimizer_states": [{"state": {0: torch.ones(3)}}]},
        lambda state: {**state, "epoch": 3, "arch": "shufflenet"},
    ],
    ids=lambda wrap: "",
)
def test_dictionaries_of_any_name(wrap: Callable[..., Any], model: nn.Module, load: Callable[..., list[str]]) -> None:
    assert load(wrap(model.state_dict())) == []


@pytest.mark.parametrize("kind", HYPERPARAMETERS)
def test_hyperparameters_of_any_class(kind: str, model: nn.Module, load: Callable[..., list[str]]) -> None:
    """A Lightning checkpoint; ``weights_only=True`` alone refuses each of these classes."""
    checkpoint = {
        "epoch": 9,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": prefixed("model.", model.state_dict()),
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.7), "path": Path("x")}},
        "optimizer_states": [torch.optim.AdamW(model.parameters()).state_dict()],
        "hyper_parameters": {kind: HYPERPARAMETERS[kind]},
        "hparams_name": "kwargs",
    }
    assert load(checkpoint) == []


def test_losses_and_metrics_beside_the_network_are_named(model: nn.Module, load: Callable[..., list[str]]) -> None:
    state = prefixed("model.", model.state_dict())
    state |= {"criterion.weight": torch.ones(CLASSES), "metrics.auroc.total": torch.tensor(3)}
    (note,) = load({"state_dict": state})
    assert "holds other state beside 'state_dict.model'" in note
    assert "criterion.weight, metrics.auroc.total" in note


@pytest.mark.parametrize(("live", "copy"), [("state_dict", "state_dict_ema"), ("student", "teacher")])
def test_the_first_of_several_networks_is_used_and_named(
    live: str, copy: str, model: nn.Module, load: Callable[..., list[str]]
) -> None:
    other = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    (note,) = load({copy: other, live: model.state_dict()})
    assert f"several such networks ('{live}', '{copy}'); '{live}' is used" in note
    inside = prefixed(f"{copy}.", other) | prefixed(f"{live}.", model.state_dict())
    notes = load({"state_dict": inside})
    assert f"'state_dict.{live}' is used" in notes[0]


def test_an_averaged_model(model: nn.Module, load: Callable[..., list[str]]) -> None:
    (note,) = load(torch.optim.swa_utils.AveragedModel(model).state_dict())
    assert "n_averaged" in note


@pytest.mark.parametrize("name", ["resnet18", "mnasnet0_5", "shufflenet_v2_x0_5"])
def test_batch_norm_and_versions_of_modules(name: str, tmp_path: Path) -> None:
    """A prefix, safetensors and plain dictionaries lose the versions that PyTorch keeps beside a state dict."""
    torch.manual_seed(3)
    trained = models.get_model(name, weights=None, num_classes=CLASSES)
    torch.save({"state_dict": prefixed("net.", trained.state_dict())}, tmp_path / "w.ckpt")
    loaded = zoo.load(name, str(tmp_path / "w.ckpt")).model.state_dict()
    for key, value in trained.state_dict().items():
        assert torch.equal(loaded[key], value), key


def test_half_precision_and_parameters(model: nn.Module, load: Callable[..., list[str]], tmp_path: Path) -> None:
    assert load({"net": dict(model.named_parameters())}) == []
    halved = {key: value.bfloat16() for key, value in model.state_dict().items()}
    torch.save({"net": halved}, tmp_path / "half.pt")
    weight = zoo.load(NAME, str(tmp_path / "half.pt")).model.classifier[1].weight
    assert torch.equal(weight, model.classifier[1].weight.bfloat16().float())


@pytest.mark.parametrize("prefix", ["", "model."])
def test_safetensors(prefix: str, tmp_path: Path, model: nn.Module) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors comes with transformers")
    for file in ("w.safetensors", "w.bin"):
        safetensors.save_file(prefixed(prefix, model.state_dict()), tmp_path / file)
        loaded = zoo.load(NAME, str(tmp_path / file))
        assert torch.equal(loaded.model.classifier[1].weight, model.classifier[1].weight)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / file).read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"^weights: .*cut\.safetensors is damaged or not a safetensors file"):
        zoo.load(NAME, str(tmp_path / "cut.safetensors"))


def test_safetensors_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match=r"^weights: .* needs the package safetensors; pip install safetensors"):
        zoo.load(NAME, str(tmp_path / "w.safetensors"))


class Malicious:
    """An object that runs code when it is unpickled."""

    def __init__(self, mark: Path, how: str) -> None:
        self.mark, self.how = mark, how

    def __reduce__(self) -> tuple[Any, ...]:
        code = f"open({str(self.mark)!r}, 'w')"
        return (os.system, (f"touch {self.mark}",)) if self.how == "system" else (eval, (code,))


@pytest.mark.parametrize("how", ["system", "eval"])
def test_no_code_of_a_checkpoint_is_run(how: str, tmp_path: Path, model: nn.Module) -> None:
    """The weights are read all the same: what else is in the file becomes stand-ins."""
    mark, path = tmp_path / "mark", tmp_path / "w.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": Malicious(mark, how)}, path)
    torch.load(path, weights_only=False)
    assert mark.exists(), "the file really is malicious"
    mark.unlink()
    assert torch.equal(zoo.load(NAME, str(path)).model.classifier[1].weight, model.classifier[1].weight)
    assert not mark.exists()


def test_networks_that_do_not_fit_are_still_refused(tmp_path: Path, model: nn.Module) -> None:
    """Nothing is dropped that would belong to the network: another depth, a missing head, more parts inside."""
    state = prefixed("model.", model.state_dict())
    headless = {key: value for key, value in state.items() if ".classifier." not in key}
    cases = {
        r"2 missing .*\bit holds other state beside 'state_dict\.model', .*\(head\.weight\)": headless
        | {"head.weight": state["model.classifier.1.weight"]},
        r"1 unknown to the model \(features\.99\.weight\)": state | {"model.features.99.weight": torch.ones(1)},
        r"of another shape \(features\.0\.weight\)": state | {"model.features.0.weight": torch.ones(64, 4, 3, 3)},
    }
    for message, content in cases.items():
        torch.save({"state_dict": content}, tmp_path / "w.ckpt")
        with pytest.raises(ValueError, match=rf"^weights: .* does not fit {NAME}: .*{message}"):
            zoo.load(NAME, str(tmp_path / "w.ckpt"))
    torch.save({"epoch": 3, "lr": [0.1]}, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match="to hold a state dict, names with real tensors, got dict"):
        zoo.load(NAME, str(tmp_path / "w.ckpt"))
