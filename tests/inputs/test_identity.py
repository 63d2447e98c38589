"""Heading 10: a record stands for what its outputs were made from, not for a name.

The class of inputs: something that decides an image's outputs is another than at the earlier start, behind names that
are the same. It may be the file (another image of equal size, by any way of replacing it, with old times too), the
folder that a name is found in, the weights behind a file name, the class that a label stands for, or the options of
``SSA`` and of the preprocessing. Such images are done again, and counted; other options are refused by name. What is
only copied, touched or moved stays done.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models
from typer.testing import CliRunner

from ssa_fast import SSA, runs
from ssa_fast.cli.app import app
from ssa_fast.io import images
from ssa_fast.models import zoo
from ssa_fast.runs import RunOptions, RunReport

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE = 48
OLD = 10**9  # seconds since the epoch: long before any record


@pytest.fixture(scope="module")
def classifier() -> zoo.Classifier:
    return zoo.load("demo")


@pytest.fixture(scope="module")
def ssa(classifier: zoo.Classifier) -> SSA:
    return SSA(classifier.model, size="stage")


@pytest.fixture
def run(classifier: zoo.Classifier, ssa: SSA, tmp_path: Path) -> Callable[..., RunReport]:
    def call(*paths: Path, out: str = "out", **given: Any) -> RunReport:
        network, own = given.pop("classifier", classifier), given.pop("ssa", ssa)
        options = RunOptions(overlays=False, workers=0, **given)
        return runs.run(paths, own, tmp_path / out, classifier=network, options=options)

    return call


def draw(path: Path, seed: int) -> None:
    """Save a random image; all files have the same number of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="BMP")


def age(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (OLD, OLD))


def outputs(out: Path) -> dict[str, bytes]:
    """Return all outputs but the report and the times in records."""
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    found.pop("report.json")
    for name in found:
        if name.startswith("records/"):
            batch = json.loads(found[name])
            for record in batch:
                del record["identity"]["modified"], record["identity"]["changed"]
            found[name] = json.dumps(batch).encode()
    return found


def rewrite(path: Path) -> None:
    draw(path, 99)


def rewrite_with_old_time(path: Path) -> None:
    before = path.stat()
    draw(path, 99)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def move_onto(path: Path) -> None:
    draw(path.with_name("other"), 99)
    shutil.copystat(path, path.with_name("other"))
    os.replace(path.with_name("other"), path)


def relink(path: Path) -> None:
    draw(path.parent.parent / "elsewhere/other.bmp", 99)
    age(path.parent.parent / "elsewhere/other.bmp")
    path.unlink()
    path.symlink_to(path.parent.parent / "elsewhere/other.bmp")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("change", [rewrite, rewrite_with_old_time, move_onto, relink])
def test_an_image_replaced_by_one_of_equal_size(
    change: Callable[[Path], None], old: bool, run: Callable[..., RunReport], tmp_path: Path
) -> None:
    for n, name in enumerate("abc"):
        draw(tmp_path / f"in/{name}.bmp", n)
    if old:
        age(*(tmp_path / "in").iterdir())
    assert run(tmp_path / "in").exit_code == 0
    change(tmp_path / "in/b.bmp")
    report = run(tmp_path / "in")
    assert (report.exit_code, len(report.done), report.resumed, report.remade) == (0, 3, 2, 1)
    assert report.notes == {"made again, as the image has changed.": [str(tmp_path / "in/b.bmp")]}
    assert json.loads((tmp_path / "out/report.json").read_text())["remade"] == 1
    run(tmp_path / "in", out="fresh")
    assert outputs(tmp_path / "out") == outputs(tmp_path / "fresh")
    assert run(tmp_path / "in").resumed == 3


def copy(folder: Path) -> Path:
    return Path(shutil.copytree(folder, folder.with_name("copy")))


def move(folder: Path) -> Path:
    return folder.rename(folder.with_name("moved"))


def touch(folder: Path) -> Path:
    for path in folder.iterdir():
        os.utime(path)
        path.chmod(0o600)
    return folder


@pytest.mark.parametrize("change", [copy, move, touch])
def test_equal_content_stays_done(
    change: Callable[[Path], Path], run: Callable[..., RunReport], tmp_path: Path
) -> None:
    for n, name in enumerate("ab"):
        draw(tmp_path / f"in/{name}.bmp", n)
    age(*(tmp_path / "in").iterdir())
    run(tmp_path / "in")
    report = run(change(tmp_path / "in"))
    assert (report.exit_code, report.resumed, report.remade) == (0, 2, 0)


