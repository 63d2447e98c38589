"""Polish the CAMs of a dataset on a Ray cluster, or on this machine's cores.

Every node needs the package and sees the images under the same path. Install and run::

    pip install "ssa_fast[ray,photos]"
    python ray_dataset.py photos --actors 4 --out cams
"""

import argparse
from pathlib import Path

from ssa_fast.integrations.ray import polish_images

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("images", nargs="+", help="files, folders and globs")
parser.add_argument("--model", default="efficientnet_lite0")
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--actors", type=int, default=1, help="processes that hold the network")
parser.add_argument("--gpus", type=float, default=0, help="GPUs per process")
parser.add_argument("--out", type=Path, default=Path("cams"), help="folder of Parquet files")
given = parser.parse_args()

network = {"model": given.model, "size": given.size, "classes": "top2"}
dataset = polish_images(given.images, concurrency=given.actors, num_gpus=given.gpus, **network)
dataset.write_parquet(given.out.absolute().as_uri())  # path, cams, mask, classes, names, scores, boxes, error, …
print(f"written: {len(list(given.out.glob('*.parquet')))} Parquet files in {given.out}")
