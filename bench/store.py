"""``python -m bench store``: bytes per image of CAM files in each layout, against IRN's, and what storing changes.

Nothing is timed. Polished CAMs of generated scenes are written as ``ssa_fast.io.cam_files`` writes them and read again;
the truth is the CAM before it is written, float32, resized to the picture's size. Masks are ``ssa_fast.localize.masks``
with its default background.
"""

from __future__ import annotations

import tempfile
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from bench.command import parser_of, save
from ssa_fast import SSA
from ssa_fast.demo.comparison import OPTIONS
from ssa_fast.demo.scenes import CLASSES, make_scenes
from ssa_fast.io import cam_files
from ssa_fast.io.cam_files import CamFile
from ssa_fast.localize import masks
from ssa_fast.models.demo_net import load_classifier, preprocess
from ssa_fast.models.zoo import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IMAGES, SEED, SIDE = 32, 2025, 256
VOC = (375, 500)  # the commonest size in PASCAL VOC
DEMO, RESNET = "demo classifier, 256 x 256", "resnet18 of random weights, 375 x 500"
REFERENCE = "IRN: float32 at full size, and at stride 4"
LAYOUTS: dict[str, dict[str, str]] = {
    REFERENCE: {"format": "irn"},
    "PSA, SEAM: float32 at full size": {"format": "psa"},
    "CLIP-ES: float16 at full size": {"format": "clip-es"},
    "ssa: float16 at full size": {"format": "ssa"},
    "ssa: float16, strided": {"format": "ssa"},
    "ssa: uint8, strided": {"format": "ssa", "dtype": "uint8"},
}
"""How ``cam_files.write_cam`` is called."""


def polished_cams(name: str) -> Iterator[CamFile]:
    """Yield what ``ssa-fast run`` stores for the classes that are in a scene, as float32.

    ``DEMO``: the demo's trained classifier, whose finest stage has stride 2 and sharp edges. ``RESNET``: ResNet-18 with
    random weights on enlarged scenes, its finest stage at stride 4 as in IRN.
    """
    if name == DEMO:
        ssa = SSA(load_classifier(), size="stage", **OPTIONS)
    else:
        from torchvision.models import resnet18

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            ssa = SSA(resnet18(weights=None, num_classes=len(CLASSES)), size="stage")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for scene in make_scenes(IMAGES, SEED, SIDE):
        if name == DEMO:
            pixels = preprocess(scene.image[None])
        else:
            picture = Image.fromarray(scene.image).resize(VOC[::-1], Image.Resampling.BICUBIC)
            pixels = ((torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255 - mean) / std)[None]
        classes = np.flatnonzero(scene.labels)
        result = ssa(pixels, classes.tolist())
        yield CamFile(
            result.cams[0].numpy(),
            classes=classes,
            size=(pixels.shape[-2], pixels.shape[-1]),
            names=tuple(CLASSES[k] for k in classes),
            labels=(classes + 1).astype(np.uint8),
            logits=result.logits[0].numpy()[classes],
            align_corners=ssa.align_corners,
        )


def rows(name: str, cams: Sequence[CamFile]) -> list[dict[str, Any]]:
    """Return one row per layout: bytes per image, as they are and deflated, times smaller than IRN's, and changes."""
    found: list[dict[str, Any]] = []
    truths = [cam_files.full_size(cam) for cam in cams]
    for layout in LAYOUTS:
        stored = [_store(cam, truth, layout) for cam, truth in zip(cams, truths, strict=True)]
        sizes, deflated, errors, changed = np.array(stored).T
        reference = found[0]["bytes"] if found else sizes.mean()
        found.append(
            {
                "images": name,
                "count": len(cams),
                "classes_per_image": round(float(np.mean([len(cam.cams) for cam in cams])), 3),
                "picture": list(cams[0].size or ()),
                "strided": list(cams[0].cams.shape[1:]),
                "layout": layout,
                "bytes": round(float(sizes.mean()), 1),
                "bytes_deflated": round(float(deflated.mean()), 1),
                "times_smaller": round(float(reference / sizes.mean()), 2),
                "largest_error": float(f"{errors.max():.3g}"),
                "mask_pixels_changed": float(f"{changed.mean():.3g}"),
            }
        )
    return found


def _store(cam: CamFile, truth: np.ndarray, layout: str) -> tuple[int, int, float, float]:
    """Return a file's bytes, as it is and deflated, the largest error of what is read, and the share of mask pixels."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", cam_files.PickleWarning)
        path = Path(folder, "a" + cam_files.suffix(LAYOUTS[layout]["format"]))
        given = cam if "strided" in layout else replace(cam, cams=truth)
        cam_files.write_cam(path, given, allow_pickle=True, **LAYOUTS[layout])  # type: ignore[arg-type]
        content = path.read_bytes()
        again = cam_files.full_size(cam_files.read_cam(path, allow_pickle=True))
    before, after = (masks(torch.from_numpy(maps)) for maps in (truth, again))
    error = float(np.abs(again - truth).max())
    return len(content), len(zlib.compress(content)), error, float((before != after).float().mean())


def main(given: Sequence[str]) -> int:
    """Measure, print; with ``--save`` keep the figures and the machine as JSON."""
    options, found = parser_of("store", __doc__).parse_args(given), []
    for name in (DEMO, RESNET):
        of_set = rows(name, list(polished_cams(name)))
        sizes = "{} x {}, strided {} x {}".format(*of_set[0]["picture"], *of_set[0]["strided"])
        print(f"{name}: {IMAGES} images ({sizes}), {of_set[0]['classes_per_image']:.2f} classes each")
        for row in of_set:
            print(
                f"  {row['layout']:<44} {row['bytes'] / 1024:>8.1f} KiB {row['times_smaller']:>7.2f}x smaller   "
                f"deflated {row['bytes_deflated'] / 1024:>7.1f} KiB   error {row['largest_error']:<9g} "
                f"mask pixels changed {100 * row['mask_pixels_changed']:.3g} %"
            )
        found += of_set
    save(options, ["store", *given], found)
    return 0