def test_one_changed_image_takes_its_batch_with_it(run: Callable[..., RunReport], tmp_path: Path) -> None:
    """Results round as in a run without an earlier start, whose batches hold the same images."""
    for n in range(5):
        draw(tmp_path / f"in/{n}.bmp", n)
    run(tmp_path / "in", batch=2)
    draw(tmp_path / "in/2.bmp", 99)
    report = run(tmp_path / "in", batch=2)
    assert (len(report.done), report.resumed, report.remade) == (5, 3, 1)
    run(tmp_path / "in", batch=2, out="fresh")
    assert outputs(tmp_path / "out") == outputs(tmp_path / "fresh")


def test_an_image_that_was_replaced_by_no_image(run: Callable[..., RunReport], tmp_path: Path) -> None:
    for n in range(2):
        draw(tmp_path / f"in/{n}.bmp", n)
    run(tmp_path / "in")
    (tmp_path / "in/1.bmp").write_bytes(bytes((tmp_path / "in/1.bmp").stat().st_size))
    report = run(tmp_path / "in")
    assert (report.exit_code, report.resumed, report.remade, len(report.failures)) == (1, 1, 0, 1)
    images = json.loads((tmp_path / "out/boxes.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["0.bmp"]


def test_equal_names_in_two_folders(run: Callable[..., RunReport], tmp_path: Path) -> None:
    for n, name in enumerate(("a/x.bmp", "b/x.bmp", "b/y.bmp")):
        draw(tmp_path / "in" / name, n)
    first, second = tmp_path / "in/a", tmp_path / "in/b"
    assert run(first, second).remade == 0
    before = outputs(tmp_path / "out")
    assert run(second, first).resumed == 3
    assert outputs(tmp_path / "out") == before
    run(first, out="one")
    report = run(second, out="one")  # the same name, found in another folder
    assert (report.exit_code, report.resumed, report.remade) == (0, 0, 1)
    assert report.notes == {"made again, as the image has changed.": [str(second / "x.bmp")]}
    run(second, out="fresh")
    assert outputs(tmp_path / "one") == outputs(tmp_path / "fresh")


def test_an_output_name_that_another_image_takes(run: Callable[..., RunReport], tmp_path: Path) -> None:
    draw(tmp_path / "in/x.bmp", 0)
    run(tmp_path / "in")
    (tmp_path / "in/x.bmp").rename(tmp_path / "in/x.dib")
    report = run(tmp_path / "in")
    assert (report.resumed, report.remade) == (0, 1)
    assert list(report.notes) == ["made again, as its output name was another image's."]


def weights_file(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    path.parent.mkdir(exist_ok=True)
    torch.save(models.squeezenet1_1(num_classes=3).state_dict(), path)
    return path


@pytest.mark.slow
def test_weights_retrained_under_the_same_name(tmp_path: Path) -> None:
    draw(tmp_path / "in/a.bmp", 0)
    draw(tmp_path / "in/b.bmp", 1)

    def call(weights: Path, out: str = "out", exit_code: int = 0) -> Any:
        options = ["--model", "squeezenet1_1", "--weights", str(weights), "--size", "64", "--no-overlays"]
        result = CliRunner().invoke(app, ["run", str(tmp_path / "in"), *options, "--out", str(tmp_path / out)])
        assert result.exit_code == exit_code, result.output
        return result

    call(weights_file(tmp_path / "w.pth", 0))
    before = outputs(tmp_path / "out")
    assert "(2 were complete before)" in call(tmp_path / "w.pth").stdout
    assert outputs(tmp_path / "out") == before
    retrained = weights_file(tmp_path / "w.pth", 1)
    result = call(retrained)
    assert "(2 made again)" in result.stdout
    assert "made again, as the weights have changed" in result.stderr
    call(retrained, out="fresh")
    assert outputs(tmp_path / "out") == outputs(tmp_path / "fresh")
    moved = retrained.rename(tmp_path / "best.pth")
    assert "(2 were complete before)" in call(moved).stdout, "the same weights under another name"
    other = weights_file(tmp_path / "other.pth", 2)
    assert "made with other settings (weights: there" in call(other, exit_code=2).stderr


def test_weights_in_memory(run: Callable[..., RunReport], classifier: zoo.Classifier, tmp_path: Path) -> None:
    """The hash is that of parameters and buffers: a network need not come from a file."""
    draw(tmp_path / "in/a.bmp", 0)
    run(tmp_path / "in")
    other = zoo.load("demo")
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1e-3
    report = run(tmp_path / "in", classifier=other, ssa=SSA(other.model, size="stage"))
    assert (report.resumed, report.remade) == (0, 1)
    assert run(tmp_path / "in").remade == 1
    assert run(tmp_path / "in", classifier=zoo.load("demo")).resumed == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": (0.5, 1.0)}, r"scales: there \(1\.0,\), here \(0\.5, 1\.0\)"),
        ({"flip": True}, "flip: there False, here True"),
        ({"seed": "grad-cam"}, "seed_kind: there 'cam', here 'grad-cam'"),
        ({"fuse": "max"}, "fusion: there FusionOptions.fuse='mean'"),
        ({"align_corners": True}, "align_corners: there False, here True"),
        ({"size": "input"}, "size: there 'stage', here 'input'"),
    ],
)
def test_other_options_of_ssa_are_refused(
    change: dict[str, Any], message: str, run: Callable[..., RunReport], classifier: zoo.Classifier, tmp_path: Path
) -> None:
    draw(tmp_path / "in/a.bmp", 0)
    run(tmp_path / "in")
    with pytest.raises(ValueError, match=rf"^out: .* other settings \(.*{message}"):
        run(tmp_path / "in", ssa=SSA(classifier.model, **{"size": "stage", **change}))


@pytest.mark.parametrize("change", [{"mean": (0.4,) * 3}, {"std": (0.3,) * 3}, {"probability": "softmax"}])
def test_another_preprocessing_is_refused(
    change: dict[str, Any], run: Callable[..., RunReport], classifier: zoo.Classifier, tmp_path: Path
) -> None:
    draw(tmp_path / "in/a.bmp", 0)
    run(tmp_path / "in")
    with pytest.raises(ValueError, match=rf"^out: .* other settings \({next(iter(change))}: there"):
        run(tmp_path / "in", classifier=replace(classifier, **change))


def annotate(path: Path, *names: str, comment: str = "") -> None:
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    path.write_text(f"<annotation><!--{comment}-->{objects}</annotation>")


def test_edited_annotations(run: Callable[..., RunReport], classifier: zoo.Classifier, tmp_path: Path) -> None:
    network = replace(classifier, categories=("cat", "dog", "horse", "sheep"))
    voc = tmp_path / "VOC"
    (voc / "Annotations").mkdir(parents=True)
    for n, name in enumerate("ab"):
        draw(voc / f"JPEGImages/{name}.jpg", n)
        annotate(voc / f"Annotations/{name}.xml", "cat")
    assert run(voc, classes="labels", classifier=network).exit_code == 0
    annotate(voc / "Annotations/a.xml", "cat", "cat", comment="checked")
    assert run(voc, classes="labels", classifier=network).resumed == 2, "the same labels"
    annotate(voc / "Annotations/b.xml", "cat", "horse")
    report = run(voc, classes="labels", classifier=network)
    assert (report.exit_code, report.resumed, report.remade) == (0, 1, 1)
    with np.load(tmp_path / "out/cams/b.npz") as cam:
        assert cam["classes"].tolist() == [0, 2]
    assert list(report.notes) == ["made again, as its labels have changed."]


def test_an_imagefolder_whose_classes_moved(
    run: Callable[..., RunReport], classifier: zoo.Classifier, tmp_path: Path
) -> None:
    """Without names in common, a label stands for its folder's place among the folders."""
    network = replace(classifier, categories=tuple(f"class {n}" for n in range(4)))
    for n, name in enumerate("bcde"):
        draw(tmp_path / f"in/{name}/x.bmp", n)
    run(tmp_path / "in", classes="labels", classifier=network)
    shutil.rmtree(tmp_path / "in/e")
    draw(tmp_path / "in/a/x.bmp", 9)
    report = run(tmp_path / "in", classes="labels", classifier=network)
    assert (report.exit_code, report.resumed, report.remade, len(report.done)) == (0, 0, 3, 4)
    for n, name in enumerate("abcd"):
        with np.load(tmp_path / f"out/cams/{name}/x.npz") as cam:
            assert cam["classes"].tolist() == [n]
    draw(tmp_path / "in/z/x.bmp", 10)
    report = run(tmp_path / "in", classes="labels", classifier=network)
    assert (report.exit_code, len(report.failures)) == (1, 5), "4 outputs are not 5 classes"


def test_a_file_that_is_replaced_while_it_is_read(
    run: Callable[..., RunReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The identity is from before the pixels: what is read later cannot pass for it."""
    draw(tmp_path / "in/a.bmp", 0)
    read = images.read_image

    def read_and_replace(path: Path, **options: Any) -> Any:
        found = read(path, **options)
        draw(path, 99)
        return found

    monkeypatch.setattr(images, "read_image", read_and_replace)
    assert run(tmp_path / "in").exit_code == 0
    monkeypatch.undo()
    assert run(tmp_path / "in").remade == 1
