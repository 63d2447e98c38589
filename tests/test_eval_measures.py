"""Measures of CAM files against datasets: the same numbers as those of all maps at once, and files that do not fit."""

from __future__ import annotations

import shutil
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ssa_fast.evaluate import localization_accuracy, max_box_acc, mean_iou, pixel_average_precision, threshold_sweep
from ssa_fast.evaluate.boxes import resize_boxes
from ssa_fast.evaluate.datasets import (
    CamFolder,
    evaluate_boxes,
    evaluate_pixels,
    evaluate_segmentation,
    read_cub,
    read_folder,
    read_imagenet,
    read_openimages,
    read_predictions,
    read_voc,
)
from ssa_fast.evaluate.datasets.pixels import read_truth
from ssa_fast.io import cam_files
from ssa_fast.io.cam_files import CamFile, full_size, write_cam
from ssa_fast.io.cam_values import WSOL_SIZE
from ssa_fast.localize import estimate_background
from tests.eval_trees import SIZES, cub_tree, random_labels, save_cams, save_labels, save_text, voc_tree, wsol_tree

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::ssa_fast.io.cam_files.PickleWarning")

VOC_IDS = ("2007_000000", "2007_000001", "2007_000002")
PRESENT = ((0, 3), (4,), (19, 0, 6))  # classes of the CAMs in the files of the VOC tree, not in order
LEVELS = [step / 20 for step in range(1, 20)]


