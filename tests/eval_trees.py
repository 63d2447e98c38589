"""Small datasets in the layouts of people's disks, and CAM files for them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ssa_fast.io.cam_files import CamFile, write_cam
from ssa_fast.localize import save_mask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SIZES = ((12, 16), (15, 11), (20, 9))  # (H, W) of the images of every tree


def save_image(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def save_labels(path: Path, labels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_mask(path, labels.astype(np.uint8))
    return path


def save_text(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def save_cams(path: Path, cams: np.ndarray, classes: Sequence[int], format: str = "ssa", **fields: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = CamFile(cams.astype(np.float32), classes=np.array(classes, np.int64), **fields)
    write_cam(path, content, format=format, allow_pickle=True)
    return path


def random_labels(size: tuple[int, int], labels: Sequence[int], seed: int) -> np.ndarray:
    """Return a label map of blocks, as objects are, with every one of ``labels`` in it."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice(labels, (-(-size[0] // 3), -(-size[1] // 3)))
    blocks.flat[: len(labels)] = labels
    return np.kron(blocks, np.ones((3, 3), int))[: size[0], : size[1]].astype(np.uint8)


def voc_tree(root: Path, labels: Sequence[Sequence[int]] = ((0, 1, 255), (0, 5), (0, 1, 20))) -> list[np.ndarray]:
    """Write VOC 2012 with a split ``train`` of images 2007_000000, …; return their label maps."""
    maps = []
    for i, (size, present) in enumerate(zip(SIZES, labels, strict=True)):
        save_image(root / f"JPEGImages/2007_{i:06d}.jpg", size, i)
        maps.append(random_labels(size, present, i))
        save_labels(root / f"SegmentationClass/2007_{i:06d}.png", maps[-1])
    save_text(root / "ImageSets/Segmentation/train.txt", *(f"2007_{i:06d}" for i in range(len(labels))))
    return maps


def coco_tree(root: Path) -> Path:
    """Write COCO's instances of one image of 10 x 12 pixels and an empty one; return the file."""
    annotations = [
        {"category_id": 90, "segmentation": [[1, 1, 6, 1, 6, 4, 1, 4]], "iscrowd": 0},
        {"category_id": 3, "segmentation": [[4, 2, 9, 2, 9, 8, 4, 8]], "iscrowd": 0},
        # columns first: rows 8 and 9 of columns 0 to 2
        {"category_id": 3, "segmentation": {"size": [10, 12], "counts": [8, 2, 8, 2, 8, 2, 90]}, "iscrowd": 1},
    ]
    content = {
        "images": [
            {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": 10, "width": 12},
            {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": 10, "width": 12},
        ],
        "annotations": [
            {"id": i, "image_id": 7, "area": 1, "bbox": [0, 0, 1, 1], **each} for i, each in enumerate(annotations, 1)
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
    }
    path = root / "annotations/instances_train2014.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    save_image(root / "train2014/COCO_train2014_000000000007.jpg", (10, 12))
    return path


def cub_tree(root: Path) -> list[str]:
    """Write CUB-200-2011 with two test images and a training image; return the test images' names."""
    names = ["001.Albatross/Albatross_0046_18.jpg", "001.Albatross/Albatross_0009_34.jpg", "002.Auklet/Auklet_1.jpg"]
    for i, (name, size) in enumerate(zip(names, SIZES, strict=True)):
        save_image(root / "images" / name, size, i)
        mask = np.zeros(size, np.uint8)
        mask[2:7, 3:8] = (255, 51, 204)[i]  # of five annotators
        path = (root.parent / "segmentations" / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    save_text(root / "images.txt", *(f"{i} {name}" for i, name in enumerate(names, 1)))
    save_text(root / "image_class_labels.txt", "1 1", "2 1", "3 2")
    save_text(root / "train_test_split.txt", "1 0", "2 1", "3 0")
    save_text(root / "bounding_boxes.txt", "1 3.0 2.0 5.0 5.0", "2 1.0 1.0 4.0 4.0", "3 3.7 2.0 4.6 5.0")
    return [names[0], names[2]]


def wsol_tree(root: Path, *, masks: bool = False) -> list[str]:
    """Write wsolevaluation's metadata of three images, with boxes or masks; return the images' ids."""
    ids = ["val2/0/0.jpeg", "val2/1/0.jpeg", "val2/1/1.jpeg"]
    save_text(root / "image_ids.txt", *ids)
    save_text(root / "class_labels.txt", *(f"{each},{label}" for each, label in zip(ids, (0, 1, 1), strict=True)))
    if not masks:
        save_text(root / "image_sizes.txt", *(f"{each},{W},{H}" for each, (H, W) in zip(ids, SIZES, strict=True)))
        save_text(
            root / "localization.txt",
            f"{ids[0]},1,2,9,8",
            f"{ids[1]},0,0,6,9",
            f"{ids[1]},5,1,9,12",
            f"{ids[2]},2,4,7,17",
        )
        return ids
    lines = []
    for i, (name, size) in enumerate(zip(ids, SIZES, strict=True)):
        for part in range(1 + (i == 1)):
            mask = np.zeros(size, np.uint8)
            mask[2 + part : 6 + part, 1 + part : 8] = 255
            Image.fromarray(mask).save(root / f"{i}_{part}.png")
            lines.append(f"{name},{i}_{part}.png,{f'{i}_ignore.png' if part == 0 and i < 2 else ''}")
        ignore = np.zeros(size, np.uint8)
        ignore[:4] = 255
        Image.fromarray(ignore).save(root / f"{i}_ignore.png")
    save_text(root / "localization.txt", *lines)
    return ids
