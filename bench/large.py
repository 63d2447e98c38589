"""``python -m bench large``: images far larger than memory would allow at once: time, memory, and what tiles change.

The image is a field of the demo's scenes, 128 pixels each, with one kind of animal in rings only, written window by
window into a tiled BigTIFF. Every size is measured in a process of its own, whose peak resident memory is the whole
process's, Python and PyTorch included. Affinities that keep pixels (L² time) are measured at small sizes only.
"""

from __future__ import annotations

import json
import math
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from bench.command import parser_of, save
from bench.workers import Workers, job
from ssa_fast import SSA, Affinity
from ssa_fast.demo.comparison import OPTIONS
from ssa_fast.demo.scenes import CLASSES, SIZE, make_scenes
from ssa_fast.io.progress import paced
from ssa_fast.io.readers import open_image
from ssa_fast.large import LargeImageSSA
from ssa_fast.large.export import write_outputs
from ssa_fast.large.pipeline import choose_methods
from ssa_fast.large.resample import Window
from ssa_fast.models.demo_net import load_classifier
from ssa_fast.models.zoo import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.measure import Device

SIZES = (4096, 8192, 16384)
WHOLE = 2048  # side at which the whole image still goes through the network
WHOLE_TILE = 544  # its borders do not fall on those of the scenes
BANK_SIDE = 1024  # largest side at which pixels are kept: at 2048 they take 16 times as long
SCENES, SEED = 240, 11
ANIMAL = 0  # of CLASSES: the one that lives in the rings
BLOCK = 1024
PREVIEW_WIDTH = 1560
LIMIT_S = 24 * 3600.0
MEMORY = "3GB"  # what a process may take in all
GOALS = {"peak_gb": 3.0, "difference": 1e-3, "seam": 1.1, "growth": 1.1}


