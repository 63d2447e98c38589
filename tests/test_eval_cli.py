"""``ssa-fast eval``: every dataset on the terminal, its outputs, and refusals in one line."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ssa_fast.cli.app import app
from ssa_fast.cli.evaluate import PANELS
from ssa_fast.demo.scenes import CLASSES, make_scenes
from ssa_fast.evaluate import threshold_sweep
from ssa_fast.evaluate.datasets import CamFolder, evaluate_boxes, evaluate_segmentation, read_imagenet, read_voc
from ssa_fast.io.cam_files import full_size, read_cam
from tests.eval_trees import (
    SIZES,
    coco_tree,
    cub_tree,
    save_cams,
    save_image,
    save_labels,
    save_text,
    voc_tree,
    wsol_tree,
)

if TYPE_CHECKING:
    from pathlib import Path

VOC_IDS = ("2007_000000", "2007_000001", "2007_000002")


def call(*arguments: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)], env={"COLUMNS": "120"})
    assert result.exit_code == exit_code, result.output
    return result


def refused(*arguments: object) -> str:
    """Return the one line on stderr after a wrong call."""
    result = call(*arguments, exit_code=2)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def cams_of(folder: Path, ids: tuple[str, ...] | list[str], labels: tuple[int, ...]) -> Path:
    rng = np.random.default_rng(0)
    for image, size, label in zip(ids, SIZES, labels, strict=True):
        save_cams(
            folder / f"{image.split('.')[0] if '.j' in image else image}.npz", rng.random((1, 4, 4)), [label], size=size
        )
    return folder


def voc(tmp_path: Path) -> list[object]:
    """Write VOC and CAM files; return the arguments that measure them."""
    voc_tree(tmp_path / "voc")
    return ["voc", "--root", tmp_path / "voc", "--cams", cams_of(tmp_path / "cams", VOC_IDS, (0, 4, 19))]


def check_pictures(out: Path, count: int, cells: int) -> None:
    """Assert that the curve and ``count`` panels of ``cells`` cells are there, and are not blank."""
    panels = sorted((out / "worst").iterdir())
    assert [path.name[:3] for path in panels] == [f"{n:02d}_" for n in range(1, count + 1)]
    for path in [out / "curve.png", *panels]:
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20
            assert path.name == "curve.png" or image.width > cells * 90


@pytest.mark.slow
def test_voc(tmp_path: Path) -> None:
    arguments = voc(tmp_path)
    out, save = tmp_path / "scores", tmp_path / "numbers.json"
    result = call(*arguments, "--out", out, "--save", save, "--step", "0.05")
    report = evaluate_segmentation(
        read_voc(tmp_path / "voc"), CamFolder(tmp_path / "cams"), thresholds=[number / 20 for number in range(1, 20)]
    )
    assert f"{100 * report.sweep.best_miou:.2f}" in result.stdout
    assert f"{100 * report.truth_free.miou:.2f}" in result.stdout
    assert all(name in result.stdout for name in ("VOC 2012 train: 3 images", "tvmonitor", *VOC_IDS))
    content = json.loads(save.read_text())
    assert content == json.loads((out / "report.json").read_text())
    assert content == {
        **report.to_json(),
        "root": str(tmp_path / "voc"),
        "cams": str(tmp_path / "cams"),
        "missing": "refuse",
    }
    check_pictures(out, count=3, cells=5)
    before = (out / "curve.png").read_bytes()
    assert f"{save} exists; pass --overwrite" in refused(*arguments, "--save", save)
    assert f"{out / 'report.json'} exists; pass --overwrite" in refused(*arguments, "--out", out)
    (out / "worst/99_old.png").touch()
    call(*arguments, "--out", out, "--overwrite", "--absent", "zero")
    assert json.loads((out / "report.json").read_text())["absent"] == "zero"
    assert before != (out / "curve.png").read_bytes()
    check_pictures(out, count=3, cells=5)


def test_coco(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    coco_tree(tmp_path / "coco")
    path = tmp_path / "cams/COCO_train2014_000000000007.npz"
    save_cams(path, np.random.default_rng(0).random((2, 5, 6)), [1, 0], size=(10, 12))
    arguments = ["coco", "--root", tmp_path / "coco", "--cams", tmp_path / "cams"]
    assert "none for 1: COCO_train2014_000000000009.jpg" in refused(*arguments)
    result = call(*arguments, "--missing", "empty")
    assert "notice: 1 of 2 images have no CAM file and count as background" in result.stderr
    assert "toothbrush" in result.stdout


@pytest.mark.slow
def test_cub(tmp_path: Path) -> None:
    names = cub_tree(tmp_path / "CUB")
    for name, size, label in zip(names, (SIZES[0], SIZES[2]), (0, 1), strict=True):
        mask = np.zeros(size)
        mask[2:7, 3:8] = 1
        save_cams((tmp_path / "cams" / name).with_suffix(".npz"), mask[None], [label], size=size)
    arguments = ["cub", "--root", tmp_path / "CUB", "--cams", tmp_path / "cams"]
    result = call(*arguments, "--out", tmp_path / "boxes")
    assert re.search(r"MaxBoxAcc, IoU 50 \(GT-known localisation\) +│ 100.00", result.stdout)
    assert re.search(r"top-1 localisation +│ +- ", result.stdout)
    assert "notice: top-1 and top-5 localisation are not known" in result.stderr
    check_pictures(tmp_path / "boxes", count=2, cells=3)
    predictions = save_text(tmp_path / "top5.txt", f"{names[0]},0,1,2,3,4", f"{names[1]},0,1,2,3,4")
    result = call(*arguments, "--predictions", predictions)
    assert result.stderr == ""
    assert re.search(r"top-1 localisation +│ +50.00", result.stdout)
    assert re.search(r"top-5 localisation +│ +100.00", result.stdout)
    save_text(tmp_path / "meta/image_ids.txt", "a/b.jpg")
    save_text(tmp_path / "meta/class_labels.txt", "a/b.jpg,0")
    save_text(tmp_path / "meta/image_sizes.txt", "a/b.jpg,9,9")
    save_text(tmp_path / "meta/localization.txt", "a/b.jpg,1,1,5,5")
    save_cams(tmp_path / "meta/b.npz", np.eye(9)[None], [0], size=(9, 9))
    result = call("cub", "--root", tmp_path / "meta", "--cams", tmp_path / "meta", "--out", tmp_path / "meta/scores")
    assert "notice: the panels are without the images" in result.stderr
    check_pictures(tmp_path / "meta/scores", count=1, cells=3)
    result = call(*arguments, "--masks", "--out", tmp_path / "pixels")
    assert re.search(r"PxAP +│ +100.00", result.stdout)
    check_pictures(tmp_path / "pixels", count=2, cells=5)
    assert "--masks" in refused(*arguments, "--masks", "--predictions", predictions)


def test_imagenet(tmp_path: Path) -> None:
    ids = wsol_tree(tmp_path / "ILSVRC/val")
    cams_of(tmp_path / "cams", ids, (0, 1, 1))
    save_image(tmp_path / "images" / ids[0], SIZES[0])
    arguments = ["imagenet", "--root", tmp_path / "ILSVRC", "--split", "val", "--cams", tmp_path / "cams"]
    result = call(*arguments, "--save", tmp_path / "scores.json", "--step", "0.1", "--images", tmp_path / "images")
    assert f"2 of 3 images are not in {tmp_path / 'images'}: {ids[1]}, {ids[2]}" in " ".join(result.stderr.split())
    assert f"such as {tmp_path / 'cams' / ids[0]}; there is no" in refused(*arguments, "--images", tmp_path / "cams")
    report = evaluate_boxes(
        read_imagenet(tmp_path / "ILSVRC", split="val"),
        CamFolder(tmp_path / "cams"),
        thresholds=np.arange(0, 1, 0.1).tolist(),
    )
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["max_box_acc_v2"] == report.found["all"].max_box_acc_v2
    assert content["max_box_acc"]["50"] == content["gt_known"] == report.found["largest"].max_box_acc[0.5]
    assert content["truth_free"]["box_acc"]["50"] == report.truth_free["largest"].max_box_acc[0.5]


def test_openimages(tmp_path: Path) -> None:
    ids = wsol_tree(tmp_path / "set", masks=True)
    arguments = ["openimages", "--root", tmp_path / "set", "--cams", cams_of(tmp_path / "cams", ids, (0, 1, 1))]
    result = call(*arguments, "--save", tmp_path / "scores.json")
    content = json.loads((tmp_path / "scores.json").read_text())
    assert f"{100 * content['pxap']:.2f}" in result.stdout
    (tmp_path / "set/1_1.png").unlink()
    assert f"{tmp_path / 'set/1_1.png'}; there is no such file" in refused(*arguments)


def test_folder(tmp_path: Path) -> None:
    save_image(tmp_path / "images/a.jpg", SIZES[0])
    save_labels(tmp_path / "masks/a.png", np.pad(np.full((6, 8), 1), ((0, 6), (0, 8))))
    arguments = ["folder", "--root", tmp_path, "--cams", cams_of(tmp_path / "cams", ("a", "b", "c"), (0, 1, 2))]
    result = call(*arguments)
    assert re.search(r"foreground IoU +│ +[0-9.]+ │", result.stdout)
    result = call(*arguments, "--classes", "cat")
    assert "cat" in result.stdout


@pytest.mark.parametrize("dataset", ["voc", "coco", "cub", "imagenet", "openimages", "folder"])
def test_a_missing_dataset_is_named_and_help_groups_the_options(tmp_path: Path, dataset: str) -> None:
    cams = cams_of(tmp_path / "cams", VOC_IDS, (0, 1, 2))
    line = refused(dataset, "--root", tmp_path / "nothing", "--cams", cams)
    assert f"{tmp_path / 'nothing'}/" in line
    assert "there is no such" in line
    assert "no such folder" in refused(dataset, "--root", tmp_path, "--cams", tmp_path / "nothing")
    shown = CliRunner().invoke(app, ["eval", dataset, "--help"], env={"COLUMNS": "100", "TERM": "dumb"}).stdout
    positions = [shown.index(f"─ {panel} ─") for panel in PANELS]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("module", "arguments", "missing"),
    [("matplotlib", ["--out", "scores"], "matplotlib"), ("pycocotools", [], "pycocotools")],
)
def test_what_is_not_installed_is_said_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, arguments: list[str], missing: str
) -> None:
    coco_tree(tmp_path)
    cams_of(tmp_path / "cams", VOC_IDS, (0, 1, 2))
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    line = refused("coco", "--root", tmp_path, "--cams", tmp_path / "cams", *arguments)
    assert f"needs {missing}, which is not installed; pip install 'ssa_fast[eval]'" in line
    assert line.count("pip install") == 1


def test_wrong_options(tmp_path: Path) -> None:
    arguments = voc(tmp_path)
    assert "step: expected 1 divided by a whole number" in refused(*arguments, "--step", "0.3")
    assert "trainaug.txt" in refused(*arguments, "--split", "trainaug")
    assert not (tmp_path / "scores").exists()


@pytest.mark.slow
def test_a_run_is_measured_as_threshold_sweep_measures_it(tmp_path: Path) -> None:
    """Polish generated scenes in VOC's layout with the demo's network, and measure what the run wrote."""
    root, scenes = tmp_path / "VOC2012", make_scenes(2, 5)
    for i, scene in enumerate(scenes):
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(root / f"JPEGImages/2007_{i:06d}.jpg", quality=95)
        save_labels(root / f"SegmentationClass/2007_{i:06d}.png", scene.mask)
    save_text(root / "ImageSets/Segmentation/train.txt", *(f"2007_{i:06d}" for i in range(2)))
    run = ["run", root, "--split", "train", "--model", "demo", "--classes", "top2", "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, list(map(str, run)))
    assert result.exit_code == 0, result.output
    arguments = ["voc", "--root", root, "--cams", tmp_path / "out"]
    assert any(f"got '{name}'" in refused(*arguments) for name in CLASSES), "the demo's classes are not VOC's"
    call(*arguments, "--match", "index", "--out", tmp_path / "scores")
    files = [read_cam(tmp_path / f"out/cams/2007_{i:06d}.npz") for i in range(2)]
    expected = threshold_sweep(map(full_size, files), [file.classes for file in files], [s.mask for s in scenes], 21)
    content = json.loads((tmp_path / "scores/report.json").read_text())
    assert content["miou"] == expected.mious.tolist()
    assert content["best_threshold"] == expected.best_threshold
    assert content["best_miou"] > 0.4
    check_pictures(tmp_path / "scores", count=2, cells=5)
