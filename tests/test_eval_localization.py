"""Boxes, top-k localisation and PxAP of CAM files: the numbers of all maps at once, as wsolevaluation has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ssa_fast.evaluate import localization_accuracy, max_box_acc, pixel_average_precision, threshold_sweep
from ssa_fast.evaluate.boxes import resize_boxes
from ssa_fast.evaluate.datasets import (
    CamFolder,
    evaluate_boxes,
    evaluate_pixels,
    read_cub,
    read_imagenet,
    read_openimages,
    read_predictions,
)
from ssa_fast.evaluate.datasets.pixels import read_truth
from ssa_fast.io import cam_files
from ssa_fast.io.cam_files import CamFile, write_cam
from ssa_fast.io.cam_values import WSOL_SIZE
from ssa_fast.localize import estimate_background
from tests.eval_trees import (
    SIZES,
    cub_tree,
    save_cams,
    save_text,
    wsol_cams,
    wsol_tree,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("read", [read_imagenet, read_cub])
def test_boxes_are_those_of_all_maps_at_once_in_what_convert_writes(tmp_path: Path, read: Any) -> None:
    ids = wsol_tree(tmp_path / "set")
    labels = [[5, 0], [1], [0, 1]]
    wsol_cams(tmp_path / "cams", ids, labels)
    dataset = read(tmp_path / "set")
    report = evaluate_boxes(dataset, CamFolder(tmp_path / "cams"))
    maps = []
    for image, classes, true in zip(ids, labels, (0, 1, 1), strict=True):
        cam = cam_files.read_cam(tmp_path / "cams" / f"{image.removesuffix('.jpeg')}.npz")
        k = classes.index(true)
        converted = tmp_path / "wsol" / f"{image}.npy"
        converted.parent.mkdir(parents=True, exist_ok=True)
        one = CamFile(cam.cams[k : k + 1], size=cam.size, align_corners=cam.align_corners)
        write_cam(converted, one, format="wsol")
        maps.append(np.load(converted))
    boxes = [resize_boxes(image.boxes, image.size[::-1]) for image in dataset.images]
    for components in ("largest", "all"):
        expected = max_box_acc(maps, boxes, components=components)
        np.testing.assert_array_equal(report.found[components].accuracies, expected.accuracies)
        np.testing.assert_array_equal(report.found[components].overlaps, expected.overlaps)
        # the files of convert, one map each without a class, give the same
        again = evaluate_boxes(dataset, CamFolder(tmp_path / "wsol"))
        np.testing.assert_array_equal(again.found[components].overlaps, expected.overlaps)
        levels = [float(estimate_background(torch.from_numpy((m - m.min()) / (m.max() - m.min()))[None])) for m in maps]
        own = [
            max_box_acc([m], [b], thresholds=[level], components=components).overlaps[0, 0]
            for m, b, level in zip(maps, boxes, levels, strict=True)
        ]
        np.testing.assert_array_equal(report.truth_free[components].overlaps[:, 0], own)
    assert report.to_json()["max_box_acc_v2"] == expected.max_box_acc_v2
    assert report.to_json()["top1"] is None
    assert "top-1 and top-5 localisation: not known" in report.notes[-1]
    scores = report.found["largest"].overlaps[:, report.found["largest"].thresholds == report.best_threshold][:, 0]
    assert [i for i, _ in report.worst()] == np.argsort(scores, kind="stable").tolist()


@pytest.mark.parametrize("source", ["own files", "another run", "a list"])
def test_top_k_localisation(tmp_path: Path, source: str) -> None:
    ids = wsol_tree(tmp_path / "set")
    ranked = [[0, 4, 2, 3, 1], [3, 2, 5, 1, 0], [2, 3, 4, 5, 6]]  # the true classes are 0, 1 and 1: first, fourth, none
    logits = [np.arange(5, 0, -1, dtype=np.float32) for _ in ranked]
    shuffle = [3, 1, 4, 0, 2]
    files = {
        "logits": [row[shuffle] for row in logits],
        "settings": [{"classes": "top5"}] * 3,
    }
    folder = tmp_path / ("cams" if source == "own files" else "top5")
    wsol_cams(folder, ids, [np.array(row)[shuffle].tolist() for row in ranked], **files)
    predictions = None
    if source != "own files":
        wsol_cams(tmp_path / "cams", ids, [[0], [1], [1]], settings=[{"classes": "labels"}] * 3)
        predictions = read_predictions(folder)
    if source == "a list":
        lines = (f"{image},{','.join(map(str, row))}" for image, row in zip(ids, ranked, strict=True))
        predictions = read_predictions(save_text(tmp_path / "list.txt", *lines))
    report = evaluate_boxes(
        read_imagenet(tmp_path / "set"), CamFolder(tmp_path / "cams"), predictions=predictions, missing="empty"
    )
    assert report.depth == 5
    assert report.ranks.tolist() == [0, 3, 5]
    scores = np.zeros((3, 8))
    for row, classes in zip(scores, ranked, strict=True):
        row[classes] = [5, 4, 3, 2, 1]
    iou = float(np.median(report.found["largest"].overlaps.max(1)))
    expected = localization_accuracy(report.found["largest"], scores, np.array([0, 1, 1]), iou=iou)
    assert (report.top(1, iou), report.top(5, iou)) == (expected.top1, expected.top5)
    if source == "own files":
        assert "1 of 3 images have no map of their true class and count as a map of zeros" in report.notes
        with pytest.raises(ValueError, match=r"a map of class 1, the true one of val2/1/1.jpeg.*--classes labels"):
            evaluate_boxes(read_imagenet(tmp_path / "set"), CamFolder(tmp_path / "cams"))


def test_classes_that_the_caller_gave_are_no_predictions(tmp_path: Path) -> None:
    ids = wsol_tree(tmp_path / "set")
    fields = {"logits": [np.ones(1)] * 3, "settings": [{"classes": "labels"}] * 3}
    wsol_cams(tmp_path / "cams", ids, [[0], [1], [1]], **fields)
    report = evaluate_boxes(read_imagenet(tmp_path / "set"), CamFolder(tmp_path / "cams"))
    assert report.depth == 0
    assert report.top(1) is None


def test_top_k_takes_the_box_of_the_largest_region(tmp_path: Path) -> None:
    ids = wsol_tree(tmp_path / "set")
    for image, size, label in zip(ids, SIZES, (0, 1, 1), strict=True):
        cam = np.zeros((1, *size), np.float32)
        cam[:, -4:] = 1  # large, and wrong
        if image == ids[0]:
            cam[:, 2:8, 1] = cam[:, 7, 1:9] = 1  # thin, but its box is right
            cam[:, 8:10] = 0
        save_cams(tmp_path / "cams" / f"{image}.npz", cam, [label], size=size)
    predictions = {image: [0, 1, 2, 3, 4] for image in ids}
    report = evaluate_boxes(read_imagenet(tmp_path / "set"), CamFolder(tmp_path / "cams"), predictions=predictions)
    assert report.found["all"].max_box_acc[0.5] == pytest.approx(1 / 3)
    assert report.top(1) == report.top(5) == report.found["largest"].max_box_acc[0.5] == 0


def test_top_5_is_not_known_of_one_prediction(tmp_path: Path) -> None:
    ids = wsol_tree(tmp_path / "set")
    wsol_cams(tmp_path / "cams", ids, [[0], [1], [1]], logits=[np.ones(1)] * 3, settings=[{"classes": "predicted"}] * 3)
    report = evaluate_boxes(read_imagenet(tmp_path / "set"), CamFolder(tmp_path / "cams"))
    assert report.top(1) == report.found["largest"].max_box_acc[0.5]
    assert report.top(5) is None
    assert report.notes[-1].startswith("top-5 localisation: not known, as only 1 ")
    with pytest.raises(ValueError, match=r"classes of every image, got none for val2/1/0\.jpeg"):
        evaluate_boxes(read_imagenet(tmp_path / "set"), CamFolder(tmp_path / "cams"), predictions={ids[0]: (0,)})
    for line in ("a.jpg", "a.jpg,x"):
        with pytest.raises(ValueError, match=r"lines 'image,class,class,\.\.\.'"):
            read_predictions(save_text(tmp_path / "list.txt", line))


def test_pxap_is_that_of_all_maps_at_once(tmp_path: Path) -> None:
    ids = wsol_tree(tmp_path / "set", masks=True)
    wsol_cams(tmp_path / "cams", ids, [[0], [1], [1]])
    dataset = read_openimages(tmp_path / "set")
    report = evaluate_pixels(dataset, CamFolder(tmp_path / "cams"))
    maps = [report.source.read(image, path)[0] for image, path in report.images]
    truths = [read_truth(image) for image in dataset.images]
    ignored = [truth == 255 for truth in truths]
    assert report.pxap == pixel_average_precision(maps, [truth == 1 for truth in truths], ignored)
    sweep = threshold_sweep([m[None] for m in maps], [[0]] * 3, truths, 2, report.thresholds.tolist())
    np.testing.assert_allclose(report.ious, sweep.ious[:, 1])
    assert report.best_threshold == report.thresholds[np.argmax(sweep.ious[:, 1])]
    assert report.to_json()["peak_iou"] == report.ious.max()
    worst = [i for i, _ in report.worst()]
    assert worst == np.argsort(report.image_ious[:, np.argmax(report.ious)], kind="stable").tolist()


def test_cub_masks(tmp_path: Path) -> None:
    names = cub_tree(tmp_path / "CUB")
    for name, size, label in zip(names, (SIZES[0], SIZES[2]), (0, 1), strict=True):
        mask = np.zeros(size)
        mask[2:7, 3:8] = 1
        save_cams((tmp_path / "cams" / name).with_suffix(".npz"), mask[None], [label], size=size)
    report = evaluate_pixels(read_cub(tmp_path / "CUB", masks=True), CamFolder(tmp_path / "cams"))
    assert (report.pxap, report.ious.max()) == (1, 1)


def test_small_maps_are_resized_as_wsolevaluation_does(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    ids = wsol_tree(tmp_path / "set")
    rng = np.random.default_rng(0)
    for image in ids:
        path = tmp_path / "cams" / f"{image}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rng.random((7, 7), dtype=np.float32))
    report = evaluate_boxes(read_imagenet(tmp_path / "set"), CamFolder(tmp_path / "cams"))
    assert report.notes[0].startswith("3 of 3 images have maps of another size, resized bicubically")
    for image, path in report.images:
        theirs = cv2.resize(np.load(path), (WSOL_SIZE, WSOL_SIZE), interpolation=cv2.INTER_CUBIC)
        theirs = (theirs - theirs.min()) / (theirs.max() - theirs.min())
        np.testing.assert_allclose(report.source.read(image, path)[0], theirs, atol=1e-5)


def test_a_cam_of_another_size_than_the_metadata_say_is_noted(tmp_path: Path) -> None:
    ids = wsol_tree(tmp_path / "set")
    wsol_cams(tmp_path / "cams", ids, [[0], [1], [1]])
    save_cams(tmp_path / "cams/val2/0/0.npz", np.eye(5)[None], [0], size=SIZES[0][::-1])
    report = evaluate_boxes(read_imagenet(tmp_path / "set"), CamFolder(tmp_path / "cams"))
    assert "1 of 3 images have CAMs of another size" in report.notes[0]
