"""Readers of datasets on disk: every layout, and a missing or wrong file that is named."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from ssa_fast.evaluate.datasets import read_coco, read_cub, read_folder, read_imagenet, read_openimages, read_voc
from ssa_fast.evaluate.datasets.pixels import read_truth
from ssa_fast.io.cam_values import WSOL_SIZE
from tests.eval_trees import SIZES, coco_tree, cub_tree, save_image, save_labels, save_text, voc_tree, wsol_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("below", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_is_read_from_any_of_its_folders(tmp_path: Path, below: str) -> None:
    maps = voc_tree(tmp_path / below)
    dataset = read_voc(tmp_path)
    assert [image.id for image in dataset.images] == ["2007_000000", "2007_000001", "2007_000002"]
    assert (dataset.class_names[0], len(dataset.class_names), dataset.notes) == ("aeroplane", 20, ())
    for image, labels in zip(dataset.images, maps, strict=True):
        np.testing.assert_array_equal(image.truth(), labels)
        assert image.image is not None
        assert image.image.is_file()


def test_voc_takes_the_augmented_label_maps_where_the_own_ones_lack_some_and_says_so(tmp_path: Path) -> None:
    maps = voc_tree(tmp_path)
    for i, labels in enumerate(maps):
        save_labels(tmp_path / f"SegmentationClassAug/2007_{i:06d}.png", labels)
    save_text(
        tmp_path / "ImageSets/Segmentation/trainaug.txt",
        *(f"/JPEGImages/2007_{i:06d}.jpg /SegmentationClassAug/2007_{i:06d}.png" for i in range(3)),
    )
    assert read_voc(tmp_path, split="trainaug").notes == ()
    (tmp_path / "SegmentationClass/2007_000001.png").unlink()
    dataset = read_voc(tmp_path, split="trainaug")
    assert len(dataset.images) == 3
    assert dataset.notes == ("label maps are those of SegmentationClassAug: SegmentationClass lacks 1 of 3",)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "SegmentationClassAug", elsewhere)
    np.testing.assert_array_equal(read_voc(tmp_path, labels=str(elsewhere)).images[1].truth(), maps[1])


def test_coco_instances_become_label_maps(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    coco_tree(tmp_path)
    dataset = read_coco(tmp_path)
    assert dataset.class_names == ("car", "toothbrush"), "in the order of their ids, which have gaps"
    expected = np.zeros((10, 12), int)
    expected[1:4, 1:6] = 2
    expected[2:8, 4:9] = 1  # a later instance lies over an earlier one
    expected[8:10, 0:3] = 1  # a crowd is of its class
    first, second = dataset.images
    np.testing.assert_array_equal(first.truth(), expected)
    np.testing.assert_array_equal(second.truth(), np.zeros((10, 12)))
    assert first.id == "COCO_train2014_000000000007.jpg"
    assert first.image is not None
    assert second.image is None


def test_cub_boxes_are_those_of_wsolevaluation(tmp_path: Path) -> None:
    """Its metadata has 60,27,385,331 where CUB has 60.0 27.0 325.0 304.0; classes count from 0."""
    root = tmp_path / "CUB_200_2011"
    names = cub_tree(root)
    images = read_cub(root).images
    assert [image.id for image in images] == names
    assert [image.boxes for image in images] == [((3, 2, 8, 7),), ((3, 2, 8, 7),)]
    assert [image.label for image in images] == [0, 1]
    assert [image.size for image in images] == [SIZES[0][::-1], SIZES[2][::-1]]
    assert [image.id for image in read_cub(root, split="train").images] == ["001.Albatross/Albatross_0009_34.jpg"]
    truth = read_truth(read_cub(root, masks=True).images[1])
    H, W = SIZES[2]
    assert truth.sum() == pytest.approx(25 * WSOL_SIZE**2 / (H * W), rel=0.1), "any annotator's pixels are the object"


@pytest.mark.parametrize("split_folder", ["", "test"])
@pytest.mark.parametrize("read", [read_imagenet, read_cub])
def test_wsolevaluation_metadata_with_boxes(tmp_path: Path, read: Callable[..., Any], split_folder: str) -> None:
    ids = wsol_tree(tmp_path / split_folder)
    save_image(tmp_path / "images" / ids[0], SIZES[0])
    images = read(tmp_path, images=tmp_path / "images").images
    assert [image.id for image in images] == ids
    assert [image.label for image in images] == [0, 1, 1]
    assert images[1].boxes == ((0, 0, 6, 9), (5, 1, 9, 12))
    assert images[1].size == SIZES[1][::-1]
    assert images[0].image == tmp_path / "images" / ids[0]
    assert images[1].image is None


def test_openimages_masks_are_joined_and_pixels_to_ignore_are_those_outside_of_them(tmp_path: Path) -> None:
    wsol_tree(tmp_path, masks=True)
    images = read_openimages(tmp_path).images
    truth = read_truth(images[1])
    H, W = SIZES[1]
    rows, columns = np.arange(WSOL_SIZE) * H // WSOL_SIZE, np.arange(WSOL_SIZE) * W // WSOL_SIZE
    expected = np.zeros((H, W), int)
    expected[:4] = 255
    expected[2:6, 1:8] = expected[3:7, 2:8] = 1
    np.testing.assert_array_equal(truth, expected[rows[:, None], columns])
    assert not (read_truth(images[2]) == 255).any(), "no mask to ignore is named"


@pytest.mark.parametrize("form", ["0 and 255", "0 and 1", "colours", "noise of JPEG"])
def test_a_folder_of_figure_and_ground(tmp_path: Path, form: str) -> None:
    figure = np.zeros((12, 16), bool)
    figure[3:9, 4:12] = True
    values = figure * np.uint8(1 if form == "0 and 1" else 255)
    if form == "colours":
        values = np.stack([values, values, values // 2], -1)
    if form == "noise of JPEG":
        values = np.where(figure, 250, 9).astype(np.uint8)
    save_image(tmp_path / "images/sub/a.jpg", (12, 16))
    save_image(tmp_path / "images/b.jpg", (12, 16))
    (tmp_path / "masks/sub").mkdir(parents=True)
    Image.fromarray(values).save(tmp_path / "masks/sub/a.png")
    dataset = read_folder(tmp_path)
    (image,) = dataset.images
    assert (image.id, image.image) == ("sub/a", tmp_path / "images/sub/a.jpg")
    np.testing.assert_array_equal(image.truth(), figure)
    assert not dataset.has_classes
    assert dataset.notes == ("1 images have no mask and are left out: b",)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_folder_of_label_maps(tmp_path: Path, as_file: bool) -> None:
    labels = np.tile(np.array([0, 1, 2, 255], np.uint8), (5, 2))
    save_labels(tmp_path / "gt/a.png", labels)
    names = str(save_text(tmp_path / "names.txt", "cat", "dog")) if as_file else "cat,dog"
    dataset = read_folder(tmp_path, masks="gt", classes=names)
    assert (dataset.class_names, dataset.has_classes) == (("cat", "dog"), True)
    np.testing.assert_array_equal(dataset.images[0].truth(), labels)
    with pytest.raises(ValueError, match=r"a\.png: expected labels 0 to 1, or 255, got 2"):
        read_folder(tmp_path, masks="gt", classes=["cat"]).images[0].truth()


VOC_PARTS = ["JPEGImages", "ImageSets", "ImageSets/Segmentation/train.txt", "SegmentationClass/2007_000001.png"]
CUB_PARTS = ["image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"]
WSOL_PARTS = ["image_ids.txt", "class_labels.txt", "image_sizes.txt", "localization.txt"]


@pytest.mark.parametrize(
    ("write", "read", "part"),
    [
        *((voc_tree, read_voc, part) for part in VOC_PARTS),
        (coco_tree, read_coco, "annotations/instances_train2014.json"),
        *((cub_tree, read_cub, part) for part in ["images.txt", *CUB_PARTS, "images/002.Auklet/Auklet_1.jpg"]),
        *((wsol_tree, read_imagenet, part) for part in WSOL_PARTS),
        *((wsol_tree, read_openimages, part) for part in ["image_ids.txt", "class_labels.txt", "localization.txt"]),
    ],
)
def test_a_missing_file_is_named(
    tmp_path: Path, write: Callable[..., Any], read: Callable[..., Any], part: str
) -> None:
    write(tmp_path)
    remove(tmp_path / part)
    with pytest.raises(FileNotFoundError, match=part.replace(".", r"\.")) as raised:
        read(tmp_path)
    assert str(raised.value).count("\n") == 0


def test_a_missing_mask_is_named(tmp_path: Path) -> None:
    wsol_tree(tmp_path / "a", masks=True)
    (tmp_path / "a/1_1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1_1\.png"):
        read_truth(read_openimages(tmp_path / "a").images[1])
    cub_tree(tmp_path / "CUB")
    (tmp_path / "segmentations/002.Auklet/Auklet_1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"002\.Auklet/Auklet_1\.png"):
        read_cub(tmp_path / "CUB", masks=True)
    with pytest.raises(FileNotFoundError, match="masks"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("localization.txt", ["val2/0/0.jpeg,1,2,9"], "'image,x0,y0,x1,y1' in line 1"),
        ("localization.txt", ["val2/0/0.jpeg,1,2,9,x"], "whole numbers in .*localization"),
        ("localization.txt", ["val2/0/0.jpeg,1,2,9,8"], "a box for every image in .* none for val2/1/0.jpeg, val2/1/1"),
        ("class_labels.txt", ["val2/0/0.jpeg,0"], "a class for every image"),
        ("image_sizes.txt", ["val2/0/0.jpeg,5,5"], "a size for every image"),
        ("image_ids.txt", [], "the file is empty"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(tmp_path: Path, file: str, lines: list[str], message: str) -> None:
    wsol_tree(tmp_path)
    save_text(tmp_path / file, *lines)
    with pytest.raises(ValueError, match=message):
        read_imagenet(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), "its pixels are RGB: expected an indexed or grey image"),
        (np.full((4, 4), 21, np.uint8), "expected labels 0 to 20, or 255, got 21"),
        (b"no image", "it is not an image"),
    ],
)
def test_a_wrong_label_map_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    voc_tree(tmp_path)
    path = tmp_path / "SegmentationClass/2007_000001.png"
    path.write_bytes(content) if isinstance(content, bytes) else Image.fromarray(content).save(path)
    with pytest.raises(ValueError, match=rf"{path.name}: {message}"):
        read_voc(tmp_path).images[1].truth()


def test_two_masks_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp"):
        save_labels(tmp_path / "masks" / name, np.zeros((4, 4), int))
    with pytest.raises(ValueError, match=r"one file per name, got .*a\.bmp and .*a\.png"):
        read_folder(tmp_path)
