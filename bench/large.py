"""``python -m bench large``: images far larger than memory would allow at once: time, memory, and what tiles change.

The image is a field of the demo's scenes, 128 pixels each, with one kind of animal in rings only, in a tiled BigTIFF.
The network has random weights, or is the demo's. Every size is measured in a process of its own, whose peak resident
memory is the whole process's, Python and PyTorch included. Affinities that keep pixels (L² time) are measured at small
sizes only.
"""

from __future__ import annotations

import json
import math
import resource
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import tifffile
from PIL import Image

from bench.command import parser_of, save
from bench.figures import table
from bench.workers import Workers, job
from ssa_fast import SSA, Affinity
from ssa_fast.demo.scenes import SIZE, make_scenes
from ssa_fast.io.atomic import write_files
from ssa_fast.io.progress import paced
from ssa_fast.large import LargeImageSSA
from ssa_fast.large.export import write_outputs
from ssa_fast.large.pipeline import choose_methods
from ssa_fast.large.resample import Window
from ssa_fast.models import zoo

Row = dict[str, Any]
SIZES = [4096, 8192, 16384]
WHOLE, WHOLE_TILE = 2048, 544  # what still goes through the network whole; tiles whose borders are not the scenes'
BANK_SIDE = 1024  # largest side at which pixels are kept: at 2048 they take 16 times as long
SCENES, SEED, ANIMAL = 240, 11, 0  # class of the animal that lives in the rings
PREVIEW_WIDTH = 1560
MEMORY = "3GB"  # what a process may take in all
GOALS = {"peak_gb": 3.0, "difference": 1e-3, "seam": 1.1, "growth": 1.1}  # at most


def write_field(path: Path, side: int) -> None:
    """Write a square image as a tiled BigTIFF: scenes with the animal in rings, other scenes elsewhere."""
    scenes, rng, cells = make_scenes(SCENES, SEED), np.random.default_rng(SEED), side // SIZE
    y, x = (np.indices((cells, cells)) + 0.5) / (cells / 2) - 1
    rings = np.digitize(np.hypot(y, x), (0.25, 0.45, 0.7, 0.85)) % 2 == 1
    has = np.array([scene.labels[ANIMAL] for scene in scenes])
    inside, outside = (rng.choice(np.flatnonzero(kind), rings.shape) for kind in (has, ~has))
    tiles = (scenes[index].image for index in np.where(rings, inside, outside).flat)
    shape: Any = {"shape": (side, side, 3), "dtype": np.uint8, "tile": (SIZE, SIZE)}
    tifffile.imwrite(path, tiles, **shape, photometric="rgb", compression="zlib", bigtiff=True)


def network(model: str, affinity: Any) -> tuple[zoo.Classifier, SSA]:
    """Return a classifier, trained if it is the demo's and else of random weights, and its SSA."""
    classifier = zoo.load(model, "DEFAULT" if model == "demo" else "none")
    return classifier, SSA(classifier.model, names=classifier.categories, affinity=affinity)


def polished(source: Path, classifier: zoo.Classifier, ssa: SSA, **options: Any) -> tuple[Any, Row]:
    """Polish an image in tiles; return the result, and what every row says of it."""
    polish_large = LargeImageSSA(ssa, mean=classifier.mean, std=classifier.std, **options)
    result = polish_large(source, [ANIMAL], out=source.with_name("field.tif"), overwrite=True)
    affinities = {name: str(each) for name, each in ssa.affinities.items()}
    row = {"model": classifier.name, "affinities": affinities, "side": result.size[0]}
    return result, row | {"tile": result.tile, "halo": result.halo}


