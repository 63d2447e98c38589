"""Polish the CAM of an image that does not fit into memory: a slide, an orthophoto, a mosaic.

The network sees tiles; the result is the whole image's, not one per tile. Install and run::

    pip install "ssa_fast[large]"
    python slide.py slide.tif --model resnet18 --weights my-classes.pth --classes 3,7 --memory 3GB --out cams.tif
"""

import argparse
from pathlib import Path

from ssa_fast import SSA, LargeImageSSA
from ssa_fast.localize import PostprocessOptions
from ssa_fast.models import zoo

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("image", type=Path, help="TIFF, BigTIFF, zarr, .npy, or a slide that OpenSlide reads")
parser.add_argument("--model", default="resnet18")
parser.add_argument("--weights", default="DEFAULT")
parser.add_argument("--classes", default="predicted", help='names or indices; "predicted" takes one more pass')
parser.add_argument(
    "--threshold", type=float, default=0.5, help="score, from 0 to 1, above which a pixel is an object's"
)
parser.add_argument("--memory", default="4GB", help="what the process may take in all")
parser.add_argument("--tile", type=int, help="side of a tile in pixels; default: the largest that fits the memory")
parser.add_argument("--out", type=Path, default=Path("cams.tif"), help="a tiled TIFF, or .zarr")
given = parser.parse_args()

classifier = zoo.load(given.model, given.weights)
ssa = SSA(classifier.model, names=classifier.categories)
pixels = {"mean": classifier.mean, "std": classifier.std}
large = LargeImageSSA(ssa, memory=given.memory, tile=given.tile or "auto", **pixels)
several = PostprocessOptions(background=given.threshold, box_threshold=given.threshold, components="all")
classes = classifier.select(given.classes)
result = large(given.image, classes=classes, out=given.out, postprocess=several, progress=True)

print(f"{result.size[1]} x {result.size[0]} pixels, tiles of {result.tile} with {result.halo} around them")
for name, boxes in zip(result.names, result.boxes, strict=True):
    for x1, y1, x2, y2 in boxes.tolist():
        print(f"{name}: {x1:.0f}, {y1:.0f} to {x2:.0f}, {y2:.0f}")
print(f"written: {result.cams}, {result.mask}, {result.preview}; {'exact' if result.exact else 'approximate'}")
