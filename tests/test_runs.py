"""Runs over pictures: all that is promised is written and fits together, bad pictures are named, nothing is half."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssa_fast import SSA, classifiers, localize, outputs, runs
from ssa_fast.runs import RunOptions


@pytest.fixture(scope="module")
def classifier() -> classifiers.Classifier:
    return classifiers.load("resnet18", "none")


@pytest.fixture(scope="module")
def ssa(classifier: classifiers.Classifier) -> SSA:
    return SSA(classifier.model)


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


def complete(*names: str) -> set[str]:
    return {f"{kind}/{name}{suffix}" for name in names for kind, suffix in outputs.FOLDERS.items()}


def test_everything_promised_is_written_and_fits_together(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = RunOptions(classes="3,tabby", background=0.4)
    report = runs.run([folder], ssa, out, classifier=classifier, options=options, settings={"model": "resnet18"})
    assert report.exit_code == 0
    assert [Path(name).name for name in report.done] == ["a.png", "b.jpg", "c.png"]
    assert report.images_per_second > 0
    assert tree(out) == complete("a", "b", "sub/c") | {"boxes.json"}
    boxes = json.loads((out / "boxes.json").read_text())
    assert [image["file_name"] for image in boxes["images"]] == ["a.png", "b.jpg", "sub/c.png"]
    assert {category["name"] for category in boxes["categories"]} == {"tiger shark", "tabby"}
    for image in boxes["images"]:
        with np.load(out / "cams" / f"{image['output']}.npz") as content:
            saved = dict(content)
        size = (image["height"], image["width"])
        with Image.open(folder / image["file_name"]) as picture:
            assert (picture.width, picture.height) == size[::-1]
        assert saved["cams"].shape == (2, *size)
        assert saved["classes"].tolist() == [3, 281]
        assert json.loads(str(saved["settings"]))["model"] == "resnet18"
        # What was saved, through the library's own functions, gives the other outputs.
        cams = torch.from_numpy(saved["cams"].astype(np.float32))
        with Image.open(out / "masks" / f"{image['output']}.png") as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[3:6] == [128, 0, 0]
            differing = np.asarray(mask) != localize.masks(cams, 0.4)[0].numpy()
        assert differing.mean() < 0.01  # float16 moves a pixel across the background's score here and there
        mine = [a["bbox"] for a in boxes["annotations"] if a["image_id"] == image["id"] and a["category_id"] == 281]
        x1, y1, x2, y2 = localize.boxes(cams)[0][1][0].tolist()
        assert np.abs(np.subtract(mine[0], [x1, y1, x2 - x1, y2 - y1])).max() <= 1


def test_scores_and_logits_are_the_networks(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    runs.run([folder / "a.png"], ssa, tmp_path / "out", classifier=classifier, options=RunOptions(classes="top3"))
    with Image.open(folder / "a.png") as picture, torch.no_grad():
        logits = classifier.model(classifier.prepare(np.array(picture)))[0]
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

    class Watched:
        align_corners = True

        def __call__(self, images: torch.Tensor, classes: object) -> object:
            seen.append(tuple(images.shape[-2:]))
            return ssa(images, classes=classes)

    runs.run([folder / "a.png"], Watched(), tmp_path / "out", classifier=classifier, options=RunOptions(size=96))
    assert seen == [(96, 128)]
    with np.load(tmp_path / "out/cams/a.npz") as saved:
        assert saved["cams"].shape[-2:] == (48, 64)
        assert saved["cams"].min() >= 0
        assert saved["cams"].max() <= 1
    with Image.open(tmp_path / "out/masks/a.png") as mask:
        assert mask.size == (64, 48)


def test_masks_of_small_networks_hold_class_indices(folder: Path, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=20).state_dict(), tmp_path / "voc.pth")
    classifier = classifiers.load("resnet18", str(tmp_path / "voc.pth"))
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
    assert tree(tmp_path / "out") == complete("a", "b", "sub/c") | {"boxes.json"}
    assert [step.through for step in steps] == list(range(1, 8))
    assert {step.total for step in steps} == {7}
    assert sum(step.failure is not None for step in steps) == 4


def test_pictures_too_small_for_the_network(folder: Path, tmp_path: Path) -> None:
    classifier = classifiers.load("squeezenet1_1", "none")
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
    assert tree(tmp_path / "out") == complete("dot") | {"boxes.json"}


def test_names_that_share_a_stem_and_files_given_twice(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    shutil.copy(folder / "b.jpg", folder / "a.jpg")
    report = runs.run([folder / "a.png", folder, folder], ssa, tmp_path / "out", classifier=classifier)
    assert len(report.done) == 4
    assert tree(tmp_path / "out") == complete("a_png", "a_jpg", "b", "sub/c") | {"boxes.json"}


def test_existing_outputs_are_kept_without_overwrite(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "masks/a.png").write_text("precious")
    report = runs.run([folder], ssa, out, classifier=classifier)
    assert [failure.reason.split(";")[1] for failure in report.failures] == [" pass --overwrite to replace it."]
    assert tree(out) == complete("b", "sub/c") | {"masks/a.png", "boxes.json"}
    assert (out / "masks/a.png").read_text() == "precious"
    before = {name: (out / name).read_bytes() for name in tree(out)}
    with pytest.raises(ValueError, match=r"^out: .*boxes\.json exists; pass --overwrite"):
        runs.run([folder], ssa, out, classifier=classifier)
    assert {name: (out / name).read_bytes() for name in tree(out)} == before
    report = runs.run([folder], ssa, out, classifier=classifier, options=RunOptions(overwrite=True))
    assert report.exit_code == 0
    assert len(json.loads((out / "boxes.json").read_text())["images"]) == 3


def test_pictures_that_are_done_are_not_computed_again(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    runs.run([folder / "a.png"], ssa, tmp_path / "out", classifier=classifier)
    (tmp_path / "out/boxes.json").unlink()

    def never(images: torch.Tensor, classes: object) -> None:
        raise AssertionError("computed")

    report = runs.run([folder / "a.png"], never, tmp_path / "out", classifier=classifier)
    assert "exists; pass --overwrite" in report.failures[0].reason


def test_outputs_never_replace_the_pictures(tmp_path: Path, ssa: SSA, classifier) -> None:
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "masks/a.png")
    before = (tmp_path / "masks/a.png").read_bytes()
    options = RunOptions(overwrite=True)
    report = runs.run([tmp_path / "masks"], ssa, tmp_path, classifier=classifier, options=options)
    assert "would replace a picture" in report.failures[0].reason
    assert (tmp_path / "masks/a.png").read_bytes() == before


@pytest.mark.parametrize("broken", ["save_cams", "save_mask"])
def test_a_write_that_fails_leaves_nothing_of_its_picture(
    folder: Path, ssa: SSA, classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    module = outputs if broken == "save_cams" else localize
    works = getattr(module, broken)
    calls = []

    def breaks_once(path: Path, *args: object, **kwargs: object) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half of")
            raise OSError(28, "No space left on device", str(path))
        works(path, *args, **kwargs)

    monkeypatch.setattr(module, broken, breaks_once)
    report = runs.run([folder], ssa, tmp_path / "out", classifier=classifier)
    assert report.exit_code == 1
    assert "No space left on device" in report.failures[0].reason
    assert tree(tmp_path / "out") == complete("a", "sub/c") | {"boxes.json"}
    assert len(json.loads((tmp_path / "out/boxes.json").read_text())["images"]) == 2


def test_an_interrupt_keeps_what_is_complete(
    folder: Path, ssa: SSA, classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, calls = outputs.save_cams, []

    def interrupted(path: Path, *args: object, **kwargs: object) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        works(path, *args, **kwargs)

    monkeypatch.setattr(outputs, "save_cams", interrupted)
    report = runs.run([folder], ssa, tmp_path / "out", classifier=classifier)
    assert report.exit_code == 130
    assert tree(tmp_path / "out") == complete("a", "b") | {"boxes.json"}
    assert len(json.loads((tmp_path / "out/boxes.json").read_text())["images"]) == 2


def test_networks_that_give_nan_are_told_on(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    def spoilt(images: torch.Tensor, classes: object) -> object:
        result = ssa(images, classes=classes)
        return replace(result, logits=result.logits * float("nan"))

    report = runs.run([folder / "a.png"], spoilt, tmp_path / "out", classifier=classifier)
    assert report.failures[0].reason == "resnet18 gave NaN for it; check the weights."


def test_nothing_done_leaves_no_boxes_file(tmp_path: Path, ssa: SSA, classifier) -> None:
    (tmp_path / "a.png").touch()
    report = runs.run([tmp_path / "a.png"], ssa, tmp_path / "out", classifier=classifier)
    assert report.boxes is None
    assert not (tmp_path / "out").exists()


def test_running_out_of_memory_comes_with_advice(folder: Path, classifier, tmp_path: Path) -> None:
    def exhausted(images: torch.Tensor, classes: object) -> None:
        if images.shape[-1] == 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")

    report = runs.run([folder], exhausted, tmp_path / "out", classifier=classifier)
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
        assert saved["cams"].shape[-2:] == (70, 41)


def test_nothing_to_read_and_no_folder_to_write_to(folder: Path, ssa: SSA, classifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^paths: no picture to read \(.*gone: there is no such"):
        runs.run([tmp_path / "gone"], ssa, tmp_path / "out", classifier=classifier)
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match=r"^out: expected a folder"):
        runs.run([folder], ssa, tmp_path / "out", classifier=classifier)


def test_outputs_inside_the_folder_read_are_not_read_again(folder: Path, ssa: SSA, classifier) -> None:
    first = runs.run([folder], ssa, folder, classifier=classifier)
    again = runs.run([folder], ssa, folder, classifier=classifier, options=RunOptions(overwrite=True))
    assert first.done == again.done
    assert len(again.done) == 3
