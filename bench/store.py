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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from bench import measure
from ssa_fast import SSA
from ssa_fast.demo.comparison import OPTIONS
from ssa_fast.demo.scenes import CLASSES, Scene, make_scenes
from ssa_fast.io import cam_files
from ssa_fast.io.cam_files import CamFile
from ssa_fast.io.progress import paced
from ssa_fast.localize import masks
from ssa_fast.models.demo_net import load_classifier, preprocess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

IMAGES = 32
SEED = 2025
VOC = (375, 500)  # the commonest size in PASCAL VOC
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)


class Layout(NamedTuple):
    """How ``cam_files.write_cam`` is called; ``full``: the CAMs are brought to the picture's size before."""

    name: str
    format: str
    dtype: str = "float16"
    full: bool = False


REFERENCE = "IRN: float32 at full size, and at stride 4"
LAYOUTS = (
    Layout(REFERENCE, "irn"),
    Layout("PSA, SEAM: float32 at full size", "psa"),
    Layout("CLIP-ES: float16 at full size", "clip-es"),
    Layout("ssa: float16 at full size", "ssa", full=True),
    Layout("ssa: float16, strided", "ssa"),
    Layout("ssa: uint8, strided", "ssa", "uint8"),
)


def demo_cams(images: int) -> Iterator[CamFile]:
    """The demo's trained classifier on scenes of 256 × 256: its finest stage has stride 2, and edges are sharp."""
    ssa = SSA(load_classifier(), size="stage", **OPTIONS)
    for scene in make_scenes(images, SEED, 256):
        yield _polished(ssa, preprocess(scene.image[None]), scene)


def voc_cams(images: int) -> Iterator[CamFile]:
    """ResNet-18 with random weights on scenes enlarged to 375 × 500, with its finest stage at stride 4 as in IRN."""
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        ssa = SSA(resnet18(weights=None, num_classes=len(CLASSES)), size="stage")
    for scene in make_scenes(images, SEED, 256):
        picture = np.array(Image.fromarray(scene.image).resize(VOC[::-1], Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        yield _polished(ssa, (pixels - IMAGENET[0]) / IMAGENET[1], scene)


SETS: dict[str, Callable[[int], Iterator[CamFile]]] = {
    "demo classifier, 256 x 256": demo_cams,
    "resnet18 of random weights, 375 x 500": voc_cams,
}


def _polished(ssa: SSA, image: Tensor, scene: Scene) -> CamFile:
    """What ``ssa-fast run`` stores for the classes that are in the scene, as float32."""
    classes = np.flatnonzero(scene.labels)
    result = ssa(image, classes.tolist())
    return CamFile(
        result.cams[0].numpy(),
        classes=classes,
        size=(image.shape[-2], image.shape[-1]),
        names=tuple(CLASSES[k] for k in classes),
        labels=(classes + 1).astype(np.uint8),
        logits=result.logits[0].numpy()[classes],
        align_corners=ssa.align_corners,
    )


def _mask(cams: np.ndarray) -> np.ndarray:
    mask: np.ndarray = masks(torch.from_numpy(cams)[None])[0].numpy()
    return mask


def rows(name: str, cams: list[CamFile]) -> list[dict[str, Any]]:
    """One row per layout: bytes per image, as they are and deflated, times smaller than IRN's, and what changed."""
    found: list[dict[str, Any]] = []
    truths = [cam_files.full_size(cam) for cam in cams]
    for layout in LAYOUTS:
        sizes, deflated, errors, changed = zip(
            *(_stored(cam, truth, layout) for cam, truth in zip(cams, truths, strict=True)), strict=True
        )
        reference = found[0]["bytes"] if found else float(np.mean(sizes))
        found.append(
            {
                "images": name,
                "count": len(cams),
                "classes_per_image": round(float(np.mean([len(cam.cams) for cam in cams])), 3),
                "picture": list(cams[0].size or ()),
                "strided": list(cams[0].cams.shape[1:]),
                "layout": layout.name,
                "bytes": round(float(np.mean(sizes)), 1),
                "bytes_deflated": round(float(np.mean(deflated)), 1),
                "times_smaller": round(reference / float(np.mean(sizes)), 2),
                "largest_error": float(f"{max(errors):.3g}"),
                "mask_pixels_changed": float(f"{float(np.mean(changed)):.3g}"),
            }
        )
    return found


def _stored(cam: CamFile, truth: np.ndarray, layout: Layout) -> tuple[int, int, float, float]:
    """Bytes of the file, bytes of it deflated, largest error of what is read again, share of mask pixels changed."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", cam_files.PickleWarning)
        path = Path(folder, "a" + cam_files.suffix(layout.format))
        given = replace(cam, cams=truth) if layout.full else cam
        cam_files.write_cam(path, given, format=layout.format, dtype=layout.dtype, allow_pickle=True)
        content = path.read_bytes()
        again = cam_files.full_size(cam_files.read_cam(path, allow_pickle=True))
    error = float(np.abs(again - truth).max())
    return len(content), len(zlib.compress(content)), error, float((_mask(again) != _mask(truth)).mean())


def main(save: Path | None, images: int = IMAGES) -> int:
    """Measure, print; with ``save`` keep the figures and the machine as JSON."""
    found = []
    for name, make in SETS.items():
        found += rows(name, list(paced(make(images), name, costs=[1.0] * images)))
    for name in SETS:
        mine = [row for row in found if row["images"] == name]
        sizes = "{} x {}, strided {} x {}".format(*mine[0]["picture"], *mine[0]["strided"])
        print(f"{name}: {mine[0]['count']} images ({sizes}), {mine[0]['classes_per_image']:.2f} classes each")
        for row in mine:
            print(
                f"  {row['layout']:<44} {row['bytes'] / 1024:>8.1f} KiB {row['times_smaller']:>7.2f}x smaller   "
                f"deflated {row['bytes_deflated'] / 1024:>7.1f} KiB   error {row['largest_error']:<9g} "
                f"mask pixels changed {100 * row['mask_pixels_changed']:.3g} %"
            )
    print(measure.describe(measure.machine()))
    if save:
        measure.save(save, found)
    return 0