def polish_field(_: object, source: Path, model: str, affinity: Any) -> list[Row]:
    """Polish one image in this process; return what that took."""
    result, row = polished(source, *network(model, affinity), memory=MEMORY)
    row |= {"seconds": result.seconds["all"], "phases": result.seconds, "memory": MEMORY}
    row["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return [row | {name: getattr(result, name) for name in ("passes", "methods", "cached", "exact")}]


def compare_with_whole(_: object, source: Path, model: str, affinity: Any, tile: int = WHOLE_TILE) -> list[Row]:
    """Compare tiles with the whole image, before CAMs become 8 bits; return differences and jumps at the borders."""
    classifier, ssa = network(model, affinity)
    whole = ssa(classifier.preprocess(tifffile.imread(source)), [ANIMAL]).cams[0].numpy()
    kept: list[np.ndarray] = []

    def keep(fused: Any, *rest: Any, **options: Any) -> Any:
        kept.append(fused.cam(Window(0, fused.size[0], 0, fused.size[1])).numpy())
        return write_outputs(fused, *rest, **options)

    with patch("ssa_fast.large.large_image.write_outputs", keep):
        _, row = polished(source, classifier, ssa, tile=tile)
    difference = float(np.abs(kept[0] - whole).max())
    return [row | {"difference": difference, "seam": seam(kept[0], tile), "seam_of_whole": seam(whole, tile)}]


def seam(cams: np.ndarray, tile: int) -> float:
    """Return the mean jump across the tiles' borders over that between all other neighbours, ``(K, H, W)``."""
    borders, ratios = np.s_[tile - 1 :: tile], []
    for each in (cams, cams.swapaxes(1, 2)):
        jumps = np.abs(np.diff(each, axis=1)).mean(axis=(0, 2))
        ratios.append(jumps[borders].mean() / np.delete(jumps, borders).mean())
    return float(max(ratios))


def rows(folder: Path, model: str, affinity: Any, sizes: list[int]) -> list[Row]:
    """Return the rows of one affinity; where it keeps pixels, of small sizes and none of the whole."""
    linear = set(choose_methods(network(model, affinity)[1]).values()) == {"prototypes"}
    tasks = [("polish_field", side) for side in sorted({side if linear else min(side, BANK_SIDE) for side in sizes})]
    tasks = [("compare_with_whole", WHOLE), *tasks] if linear else tasks
    arguments: dict[str, Any] = {"source": folder / "image.tif", "model": model, "affinity": affinity}
    found: list[Row] = []
    with Workers(fresh=True) as workers:
        for function, side in paced(tasks, "large", costs=[float(side**2) for _, side in tasks]):
            write_field(arguments["source"], side)
            found += workers.do(job(f"bench.large:{function}", f"large: {side}", 24 * 3600.0, **arguments))
            print(json.dumps(found[-1]), flush=True)
    return found


def verdict(found: list[Row]) -> dict[str, float]:
    """Return the figures that have goals; ``growth`` is the exponent of time against pixels, least to most."""
    sized, whole = [row for row in found if "seconds" in row], [row for row in found if "seam" in row]
    figures = {"peak_gb": max(row["peak_gb"] for row in sized)} if sized else {}
    for row in whole:  # one, or none; the image itself may change at the tiles' borders
        figures |= {"difference": row["difference"], "seam": row["seam"] / row["seam_of_whole"]}
    if whole and len(sized) > 1:
        longer, wider = (math.log(sized[-1][key] / sized[0][key]) for key in ("seconds", "side"))
        figures["growth"] = longer / (2 * wider)
    return figures


def main(given: list[str]) -> int:
    """Measure, print; with ``--save`` keep the figures. Return 1 where a goal is missed or a process gave none."""
    parser = parser_of("large", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help=f"sides in pixels, multiples of {SIZE}")
    parser.add_argument("--model", choices=["demo", *zoo.known_models()], default="resnet18", metavar="NAME")
    parser.add_argument("--affinity", type=Affinity.parse, nargs="+", default=["auto"], help="such as phi=shifted")
    parser.add_argument("--preview", type=Path, help="keep the largest image's preview here")
    options = parser.parse_args(given)
    if any(side < SIZE or side % SIZE for side in options.sizes):
        parser.error(f"--sizes: expected multiples of {SIZE}, got {', '.join(map(str, options.sizes))}")
    found, judged, failed = [], [], False
    with tempfile.TemporaryDirectory() as folder:
        for affinity in options.affinity:
            measured = rows(Path(folder), options.model, affinity, options.sizes)
            figures = verdict(measured)
            found += [*measured, {"affinity": str(affinity), **figures, "goals": GOALS}]
            judged += [[str(affinity), name, f"{value:.4g}", f"{GOALS[name]:g}"] for name, value in figures.items()]
            failed |= any("status" in row for row in measured)
            failed |= any(value > GOALS[name] for name, value in figures.items())
        print(*table(["affinity", "figure", "measured", "at most"], judged, aligned=True), sep="\n")
        save(options, ["large", *given], found)
        if options.preview and "status" not in measured[-1]:
            with Image.open(Path(folder, "field.preview.png")) as image:  # of the last image, the largest
                image.thumbnail((PREVIEW_WIDTH, PREVIEW_WIDTH))
                write_files({options.preview: image.save}, overwrite=True)
    return int(failed)
