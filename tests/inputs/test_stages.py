"""Heading 6: networks whose stages are not the last maps of one row of modules.

The class of inputs: convolutional stems and patch embeddings before transformers, stages that end with their
downsampling, side heads, gates and attention maps beside the main path, class scores as the last map, branches, blocks
that return no map first, and modules that are called twice.
"""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

from ssa_fast.models import inspect_model
from ssa_fast.models.input_shape import AskedShape, trace_sample
from tests import sweep_models
from tests.networks import Block, ClassMap, Pyramid, TokenBlock

timm = pytest.importorskip("timm", reason="timm comes with the extra of the test environment")
transformers = pytest.importorskip("transformers", reason="transformers comes with the extra of the test environment")

BLOCKS = [f"blocks.{i}" for i in range(4)]


class Stem(nn.Module):
    """Four strided convolutions, then a transformer of one resolution (XCiT, or a ViT with early convolutions)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 4), (4, 8), (8, 12), (12, 16))))
        self.blocks = nn.ModuleList(TokenBlock(16) for _ in range(8))
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        for block in self.blocks:
            x = block(x)[0]
        return self.head(x.mean(1))


class Downsampling(nn.Module):
    """Stages that end with their downsampling, the last without one (Hugging Face's Swin)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 12, 16)
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.layers = nn.ModuleList(
            nn.Sequential(*(Block(w, w, 1) for _ in range(2)), *([nn.Conv2d(w, v, 2, 2)] if v else []))
            for w, v in zip(widths, (*widths[1:], None), strict=True)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Stem, ["blocks.1", "blocks.3", "blocks.5", "blocks.7"]),
        (Downsampling, ["layers.0.1", "layers.1.1", "layers.2"]),
    ],
)
def test_small_networks(network: type[nn.Module], expected: list[str]) -> None:
    info = inspect_model(network(), input_shape=224)
    assert list(info.stages) == expected
    assert info.notes == ()


