"""The demo's pictures: seed against polished CAM, with the pseudo-mask and the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ssa_fast.localize.panels import heat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ssa_fast.demo.scenes import Scene

CELL, GAP, TITLE = 208, 8, 32
PAPER, INK = (255, 255, 255), (36, 41, 47)
MASK_SHARE = 0.75

# Background, then a colour per class that stays bright on a dark ground, which VOC's do not.
COLOURS = np.array(
    [(24, 26, 32), (255, 112, 67), (102, 187, 106), (255, 202, 40), (66, 165, 245), (236, 64, 122), (38, 208, 206)],
    dtype=np.uint8,
)


class Shown(NamedTuple):
    """One kind of CAM of one scene: ``cam`` (K, H, W) in [0, 1] of the classes present, ``mask`` (H, W) class ids."""

    cam: NDArray[np.float32]
    mask: NDArray[np.uint8]


def sheet(scenes: Sequence[Scene], seeds: Sequence[Shown], polished: Sequence[Shown]) -> Image.Image:
    """One picture, a row per scene: the image, the seed CAM and its mask, the polished CAM and its mask, the truth.

    Of several classes' CAMs the largest is shown at each pixel.
    """
    columns = ("image", "seed CAM", "its mask", "polished CAM", "its mask", "truth")
    step = CELL + GAP
    page = Image.new("RGB", (GAP + len(columns) * step, TITLE + len(scenes) * step), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(17)
    for column, title in enumerate(columns):
        pen.text((GAP + column * step + CELL / 2, TITLE / 2), title, fill=INK, font=font, anchor="mm")
    for row, (scene, seed, ours) in enumerate(zip(scenes, seeds, polished, strict=True)):
        picture = Image.fromarray(scene.image).resize((CELL, CELL), Image.Resampling.LANCZOS)
        cells = [picture]
        for cam, mask in (seed, ours):
            cells += [heat(picture, torch.from_numpy(cam.max(0))), _painted(picture, mask)]
        for column, cell in enumerate([*cells, _painted(picture, scene.mask)]):
            page.paste(cell, (GAP + column * step, TITLE + row * step))
    return page


def _painted(picture: Image.Image, mask: NDArray[np.uint8]) -> Image.Image:
    """The picture with each class in its colour and the background dark."""
    layer = Image.fromarray(COLOURS[mask]).resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture, layer, MASK_SHARE)
