"""Test that ``PolishCams`` gives the same results as a run, with and without Ray."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssa_fast import SSA, runs
from ssa_fast.integrations.ray import EMPTY, PolishCams, object_column, polish_images
from ssa_fast.localize.options import PostprocessOptions
from ssa_fast.models import zoo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPTIONS: dict[str, Any] = dict(model="resnet18", weights="none", classes="top2", background=0.4)
SIZES = {"a.png": (48, 64), "b.png": (70, 41), "c.png": (48, 64), "d.png": (33, 33)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of four images, two of them of one size, and a file that is not an image."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, size in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path / name)
    (path / "bad.png").write_text("not an image")
    return path


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the outputs of a run over them, one image at a time."""
    classifier = zoo.load(OPTIONS["model"], OPTIONS["weights"])
    postprocess = PostprocessOptions(background=OPTIONS["background"])
    options = runs.RunOptions(classes=OPTIONS["classes"], postprocess=postprocess, batch=1)
    out = tmp_path_factory.mktemp("runs") / "out"
    paths = [folder / name for name in SIZES]
    runs.run(paths, SSA(classifier.model, size="stage"), out, classifier=classifier, options=options)
    return out


def load_images(folder: Path) -> list[np.ndarray]:
    return [np.array(Image.open(folder / name)) for name in SIZES]


def assert_same(row: dict[str, Any], name: str, out: Path, *, exact: bool) -> None:
    """Assert that a row equals what the run wrote for the image."""
    stem = name.split(".")[0]
    with np.load(out / f"cams/{stem}.npz") as saved:
        assert row["cams"].dtype == saved["cams"].dtype == np.float16
        assert row["classes"].tolist() == saved["classes"].tolist()
        assert list(row["names"]) == saved["names"].tolist()
        assert row["labels"].tolist() == saved["labels"].tolist()
        np.testing.assert_allclose(row["cams"], saved["cams"], rtol=0, atol=0 if exact else 2e-3)
    with Image.open(out / f"masks/{stem}.png") as mask:
        assert row["mask"].shape == SIZES[name]
        assert row["mask"].dtype == np.uint8
        assert (row["mask"] == np.asarray(mask)).mean() >= (1 if exact else 0.99)
    found = [json.loads(path.read_text()) for path in sorted((out / "records").glob("*.json"))]
    record = next(record for records in found for record in records if record["output"] == stem)
    np.testing.assert_allclose(row["scores"], record["scores"], rtol=1e-4)
    assert len(row["boxes"]) == len(row["box_classes"]) == 2
    if exact:
        assert row["boxes"].tolist() == [box for boxes in record["boxes"] for box in boxes]
        assert row["box_classes"].tolist() == record["classes"]
    assert row["error"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
def test_plain_calls_equal_a_run(folder: Path, made: Path, size: int) -> None:
    polish = PolishCams(**OPTIONS)
    pixels, names = load_images(folder), list(SIZES)
    for lo in range(0, len(names), size):
        chosen = slice(lo, lo + size)
        got = polish({"image": object_column(pixels[chosen]), "path": np.array(names[chosen])})
        assert list(got) == ["path", *EMPTY, "error"]
        for i, name in enumerate(names[chosen]):
            row = {key: values[i] for key, values in got.items()}
            assert row["path"] == name
            assert_same(row, name, made, exact=size == 1)


def test_images_of_one_size_share_a_forward_pass(folder: Path) -> None:
    polish, shapes = PolishCams(**OPTIONS), []
    polish.predictor.ssa.model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    polish({"image": object_column(load_images(folder))})
    assert sorted(set(shapes)) == [(1, 3, 33, 33), (1, 3, 70, 41), (2, 3, 48, 64)]


def test_a_bad_image_gets_its_own_error(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    good = load_images(folder)[0]
    good.flags.writeable = False  # like Ray's arrays
    bad = [np.zeros((5, 5), np.uint8), np.zeros((0, 4, 3), np.uint8), good.astype(np.float32), np.array(None)]
    polish = PolishCams(**OPTIONS, store="uint8", large_above=64 * 64)
    errors = ["", "", "", "", "gone", "", ""]
    got = polish(
        {"image": object_column([*bad, good, good, np.zeros((65, 64, 3), np.uint8)]), "error": object_column(errors)}
    )
    assert [error != "" for error in got["error"]] == [True] * 5 + [False, True]
    assert "got float32 (48, 64, 3)" in got["error"][2]
    assert got["error"][4] == "gone"
    assert "65 x 64 is more than 4096 pixels" in got["error"][6]
    for name, values in got.items():
        if name not in ("error", "names"):
            assert {(value.dtype, value.ndim) for value in values} == {(values[5].dtype, values[5].ndim)}, name
            assert all((value.size == 0) == (b != 5) for b, value in enumerate(values)), name
    assert got["cams"][5].dtype == np.uint8
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]


def test_an_image_that_the_network_refuses_gets_the_error(folder: Path) -> None:
    def refuse(_: object, args: tuple[torch.Tensor]) -> None:
        if args[0].shape[-1] == 41:
            raise RuntimeError("41 is too few")

    polish = PolishCams(**OPTIONS, components="all")
    polish.predictor.ssa.model.register_forward_pre_hook(refuse)
    got = polish({"image": object_column(load_images(folder))})
    assert [error != "" for error in got["error"]] == [False, True, False, False]
    assert "failed at 70 x 41 (41 is too few)" in got["error"][1]
    assert [len(classes) for classes in got["classes"]] == [2, 0, 2, 2]
    for boxes, owners, classes in zip(got["boxes"], got["box_classes"], got["classes"], strict=True):
        assert boxes.shape == (len(owners), 4)
        assert set(owners) == set(classes)


def test_stacked_batches_and_wrong_usage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polish = PolishCams(**OPTIONS, size=(32, 32), ssa={"fuse": "max"})
    assert polish.predictor.ssa.fusion.fuse == "max"
    stacked = polish({"image": np.stack([load_images(folder)[0]] * 2)})
    assert [cams.shape for cams in stacked["cams"]] == [(2, 8, 8)] * 2
    with pytest.raises(ValueError, match='expected a column "image"'):
        polish({"path": np.array(["a"])})
    with pytest.raises(ValueError, match=r"none of cams, .*rename"):
        polish({"image": object_column(load_images(folder)), "scores": np.zeros(4)})
    with pytest.raises(TypeError, match="expected some of alpha"):
        PolishCams(**OPTIONS, overwrite=True)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ModuleNotFoundError, match=r"ssa_fast\[ray\]"):
        polish_images([folder])