class Side(Pyramid):
    """A pyramid with one more module at its end, at the resolution of a stage."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        inputs, outputs, kernel = {"gate": (2, 1, 7), "offsets": (20, 18, 3)}.get(kind, (20, 1, 3))
        self.side = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        if self.kind == "gate":  # the spatial attention of CBAM
            return x * self.side(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        if self.kind == "offsets":
            return x + self.side(x).mean(1, keepdim=True)
        self.counts = self.side(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + self.counts.mean((2, 3)) if self.kind == "added" else logits


@pytest.mark.parametrize("kind", ["gate", "offsets", "unused", "added"])
def test_side_heads_and_gates_replace_no_stage(kind: str) -> None:
    info = inspect_model(Side(kind), input_shape=64)
    assert list(info.stages) == BLOCKS
    assert info.seed.layer in {"blocks.3", "dropout", ""} | set(BLOCKS)


def test_density_maps_and_class_scores_are_no_stages() -> None:
    class Counting(Pyramid):
        def __init__(self) -> None:
            super().__init__()
            self.density, self.fc = nn.Conv2d(20, 1, 3, padding=1), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.density(self.features(x)).flatten(1))

    assert list(inspect_model(Counting(), input_shape=64).stages) == BLOCKS
    many = ClassMap()
    many.fc = nn.Conv2d(20, 30, 1)
    assert list(inspect_model(many, input_shape=64).stages) == BLOCKS


def test_a_module_called_early_and_late_is_on_the_main_path_by_its_last_call() -> None:
    class Twice(Pyramid):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Conv2d(8, 8, 3, padding=1, groups=8)

        def features(self, x: Tensor) -> Tensor:
            first = self.position(self.blocks[0](x))
            x = first
            for block in self.blocks[1:]:
                x = block(x)
            return x + 0.1 * F.adaptive_avg_pool2d(self.position(first), x.shape[-2:]).mean(1, keepdim=True)

    assert list(inspect_model(Twice(), input_shape=64).stages) == BLOCKS


def test_the_main_path() -> None:
    model = Side("gate")
    trace = trace_sample(model, AskedShape(size=(64, 64)))
    assert trace.main_path is not None
    assert trace.needed is not None
    assert {*BLOCKS, "blocks.0.down", "dropout", "fc"} <= trace.main_path
    assert "blocks.0.conv" not in trace.main_path
    assert "side" in trace.needed - trace.main_path
    unused = trace_sample(Side("unused"), AskedShape(size=(64, 64)))
    assert unused.needed is not None
    assert "side" not in unused.needed


def test_networks_whose_paths_are_out_of_sight_keep_their_stages() -> None:
    class Detour(Pyramid):
        def features(self, x: Tensor) -> Tensor:
            return torch.from_numpy(super().features(x).numpy().copy())

    assert list(inspect_model(Detour(), input_shape=64, seed="cam").stages) == BLOCKS


def test_a_note_if_the_stages_lie_at_the_beginning() -> None:
    (note,) = inspect_model(Stem(), stages=["stem.0"], seed="grad-cam", input_shape=224).notes
    assert re.match(
        r"stages: the last stage, 'stem.0', lies in the first \d % of the network; name later modules", note
    )


TIMM = {
    "xcit_nano_12_p16_224": ("blocks.|2 5 8 11", (14,) * 4),
    "levit_128s": ("stages.|0 1 2", (14, 7, 4)),
    "efficientvit_m0": ("stages.|0 1 2", (14, 7, 4)),
    "shvit_s1": ("stages.|0 1 2", (14, 7, 4)),
    "test_vit": ("blocks.|0 2 3 5", (14,) * 4),
    "hrnet_w18_small": ("|layer1 downsamp_modules.0.2 downsamp_modules.1.2 final_layer", (56, 28, 14, 7)),
    "vit_tiny_r_s16_p8_224": ("blocks.|2 5 8 11", (7,) * 4),
    "selecsls42": ("|features.1 features.3 features.5 head", (56, 28, 14, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_families_of_timm(name: str) -> None:
    options = {"img_size": 224} if name == "test_vit" else {}
    stages, sides = TIMM[name]
    prefix, suffixes = stages.split("|")
    info = inspect_model(timm.create_model(name, num_classes=5, **options))
    assert list(info.stages) == [prefix + suffix for suffix in suffixes.split()]
    assert tuple(ref.layout.shape[1] for ref in info.stages.values()) == sides
    assert info.notes == ()


def test_families_of_transformers() -> None:
    swin = transformers.SwinConfig(image_size=64, embed_dim=8, depths=[2, 2, 2], num_heads=[1] * 3, window_size=4)
    info = inspect_model(transformers.SwinForImageClassification(swin))
    assert list(info.stages) == [
        "swin.encoder.layers.0.blocks.1",
        "swin.encoder.layers.1.blocks.1",
        "swin.encoder.layers.2",
    ]
    assert [ref.layout.shape for ref in info.stages.values()] == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]
    levit = transformers.LevitConfig(
        hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2], depths=[2, 2, 2], key_dim=[4] * 3
    )
    levit.down_ops = [["Subsample", 4, 4, 4, 2, 2], ["Subsample", 4, 6, 4, 2, 2], [""]]
    info = inspect_model(transformers.LevitForImageClassification(levit))
    assert [ref.layout.shape[1:] for ref in info.stages.values()] == [(14, 14), (7, 7), (4, 4)]
    assert all(name.startswith("levit.encoder.stages") for name in info.stages)
    vit = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=8, num_attention_heads=2, intermediate_size=32
    )
    info = inspect_model(transformers.ViTForImageClassification(vit))
    assert list(info.stages) == [f"vit.layers.{i}" for i in (1, 3, 5, 7)]
    assert info.seed.layer == "vit.layers.7.layernorm_before"


def test_the_sweep_prints_a_row_per_network_and_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def networks(library: str) -> dict[str, object]:
        return {"pyramid": Pyramid, "none": nn.Identity, "imagegpt": Pyramid}

    monkeypatch.setattr(sweep_models, "networks", networks)
    monkeypatch.setattr(sweep_models, "SECONDS", {"timm": 3})
    app = sweep_models.typer.Typer()
    app.command()(sweep_models.main)
    ended = CliRunner().invoke(app, ["--library", "timm"])
    rows = [line for line in ended.stdout.splitlines() if line.startswith("| ")]
    assert ended.exit_code == 1
    assert rows[1].startswith("| pyramid | `blocks.0` 8×112×112, `blocks.1` 12×56×56, ")
    assert rows[1].endswith("| ++++ | cam, `dropout` |  |") or "| ++++ | cam, `blocks.3` |" in rows[1]
    assert rows[2].startswith("| none | – | – | – | ValueError: model: expected logits")
    assert rows[3] == "| imagegpt | – | – | – | takes tokens of colours, no images |"
    assert CliRunner().invoke(app, ["--library", "keras"]).exit_code == 2
