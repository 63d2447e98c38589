"""Count the compiled variants of each kernel that a folder of images of many sizes needs.

A variant is a distinct specialization, as Triton compiles it: constants, types, and which integers are 1 or divisible
by 16. They are counted for one stage of the network in one layout with one choice of tiles, so that what remains comes
from the images' sizes alone.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict

from bench import aot_compile as aot
from bench import aot_stages
from bench.aot_stages import RELU, UNKNOWN, Case
from bench.aot_targets import TARGETS
from ssa_fast.ops import tile_tables

IMAGES, SMALLEST, LARGEST = 200, 200, 600
METHODS = (("prototypes", RELU), ("prototypes", UNKNOWN), ("tiled", RELU), ("resident", RELU))


def count(target: str = "sm_90", network: str = "resnet50", seed: int = 0) -> dict[str, dict[str, list[str]]]:
    """Return the distinct specializations by kernel, then by stage, layout, form and tiles."""
    aot.activate(TARGETS[target].gpu)
    path = aot.find_tables(target)[0]
    table = tile_tables.entries(tile_tables.read(path), path)
    draw = random.Random(seed)
    sizes = [(draw.randint(SMALLEST, LARGEST), draw.randint(SMALLEST, LARGEST)) for _ in range(IMAGES)]
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for C, side, _ in aot_stages.networks()[network]:
        shapes = {(-(-height * side // 224), -(-width * side // 224)) for height, width in sizes}
        for H, W in sorted(shapes):
            for last in (False, True):
                for method, form in METHODS:
                    for case in aot_stages.taken(Case(method, form, C, H, W, channels_last=last)):
                        layout, tiles = "nhwc" if last else "nchw", aot_stages.find_tiles(case, table)
                        group = f"{method} {form} C={C} {layout} {' '.join(map(str, tiles.values()))}"
                        for launch in aot.record(aot_stages.call(case, table, TARGETS[target].num_sms)).launches:
                            found[launch.key[0]][group].add(" ".join(launch.key))
    return {kernel: {group: sorted(keys) for group, keys in groups.items()} for kernel, groups in found.items()}


if __name__ == "__main__":
    json.dump(count(), sys.stdout, indent=1)
