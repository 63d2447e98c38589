"""The demo's pictures: seed against polished CAM, with the pseudo-mask and the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ssa_fast.localize.overlay import heat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ssa_fast.demo.scenes import Scene

CELL, GAP, TITLE = 232, 8, 34
PAPER, INK = (255, 255, 255), (36, 41, 47)
MASK_SHARE = 0.75

# Background, then a colour per class that stays bright on a dark ground, which VOC's do not.
COLOURS = np.array(
    [(24, 26, 32), (255, 112, 67), (102, 187, 106), (255, 202, 40), (66, 165, 245), (236, 64, 122), (38, 208, 206)],
    dtype=np.uint8,
)


def sheet(
    scenes: Sequence[Scene],
    seeds: Sequence[NDArray[np.float32]],
    polished: Sequence[NDArray[np.float32]],
    masks: Sequence[NDArray[np.uint8]],
) -> Image.Image:
    """One picture, a row per scene: the image, the seed CAM, the polished CAM, the pseudo-mask and the truth.

    CAMs are ``(K, H, W)`` in [0, 1] of the classes present, shown by their largest; masks are ``(H, W)`` class ids.
    """
    columns = ("image", "seed CAM", "polished CAM", "pseudo-mask", "truth")
    step = CELL + GAP
    page = Image.new("RGB", (GAP + len(columns) * step, TITLE + len(scenes) * step), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(18)
    for column, title in enumerate(columns):
        pen.text((GAP + column * step + CELL / 2, TITLE / 2), title, fill=INK, font=font, anchor="mm")
    for row, (scene, seed, cam, mask) in enumerate(zip(scenes, seeds, polished, masks, strict=True)):
        picture = Image.fromarray(scene.image).resize((CELL, CELL), Image.Resampling.LANCZOS)
        cells = (
            picture,
            heat(picture, torch.from_numpy(seed.max(0))),
            heat(picture, torch.from_numpy(cam.max(0))),
            _painted(picture, mask),
            _painted(picture, scene.mask),
        )
        for column, cell in enumerate(cells):
            page.paste(cell, (GAP + column * step, TITLE + row * step))
    return page


def _painted(picture: Image.Image, mask: NDArray[np.uint8]) -> Image.Image:
    """The picture with each class in its colour and the background dark."""
    layer = Image.fromarray(COLOURS[mask]).resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture, layer, MASK_SHARE)
