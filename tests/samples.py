"""Files for the snippets of the pages and for the examples: photographs, a VOC folder with its CAMs, a large image.

Objects and their places are known: scenes are the demo's, and its network was trained on such scenes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from ssa_fast.demo.scenes import CLASSES, Scene, make_scenes
from ssa_fast.io.datasets import VOC_CLASSES
from ssa_fast.localize import save_mask

if TYPE_CHECKING:
    from pathlib import Path

CAT = CLASSES.index("cat")  # VOC's only class that the demo network knows


def save_photo(path: Path, name: str = "astronaut") -> Path:
    """Write one of the photographs in scikit-image's package."""
    data = pytest.importorskip("skimage", reason="scikit-image comes with the extra photos").data
    Image.fromarray(getattr(data, name)()).save(path)
    return path


def scenes_with_cats(count: int) -> list[Scene]:
    """Return scenes with a cat."""
    return [scene for scene in make_scenes(16 * count, 5) if CAT in scene.box_classes][:count]


def save_voc(root: Path, count: int = 2) -> list[np.ndarray]:
    """Write a VOC 2012 whose split ``train`` has ``count`` scenes with cats; return their label maps."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    maps = []
    for i, scene in enumerate(scenes_with_cats(count)):
        name = f"2007_{i:06d}"
        Image.fromarray(scene.image).save(root / f"JPEGImages/{name}.jpg", quality=95)
        maps.append(np.where(scene.mask == CAT + 1, VOC_CLASSES.index("cat") + 1, 0).astype(np.uint8))
        save_mask(root / f"SegmentationClass/{name}.png", maps[-1])
        xml = "<annotation><object><name>cat</name></object></annotation>"
        (root / f"Annotations/{name}.xml").write_text(xml)
    ids = "".join(f"2007_{i:06d}\n" for i in range(count))
    (root / "ImageSets/Segmentation/train.txt").write_text(ids)
    return maps


def save_slide(path: Path, side: int = 1024) -> np.ndarray:
    """Write a tiled TIFF of scenes side by side, one of them with a cat; return where the cat is (H, W) bool."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile comes with the extra large")
    across = side // 128
    scenes = [scene for scene in make_scenes(2 * across**2, 7) if CAT not in scene.box_classes][: across**2]
    scenes[across + 1] = scenes_with_cats(1)[0]
    rows = [scenes[start : start + across] for start in range(0, across**2, across)]
    image = np.block([[[scene.image] for scene in row] for row in rows])
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb")
    return np.block([[scene.mask == CAT + 1 for scene in row] for row in rows])
