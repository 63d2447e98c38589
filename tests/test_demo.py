"""Test the demo: scenes and their truth, the shipped classifier, training, and the comparison of CAMs."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from ssa_fast import demo
from ssa_fast.demo import photographs
from ssa_fast.demo.scenes import CLASSES, SIZE, make_scene, make_scenes
from ssa_fast.demo.train import Recipe, per_class_precision, train
from ssa_fast.evaluate import component_boxes
from ssa_fast.models.demo_net import WEIGHTS, export_weights, load_classifier, preprocess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ssa_fast.demo import DemoReport
    from ssa_fast.demo.photographs import PhotosReport

pytestmark = pytest.mark.slow  # scenes and CAMs of the demo are made for all of them

FRESH_SEED = 77


def test_a_scene_depends_on_its_seed_and_number_alone() -> None:
    few, many = make_scenes(2, FRESH_SEED), make_scenes(4, FRESH_SEED)
    np.random.seed(0)  # noqa: NPY002 - global random state must have no effect
    for first, again in zip(few, many[:2], strict=True):
        for name in ("image", "labels", "mask", "boxes", "box_classes"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(many[2].image, many[3].image)
    assert not np.array_equal(make_scenes(1, FRESH_SEED + 1)[0].image, few[0].image)


@pytest.mark.parametrize("size", [SIZE, 160])
def test_labels_mask_and_boxes_agree(size: int) -> None:
    for index in range(30):
        scene = make_scene(np.random.default_rng((FRESH_SEED, index)), size)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == scene.mask.dtype == np.uint8
        present = np.flatnonzero(scene.labels)
        assert 1 <= len(present) <= 3
        assert np.unique(scene.mask).tolist() == [0, *(present + 1)]
        assert scene.box_classes.tolist() == present.tolist()
        for box, label in zip(scene.boxes, present + 1, strict=True):
            parts = component_boxes(scene.mask == label, "all")
            assert box.tolist() == [*parts[:, :2].min(0), *parts[:, 2:].max(0)]
            assert (scene.mask == label).sum() > 0.01 * size**2


def test_scenes_are_mixed() -> None:
    scenes = make_scenes(60, FRESH_SEED)
    share = np.mean([scene.labels for scene in scenes], axis=0)
    assert share.min() > 0.1
    assert share.max() < 0.6
    assert {int(scene.labels.sum()) for scene in scenes} == {1, 2, 3}


def test_animals_are_drawn_where_the_mask_says() -> None:
    # Mask and image agree if colours change more across the mask's edges than elsewhere.
    across, elsewhere = [], []
    for scene in make_scenes(20, FRESH_SEED):
        step = np.abs(np.diff(scene.image.astype(float), axis=1)).sum(2)
        edge = np.diff((scene.mask > 0).astype(int), axis=1) != 0
        across.append(step[edge].mean())
        elsewhere.append(step[~edge].mean())
    assert np.mean(across) > 3 * np.mean(elsewhere)


def test_shipped_weights_are_small_and_hold_no_pickle() -> None:
    assert WEIGHTS.stat().st_size <= 2 * 2**20
    with np.load(WEIGHTS, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype == np.float16 for name in arrays.files)


def test_shipped_classifier_knows_fresh_scenes() -> None:
    scenes = make_scenes(150, FRESH_SEED)
    labels = torch.from_numpy(np.stack([scene.labels for scene in scenes]))
    precision = per_class_precision(load_classifier(), np.stack([scene.image for scene in scenes]), labels)
    assert list(precision) == list(CLASSES)
    assert min(precision.values()) > 0.97, precision
    assert np.mean(list(precision.values())) > 0.985, precision


def test_its_cam_is_exact_and_its_stages_are_not_negative() -> None:
    model, stages = load_classifier(), {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: stages.update({name: out}))
    with torch.no_grad():
        logits = model(preprocess(make_scenes(1, FRESH_SEED)[0].image[None]))
    assert [stage.shape[-1] for stage in stages.values()] == [64, 32, 16, 8]
    assert all(stage.min() >= 0 for stage in stages.values())
    cam = torch.einsum("kc,bchw->bkhw", model.fc.weight.double(), stages["layer4"].double())
    torch.testing.assert_close(cam.mean((2, 3)) + model.fc.bias, logits.double(), rtol=1e-5, atol=1e-5)


def test_foreign_weights_are_refused_by_name(tmp_path: Path) -> None:
    arrays = export_weights(load_classifier())
    arrays["fc.bias"] = arrays["fc.bias"][:2]
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=r"path: .*fc\.bias"):
        load_classifier(tmp_path / "other.npz")


@pytest.fixture
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("torch_threads")
def test_training_learns_and_gives_the_same_file_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe(scenes=48, held_out=40, epochs=3, batch=16, threads=1)
    path = tmp_path / "first" / "weights.npz"
    first = train(path, recipe)
    printed = capsys.readouterr().out
    second = train(tmp_path / "second.npz", recipe)
    assert first == second == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_size <= 2 * 2**20
    losses = [float(line.split("loss")[1].split()[0]) for line in printed.splitlines() if line.startswith("epoch")]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert first in printed
    assert all(name in printed for name in CLASSES)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"second.npz", "weights.npz"}
    load_classifier(path)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> DemoReport:
    return demo.run(tmp_path_factory.mktemp("demo") / "out", images=40, seed=FRESH_SEED, threads=1)


@pytest.mark.slow
def test_polishing_gains_on_fresh_scenes(report: DemoReport) -> None:
    seed, polished = report.scores["seed"], report.scores["polished"]
    assert polished.miou - seed.miou >= 0.10
    assert polished.box > seed.box
    assert report.scores["refined"].miou > polished.miou
    assert seed.miou > 0.35, "the baseline must be a reasonable CAM"
    assert report.average_precision > 0.97


@pytest.mark.slow
def test_report_is_complete(report: DemoReport) -> None:
    assert set(report.scores) == {"seed", "polished", "refined", "default", "layer1", "layer2", "layer3", "layer4"}
    for score in report.scores.values():
        assert 0 < score.miou < 1
        assert 0 < score.background < 1
    assert report.backbone_ms > 0
    assert (report.images, report.seed) == (40, FRESH_SEED)
    assert report.seed != report.validation_seed
    assert report.threads == 1


def test_panels_are_complete_images(report: DemoReport) -> None:
    names = ["panel.png", "scene-0.png", "scene-1.png", "scene-2.png", "scene-3.png"]
    assert [path.name for path in report.panels] == names
    assert sorted(path.name for path in report.panels[0].parent.iterdir()) == names
    for path in report.panels:
        with Image.open(path) as image:
            image.load()
            assert image.width > image.height
            assert len(image.resize((64, 64)).getcolors(4096) or ()) > 100


def test_an_existing_panel_is_kept(report: DemoReport) -> None:
    folder = report.panels[0].parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match=r"panel\.png exists"):
        demo.run(folder, images=1, seed=FRESH_SEED)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": 0}, "images: expected at least 1, got 0"),
        ({"seed": 3}, "seed: expected a number >= 0 other than 1, 2 and 3, got 3"),
        ({"seed": -1}, "seed: expected"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        demo.run(tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> PhotosReport:
    return photographs.run(tmp_path_factory.mktemp("photos"), threads=1)


def test_photographs_are_recognised(photos: PhotosReport) -> None:
    first = {sighting.title: sighting.guesses[0][0] for sighting in photos.sightings}
    assert first == {"cat": "Egyptian cat", "coffee cup": "espresso", "rocket": "drilling platform"}
    for sighting in photos.sightings:
        scores = [score for _, score in sighting.guesses]
        assert scores == sorted(scores, reverse=True)
        assert 0 < sum(scores) <= 1
        assert sighting.backbone_ms > 0


def test_photographs_are_drawn_and_kept(photos: PhotosReport) -> None:
    names = ["photos.jpg", "photo-chelsea.png", "photo-coffee.png", "photo-rocket.png"]
    folder = photos.panels[0].parent
    assert [path.name for path in photos.panels] == names
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    for path in photos.panels:
        with Image.open(path) as image:
            assert len(image.convert("RGB").resize((64, 64)).getcolors(4096) or ()) > 100
    assert photos.panels[0].stat().st_size < 300_000, "it opens the README"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match=r"photos\.jpg exists"):
        photographs.run(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_outside_the_mask_a_photograph_is_dimmed_and_grey() -> None:
    image = Image.new("RGB", (60, 40), (200, 100, 50))
    cam = torch.zeros(1, 1, 120, 180)
    cam[..., 90:] = 1.0
    drawn = np.asarray(photographs.cut_out(image, cam)).astype(int)
    assert drawn.shape == (40, 60, 3)
    assert abs(drawn[:, 35:] - (200, 100, 50)).max() <= 1
    assert np.ptp(drawn[:, :25], axis=2).max() == 0
    assert drawn[:, :25].max() < 50
    assert abs(drawn[20, 29] - photographs.OUTLINE).max() <= 20
