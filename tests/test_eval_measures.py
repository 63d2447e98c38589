"""Measures of CAM files against datasets: the same numbers as those of all maps at once, and files that do not fit."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ssa_fast.evaluate import mean_iou, threshold_sweep
from ssa_fast.evaluate.datasets import (
    CamFolder,
    evaluate_boxes,
    evaluate_pixels,
    evaluate_segmentation,
    read_folder,
    read_imagenet,
    read_openimages,
    read_voc,
)
from ssa_fast.io import cam_files
from ssa_fast.io.cam_files import CamFile, full_size
from ssa_fast.localize import estimate_background
from tests.eval_trees import (
    SIZES,
    random_labels,
    save_cams,
    save_labels,
    save_text,
    smooth,
    voc_tree,
    wsol_cams,
    wsol_tree,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::ssa_fast.io.cam_files.PickleWarning")

VOC_IDS = ("2007_000000", "2007_000001", "2007_000002")
PRESENT = ((0, 3), (4,), (19, 0, 6))  # classes of the CAMs in the files of the VOC tree, not in order
LEVELS = [step / 20 for step in range(1, 20)]


def voc_cams(folder: Path, format: str = "ssa", **fields: Any) -> list[np.ndarray]:
    """Write a CAM file per image of the VOC tree; return the CAMs at the images' sizes, as the files hold them."""
    rng, maps = np.random.default_rng(3), []
    for image, size, classes in zip(VOC_IDS, SIZES, PRESENT, strict=True):
        cams = smooth(rng, len(classes), *(size if format != "ssa" else (5, 4)))
        path = save_cams(folder / f"{image}{cam_files.suffix(format)}", cams, classes, format, size=size, **fields)
        maps.append(full_size(cam_files.read_cam(path, allow_pickle=True)))
    return maps


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
