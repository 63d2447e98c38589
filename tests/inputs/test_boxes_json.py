"""Heading 11: ``boxes.json`` lists the images that are given now, each once, by a name that finds it.

The class of inputs: sources whose names meet (equal names in two folders, one folder inside another, files of one stem,
lists, globs, VOC folders) or change between two starts (deleted, renamed, added beside). A COCO reader wants unique
``file_name`` and ``id``, and boxes of images that exist; outputs of other images are left alone, and named.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ssa_fast import SSA, runs
from ssa_fast.cli.app import app
from ssa_fast.io.datasets import find_images
from ssa_fast.models import zoo
from ssa_fast.runs import RunOptions, RunReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def network() -> tuple[zoo.Classifier, SSA]:
    classifier = zoo.load("demo")
    return classifier, SSA(classifier.model, size="stage")


@pytest.fixture
def run(network: tuple[zoo.Classifier, SSA], tmp_path: Path) -> Callable[..., RunReport]:
    def call(*paths: Path, **given: Any) -> RunReport:
        options = RunOptions(overlays=False, workers=0, **given)
        report = runs.run(paths, network[1], tmp_path / "out", classifier=network[0], options=options)
        assert report.exit_code == 0, report.failures
        return report

    return call


def draw(folder: Path, *names: str) -> None:
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 256, (32 + n, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def listed(out: Path) -> dict[str, str]:
    """Return file name -> output name in ``boxes.json``, read as COCO's tools do."""
    content = json.loads((out / "boxes.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    assert len(images) == len(content["images"])
    annotations = [annotation["id"] for annotation in content["annotations"]]
    assert len(set(annotations)) == len(annotations)
    categories = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        image, (x, y, width, height) = images[annotation["image_id"]], annotation["bbox"]
        assert annotation["category_id"] in categories
        assert 0 <= x <= x + width <= image["width"]
        assert 0 <= y <= y + height <= image["height"]
    found = {image["file_name"]: image["output"] for image in content["images"]}
    assert len(found) == len(images), "file names are unique"
    assert len(set(found.values())) == len(images)
    return found


def test_names_of_one_folder_are_relative_to_it(run: Callable[..., RunReport], tmp_path: Path) -> None:
    draw(tmp_path / "in", "a.png", "sub/a.png", "sub/b.jpg")
    run(tmp_path / "in")
    assert listed(tmp_path / "out") == {"a.png": "a", "sub/a.png": "sub/a", "sub/b.jpg": "sub/b"}


@pytest.mark.parametrize("order", [1, -1])
def test_equal_names_in_two_folders(order: int, run: Callable[..., RunReport], tmp_path: Path) -> None:
    draw(tmp_path, "one/val/x.png", "two/val/x.png", "two/val/y.png")
    report = run(*[tmp_path / "one/val", tmp_path / "two/val"][::order])
    assert listed(tmp_path / "out") == {"one/val/x.png": "x_png", "two/val/x.png": "x_png-2", "y.png": "y"}
    assert len(report.done) == 3
    content = json.loads((tmp_path / "out/boxes.json").read_text())
    heights = {image["file_name"]: image["height"] for image in content["images"]}
    assert heights == {"one/val/x.png": 32, "two/val/x.png": 33, "y.png": 34}


def names(*paths: str | Path, split: str | None = None) -> list[str]:
    found = [source.file_name for source in find_images(paths, split=split).sources]
    assert len(set(found)) == len(found)
    return sorted(found)


def test_names_that_meet_in_other_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, "a/x.png", "a/b/x.png", "c/b/x.png", "c/a/x.png", "c/a/b/x.png")
    monkeypatch.chdir(tmp_path)
    assert names("a/x.png", "c/a/x.png") == ["a/x.png", "c/a/x.png"], "files"
    assert names("a/b", "a") == ["b/x.png", "x.png"], "a folder inside another"
    assert names("a", "a/b") == ["b/x.png", "x.png"]
    assert names("a/b", "c/b", "c/a/b") == ["a/b/x.png", "c/a/b/x.png", "c/b/x.png"]
    assert names(tmp_path / "a/b", "c/../c/b") == ["a/b/x.png", "c/b/x.png"], "however the paths are written"
    # The prefixed name of one image is the plain name of another one: all are then named from the common folder.
    assert names("a/x.png", "c/b/x.png", "c") == ["a/x.png", "c/a/b/x.png", "c/a/x.png", "c/b/x.png"]
    assert names("a/*.png", "c/*/*.png") == ["a/x.png", "b/x.png", "x.png"], "globs"
    (tmp_path / "list.txt").write_text(f"a/x.png\n{tmp_path}/a/b/x.png\n{tmp_path}/c/b/x.png\n")
    assert names("list.txt") == ["a/b/x.png", "a/x.png", "c/b/x.png"]


def test_two_voc_folders(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        draw(tmp_path / year, "JPEGImages/000001.jpg")
        (tmp_path / year / "ImageSets/Main").mkdir(parents=True)
        (tmp_path / year / "ImageSets/Main/val.txt").write_text("000001\n")
    both = ["VOC2007/JPEGImages/000001.jpg", "VOC2012/JPEGImages/000001.jpg"]
    assert names(tmp_path / "VOC2012", tmp_path / "VOC2007") == both
    assert names(tmp_path / "VOC2012", tmp_path / "VOC2007", split="val") == both
    assert names(tmp_path / "VOC2012") == ["000001.jpg"]


def test_deleted_images_leave_the_list_and_keep_their_files(run: Callable[..., RunReport], tmp_path: Path) -> None:
    draw(tmp_path / "in", "a.png", "b.png", "c.png")
    run(tmp_path / "in")
    before = (tmp_path / "out/cams/b.npz").read_bytes()
    (tmp_path / "in/b.png").rename(tmp_path / "b.png")
    report = run(tmp_path / "in")
    assert listed(tmp_path / "out") == {"a.png": "a", "c.png": "c"}
    assert (report.resumed, report.leftovers) == (2, ["b"])
    assert json.loads((tmp_path / "out/report.json").read_text())["leftovers"] == ["b"]
    assert (tmp_path / "out/cams/b.npz").read_bytes() == before
    (tmp_path / "b.png").rename(tmp_path / "in/b.png")
    report = run(tmp_path / "in")
    assert (report.resumed, report.leftovers) == (3, []), "its outputs still hold"
    assert list(listed(tmp_path / "out")) == ["a.png", "b.png", "c.png"]


def test_part_of_a_dataset_after_another_part(run: Callable[..., RunReport], tmp_path: Path) -> None:
    """Outputs of the first part are not made again when it is given once more."""
    draw(tmp_path / "in", "train/a.png", "val/b.png")
    run(tmp_path / "in/train")
    assert run(tmp_path / "in/val").leftovers == ["a"]
    assert listed(tmp_path / "out") == {"b.png": "b"}
    assert run(tmp_path / "in/train", tmp_path / "in/val").resumed == 2
    assert listed(tmp_path / "out") == {"a.png": "a", "b.png": "b"}


def test_a_file_of_the_same_stem_turns_up(run: Callable[..., RunReport], tmp_path: Path) -> None:
    draw(tmp_path / "in", "x.bmp", "y.bmp")
    run(tmp_path / "in")
    draw(tmp_path / "in", "x.png")
    report = run(tmp_path / "in")
    assert listed(tmp_path / "out") == {"x.bmp": "x_bmp", "x.png": "x_png", "y.bmp": "y"}
    assert report.leftovers == ["x"]
    (tmp_path / "in/x.png").unlink()
    report = run(tmp_path / "in")
    assert listed(tmp_path / "out") == {"x.bmp": "x", "y.bmp": "y"}
    assert (report.resumed, report.leftovers) == (2, ["x_bmp", "x_png"])


def test_nothing_is_left_to_list(network: tuple[zoo.Classifier, SSA], tmp_path: Path) -> None:
    draw(tmp_path / "in", "a.png")
    arguments = {"classifier": network[0], "options": RunOptions(overlays=False)}
    runs.run([tmp_path / "in"], network[1], tmp_path / "out", **arguments)
    (tmp_path / "in/a.png").rename(tmp_path / "in/b.png")
    (tmp_path / "in/b.png").write_bytes(b"")
    report = runs.run([tmp_path / "in"], network[1], tmp_path / "out", **arguments)
    assert (report.exit_code, report.boxes, report.leftovers) == (1, None, ["a"])
    assert not (tmp_path / "out/boxes.json").exists()


def test_the_command_names_what_is_left(tmp_path: Path) -> None:
    draw(tmp_path / "in", "a.png", "b.png")
    command = ["run", str(tmp_path / "in"), "--model", "demo", "--no-overlays", "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, command).exit_code == 0
    (tmp_path / "in/a.png").unlink()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert "also holds outputs of 1 images that are not among those given, such as a; they were left" in result.stderr
