"""Heading 15: options that cannot go together are refused before the work, not after it.

The class of inputs: two options, or an option and the kind of images, each of which is right by itself. Refused means:
one sentence, exit code 2, no network loaded and nothing written. What only an image itself can tell (its pixels, its
labels) is that image's failure, before the network runs on it. Pairs that do go together are tried, too.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ssa_fast import SSA, runs
from ssa_fast.cli.app import app
from ssa_fast.models import zoo
from ssa_fast.runs import RunOptions

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for n, name in enumerate(("cat/a.png", "dog/b.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        pixels = np.random.default_rng(n).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    np.save(tmp_path / "scan.npy", pixels)
    return tmp_path / "in"


PAIRS = [
    ("--cams psa", "'psa' files are pickles.*--allow-pickle"),
    ("--cams irn", "'irn' files are pickles"),
    ("--cams clip-es", "'clip-es' files are pickles"),
    ("--cams psa --allow-pickle --store uint8", "store: 'uint8' is for 'ssa' files, got cams='psa'"),
    ("--cams wsol --store uint8", "store: 'uint8' is for 'ssa' files"),
    ("--cams wsol --classes top5", "classes: 'wsol' files hold the map of one class, got 'top5'"),
    ("--cams wsol --classes 1,2", "classes: 'wsol' files hold the map of one class"),
    ("--cams wsol --classes disc,square", "classes: 'wsol' files hold the map of one class"),
    ("--alpha 8 --background 0.3", "alpha: expected either background or alpha"),
    ("--alpha 8 --ignore 4", "ignore: expected an exponent above alpha"),
    ("--background 0.3 --ignore 0.4", r"ignore: expected a number in \[0, background = 0.3\)"),
    ("--ignore 0.3", r"ignore: expected a number in \[0, background = 0.25\)"),
    ("--split train", "split: expected a folder with VOC's layout"),
    ("--size 64 --large-above 1000", "large_above: at one --size no image is processed in tiles"),
    ("--scales 0.5,x", "scales: expected numbers"),
    ("--scales 0", "scales: expected at least one finite factor > 0"),
    ("--size 4x", "size: expected the shorter side"),
    ("--backdrop no-colour", "backdrop: expected a colour"),
    ("--memory much", "memory: "),
    ("--precision float8", "precision: expected one of"),
    ("--box-threshold 2", "box_threshold: expected a number"),
    ("--box-threshold half", "box_threshold: expected a number in .* or 'auto', got 'half'"),
    ("--background otsu", "background: expected a number in .* or 'auto', got 'otsu'"),
    ("--background auto --alpha 8", "alpha: expected either background or alpha, got auto and 8.0"),
    ("--background auto --ignore 1", r"ignore: expected a number in \[0, 1\), got 1.0"),
    ("--affinity phi=none", "phi"),
    ("--device nowhere", "device: expected auto"),
]


def refused(arguments: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the line on stderr of a command that must not load a network or write anything."""
    monkeypatch.setattr(zoo, "load", lambda *_, **__: pytest.fail("a network was loaded"))
    before = sorted(out.parent.rglob("*"))
    result = CliRunner().invoke(app, ["run", *arguments, "--out", str(out)])
    assert result.exit_code == 2, result.output
    assert sorted(out.parent.rglob("*")) == before
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(("options", "message"), PAIRS)
def test_pairs_of_options(
    options: str, message: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused([str(images), *options.split()], tmp_path / "out", monkeypatch)
    assert re.search(f"^error: .*{message}", line), line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--cams wsol", "cams: an image processed in tiles gets TIFFs, no 'wsol' files"),
        ("--cams irn --allow-pickle", "cams: an image processed in tiles gets TIFFs, no 'irn' files"),
        ("--size 64", "size: an image processed in tiles keeps its own size"),
        ("--scales 0.5,1", "scales: images in tiles are seen once"),
        ("--flip", "scales: images in tiles are seen once"),
        ("--refine", "refine: an image processed in tiles is not refined"),
        ("--seed grad-cam", "seed: images in tiles need the classifier's own CAM"),
        ("--seed layercam", "seed: images in tiles need the classifier's own CAM"),
        ("--classes labels", "classes: 'labels' come from an ImageFolder"),
    ],
)
def test_options_and_images_in_tiles(
    options: str, message: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused([str(images.parent / "scan.npy"), *options.split()], tmp_path / "out", monkeypatch)
    assert message in line


def test_the_output_folder(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert "out: expected a folder" in refused([str(images)], tmp_path / "file", monkeypatch)
    line = refused([str(images / "cat"), "--classes", "labels"], tmp_path / "out", monkeypatch)
    assert "classes: 'labels' come from an ImageFolder" in line


@pytest.fixture(scope="module")
def network() -> tuple[zoo.Classifier, SSA]:
    classifier = zoo.load("demo")
    return classifier, SSA(classifier.model, size="stage")


def test_options_and_the_network(
    images: Path, network: tuple[zoo.Classifier, SSA], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only the network can tell is refused before anything is written."""
    classifier, ssa = network
    options = RunOptions(f"0,{classifier.categories[0]},{classifier.categories[1]}", cams="wsol")
    with pytest.raises(ValueError, match=r"^classes: 'wsol' files hold the map of one class"):
        runs.run([images], ssa, tmp_path / "out", classifier=classifier, options=options)
    monkeypatch.setattr(zoo, "load", lambda *_, **__: replace(classifier, input_size=(64, 64)))
    for pair, message in (
        ("--scales 0.5,1", "scales: resnet50 takes images"),
        ("--size 96", "size: demo takes images"),
    ):
        result = CliRunner().invoke(app, ["run", str(images), *pair.split(), "--out", str(tmp_path / "out")])
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_an_image_tells_is_its_own_failure(
    images: Path, network: tuple[zoo.Classifier, SSA], tmp_path: Path
) -> None:
    """The network does not run on it; the others are done."""
    classifier, ssa = network
    for image_id, objects in (("a", "disc"), ("b", "disc square")):
        (tmp_path / "VOC/JPEGImages").mkdir(parents=True, exist_ok=True)
        (tmp_path / "VOC/Annotations").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / f"VOC/JPEGImages/{image_id}.jpg")
        found = "".join(f"<object><name>{name}</name></object>" for name in ("cat", "dog")[: len(objects.split())])
        (tmp_path / f"VOC/Annotations/{image_id}.xml").write_text(f"<annotation>{found}</annotation>")
    renamed = replace(
        classifier, categories=("cat", "dog", *(f"other {i}" for i in range(2, len(classifier.categories))))
    )
    shapes: list[Any] = []

    def counted(batch: Any, classes: Any) -> Any:
        shapes.append(tuple(batch.shape))
        return ssa(batch, classes=classes)

    counted.align_corners = ssa.align_corners  # type: ignore[attr-defined]
    options = RunOptions("labels", cams="wsol", overlays=False)
    report = runs.run([tmp_path / "VOC"], counted, tmp_path / "voc", classifier=renamed, options=options)
    assert [failure.reason for failure in report.failures] == [
        "its labels are 2 classes, and a 'wsol' file holds the map of one."
    ]
    assert (len(report.done), len(shapes)) == (1, 1)
    options = RunOptions(cams="wsol", overlays=False, large_above=1000)
    report = runs.run([images], counted, tmp_path / "tiles", classifier=classifier, options=options)
    assert len(report.failures) == 2
    assert all("gets TIFFs, no 'wsol' files" in failure.reason for failure in report.failures)
    options = RunOptions(size=64, overlays=False)
    report = runs.run(
        [images, images.parent / "scan.npy"], ssa, tmp_path / "size", classifier=classifier, options=options
    )
    assert [failure.reason for failure in report.failures] == [
        "size: an image processed in tiles keeps its own size; leave --size out for it."
    ]
    assert (len(report.done), len(shapes)) == (2, 1)


GOOD = (
    *("--cams wsol --classes top1", "--cams wsol --classes 0", "--cams wsol --classes labels", "--store uint8"),
    *("--cams irn --allow-pickle --classes top2", "--allow-pickle", "--alpha 8 --ignore 16", "--flip --scales 0.5,1"),
    *("--background 0.3 --ignore 0.1", "--size 64 --max-pixels 4000", "--large-above 10000 --memory 1GB"),
)


@pytest.mark.filterwarnings("ignore::ssa_fast.io.cam_files.PickleWarning")
@pytest.mark.parametrize("options", GOOD)
def test_pairs_that_go_together(
    options: str, images: Path, network: tuple[zoo.Classifier, SSA], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = replace(
        network[0], categories=("cat", "dog", *(f"other {i}" for i in range(2, len(network[0].categories))))
    )
    monkeypatch.setattr(zoo, "load", lambda *_, **__: named)
    out = images / "out"  # an output folder inside the input folder is none of its images
    for _ in range(2):
        arguments = ["run", str(images), "--no-overlays", "--workers", "0", *options.split(), "--out", str(out)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert (report["done"], report["resumed"]) == (2, 2)


def test_outputs_of_other_options_inside_the_input_folder(
    images: Path, network: tuple[zoo.Classifier, SSA], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "load", lambda *_, **__: network[0])
    command = ["run", str(images), "--workers", "0", "--out", str(images / "out")]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (images / "out/overlays/cat/a.png").exists()
    result = CliRunner().invoke(app, [*command, "--no-overlays", "--overwrite"])
    assert result.exit_code == 0, result.output
    assert json.loads((images / "out/report.json").read_text())["done"] == 2


CONVERT = [
    ("--to psa", "to: 'psa' files are pickles"),
    ("--to ssa --from irn", "from: 'irn' files are pickles.*--allow-pickle"),
    ("--to psa --from wsol --allow-pickle", "from: 'wsol' files do not say which class"),
    ("--to wsol --from wsol --class cat", "from: 'wsol' files do not say which class .*--class"),
    ("--to ssa --class cat", "class: expected with --to wsol only"),
    ("--to wsol --dtype uint8", "dtype: expected with --to ssa only"),
    ("--to ssa --image-suffix .jpg", "image-suffix: expected with --to wsol only"),
    ("--to wsol --image-suffix jpg", "image-suffix: expected a suffix such as .jpg"),
]


@pytest.mark.parametrize(("options", "message"), CONVERT)
def test_pairs_of_convert(options: str, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", cams=np.zeros((1, 4, 4), np.float32))
    result = CliRunner().invoke(app, ["convert", str(tmp_path), *options.split(), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert re.search(f"^error: {message}", result.stderr), result.stderr
    assert not (tmp_path / "out").exists()
