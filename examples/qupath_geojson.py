"""Write the regions of a large image's mask as polygons for QuPath, which opens the GeoJSON over the slide.

The mask is that of ``slide.py`` or ``ssa-fast run``. In QuPath open the slide, then drop the file onto it, or choose
File > Import objects from file. Install and run::

    pip install "ssa_fast[large]" rasterio
    python qupath_geojson.py cams.mask.tif --out regions.geojson
"""

import argparse
import json
from pathlib import Path

import numpy as np
import tifffile
from rasterio.features import shapes, sieve
from rasterio.transform import Affine

from ssa_fast.io.atomic import atomic_write
from ssa_fast.io.ome import read_metadata
from ssa_fast.localize.masks import voc_palette

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("mask", type=Path, help="the mask's TIFF")
parser.add_argument("--side", type=int, default=4096, help="trace the finest level whose sides are at most this")
parser.add_argument("--least", type=int, default=16, help="pixels of that level below which a region is left out")
parser.add_argument("--out", type=Path, default=Path("regions.geojson"))
given = parser.parse_args()

with tifffile.TiffFile(given.mask) as file:
    page = file.pages.first
    levels = [page, *(page.pages or ())]
    level = next((each for each in levels if max(each.shape) <= given.side), levels[-1])
    labels = level.asarray()
    about = read_metadata(page.description)
height, width = page.shape
names = dict(zip(about.get("labels", []), about.get("names", []), strict=True))  # value in the mask -> class
colors = np.array(voc_palette()).reshape(-1, 3)

labels = sieve(labels, given.least)
to_pixels = Affine.scale(width / labels.shape[1], height / labels.shape[0])  # of the whole slide
features = []
for geometry, value in shapes(labels, mask=(labels > 0) & (labels < 255), transform=to_pixels):
    name = names.get(int(value), f"class {value:.0f}")
    classification = {"name": name, "color": colors[int(value)].tolist()}
    properties = {"objectType": "annotation", "classification": classification}
    features.append({"type": "Feature", "geometry": geometry, "properties": properties})
atomic_write(given.out, json.dumps({"type": "FeatureCollection", "features": features}))
print(f"{len(features)} regions in {given.out}, traced at {labels.shape[1]} x {labels.shape[0]} of {width} x {height}")