def test_labels_come_from_a_column(folder: Path) -> None:
    """Each row lists its own classes: indices, names, none, a multi-hot row, or what the network does not have."""
    polish = PolishCams(**{**OPTIONS, "classes": "labels"})
    hot = np.zeros(1000, bool)
    hot[[7, 281]] = True
    own = [[3], ["tabby", 3, "Tench"], [], hot, ["tabbi"], np.array([4, 4])]
    got = polish({"image": object_column([load_images(folder)[0]] * 6), "classes": object_column(own)})
    assert list(got) == [*EMPTY, "error"]
    assert [row.tolist() for row in got["classes"]] == [[3], [281, 3, 0], [], [7, 281], [], []]
    assert [len(cams) for cams in got["cams"]] == [1, 3, 0, 2, 0, 0]
    assert list(got["names"][1]) == ["tabby", "tiger shark", "tench"]
    errors = list(got["error"])
    assert [error == "" for error in errors] == [True, True, False, True, False, False]
    assert "at least one class" in errors[2]
    assert "no class 'tabbi'; did you mean 'tabby'" in errors[4]
    assert "each class once per image, got 4 twice" in errors[5]
    with pytest.raises(ValueError, match='a column "image" and "classes" and none of cams'):
        polish({"image": object_column(load_images(folder))})
    with pytest.raises(TypeError, match="map PolishCams over a dataset with one"):
        polish_images([folder / "a.png"], classes="labels")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    patience = ("gcs_server_request_timeout_seconds", "NUM_REDIS_GET_RETRIES", "worker_register_timeout_seconds")
    os.environ.update({f"RAY_{name}": "600" for name in patience})  # a busy machine starts it slowly
    os.environ.update(RAY_worker_niceness="0")  # Ray's own 15 gives its workers next to nothing beside a busy process
    ray = pytest.importorskip("ray", reason="Ray has no wheel here; PolishCams itself is tested without it")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


class CountingThreads(PolishCams):
    """PolishCams with a column of the actor's number of threads."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        threads = np.full(len(batch["image"]), torch.get_num_threads())
        return {**super().__call__(batch), "threads": threads}


@pytest.mark.distributed
def test_map_batches_over_ray_equals_a_run(ray: Any, folder: Path, made: Path) -> None:
    rows = ray.data.read_images([str(folder / name) for name in SIZES], mode="RGB", include_paths=True)
    actors = ray.data.ActorPoolStrategy(size=1)
    polished = rows.map_batches(
        CountingThreads, fn_constructor_kwargs=OPTIONS, batch_size=1, compute=actors, num_cpus=2
    )
    got = {row["path"].rsplit("/", 1)[1]: row for row in polished.take_all()}
    assert set(got) == set(SIZES)
    for name, row in got.items():
        assert row["threads"] == 2
        assert_same(row, name, made, exact=True)


@pytest.mark.distributed
def test_a_folder_with_a_bad_file_and_one_that_is_missing(ray: Any, folder: Path, made: Path) -> None:
    polished = polish_images([folder, folder / "gone.png"], batch_size=2, **OPTIONS)
    got = {row["path"].rsplit("/", 1)[1]: row for row in polished.take_all()}
    assert set(got) == {*SIZES, "bad.png", "gone.png"}
    for name in SIZES:
        assert_same(got[name], name, made, exact=False)
    assert "not an image" in got["bad.png"]["error"]
    assert "cannot be opened" in got["gone.png"]["error"]
    assert got["bad.png"]["mask"].shape == (0, 0)
    with pytest.raises(ValueError, match="paths: expected images, got none"):
        polish_images([])