def write_field(path: Path, side: int) -> None:
    """Write a square image as a tiled BigTIFF: scenes with the animal in rings, other scenes elsewhere."""
    import tifffile

    scenes = make_scenes(SCENES, SEED)
    inside, outside = ([scene.image for scene in scenes if bool(scene.labels[ANIMAL]) == has] for has in (True, False))

    def cell(row: int, column: int) -> np.ndarray:
        middle = side / SIZE / 2
        distance = math.hypot(row + 0.5 - middle, column + 0.5 - middle) / middle
        kinds = inside if 0.25 < distance < 0.45 or 0.7 < distance < 0.85 else outside
        return kinds[np.random.default_rng((SEED, row, column)).integers(len(kinds))]

    def blocks() -> Iterator[np.ndarray]:
        for y in range(0, side, BLOCK):
            for x in range(0, side, BLOCK):
                rows, columns = (range(at // SIZE, (at + BLOCK) // SIZE) for at in (y, x))
                yield np.block([[[cell(row, column)] for column in columns] for row in rows])

    how: dict[str, Any] = {"tile": (BLOCK, BLOCK), "photometric": "rgb", "compression": "zlib", "bigtiff": True}
    tifffile.imwrite(path, blocks(), shape=(side, side, 3), dtype=np.uint8, **how)


def network(name: str, affinity: str | None) -> tuple[SSA, dict[str, Any]]:
    """Return SSA and the normalisation; ``affinity`` as ``Affinity.parse`` reads it, None for SSA's own."""
    given: dict[str, Any] = {} if affinity is None else {"affinity": Affinity.parse(affinity)}
    if name == "demo":
        return SSA(load_classifier(), **OPTIONS, **given), {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    from torchvision import models

    torch.manual_seed(0)
    return SSA(models.get_model(name, weights=None).eval(), **given), {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def polish_field(
    device: Device, source: Path, model: str, affinity: str | None, preview: Path | None
) -> list[dict[str, Any]]:
    """Polish one image in this process; return what that took."""
    ssa, normalisation = network(model, affinity)
    begin = time.perf_counter()
    names = CLASSES if model == "demo" else None
    polish_large = LargeImageSSA(ssa, **normalisation, memory=MEMORY)
    result = polish_large(source, [ANIMAL], out=source.with_name("field.tif"), overwrite=True, names=names)
    row = {
        "model": model,
        "affinities": {name: str(each) for name, each in ssa.affinities.items()},
        "side": result.size[0],
        "seconds": time.perf_counter() - begin,
        "phases": result.seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "memory": MEMORY,
    }
    if preview:  # small enough for a page, in the format that the name's suffix says
        with Image.open(source.with_name("field.preview.png")) as image:
            image.thumbnail((PREVIEW_WIDTH, PREVIEW_WIDTH))
            image.save(preview)
    return [row | {name: getattr(result, name) for name in ("tile", "halo", "passes", "methods", "cached", "exact")}]


def compare_with_whole(
    device: Device, source: Path, model: str, affinity: str | None, side: int = WHOLE, tile: int = WHOLE_TILE
) -> list[dict[str, Any]]:
    """Compare tiles with the whole image, before CAMs become 8 bits; return differences and jumps at the borders."""
    ssa, normalisation = network(model, affinity)
    kept: list[np.ndarray] = []

    def keep(fused: Any, *rest: Any, **options: Any) -> Any:
        kept.append(fused.cam(Window(0, side, 0, side)).numpy())
        return write_outputs(fused, *rest, **options)

    with patch("ssa_fast.large.large_image.write_outputs", keep):
        polish_large = LargeImageSSA(ssa, tile=tile, **normalisation)
        result = polish_large(source, [ANIMAL], out=source.with_name("whole-out.tif"), overwrite=True)
    with open_image(source, memory=1 << 30) as reader:
        rgb = torch.tensor(reader.read(0, side, 0, side)).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(normalisation[name]).view(3, 1, 1) for name in ("mean", "std"))
    whole = ssa((rgb - mean) / std, [ANIMAL]).cams[0].numpy()
    row = {
        "side": side,
        "model": model,
        "affinities": {name: str(each) for name, each in ssa.affinities.items()},
        "tile": result.tile,
        "halo": result.halo,
        "difference": float(np.abs(kept[0] - whole).max()),
        "seam": seam(kept[0], result.tile),
        "seam_of_whole": seam(whole, result.tile),
    }
    return [row]


def seam(cams: np.ndarray, tile: int) -> float:
    """Return the mean jump across the tiles' borders over that between all other neighbours, ``(K, H, W)``."""
    ratios = []
    for axis in (1, 2):
        jumps = np.abs(np.diff(cams, axis=axis)).mean(axis=(0, 3 - axis))
        borders = np.arange(tile, cams.shape[axis], tile) - 1
        ratios.append(jumps[borders].mean() / np.delete(jumps, borders).mean())
    return float(max(ratios))


def rows(
    affinity: str | None, folder: Path, model: str, sizes: Sequence[int], preview: Path | None
) -> list[dict[str, Any]]:
    """Return all rows of one affinity, its verdict last; with pixels kept, of small sizes and none of the whole."""
    linear = set(choose_methods(network(model, affinity)[0]).values()) == {"prototypes"}
    given = {"source": folder / "image.tif", "model": model, "affinity": affinity}
    found: list[dict[str, Any]] = []
    with Workers(fresh=True) as workers:

        def run(function: str, what: Any, side: int, **more: Any) -> None:
            write_field(folder / "image.tif", side)
            found.extend(workers.do(job(f"bench.large:{function}", f"large: {what}", LIMIT_S, **given, **more)))
            print(json.dumps(found[-1]), flush=True)

        if linear:
            run("compare_with_whole", "whole", WHOLE)
        sides = [side for side in sorted(sizes) if linear or side <= BANK_SIDE]
        for side in paced(sides, "large", costs=[float(side**2 if linear else side**4) for side in sides]):
            run("polish_field", side, side, preview=preview if side == max(sizes) else None)
    return [*found, verdict(found)] if found else []


def verdict(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures that goals are about; ``growth`` is the exponent of time against pixels, least to most.

    Raises:
        RuntimeError: A process returned no figures.
    """
    for row in found:
        if "status" in row:
            raise RuntimeError(f"{row['what']}: {row['status']}, {row['why']}")
    sized, whole = [row for row in found if "seconds" in row], next((row for row in found if "seam" in row), None)
    growth = None
    if len(sized) > 1:
        small, large = sized[0], sized[-1]
        growth = math.log(large["seconds"] / small["seconds"]) / math.log((large["side"] / small["side"]) ** 2)
    return {
        "affinities": found[0]["affinities"],
        "peak_gb": max((row["peak_gb"] for row in sized), default=None),
        "difference": whole and whole["difference"],
        "seam": whole and whole["seam"] / whole["seam_of_whole"],  # the image itself may change there
        "growth": growth,
        "goals": GOALS if whole else {"peak_gb": GOALS["peak_gb"]},
    }


def main(given: Sequence[str]) -> int:
    """Measure, print; with ``--save`` keep the figures. Return 1 where a goal is missed."""
    parser = parser_of("large", __doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="sides in pixels, multiples of 1024")
    parser.add_argument("--model", default="resnet18", help="of torchvision with random weights, or 'demo'")
    parser.add_argument("--affinity", nargs="+", default=[None], help="such as phi=relu phi=shifted; default SSA's own")
    parser.add_argument("--preview", type=Path, help="keep the largest image's preview here")
    options = parser.parse_args(given)
    preview, found = options.preview and options.preview.absolute(), []
    for affinity in options.affinity:
        with tempfile.TemporaryDirectory() as folder:
            found += rows(affinity, Path(folder), options.model, options.sizes, preview)
    missed = False
    for row in (row for row in found if "goals" in row):
        print("; ".join(sorted(set(row["affinities"].values()))))
        for name, goal in row["goals"].items():
            if row[name] is not None:
                missed |= row[name] > goal
                print(f"  {name}: {row[name]:.4g}, goal {goal:g}: {'missed' if row[name] > goal else 'met'}")
    save(options, ["large", *given], found)
    return int(missed)