def smooth(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return maps in [0, 1] with few equal values."""
    maps = torch.from_numpy(rng.random((1, shape[0], 3, 4), dtype=np.float32))
    return torch.nn.functional.interpolate(maps, shape[1:], mode="bilinear")[0].numpy()


def voc_cams(folder: Path, format: str = "ssa", **fields: Any) -> list[np.ndarray]:
    """Write a CAM file per image of the VOC tree; return the CAMs at the images' sizes, as the files hold them."""
    rng, maps = np.random.default_rng(3), []
    for image, size, classes in zip(VOC_IDS, SIZES, PRESENT, strict=True):
        cams = smooth(rng, len(classes), *(size if format != "ssa" else (5, 4)))
        path = save_cams(folder / f"{image}{cam_files.suffix(format)}", cams, classes, format, size=size, **fields)
        maps.append(full_size(cam_files.read_cam(path, allow_pickle=True)))
    return maps


def wsol_cams(folder: Path, ids: list[str], labels: list[list[int]], **fields: Any) -> None:
    rng = np.random.default_rng(4)
    for i, (image, classes) in enumerate(zip(ids, labels, strict=True)):
        each = {name: value[i] for name, value in fields.items()}
        path = folder / f"{image.rpartition('.')[0]}.npz"
        save_cams(path, smooth(rng, len(classes), 6, 5), classes, size=SIZES[i], align_corners=False, **each)


@pytest.mark.parametrize("absent", ["skip", "zero"])
@pytest.mark.parametrize("format", ["ssa", "psa", "irn", "clip-es"])
def test_the_sweep_is_that_of_all_images_at_once(tmp_path: Path, format: str, absent: Any) -> None:
    truths = voc_tree(tmp_path / "voc")
    maps = voc_cams(tmp_path / "cams", format)
    cams = CamFolder(tmp_path / "cams", allow_pickle=True)
    report = evaluate_segmentation(read_voc(tmp_path / "voc"), cams, thresholds=LEVELS, absent=absent)
    expected = threshold_sweep(maps, PRESENT, truths, 21, LEVELS, absent)
    np.testing.assert_array_equal(report.sweep.confusions, expected.confusions)
    np.testing.assert_array_equal(report.sweep.mious, expected.mious)
    np.testing.assert_array_equal(report.sweep.ious, expected.ious)
    assert report.notes == ()
    for i, (cam, classes, truth) in enumerate(zip(maps, PRESENT, truths, strict=True)):
        alone = threshold_sweep([cam], [classes], [truth], 21, LEVELS).mious
        np.testing.assert_allclose(report.image_mious[i], alone, rtol=1e-6)
    order = [image for image, _ in report.worst(3)]
    assert order == np.argsort(report.image_mious[:, report.best]).tolist()
    content = report.to_json()
    assert content["best_miou"] == expected.best_miou
    assert content["iou"]["aeroplane"] == expected.ious[report.best, 1]
    # the threshold that sees no truth is each image's own
    backgrounds = [float(estimate_background(torch.from_numpy(cam))) for cam in maps]
    np.testing.assert_array_equal(report.truth_free.backgrounds, backgrounds)
    items = zip(maps, PRESENT, truths, backgrounds, strict=True)
    total = sum(threshold_sweep([cam], [c], [t], 21, [level], absent).confusions[0] for cam, c, t, level in items)
    np.testing.assert_array_equal(report.truth_free.confusion, total)
    assert report.truth_free.miou == mean_iou(total, absent)


def test_one_image_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wsol_ids = wsol_tree(tmp_path / "boxes")
    wsol_tree(tmp_path / "masks", masks=True)
    wsol_cams(tmp_path / "wsol", wsol_ids, [[0], [1], [1]])
    voc_tree(tmp_path / "voc")
    voc_cams(tmp_path / "cams")
    read, alive = CamFolder.read, weakref.WeakSet[CamFile]()
    most = 0

    def counted(self: CamFolder, path: Path) -> CamFile | None:
        nonlocal most
        cam = read(self, path)
        assert cam is not None
        alive.add(cam)
        most = max(most, len(alive))
        return cam

    monkeypatch.setattr(CamFolder, "read", counted)
    evaluate_segmentation(read_voc(tmp_path / "voc"), CamFolder(tmp_path / "cams"))
    evaluate_boxes(read_imagenet(tmp_path / "boxes"), CamFolder(tmp_path / "wsol"))
    evaluate_pixels(read_openimages(tmp_path / "masks"), CamFolder(tmp_path / "wsol"))
    assert most <= 2, "the one before may still be there"


def test_classes_go_by_name_where_files_have_names(tmp_path: Path) -> None:
    truths = voc_tree(tmp_path / "voc")
    save_text(tmp_path / "voc/ImageSets/Segmentation/train.txt", VOC_IDS[0])
    dataset, cams, size = read_voc(tmp_path / "voc"), tmp_path / "cams", SIZES[0]
    maps = smooth(np.random.default_rng(0), 2, *size)
    path = save_cams(cams / f"{VOC_IDS[0]}.npz", maps, [851, 404], size=size, names=("TVmonitor", "aeroplane"))
    stored = cam_files.read_cam(path).cams
    report = evaluate_segmentation(dataset, CamFolder(cams))
    expected = threshold_sweep([stored], [[19, 0]], truths[:1], 21)
    np.testing.assert_array_equal(report.sweep.confusions, expected.confusions)
    with pytest.raises(ValueError, match=r"match: expected class indices 0 to 19 .* got 851 in .*npz"):
        evaluate_segmentation(dataset, CamFolder(cams), match="index")
    save_cams(path, maps, [0, 1], size=size, names=("tabby", "aeroplane"))
    with pytest.raises(ValueError, match=r"got 'tabby' in .*; .* pass --match index"):
        evaluate_segmentation(dataset, CamFolder(cams))
    evaluate_segmentation(dataset, CamFolder(cams), match="index")
    save_cams(path, maps, [0, 1], size=size)
    with pytest.raises(ValueError, match="does not say the names"):
        evaluate_segmentation(dataset, CamFolder(cams), match="names")


def test_files_without_a_class_and_images_without_a_file(tmp_path: Path) -> None:
    truths = voc_tree(tmp_path / "voc")
    maps = voc_cams(tmp_path / "cams", "psa")
    content: Any = {"keys": np.zeros(0, np.int64)}
    np.save(tmp_path / f"cams/{VOC_IDS[0]}.npy", np.array(content, dtype=object))  # IRN's of an image without labels
    (tmp_path / f"cams/{VOC_IDS[1]}.npy").unlink()
    dataset, cams = read_voc(tmp_path / "voc"), CamFolder(tmp_path / "cams", allow_pickle=True)
    with pytest.raises(FileNotFoundError, match=rf"each of 3 images .* none for 1: {VOC_IDS[1]}; .*--missing"):
        evaluate_segmentation(dataset, cams)
    empty = [np.zeros((0, *size)) for size in SIZES]
    kept = evaluate_segmentation(dataset, cams, missing="empty")
    expected = threshold_sweep([empty[0], empty[1], maps[2]], [[], [], PRESENT[2]], truths, 21)
    np.testing.assert_array_equal(kept.sweep.confusions, expected.confusions)
    assert kept.notes == (
        "1 of 3 images have no class in their CAM file",
        "1 of 3 images have no CAM file and count as background",
    )
    skipped = evaluate_segmentation(dataset, cams, missing="skip")
    expected = threshold_sweep([empty[0], maps[2]], [[], PRESENT[2]], [truths[0], truths[2]], 21)
    np.testing.assert_array_equal(skipped.sweep.confusions, expected.confusions)
    assert skipped.notes[-1] == "1 of 3 images have no CAM file and are left out"
    assert np.isnan(kept.truth_free.backgrounds[:2]).all()


def test_pickles_need_permission_and_a_wrong_size_is_refused(tmp_path: Path) -> None:
    voc_tree(tmp_path / "voc")
    voc_cams(tmp_path / "psa", "psa")
    with pytest.raises(ValueError, match="--allow-pickle"):
        evaluate_segmentation(read_voc(tmp_path / "voc"), CamFolder(tmp_path / "psa"))
    voc_cams(tmp_path / "cams")
    save_cams(tmp_path / "cams" / f"{VOC_IDS[1]}.npz", np.ones((1, 3, 3)), [0], size=(11, 15))
    with pytest.raises(ValueError, match=rf"image of 15x11 pixels, as its truth has, .* got 11x15 in .*{VOC_IDS[1]}"):
        evaluate_segmentation(read_voc(tmp_path / "voc"), CamFolder(tmp_path / "cams"))


def test_a_truth_of_another_size_but_the_same_ratio_is_noted(tmp_path: Path) -> None:
    """Masks are often kept smaller than the photographs."""
    save_labels(tmp_path / "masks/a.png", random_labels((15, 11), (0, 1), 0) * 255)
    path = save_cams(tmp_path / "cams/a.npz", smooth(np.random.default_rng(0), 1, 5, 4), [7], size=(46, 33))
    report = evaluate_segmentation(read_folder(tmp_path), CamFolder(tmp_path / "cams"))
    assert report.notes == ("1 of 1 images have a truth of another size than the image, to which the CAMs are resized",)
    cam = full_size(replace(cam_files.read_cam(path), size=(15, 11)))
    expected = threshold_sweep([cam], [[0]], [random_labels((15, 11), (0, 1), 0)], 2)
    np.testing.assert_array_equal(report.sweep.ious, expected.ious)


def test_figure_and_ground_take_the_highest_of_a_files_cams(tmp_path: Path) -> None:
    truth = np.zeros(SIZES[0], np.uint8)
    truth[3:8, 2:9] = 255
    save_labels(tmp_path / "masks/a.png", truth)
    path = save_cams(tmp_path / "cams/a.npz", smooth(np.random.default_rng(0), 3, 4, 4), [281, 5, 7], size=SIZES[0])
    report = evaluate_segmentation(read_folder(tmp_path), CamFolder(tmp_path / "cams"), thresholds=LEVELS)
    highest = full_size(cam_files.read_cam(path)).max(0)
    expected = threshold_sweep([highest[None]], [[0]], [(truth > 0).astype(int)], 2, LEVELS)
    np.testing.assert_array_equal(report.sweep.ious, expected.ious)
    assert report.notes == ("1 of 1 images have CAMs of several classes, whose highest is taken for the object",)


def test_maps_of_wsolevaluation_cover_the_whole_image(tmp_path: Path) -> None:
    save_labels(tmp_path / "masks/a.png", np.pad(np.full((6, 8), 255), ((0, 6), (0, 8))))
    plane = np.zeros((224, 224))
    plane[:112, :112] = 1
    (tmp_path / "cams").mkdir()
    np.save(tmp_path / "cams/a.jpg.npy", plane)
    report = evaluate_segmentation(read_folder(tmp_path), CamFolder(tmp_path / "cams"))
    assert report.class_ious["object"] == 1
    assert "without the image's size" in report.notes[0]


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
    assert "top-1 and top-5 localisation are not known" in report.notes[-1]
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


def test_top_5_is_not_known_of_one_prediction(tmp_path: Path) -> None:
    ids = wsol_tree(tmp_path / "set")
    wsol_cams(tmp_path / "cams", ids, [[0], [1], [1]], logits=[np.ones(1)] * 3, settings=[{"classes": "predicted"}] * 3)
    report = evaluate_boxes(read_imagenet(tmp_path / "set"), CamFolder(tmp_path / "cams"))
    assert report.top(1) == report.found["largest"].max_box_acc[0.5]
    assert report.top(5) is None
    assert report.notes[-1].startswith("top-5 localisation is not known, as only 1 ")
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


@pytest.mark.parametrize(
    ("image", "file"),
    [
        ("2007_000032", "2007_000032.npz"),
        ("2007_000032", "VOC2012/JPEGImages/2007_000032.npy"),
        ("val2/0/1.jpeg", "val2/0/1.jpeg.npy"),
        ("val2/0/1.jpeg", "0/1.npz"),
        ("val2/0/1.jpeg", "1.npz"),
        ("a.b.jpg", "a.b.npz"),
    ],
)
def test_a_cam_file_is_found_by_the_end_of_its_path(tmp_path: Path, image: str, file: str) -> None:
    for run in ("cams", "."):  # a run's folder has them in "cams"
        path = tmp_path / "run" / run / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        (tmp_path / "run" / run / "other.npz").touch()
        assert CamFolder(tmp_path / "run").find(image) == path
        assert CamFolder(tmp_path / "run").find("not/there.jpg") is None
        assert CamFolder(tmp_path / "run").find("val3/7/1.jpeg") == (path if file == "1.npz" else None)
        shutil.rmtree(tmp_path / "run")


def test_files_that_several_images_could_be_of_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/1.npz", "1.npy"):
        (tmp_path / name).touch()
    cams = CamFolder(tmp_path)
    assert cams.find("a/1.jpg") == tmp_path / "a/1.npz", "an exact match goes first"
    with pytest.raises(ValueError, match=r"one CAM file of b/a/1.jpg, got .*1\.np[yz], .*1\.np[yz]"):
        cams.find("b/a/1.jpg")
    (tmp_path / "a/1.npz").unlink()
    with pytest.raises(ValueError, match=r"a CAM file per image, got .*1\.npy for both x/1.jpg and y/1.jpg"):
        CamFolder(tmp_path).find_all(["x/1.jpg", "y/1.jpg"], "refuse")
    with pytest.raises(FileNotFoundError, match=r"none for 1: 2\.jpg; pass the folder that a run wrote"):
        CamFolder(tmp_path).find_all(["2.jpg"], "skip")
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path / "a", "none in")):
        with pytest.raises(FileNotFoundError, match=message):
            CamFolder(folder)
