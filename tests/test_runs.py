"""Runs over images: outputs are complete and consistent, and bad images are named."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssa_fast import SSA, localize, runs
from ssa_fast.io import cam_files
from ssa_fast.localize.options import PostprocessOptions
from ssa_fast.models import zoo
from ssa_fast.runs import RunOptions, RunReport
from ssa_fast.runs.network import hash_weights

if TYPE_CHECKING:
    from ssa_fast.io.progress import OnProgress, Progress

Run = Callable[..., RunReport]
pytestmark = pytest.mark.slow  # whole runs; test_cli.py has quick ones

POSTPROCESS = {field.name for field in fields(PostprocessOptions)}
KINDS = {"cams": ".npz", "masks": ".png", "overlays": ".png", "records": ".json"}
COMMON = {"boxes.json", "report.json", "run.json"}


@pytest.fixture(scope="module")
def classifier() -> zoo.Classifier:
    return zoo.load("resnet18", "none")


@pytest.fixture(scope="module")
def ssa(classifier: zoo.Classifier) -> SSA:
    return SSA(classifier.model, size="stage")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run(classifier: zoo.Classifier, ssa: SSA, out: Path) -> Run:
    """``runs.run`` into ``out`` with the module's network; further keywords are options."""
    arguments = {"ssa": ssa, "out": out, "classifier": classifier}

    def call(*paths: Path, **given: Any) -> RunReport:
        own = {name: given.pop(name) for name in (*arguments, "settings", "on_progress") if name in given}
        postprocess = PostprocessOptions(**{name: given.pop(name) for name in POSTPROCESS & given.keys()})
        return runs.run(paths, **{**arguments, **own}, options=RunOptions(postprocess=postprocess, **given))

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of different sizes, one of them in a subfolder."""
    rng = np.random.default_rng(0)
    (tmp_path / "in/sub").mkdir(parents=True)
    for name, size in (("a.png", (48, 64)), ("b.jpg", (70, 41)), ("sub/c.png", (33, 33))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "in" / name)
    return tmp_path / "in"


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def contents(out: Path) -> dict[str, bytes]:
    """The outputs without the report, which differs between starts."""
    return {name: (out / name).read_bytes() for name in files(out) - {"report.json"}}


def complete(*names: str) -> set[str]:
    return {f"{kind}/{name}{suffix}" for name in names for kind, suffix in KINDS.items()}


def boxes_json(out: Path) -> dict[str, Any]:
    return json.loads((out / "boxes.json").read_text())


def reasons(report: RunReport) -> dict[str, str]:
    return {Path(failure.name).name: failure.reason for failure in report.failures}


def stop_if(condition: Callable[[Progress], bool]) -> OnProgress:
    def interrupt(progress: Progress) -> None:
        if condition(progress):
            raise KeyboardInterrupt

    return interrupt


def test_the_weights_hash_is_of_names_types_shapes_and_values() -> None:
    def of(**values: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, value in values.items():
            module.register_buffer(name, value)
        return hash_weights(module)

    ones = torch.ones(2, 3)
    others = [of(b=ones), of(a=ones.half()), of(a=ones.T), of(a=ones * 2), of(a=ones, b=ones), of()]
    assert len({of(a=ones), *others}) == 7
    assert of(a=ones) == of(a=ones.T.contiguous().T)


def replace_call(ssa: SSA, call: Callable[..., object]) -> Callable[..., object]:
    """Return ``call`` as an SSA that a run accepts."""
    call.align_corners = ssa.align_corners
    return call


def recording(ssa: SSA, shapes: list[tuple[int, ...]]) -> Callable[..., object]:
    """Return an SSA that appends the shape of each batch to ``shapes``."""

    def call(images: torch.Tensor, classes: object) -> object:
        shapes.append(tuple(images.shape))
        return ssa(images, classes=classes)

    return replace_call(ssa, call)


def never(images: torch.Tensor, classes: object) -> None:
    raise AssertionError("computed")


@pytest.mark.parametrize("thresholds", [{"background": 0.4, "box_threshold": 0.2}, {"background": "auto"}])
def test_all_outputs_are_written_and_consistent(thresholds: dict[str, Any], folder: Path, run: Run, out: Path) -> None:
    report = run(folder, classes="3,tabby", **thresholds, settings={"model": "resnet18"})
    assert report.exit_code == 0
    assert [Path(name).name for name in report.done] == ["a.png", "b.jpg", "c.png"]
    assert report.images_per_second > 0
    assert files(out) == complete("a", "b", "sub/c") | COMMON
    boxes = boxes_json(out)
    assert [image["file_name"] for image in boxes["images"]] == ["a.png", "b.jpg", "sub/c.png"]
    assert {category["name"] for category in boxes["categories"]} == {"tiger shark", "tabby"}
    for image in boxes["images"]:
        with np.load(out / "cams" / f"{image['output']}.npz") as content:
            saved = dict(content)
        size = (image["height"], image["width"])
        with Image.open(folder / image["file_name"]) as original:
            assert (original.width, original.height) == size[::-1]
        assert saved["size"].tolist() == list(size)
        assert saved["cams"].shape == (2, -(-size[0] // 4), -(-size[1] // 4)), "the largest stage's size"
        assert saved["classes"].tolist() == [3, 281]
        assert json.loads(str(saved["settings"]))["model"] == "resnet18"
        # The library's own functions make the other outputs from the saved CAMs.
        cams = torch.from_numpy(cam_files.full_size(cam_files.read_cam(out / "cams" / f"{image['output']}.npz")))
        with Image.open(out / "masks" / f"{image['output']}.png") as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[3:6] == [128, 0, 0]
            assert np.array_equal(
                np.asarray(mask), localize.masks(cams, background=thresholds["background"])[0].numpy()
            )
        found = [a["bbox"] for a in boxes["annotations"] if a["image_id"] == image["id"] and a["category_id"] == 281]
        x1, y1, x2, y2 = localize.boxes(cams, box_threshold=thresholds.get("box_threshold", "auto"))[0][1][0].tolist()
        assert found[0] == [x1, y1, x2 - x1, y2 - y1]
        own = float(localize.estimate_background(cams))
        assert image["background"] == (own if thresholds["background"] == "auto" else 0.4)


def test_scores_and_logits_are_the_networks(folder: Path, run: Run, out: Path, classifier: zoo.Classifier) -> None:
    run(folder / "a.png", classes="top3")
    with Image.open(folder / "a.png") as image, torch.no_grad():
        logits = classifier.model(classifier.preprocess(np.array(image)))[0]
    best = logits.topk(3)
    with np.load(out / "cams/a.npz") as saved:
        assert saved["classes"].tolist() == best.indices.tolist()
        np.testing.assert_allclose(saved["logits"], best.values, rtol=1e-5)
        assert saved["names"].tolist() == [classifier.categories[i] for i in best.indices]
    scores = {a["category_id"]: a["score"] for a in boxes_json(out)["annotations"]}
    for index in best.indices.tolist():
        assert scores[index] == pytest.approx(logits.softmax(0)[index].item(), abs=2e-6)


def test_size_changes_the_networks_input_and_not_the_outputs(folder: Path, run: Run, out: Path, ssa: SSA) -> None:
    shapes: list[tuple[int, ...]] = []
    run(folder / "a.png", ssa=recording(ssa, shapes), size=96)
    assert shapes == [(1, 3, 96, 128)]
    with np.load(out / "cams/a.npz") as saved:
        assert saved["size"].tolist() == [48, 64]
        assert saved["cams"].shape[-2:] == (24, 32)
        assert saved["cams"].min() >= 0
        assert saved["cams"].max() <= 1
    with Image.open(out / "masks/a.png") as mask:
        assert mask.size == (64, 48)


def test_masks_of_small_networks_hold_class_indices(folder: Path, run: Run, out: Path, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=20).state_dict(), tmp_path / "voc.pth")
    small = zoo.load("resnet18", str(tmp_path / "voc.pth"))
    run(folder / "a.png", ssa=SSA(small.model), classifier=small, classes="14,6", background=0.1, ignore=0.0)
    with np.load(out / "cams/a.npz") as saved:
        assert saved["labels"].tolist() == [15, 7]
    with Image.open(out / "masks/a.png") as mask:
        values = set(np.unique(np.asarray(mask)).tolist())
    assert values <= {0, 7, 15, 255}
    assert values & {7, 15}


def test_bad_images_are_named_and_the_run_goes_on(folder: Path, run: Run, out: Path) -> None:
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image")
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (200, 100)).save(folder / "huge.png")
    (folder / "notes.txt").touch()
    steps: list[Progress] = []
    report = run(folder, folder / "gone.png", max_pixels=10_000, on_progress=steps.append)
    assert report.exit_code == 1
    found = reasons(report)
    assert set(found) == {"empty.png", "text.jpg", "cut.png", "huge.png", "gone.png"}
    assert "0 bytes" in found["empty.png"]
    assert "--max-pixels" in found["huge.png"]
    assert [path.name for path, _ in report.skipped] == ["notes.txt"]
    assert files(out) == complete("a", "b", "sub/c") | COMMON
    assert [step.done for step in steps] == list(range(8))
    assert {step.total for step in steps} == {7}
    assert sum(step.error is not None for step in steps) == 4


def test_images_too_small_for_the_network(folder: Path, run: Run) -> None:
    classifier = zoo.load("squeezenet1_1", "none")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (4, 90)).save(folder / "sliver.png")
    report = run(folder, ssa=SSA(classifier.model), classifier=classifier)
    found = reasons(report)
    assert set(found) == {"dot.png", "sliver.png"}
    assert "1 x 1" in found["dot.png"]
    assert "4" in found["sliver.png"]
    assert len(report.done) == 3


def test_one_pixel_suffices_where_the_network_accepts_it(tmp_path: Path, run: Run, out: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    assert run(tmp_path / "dot.png").exit_code == 0
    assert files(out) == complete("dot") | COMMON


def test_names_that_share_a_stem_and_files_given_twice(folder: Path, run: Run, out: Path) -> None:
    shutil.copy(folder / "b.jpg", folder / "a.jpg")
    assert len(run(folder / "a.png", folder, folder).done) == 4
    assert files(out) == complete("a_png", "a_jpg", "b", "sub/c") | COMMON


def test_existing_outputs_are_kept_without_overwrite(folder: Path, run: Run, out: Path) -> None:
    (out / "masks").mkdir(parents=True)
    (out / "masks/a.png").write_text("precious")
    for _ in range(2):  # the resumed run still knows that the file is not its own
        report = run(folder)
        assert [failure.reason.split(";")[1] for failure in report.failures] == [" pass --overwrite to replace it."]
        assert files(out) == complete("b", "sub/c") | {"masks/a.png", *COMMON}
        assert (out / "masks/a.png").read_text() == "precious"
    assert run(folder, overwrite=True).exit_code == 0
    assert len(boxes_json(out)["images"]) == 3


def test_a_boxes_file_of_something_else_is_kept(folder: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text("precious")
    with pytest.raises(ValueError, match=r"^out: .*boxes\.json exists; pass --overwrite"):
        run(folder, out=tmp_path)
    assert (tmp_path / "boxes.json").read_text() == "precious"


def test_a_resumed_run_computes_what_is_pending_and_no_more(
    folder: Path, run: Run, out: Path, ssa: SSA, tmp_path: Path
) -> None:
    (folder / "late.png").touch()
    first = run(folder, on_progress=stop_if(lambda progress: progress.done == 2))
    assert first.exit_code == 130
    assert first.stopped == "interrupted"
    before = {path: path.stat().st_mtime_ns for path in (out / "cams").rglob("*.npz")}
    assert 1 <= len(before) < 3
    shutil.copy(folder / "a.png", folder / "late.png")
    steps: list[Progress] = []
    second = run(folder, on_progress=steps.append)
    assert (second.exit_code, second.resumed, len(second.done)) == (0, len(before), 4)
    assert [(step.done, step.resumed) for step in steps] == [(n, len(before)) for n in range(len(before), 5)]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    third = run(folder, ssa=replace_call(ssa, never))
    assert (third.exit_code, third.resumed) == (0, 4)
    run(folder, out=tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_changed_settings_are_refused_by_name(folder: Path, run: Run, out: Path) -> None:
    run(folder, settings={"model": "resnet18"})
    before = contents(out)
    options = {"background": 0.4, "batch": 3, "workers": 0}
    with pytest.raises(ValueError, match=r"^out: .* other settings \(background: there auto, here 0.4\); use them"):
        run(folder, settings={"model": "resnet18"}, **options)
    with pytest.raises(ValueError, match=r"\(model: there resnet18, here None; classes: there predicted, here top2\)"):
        run(folder, classes="top2")
    assert contents(out) == before
    assert run(folder, **options, overwrite=True).resumed == 0
    (out / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^out: .*run\.json is no run's manifest"):
        run(folder)


def test_refined_cams_are_stored_at_the_images_size(
    folder: Path, run: Run, out: Path, ssa: SSA, classifier: zoo.Classifier
) -> None:
    run(folder / "a.png", classes="3", refine=True, background="auto")
    with Image.open(folder / "a.png") as image:
        rgb = np.array(image.convert("RGB"))
    plain = ssa(classifier.preprocess(rgb), classes=[3]).cams
    expected = localize.refine(torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255.0, plain)[0]
    with np.load(out / "cams/a.npz") as saved:
        assert saved["cams"].shape == (1, *rgb.shape[:2])
        np.testing.assert_allclose(saved["cams"].astype(np.float32), expected, atol=2e-3)
        stored = torch.from_numpy(saved["cams"].astype(np.float32))
    with Image.open(out / "masks/a.png") as mask:
        assert np.array_equal(np.asarray(mask) > 0, localize.masks(stored, background="auto")[0] > 0)


def test_the_settings_are_stored_flat_with_defaults_filled_in(folder: Path, run: Run, out: Path) -> None:
    run(folder / "a.png")
    settings = json.loads((out / "run.json").read_text())["settings"]
    settings.pop("ssa_fast")
    assert list(settings.items()) == [
        *[("classes", "predicted"), ("size", None), ("precision", "float32"), ("background", "auto"), ("alpha", None)],
        *[("ignore", None), ("box_threshold", "auto"), ("components", "largest"), ("refine", False), ("cams", "ssa")],
        *[
            ("store", "float16"),
            ("overlays", True),
            ("max_pixels", 89478485),
            ("backdrop", [255, 255, 255]),
            ("bands", None),
        ],
        *[("range", "auto"), ("large_above", 1 << 24)],
    ]


def test_an_interrupted_overwriting_run_is_resumed(folder: Path, run: Run) -> None:
    run(folder)
    stopped = run(folder, overwrite=True, on_progress=stop_if(lambda progress: progress.name != ""))
    done = len(stopped.done)
    assert 1 <= done < 3
    assert run(folder, overwrite=True).resumed == done
    assert run(folder, overwrite=True).resumed == 0


def test_an_image_that_changed_is_not_taken_for_done(folder: Path, run: Run, out: Path, tmp_path: Path) -> None:
    """See tests/inputs/test_identity.py for all that a record depends on."""
    run(folder)
    Image.new("RGB", (30, 30)).save(folder / "a.png")
    report = run(folder)
    assert (report.exit_code, report.resumed, report.remade) == (0, 2, 1)
    run(folder, out=tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_batches_hold_images_of_one_size_and_change_nothing(
    folder: Path, run: Run, out: Path, ssa: SSA, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    for n in range(5):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"d{n}.png")
    shapes: list[tuple[int, ...]] = []
    recorded = recording(ssa, shapes)
    assert run(folder, ssa=recorded, batch=4).exit_code == 0
    assert sorted(shapes) == [(1, 3, 33, 33), (1, 3, 70, 41), (2, 3, 48, 64), (4, 3, 48, 64)]
    run(folder, out=tmp_path / "one")
    for name in ("a", "d3", "d4"):
        batched, single = (cam_files.read_cam(where / f"cams/{name}.npz") for where in (out, tmp_path / "one"))
        np.testing.assert_allclose(batched.cams, single.cams, atol=2e-3)
    assert len(boxes_json(out)["images"]) == 8
    # A batch is complete or not as a whole: without its record all of it is computed again, as the same batch.
    before = contents(out)
    (out / "records/d3.json").unlink()
    shapes.clear()
    run(folder, ssa=recorded, batch=4)
    assert shapes == [(2, 3, 48, 64)]
    assert contents(out) == before


def test_running_out_of_memory_halves_the_batch_and_goes_on(run: Run, ssa: SSA, tmp_path: Path) -> None:
    for n in range(7):
        Image.new("RGB", (40, 40), (n, n, n)).save(tmp_path / f"{n}.png")
    counts = []

    def limited(images: torch.Tensor, classes: object) -> object:
        counts.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return ssa(images, classes=classes)

    report = run(tmp_path, ssa=replace_call(ssa, limited), batch=4)
    assert report.exit_code == 0
    assert counts == [4, 2, 2, 2, 1]
    assert report.notes == {"batches were cut to 2 where memory ran out, at 40x40.": ["process 0"]}


def test_the_datasets_labels(run: Run, out: Path, tmp_path: Path) -> None:
    for name in ("tabby/a.png", "tiger shark/b.png", "unknown/c.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        Image.new("RGB", (40, 40), "green").save(tmp_path / "in" / name)
    report = run(tmp_path / "in", classes="labels")
    assert "has no output called 'unknown'" in report.failures[0].reason
    assert cam_files.read_cam(out / "cams/tabby/a.npz").classes.tolist() == [281]
    assert cam_files.read_cam(out / "cams/tiger shark/b.npz").names == ("tiger shark",)


def test_labels_by_their_place_in_the_class_list(classifier: zoo.Classifier) -> None:
    few = replace(classifier, categories=("class 0", "class 1", "class 2"))
    assert few.resolve_labels(["dog", "ant"], ("ant", "cat", "dog")) == [0, 2]
    with pytest.raises(ValueError, match="its 3 outputs are not the dataset's 2 classes"):
        few.resolve_labels(["dog"], ("ant", "dog"))


@pytest.mark.parametrize("kind", ["irn", "psa", "clip-es", "wsol"])
def test_cam_files_of_other_codebases(folder: Path, run: Run, out: Path, tmp_path: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cam_files.PickleWarning)
        report = run(folder / "a.png", cams=kind, overlays=False, allow_pickle=kind != "wsol")
        name = "cams/a.png.npy" if kind == "wsol" else "cams/a.npy"  # as each codebase names them
        cam = cam_files.read_cam(out / name, format=kind, allow_pickle=True)
    assert report.exit_code == 0
    assert cam.size == (None if kind == "wsol" else (48, 64))
    assert files(out) == {name, "masks/a.png", "records/a.json", *COMMON}
    if kind != "wsol":
        with pytest.raises(ValueError, match=r"^cams: .* files are pickles.*--allow-pickle"):
            run(folder, out=tmp_path / "x", cams=kind, overlays=False)


def test_eight_bit_cam_files(folder: Path, run: Run, out: Path) -> None:
    run(folder / "a.png", store="uint8", overlays=False)
    with np.load(out / "cams/a.npz") as saved:
        assert saved["cams"].dtype == np.uint8
        assert saved["cams"].max() == 255


@pytest.mark.slow
def test_large_images_are_processed_in_tiles(
    folder: Path, run: Run, out: Path, ssa: SSA, classifier: zoo.Classifier
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="large images are written by tifffile (the extra large)")
    rng = np.random.default_rng(0)
    pixels = np.repeat(np.repeat(rng.integers(0, 256, (20, 25, 3), dtype=np.uint8), 20, axis=0), 20, axis=1)
    tifffile.imwrite(folder / "wide.tif", pixels, tile=(128, 128), photometric="rgb")
    np.save(folder / "array.npy", pixels)
    options = {"classes": "3,281", "large_above": 100_000, "background": "auto"}
    report = run(folder, folder / "array.npy", **options)
    assert report.exit_code == 0, report.failures
    large = {
        f"{kind}/{name}{suffix}"
        for name in ("wide", "array")
        for kind, suffix in (("cams", ".tif"), ("masks", ".tif"), ("previews", ".png"), ("records", ".json"))
    }
    assert files(out) == complete("a", "b", "sub/c") | large | COMMON
    assert any(note.startswith("done in tiles of") for note in report.notes)
    whole = SSA(classifier.model)(classifier.preprocess(pixels), classes=[3, 281])
    cams = tifffile.imread(out / "cams/wide.tif", key=range(2))
    np.testing.assert_allclose(cams / 255, whole.cams[0], atol=0.502 / 255)
    image = next(image for image in boxes_json(out)["images"] if image["output"] == "wide")
    assert (image["width"], image["height"]) == (500, 400)
    assert image["background"] == pytest.approx(float(localize.estimate_background(whole.cams)), abs=0.01)
    before = contents(out)
    assert run(folder, folder / "array.npy", ssa=replace_call(ssa, never), **options).resumed == 5
    assert contents(out) == before


def test_the_report_file(folder: Path, run: Run, out: Path) -> None:
    (folder / "empty.png").touch()
    (folder / "notes.txt").touch()
    report = run(folder)
    saved = json.loads((out / "report.json").read_text())
    assert saved["failed"] == [{"image": str(folder / "empty.png"), "reason": "the file is empty (0 bytes)."}]
    assert (saved["done"], saved["resumed"], saved["stopped"]) == (3, 0, None)
    assert saved["skipped"][0]["path"] == str(folder / "notes.txt")
    assert saved["images_per_second"] == round(report.images_per_second, 3)


def test_outputs_never_replace_the_images(tmp_path: Path, run: Run) -> None:
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "masks/a.png")
    before = (tmp_path / "masks/a.png").read_bytes()
    report = run(tmp_path / "masks", out=tmp_path, overwrite=True)
    assert "would replace an image" in report.failures[0].reason
    assert (tmp_path / "masks/a.png").read_bytes() == before


@pytest.mark.parametrize("broken", ["cams", "mask"])
@pytest.mark.parametrize("full", [False, True])
def test_a_failed_write_leaves_nothing_of_its_image(
    folder: Path, run: Run, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, full: bool
) -> None:
    """A full disk ends the run, as all further writes would fail; another error is its image's only."""
    module, name = (cam_files, "write_cam") if broken == "cams" else (localize, "save_mask")
    write = getattr(module, name)
    calls = []

    def fail_once(path: Path, *args: object, **kwargs: object) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half of")
            raise OSError(28 if full else 13, "No space left on device" if full else "Permission denied", str(path))
        write(path, *args, **kwargs)

    monkeypatch.setattr(module, name, fail_once)
    report = run(folder)
    assert report.exit_code == 1
    assert ("No space left on device" if full else "Permission denied") in report.failures[0].reason
    done = {Path(name).stem for name in report.done}
    assert files(out) == complete(*({"c": "sub/c"}.get(name, name) for name in done)) | COMMON
    assert "a" in done
    assert "b" not in done
    if "c" not in done:  # it may have been computed already when the write failed
        assert full
        assert (report.stopped or "").startswith("the disk is full; free some space and run the same command again")
    monkeypatch.undo()
    assert run(folder).exit_code == 0
    run(folder, out=tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_networks_that_give_nan_are_named(folder: Path, run: Run, ssa: SSA) -> None:
    def with_nan(images: torch.Tensor, classes: object) -> object:
        result = ssa(images, classes=classes)
        return replace(result, logits=result.logits * float("nan"))

    report = run(folder / "a.png", ssa=replace_call(ssa, with_nan))
    assert report.failures[0].reason == "resnet18 gave NaN for it; check the weights."


def test_without_a_complete_image_there_is_no_boxes_file(tmp_path: Path, run: Run, out: Path) -> None:
    (tmp_path / "a.png").touch()
    assert run(tmp_path / "a.png").boxes is None
    assert files(out) == {"report.json", "run.json"}


def test_running_out_of_memory_comes_with_advice(folder: Path, run: Run, ssa: SSA) -> None:
    def exhausted(images: torch.Tensor, classes: object) -> None:
        if images.shape[-1] == 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")

    report = run(folder, ssa=replace_call(ssa, exhausted))
    assert [failure.reason.split(";")[0] for failure in report.failures] == [
        "the GPU ran out of memory",
        *["the machine ran out of memory"] * 2,
    ]
    assert all("--size" in failure.reason for failure in report.failures)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(classes="5000"), r"^classes: expected an index from 0 to 999"),
        (dict(background=1.5), r"^background: expected a number in \[0, 1\]"),
        (dict(background=0.5, alpha=2.0), r"^alpha: expected either"),
        (dict(background=0.5, ignore=0.9), r"^ignore: "),
        (dict(box_threshold=-0.1), r"^box_threshold: "),
        (dict(components="some"), r"^components: "),
        (dict(precision="half"), r"^precision: expected one of auto, float32"),
        (dict(cams="npy"), r"^cams: expected one of ssa, psa"),
        (dict(store="int4"), r"^store: expected one of float16, uint8"),
        (dict(batch=0), r"^batch: expected a number >= 1, got 0"),
        (dict(workers=-1), r"^workers: expected a number >= 0"),
        (dict(memory="lots"), r"^memory: expected bytes"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    folder: Path, run: Run, out: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(folder, **options)
    assert not out.exists()


def test_a_network_of_one_size_takes_no_other(folder: Path, run: Run, out: Path, classifier: zoo.Classifier) -> None:
    fixed = replace(classifier, input_size=(64, 64))
    with pytest.raises(ValueError, match=r"^size: resnet18 takes images of 64x64 only"):
        run(folder, classifier=fixed, size=96)
    assert run(folder, classifier=fixed).exit_code == 0
    with np.load(out / "cams/b.npz") as saved:
        assert saved["size"].tolist() == [70, 41]


def test_nothing_to_read_and_no_folder_to_write_to(folder: Path, run: Run, out: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^paths: no image to read \(.*gone: there is no such"):
        run(tmp_path / "gone")
    out.touch()
    with pytest.raises(ValueError, match=r"^out: expected a folder"):
        run(folder)


def test_outputs_inside_the_input_folder_are_not_read_again(folder: Path, run: Run) -> None:
    first = run(folder, out=folder)
    assert not first.skipped
    again = run(folder, out=folder, overwrite=True)
    assert {path.name for path, _ in again.skipped} == {"cams", "masks", "overlays", "records"}
    assert first.done == again.done
    assert len(again.done) == 3
