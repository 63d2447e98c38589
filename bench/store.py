"""``python -m bench store``: bytes per image of CAM files in each layout, against IRN's, and what storing changes.

Nothing is timed. Polished CAMs of generated scenes are written as ``ssa_fast.io.cam_files`` writes them and read again;
the truth is the CAM before it is written, float32, resized to the picture's size. Masks are ``ssa_fast.localize.masks``
with its default background.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from bench.command import parser_of, save
from bench.figures import number, table
from ssa_fast import SSA
from ssa_fast.demo.comparison import OPTIONS
from ssa_fast.demo.scenes import CLASSES, make_scenes
from ssa_fast.io import cam_files
from ssa_fast.io.cam_files import CamFile
from ssa_fast.localize import masks
from ssa_fast.models import zoo

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES, SEED, SIDE = 32, 2025, 256
SETS = {  # network, weights, size of the pictures; finest strides of 2, with sharp edges, and of 4 as in IRN
    "demo classifier, 256 x 256": ("demo", "DEFAULT", (SIDE, SIDE)),
    "resnet18 of random weights, 375 x 500": ("resnet18", "none", (375, 500)),  # VOC's commonest size
}
REFERENCE = "IRN: float32 at full size, and at stride 4"
LAYOUTS: dict[str, dict[str, str]] = {  # as ``cam_files.write_cam`` is called
    REFERENCE: {"format": "irn"},
    "PSA, SEAM: float32 at full size": {"format": "psa"},
    "CLIP-ES: float16 at full size": {"format": "clip-es"},
    "ssa: float16 at full size": {"format": "ssa"},
    "ssa: float16, strided": {"format": "ssa"},
    "ssa: uint8, strided": {"format": "ssa", "dtype": "uint8"},
}


def polished_cams(name: str) -> Iterator[CamFile]:
    """Yield what ``ssa-fast run`` stores for the classes that are in a scene, as float32."""
    model, weights, size = SETS[name]
    classifier = zoo.load(model, weights)
    ssa = SSA(classifier.model, size="stage", **OPTIONS)
    for scene in make_scenes(IMAGES, SEED, SIDE):
        picture = Image.fromarray(scene.image).resize(size[::-1], Image.Resampling.BICUBIC)
        classes = np.flatnonzero(scene.labels)
        result = ssa(classifier.preprocess(np.array(picture)), classes.tolist())
        yield CamFile(
            result.cams[0].numpy(),
            classes=classes,
            size=size,
            names=tuple(CLASSES[k] for k in classes),
            labels=(classes + 1).astype(np.uint8),
            logits=result.logits[0].numpy()[classes],
            align_corners=ssa.align_corners,
        )


def stored(cam: CamFile, layout: str) -> tuple[float, float, float]:
    """Write and read a file; return its bytes, the largest error of what is read, and the share of changed pixels."""
    truth = cam_files.full_size(cam)
    given = cam if "strided" in layout else replace(cam, cams=truth)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", cam_files.PickleWarning)
        path = Path(folder, "a" + cam_files.suffix(LAYOUTS[layout]["format"]))
        cam_files.write_cam(path, given, allow_pickle=True, **LAYOUTS[layout])  # type: ignore[arg-type]
        size, again = path.stat().st_size, cam_files.full_size(cam_files.read_cam(path, allow_pickle=True))
    before, after = (masks(torch.from_numpy(maps)) for maps in (truth, again))
    return size, float(np.abs(again - truth).max()), float((before != after).float().mean())


def rows(name: str, cams: list[CamFile]) -> list[dict[str, Any]]:
    """Return one row per layout: means over the images, the largest error, and how many times smaller than IRN's."""
    about = {"images": name, "count": len(cams), "classes_per_image": np.mean([len(cam.cams) for cam in cams])}
    found: list[dict[str, Any]] = []
    for layout in LAYOUTS:
        sizes, errors, changed = np.array([stored(cam, layout) for cam in cams]).T
        row = {"bytes": sizes.mean(), "largest_error": errors.max(), "mask_pixels_changed": changed.mean()}
        times = (found[0] if found else row)["bytes"] / row["bytes"]
        found.append({**about, "layout": layout, **row, "times_smaller": times})
    return found


def main(given: list[str]) -> int:
    """Measure, print; with ``--save`` keep the figures and the machine as JSON."""
    options = parser_of("store", __doc__).parse_args(given)
    found = [row for name in SETS for row in rows(name, list(polished_cams(name)))]
    shown = ["bytes", "times_smaller", "largest_error", "mask_pixels_changed"]
    cells = [[row["images"], row["layout"], *(number(row[key]) for key in shown)] for row in found]
    print(*table(["images", "layout", *shown], cells, aligned=True), sep="\n")
    save(options, ["store", *given], found)
    return 0
