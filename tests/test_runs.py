"""Runs over pictures: all that is promised is written and fits together, bad pictures are named, nothing is half."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from ssa_fast import SSA, localize, runs
from ssa_fast.io import cam_files
from ssa_fast.models import zoo
from ssa_fast.runs import RunOptions

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def classifier() -> zoo.Classifier:
    return zoo.load("resnet18", "none")


@pytest.fixture(scope="module")
def ssa(classifier: zoo.Classifier) -> SSA:
    return SSA(classifier.model, size="stage")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of different sizes, one of them in a subfolder."""
    rng = np.random.default_rng(0)
    (tmp_path / "in/sub").mkdir(parents=True)
    for name, size in (("a.png", (48, 64)), ("b.jpg", (70, 41)), ("sub/c.png", (33, 33))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "in" / name)
    return tmp_path / "in"


def tree(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


KINDS = {"cams": ".npz", "masks": ".png", "overlays": ".png", "records": ".json"}
ENDS = {"boxes.json", "report.json", "run.json"}


def complete(*names: str) -> set[str]:
    return {f"{kind}/{name}{suffix}" for name in names for kind, suffix in KINDS.items()}


class Wrapped:
    """An SSA with another call."""

    def __init__(self, ssa: SSA, call: Callable[..., object]) -> None:
        self.align_corners, self.call = ssa.align_corners, call

    def __call__(self, images: torch.Tensor, classes: object) -> object:
        return self.call(images, classes)


def test_everything_promised_is_written_and_fits_together(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = RunOptions(classes="3,tabby", background=0.4)
    report = runs.run([folder], ssa, out, classifier=classifier, options=options, settings={"model": "resnet18"})
    assert report.exit_code == 0
    assert [Path(name).name for name in report.done] == ["a.png", "b.jpg", "c.png"]
    assert report.images_per_second > 0
    assert tree(out) == complete("a", "b", "sub/c") | ENDS
    boxes = json.loads((out / "boxes.json").read_text())
    assert [image["file_name"] for image in boxes["images"]] == ["a.png", "b.jpg", "sub/c.png"]
    assert {category["name"] for category in boxes["categories"]} == {"tiger shark", "tabby"}
    for image in boxes["images"]:
        with np.load(out / "cams" / f"{image['output']}.npz") as content:
            saved = dict(content)
        size = (image["height"], image["width"])
        with Image.open(folder / image["file_name"]) as picture:
            assert (picture.width, picture.height) == size[::-1]
        assert saved["size"].tolist() == list(size)
        assert saved["cams"].shape == (2, -(-size[0] // 4), -(-size[1] // 4)), "the largest stage's size"
        assert saved["classes"].tolist() == [3, 281]
        assert json.loads(str(saved["settings"]))["model"] == "resnet18"
        # What was saved, through the library's own functions, gives the other outputs.
        cams = torch.from_numpy(cam_files.full_size(cam_files.read(out / "cams" / f"{image['output']}.npz")))
        with Image.open(out / "masks" / f"{image['output']}.png") as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[3:6] == [128, 0, 0]
            assert np.array_equal(np.asarray(mask), localize.masks(cams, background=0.4)[0].numpy())
        mine = [a["bbox"] for a in boxes["annotations"] if a["image_id"] == image["id"] and a["category_id"] == 281]
        x1, y1, x2, y2 = localize.boxes(cams)[0][1][0].tolist()
        assert mine[0] == [x1, y1, x2 - x1, y2 - y1]


def test_scores_and_logits_are_the_networks(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    runs.run([folder / "a.png"], ssa, tmp_path / "out", classifier=classifier, options=RunOptions(classes="top3"))
    with Image.open(folder / "a.png") as picture, torch.no_grad():
        logits = classifier.model(classifier.preprocess(np.array(picture)))[0]
    best = logits.topk(3)
    with np.load(tmp_path / "out/cams/a.npz") as saved:
        assert saved["classes"].tolist() == best.indices.tolist()
        np.testing.assert_allclose(saved["logits"], best.values, rtol=1e-5)
        assert saved["names"].tolist() == [classifier.categories[i] for i in best.indices]
    boxes = json.loads((tmp_path / "out/boxes.json").read_text())
    scores = {a["category_id"]: a["score"] for a in boxes["annotations"]}
    for index in best.indices.tolist():
        assert scores[index] == pytest.approx(logits.softmax(0)[index].item(), abs=2e-6)


def test_size_changes_what_goes_in_not_what_comes_out(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    seen = []

    def watched(images: torch.Tensor, classes: object) -> object:
        seen.append(tuple(images.shape[-2:]))
        return ssa(images, classes=classes)

    options = RunOptions(size=96)
    runs.run([folder / "a.png"], Wrapped(ssa, watched), tmp_path / "out", classifier=classifier, options=options)
    assert seen == [(96, 128)]
    with np.load(tmp_path / "out/cams/a.npz") as saved:
        assert saved["size"].tolist() == [48, 64]
        assert saved["cams"].shape[-2:] == (24, 32)
        assert saved["cams"].min() >= 0
        assert saved["cams"].max() <= 1
    with Image.open(tmp_path / "out/masks/a.png") as mask:
        assert mask.size == (64, 48)


def test_masks_of_small_networks_hold_class_indices(folder: Path, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=20).state_dict(), tmp_path / "voc.pth")
    classifier = zoo.load("resnet18", str(tmp_path / "voc.pth"))
    options = RunOptions(classes="14,6", background=0.1, ignore=0.0)
    runs.run([folder / "a.png"], SSA(classifier.model), tmp_path / "out", classifier=classifier, options=options)
    with np.load(tmp_path / "out/cams/a.npz") as saved:
        assert saved["labels"].tolist() == [15, 7]
    with Image.open(tmp_path / "out/masks/a.png") as mask:
        values = set(np.unique(np.asarray(mask)).tolist())
    assert values <= {0, 7, 15, 255}
    assert values & {7, 15}


def test_bad_pictures_are_named_and_the_run_goes_on(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no picture")
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (200, 100)).save(folder / "huge.png")
    (folder / "notes.txt").touch()
    steps = []
    report = runs.run(
        [folder, folder / "gone.png"],
        ssa,
        tmp_path / "out",
        classifier=classifier,
        options=RunOptions(max_pixels=10_000),
        watch=steps.append,
    )
    assert report.exit_code == 1
    reasons = {Path(failure.name).name: failure.reason for failure in report.failures}
    assert set(reasons) == {"empty.png", "text.jpg", "cut.png", "huge.png", "gone.png"}
    assert "0 bytes" in reasons["empty.png"]
    assert "--max-pixels" in reasons["huge.png"]
    assert [path.name for path, _ in report.skipped] == ["notes.txt"]
    assert tree(tmp_path / "out") == complete("a", "b", "sub/c") | ENDS
    assert [step.through for step in steps] == list(range(8))
    assert {step.total for step in steps} == {7}
    assert sum(step.failure is not None for step in steps) == 4


def test_pictures_too_small_for_the_network(folder: Path, tmp_path: Path) -> None:
    classifier = zoo.load("squeezenet1_1", "none")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (4, 90)).save(folder / "sliver.png")
    report = runs.run([folder], SSA(classifier.model), tmp_path / "out", classifier=classifier)
    reasons = {Path(failure.name).name: failure.reason for failure in report.failures}
    assert set(reasons) == {"dot.png", "sliver.png"}
    assert "1 x 1" in reasons["dot.png"]
    assert "4" in reasons["sliver.png"]
    assert len(report.done) == 3


def test_one_pixel_goes_through_where_the_network_takes_it(tmp_path: Path, ssa: SSA, classifier) -> None:
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    report = runs.run([tmp_path / "dot.png"], ssa, tmp_path / "out", classifier=classifier)
    assert report.exit_code == 0
    assert tree(tmp_path / "out") == complete("dot") | ENDS


def test_names_that_share_a_stem_and_files_given_twice(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    shutil.copy(folder / "b.jpg", folder / "a.jpg")
    report = runs.run([folder / "a.png", folder, folder], ssa, tmp_path / "out", classifier=classifier)
    assert len(report.done) == 4
    assert tree(tmp_path / "out") == complete("a_png", "a_jpg", "b", "sub/c") | ENDS


def test_existing_outputs_are_kept_without_overwrite(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "masks/a.png").write_text("precious")
    for _ in range(2):  # taken up again, the run still knows that it is not its own
        report = runs.run([folder], ssa, out, classifier=classifier)
        assert [failure.reason.split(";")[1] for failure in report.failures] == [" pass --overwrite to replace it."]
        assert tree(out) == complete("b", "sub/c") | {"masks/a.png", *ENDS}
        assert (out / "masks/a.png").read_text() == "precious"
    report = runs.run([folder], ssa, out, classifier=classifier, options=RunOptions(overwrite=True))
    assert report.exit_code == 0
    assert len(json.loads((out / "boxes.json").read_text())["images"]) == 3


def test_boxes_that_are_not_a_runs_are_kept(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text("precious")
    with pytest.raises(ValueError, match=r"^out: .*boxes\.json exists; pass --overwrite"):
        runs.run([folder], ssa, tmp_path, classifier=classifier)
    assert (tmp_path / "boxes.json").read_text() == "precious"


def never(images: torch.Tensor, classes: object) -> None:
    raise AssertionError("computed")


def test_a_run_taken_up_again_computes_what_is_left_and_no_more(
    folder: Path, ssa: SSA, classifier, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    (folder / "late.png").touch()

    def stops(step: runs.Step) -> None:
        if step.through == 2:
            raise KeyboardInterrupt

    first = runs.run([folder], ssa, out, classifier=classifier, watch=stops)
    assert first.exit_code == 130
    assert first.stopped == "interrupted"
    before = {path: path.stat().st_mtime_ns for path in (out / "cams").rglob("*.npz")}
    assert 1 <= len(before) < 3
    shutil.copy(folder / "a.png", folder / "late.png")
    second = runs.run([folder], ssa, out, classifier=classifier)
    assert (second.exit_code, second.resumed, len(second.done)) == (0, len(before), 4)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    third = runs.run([folder], Wrapped(ssa, never), out, classifier=classifier)
    assert (third.exit_code, third.resumed) == (0, 4)
    runs.run([folder], ssa, whole, classifier=classifier)
    assert contents(out) == contents(whole)


def contents(out: Path) -> dict[str, bytes]:
    """What a run made; its report tells of one start and differs."""
    return {name: (out / name).read_bytes() for name in tree(out) - {"report.json"}}


def test_changed_settings_are_refused_by_name(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs.run([folder], ssa, out, classifier=classifier, settings={"model": "resnet18"})
    before = contents(out)
    options = RunOptions(background=0.4, batch=3, workers=0)
    with pytest.raises(ValueError, match=r"^out: .* other settings \(background: there 0.25, here 0.4\); use them"):
        runs.run([folder], ssa, out, classifier=classifier, settings={"model": "resnet18"}, options=options)
    with pytest.raises(ValueError, match=r"\(model: there resnet18, here None; classes: there predicted, here top2\)"):
        runs.run([folder], ssa, out, classifier=classifier, options=RunOptions(classes="top2"))
    assert contents(out) == before
    again = replace(options, overwrite=True)
    assert runs.run([folder], ssa, out, classifier=classifier, options=again).resumed == 0
    (out / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^out: .*run\.json is no run's manifest"):
        runs.run([folder], ssa, out, classifier=classifier)


def test_overwriting_that_was_stopped_goes_on(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    out, options = tmp_path / "out", RunOptions(overwrite=True)
    runs.run([folder], ssa, out, classifier=classifier)

    def stops(step: runs.Step) -> None:
        if step.name:
            raise KeyboardInterrupt

    stopped = runs.run([folder], ssa, out, classifier=classifier, options=options, watch=stops)
    done = len(stopped.done)
    assert 1 <= done < 3
    assert runs.run([folder], ssa, out, classifier=classifier, options=options).resumed == done
    assert runs.run([folder], ssa, out, classifier=classifier, options=options).resumed == 0


def test_a_picture_that_changed_is_not_taken_for_done(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    runs.run([folder], ssa, tmp_path / "out", classifier=classifier)
    Image.new("RGB", (30, 30)).save(folder / "a.png")
    report = runs.run([folder], ssa, tmp_path / "out", classifier=classifier)
    assert "a was made from a.png of" in report.failures[0].reason
    assert report.resumed == 2


def test_batches_hold_pictures_of_one_size_and_change_nothing(
    folder: Path, ssa: SSA, classifier, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    for n in range(5):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"d{n}.png")
    seen = []

    def watched(images: torch.Tensor, classes: object) -> object:
        seen.append(tuple(images.shape))
        return ssa(images, classes=classes)

    report = runs.run(
        [folder], Wrapped(ssa, watched), tmp_path / "out", classifier=classifier, options=RunOptions(batch=4)
    )
    assert report.exit_code == 0
    assert sorted(seen) == [(1, 3, 33, 33), (1, 3, 70, 41), (2, 3, 48, 64), (4, 3, 48, 64)]
    runs.run([folder], ssa, tmp_path / "one", classifier=classifier)
    for name in ("a", "d3", "d4"):
        mine, other = (cam_files.read(tmp_path / where / f"cams/{name}.npz") for where in ("out", "one"))
        np.testing.assert_allclose(mine.cams, other.cams, atol=2e-3)
    assert len(json.loads((tmp_path / "out/boxes.json").read_text())["images"]) == 8
    # A batch is complete or not as a whole: without its record all of it is done again, in the same company.
    before = contents(tmp_path / "out")
    (tmp_path / "out/records/d3.json").unlink()
    seen.clear()
    runs.run([folder], Wrapped(ssa, watched), tmp_path / "out", classifier=classifier, options=RunOptions(batch=4))
    assert seen == [(2, 3, 48, 64)]
    assert contents(tmp_path / "out") == before


def test_running_out_of_memory_halves_the_batch_and_goes_on(ssa: SSA, classifier, tmp_path: Path) -> None:
    for n in range(7):
        Image.new("RGB", (40, 40), (n, n, n)).save(tmp_path / f"{n}.png")
    seen = []

    def scarce(images: torch.Tensor, classes: object) -> object:
        seen.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return ssa(images, classes=classes)

    options = RunOptions(batch=4)
    report = runs.run([tmp_path], Wrapped(ssa, scarce), tmp_path / "out", classifier=classifier, options=options)
    assert report.exit_code == 0
    assert seen == [4, 2, 2, 2, 1]
    assert report.notes == {"batches were cut to 2 where memory ran out, at 40x40.": ["process 0"]}


def test_the_datasets_labels(ssa: SSA, classifier, tmp_path: Path) -> None:
    for name in ("tabby/a.png", "tiger shark/b.png", "unknown/c.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        Image.new("RGB", (40, 40), "green").save(tmp_path / "in" / name)
    options = RunOptions(classes="labels")
    report = runs.run([tmp_path / "in"], ssa, tmp_path / "out", classifier=classifier, options=options)
    assert "has no output called 'unknown'" in report.failures[0].reason
    assert cam_files.read(tmp_path / "out/cams/tabby/a.npz").classes.tolist() == [281]
    assert cam_files.read(tmp_path / "out/cams/tiger shark/b.npz").names == ("tiger shark",)


def test_labels_by_their_place_in_the_class_list(classifier) -> None:
    few = replace(classifier, categories=("class 0", "class 1", "class 2"))
    assert few.resolve_labels(["dog", "ant"], ("ant", "cat", "dog")) == [0, 2]
    with pytest.raises(ValueError, match="its 3 outputs are not the dataset's 2 classes"):
        few.resolve_labels(["dog"], ("ant", "dog"))


@pytest.mark.parametrize("kind", ["irn", "psa", "clip-es", "wsol"])
def test_cam_files_of_other_codebases(folder: Path, ssa: SSA, classifier, tmp_path: Path, kind: str) -> None:
    options = RunOptions(cams=kind, overlays=False, allow_pickle=kind != "wsol")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cam_files.PickleWarning)
        report = runs.run([folder / "a.png"], ssa, tmp_path / "out", classifier=classifier, options=options)
        cam = cam_files.read(tmp_path / "out/cams/a.npy", format=kind, allow_pickle=True)
    assert report.exit_code == 0
    assert cam.size == (48, 64)
    assert tree(tmp_path / "out") == {"cams/a.npy", "masks/a.png", "records/a.json", *ENDS}
    if kind != "wsol":
        with pytest.raises(ValueError, match=r"^cams: .* files are pickles.*--allow-pickle"):
            runs.run([folder], ssa, tmp_path / "x", classifier=classifier, options=replace(options, allow_pickle=False))


def test_small_stores(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    options = RunOptions(store="uint8", overlays=False)
    runs.run([folder / "a.png"], ssa, tmp_path / "out", classifier=classifier, options=options)
    with np.load(tmp_path / "out/cams/a.npz") as saved:
        assert saved["cams"].dtype == np.uint8
        assert saved["cams"].max() == 255


def test_large_pictures_are_done_in_tiles_by_themselves(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="large images are written by tifffile (the extra large)")
    rng = np.random.default_rng(0)
    pixels = np.repeat(np.repeat(rng.integers(0, 256, (20, 25, 3), dtype=np.uint8), 20, axis=0), 20, axis=1)
    tifffile.imwrite(folder / "wide.tif", pixels, tile=(128, 128), photometric="rgb")
    np.save(folder / "array.npy", pixels)
    options = RunOptions(classes="3,281", large_above=100_000, background=0.4)
    given = [folder, folder / "array.npy"]
    report = runs.run(given, ssa, tmp_path / "out", classifier=classifier, options=options)
    assert report.exit_code == 0, report.failures
    large = {"cams/wide.tif", "masks/wide.tif", "previews/wide.png", "records/wide.json"}
    assert (
        tree(tmp_path / "out")
        == complete("a", "b", "sub/c") | large | {n.replace("wide", "array") for n in large} | ENDS
    )
    assert any(note.startswith("done in tiles of") for note in report.notes)
    whole = SSA(classifier.model)(classifier.preprocess(pixels), classes=[3, 281])
    cams = tifffile.imread(tmp_path / "out/cams/wide.tif", key=range(2))
    np.testing.assert_allclose(cams / 255, whole.cams[0], atol=0.502 / 255)
    boxes = json.loads((tmp_path / "out/boxes.json").read_text())
    image = next(image for image in boxes["images"] if image["output"] == "wide")
    assert (image["width"], image["height"]) == (500, 400)
    before = contents(tmp_path / "out")
    assert runs.run(given, Wrapped(ssa, never), tmp_path / "out", classifier=classifier, options=options).resumed == 5
    assert contents(tmp_path / "out") == before


def test_the_report_is_for_machines_too(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    (folder / "empty.png").touch()
    (folder / "notes.txt").touch()
    report = runs.run([folder], ssa, tmp_path / "out", classifier=classifier)
    told = json.loads((tmp_path / "out/report.json").read_text())
    assert told["failed"] == [{"picture": str(folder / "empty.png"), "reason": "the file is empty (0 bytes)."}]
    assert (told["done"], told["resumed"], told["stopped"]) == (3, 0, None)
    assert told["skipped"][0]["path"] == str(folder / "notes.txt")
    assert told["images_per_second"] == round(report.images_per_second, 3)


def test_outputs_never_replace_the_pictures(tmp_path: Path, ssa: SSA, classifier) -> None:
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "masks/a.png")
    before = (tmp_path / "masks/a.png").read_bytes()
    options = RunOptions(overwrite=True)
    report = runs.run([tmp_path / "masks"], ssa, tmp_path, classifier=classifier, options=options)
    assert "would replace a picture" in report.failures[0].reason
    assert (tmp_path / "masks/a.png").read_bytes() == before


@pytest.mark.parametrize("broken", ["cams", "mask"])
@pytest.mark.parametrize("full", [False, True])
def test_a_write_that_fails_leaves_nothing_of_its_picture(
    folder: Path, ssa: SSA, classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, full: bool
) -> None:
    """A full disk ends the run, since every other write would fail too; another error is its picture's own."""
    module, name = (cam_files, "write") if broken == "cams" else (localize, "save_mask")
    works = getattr(module, name)
    calls = []

    def breaks_once(path: Path, *args: object, **kwargs: object) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half of")
            raise OSError(28 if full else 13, "No space left on device" if full else "Permission denied", str(path))
        works(path, *args, **kwargs)

    monkeypatch.setattr(module, name, breaks_once)
    report = runs.run([folder], ssa, tmp_path / "out", classifier=classifier)
    assert report.exit_code == 1
    assert ("No space left on device" if full else "Permission denied") in report.failures[0].reason
    done = {Path(name).stem for name in report.done}
    assert tree(tmp_path / "out") == complete(*({"c": "sub/c"}.get(name, name) for name in done)) | ENDS
    assert "a" in done
    assert "b" not in done
    if "c" not in done:  # it may have been on its way already
        assert full
        assert (report.stopped or "").startswith("the disk is full; make room and start the same command again")
    monkeypatch.undo()
    assert runs.run([folder], ssa, tmp_path / "out", classifier=classifier).exit_code == 0
    runs.run([folder], ssa, tmp_path / "whole", classifier=classifier)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_networks_that_give_nan_are_told_on(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    def spoilt(images: torch.Tensor, classes: object) -> object:
        result = ssa(images, classes=classes)
        return replace(result, logits=result.logits * float("nan"))

    report = runs.run([folder / "a.png"], Wrapped(ssa, spoilt), tmp_path / "out", classifier=classifier)
    assert report.failures[0].reason == "resnet18 gave NaN for it; check the weights."


def test_nothing_done_leaves_no_boxes_file(tmp_path: Path, ssa: SSA, classifier) -> None:
    (tmp_path / "a.png").touch()
    report = runs.run([tmp_path / "a.png"], ssa, tmp_path / "out", classifier=classifier)
    assert report.boxes is None
    assert tree(tmp_path / "out") == {"report.json", "run.json"}


def test_running_out_of_memory_comes_with_advice(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    def exhausted(images: torch.Tensor, classes: object) -> None:
        if images.shape[-1] == 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")

    report = runs.run([folder], Wrapped(ssa, exhausted), tmp_path / "out", classifier=classifier)
    assert [failure.reason.split(";")[0] for failure in report.failures] == [
        "the GPU ran out of memory",
        *["the machine ran out of memory"] * 2,
    ]
    assert all("--size" in failure.reason for failure in report.failures)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RunOptions(classes="5000"), r"^classes: expected an index from 0 to 999"),
        (RunOptions(background=1.5), r"^background: expected a number in \[0, 1\]"),
        (RunOptions(background=0.5, alpha=2.0), r"^alpha: expected either"),
        (RunOptions(ignore=0.9), r"^ignore: "),
        (RunOptions(box_threshold=-0.1), r"^threshold: "),
        (RunOptions(components="some"), r"^components: "),
        (RunOptions(precision="half"), r"^precision: expected one of auto, float32"),
        (RunOptions(cams="npy"), r"^cams: expected one of ssa, psa"),
        (RunOptions(store="int4"), r"^store: expected one of float16, uint8"),
        (RunOptions(batch=0), r"^batch: expected a number >= 1, got 0"),
        (RunOptions(workers=-1), r"^workers: expected a number >= 0"),
        (RunOptions(memory="lots"), r"^memory: expected bytes"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    folder: Path, ssa: SSA, classifier, tmp_path: Path, options: RunOptions, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        runs.run([folder], ssa, tmp_path / "out", classifier=classifier, options=options)
    assert not (tmp_path / "out").exists()


def test_a_network_of_one_size_takes_no_other(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    fixed = replace(classifier, input_size=(64, 64))
    with pytest.raises(ValueError, match=r"^size: resnet18 takes pictures of 64x64 only"):
        runs.run([folder], ssa, tmp_path / "out", classifier=fixed, options=RunOptions(size=96))
    assert runs.run([folder], ssa, tmp_path / "out", classifier=fixed).exit_code == 0
    with np.load(tmp_path / "out/cams/b.npz") as saved:
        assert saved["size"].tolist() == [70, 41]


def test_nothing_to_read_and_no_folder_to_write_to(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^paths: no picture to read \(.*gone: there is no such"):
        runs.run([tmp_path / "gone"], ssa, tmp_path / "out", classifier=classifier)
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match=r"^out: expected a folder"):
        runs.run([folder], ssa, tmp_path / "out", classifier=classifier)


def test_outputs_inside_the_folder_read_are_not_read_again(folder: Path, ssa: SSA, classifier) -> None:
    first = runs.run([folder], ssa, folder, classifier=classifier)
    assert not first.skipped
    again = runs.run([folder], ssa, folder, classifier=classifier, options=RunOptions(overwrite=True))
    assert {path.name for path, _ in again.skipped} == {"cams", "masks", "overlays", "records"}
    assert first.done == again.done
    assert len(again.done) == 3
