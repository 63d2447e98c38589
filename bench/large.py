"""``python -m bench large``: images far larger than memory would allow at once: time, memory, and what tiles change.

The image is a field of the demo's scenes, 128 pixels each, with one kind of animal in rings only, written window by
window into a tiled BigTIFF. Every size is measured in a process of its own, whose peak resident memory is the whole
process's, Python and PyTorch included. Affinities that keep pixels (L² time) are measured at small sizes only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from bench import measure
from bench.workers import die_with
from ssa_fast import SSA, Affinity
from ssa_fast.demo.scenes import CLASSES, SIZE, make_scenes
from ssa_fast.io.progress import paced
from ssa_fast.large import LargeImageSSA
from ssa_fast.large.pipeline import choose_methods
from ssa_fast.models.zoo import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ssa_fast.large.disk_map import FusedMap

SIZES = (4096, 8192, 16384)
WHOLE = 2048  # side at which the whole image still goes through the network
WHOLE_TILE = 544  # its borders do not fall on those of the scenes
BANK_SIDE = 1024  # largest side at which pixels are kept: at 2048 they take 16 times as long
MEMORY = "3GB"
SCENES, SEED = 240, 11
ANIMAL = 0  # of CLASSES: the one that lives in the rings
BLOCK = 1024
PREVIEW_WIDTH = 1560
GOALS = {"peak_gb": 3.0, "difference": 1e-3, "seam": 1.1, "growth": 1.1}


class Field:
    """A square image of ``side`` pixels, made window by window: scenes with the animal in rings, others elsewhere."""

    def __init__(self, side: int) -> None:
        self.side = side
        scenes = make_scenes(SCENES, SEED)
        self.inside = [scene.image for scene in scenes if scene.labels[ANIMAL]]
        self.outside = [scene.image for scene in scenes if not scene.labels[ANIMAL]]

    def block(self, y0: int, x0: int) -> np.ndarray:
        """``BLOCK`` × ``BLOCK`` pixels."""
        cells = range(0, BLOCK, SIZE)
        rows = [np.concatenate([self._cell((y0 + y) // SIZE, (x0 + x) // SIZE) for x in cells], axis=1) for y in cells]
        return np.concatenate(rows)

    def _cell(self, row: int, column: int) -> np.ndarray:
        middle = self.side / SIZE / 2
        distance = math.hypot(row + 0.5 - middle, column + 0.5 - middle) / middle
        kinds = self.inside if 0.25 < distance < 0.45 or 0.7 < distance < 0.85 else self.outside
        chosen: np.ndarray = kinds[np.random.default_rng((SEED, row, column)).integers(len(kinds))]
        return chosen

    def write(self, path: Path) -> None:
        """As a tiled BigTIFF."""
        import tifffile

        def blocks() -> Iterator[np.ndarray]:
            for y in range(0, self.side, BLOCK):
                for x in range(0, self.side, BLOCK):
                    yield self.block(y, x)

        tifffile.imwrite(
            path,
            blocks(),
            shape=(self.side, self.side, 3),
            dtype=np.uint8,
            tile=(BLOCK, BLOCK),
            photometric="rgb",
            compression="zlib",
            bigtiff=True,
        )


def network(name: str, affinity: str | None) -> tuple[SSA, list[int], Any, Any]:
    """SSA, the classes asked for, and the normalisation; ``affinity`` as ``Affinity.parse`` reads it, None by SSA."""
    given: dict[str, Any] = {} if affinity is None else {"affinity": Affinity.parse(affinity)}
    if name == "demo":
        from ssa_fast.demo.comparison import OPTIONS
        from ssa_fast.models.demo_net import load_classifier

        return SSA(load_classifier(), **OPTIONS, **given), [ANIMAL], (0.5,) * 3, (0.25,) * 3
    from torchvision import models

    torch.manual_seed(0)
    return SSA(models.get_model(name, weights=None).eval(), **given), [ANIMAL], IMAGENET_MEAN, IMAGENET_STD


def one(source: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Polish one image in this process; what that took."""
    ssa, classes, mean, std = network(options.model, options.affinity[0])
    begin = time.perf_counter()
    disk = options.disk if options.disk == "auto" else int(options.disk)
    polish_large = LargeImageSSA(ssa, memory=options.memory, tile=options.tile or "auto", disk=disk, mean=mean, std=std)
    names = CLASSES if options.model == "demo" else None
    result = polish_large(source, classes, out=folder / "field.tif", overwrite=True, names=names, progress=True)
    return {
        "model": options.model,
        "affinities": {name: str(affinity) for name, affinity in ssa.affinities.items()},
        "side": result.size[0],
        "seconds": time.perf_counter() - begin,
        "phases": result.seconds,
        "peak_gb": _peak_bytes() / 1e9,
        "memory": options.memory,
        "tile": result.tile,
        "halo": result.halo,
        "passes": result.passes,
        "methods": result.methods,
        "cached": result.cached,
        "exact": result.exact,
    }


def _peak_bytes() -> int:
    """This process's largest resident memory; ``getrusage`` would count the parent's, from which it was started."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def against_whole(folder: Path, model: str, affinity: str | None) -> dict[str, Any]:
    """Tiles against the whole image at ``WHOLE``², before CAMs become 8 bits; and the jumps at the borders."""
    from unittest.mock import patch

    from ssa_fast.io.readers import open_image
    from ssa_fast.large.export import write_outputs
    from ssa_fast.large.resample import Window

    field = Field(WHOLE)
    source = folder / "whole.tif"
    field.write(source)
    ssa, classes, mean, std = network(model, affinity)
    kept: list[np.ndarray] = []

    def keep(fused: FusedMap, *rest: Any, **options: Any) -> Any:
        kept.append(fused.cam(Window(0, WHOLE, 0, WHOLE)).numpy())
        return write_outputs(fused, *rest, **options)

    polish_large = LargeImageSSA(ssa, tile=WHOLE_TILE, mean=mean, std=std)
    with patch("ssa_fast.large.large_image.write_outputs", keep):
        result = polish_large(source, classes, out=folder / "w.tif", overwrite=True)
    with open_image(source, memory=1 << 30) as reader:
        rgb = torch.tensor(reader.read(0, WHOLE, 0, WHOLE)).permute(2, 0, 1)[None].float() / 255
    scale = [torch.tensor(list(values))[None, :, None, None] for values in (mean, std)]
    whole = ssa((rgb - scale[0]) / scale[1], classes).cams[0].numpy()
    return {
        "side": WHOLE,
        "model": model,
        "affinities": {name: str(each) for name, each in ssa.affinities.items()},
        "tile": result.tile,
        "halo": result.halo,
        "difference": float(np.abs(kept[0] - whole).max()),
        "seam": seam(kept[0], result.tile),
        "seam_of_whole": seam(whole, result.tile),
    }


def seam(cams: np.ndarray, tile: int) -> float:
    """Mean jump across the tiles' borders over the mean jump between all other neighbours, ``(K, H, W)``."""
    ratios = []
    for axis in (1, 2):
        jumps = np.abs(np.diff(cams, axis=axis)).mean(axis=(0, 3 - axis))
        borders = np.arange(tile, cams.shape[axis], tile) - 1
        ratios.append(jumps[borders].mean() / np.delete(jumps, borders).mean())
    return float(max(ratios))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench large", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="sides in pixels, multiples of 1024")
    parser.add_argument("--model", default="resnet18", help="of torchvision with random weights, or 'demo'")
    parser.add_argument("--affinity", nargs="+", default=[None], help="such as phi=relu phi=shifted; default SSA's own")
    parser.add_argument("--bank-up-to", type=int, default=BANK_SIDE, help="largest side with PixelBank (%(default)s)")
    parser.add_argument("--memory", default=MEMORY, help="what the process may take in all (%(default)s)")
    parser.add_argument("--tile", type=int, help="pixels of a tile's side; by the memory")
    parser.add_argument("--disk", default="auto", help="bytes for features on disk, or auto")
    parser.add_argument("--scratch", type=Path, help="folder for images and results; a temporary one")
    parser.add_argument("--preview", type=Path, help="keep the largest image's preview here")
    parser.add_argument("--save", type=Path, help="write the figures and the machine to a JSON file")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    return parser


def main(given: Sequence[str]) -> int:
    """Measure, print; with ``--save`` keep the figures. Exit code 1 where a goal is missed."""
    options = arguments().parse_args(given)
    with tempfile.TemporaryDirectory(dir=options.scratch) as made:
        folder = Path(made)
        if options.one:
            figures = one(options.one, folder, options)
            if options.preview:
                _keep_preview(folder / "field.preview.png", options.preview)
            print(json.dumps(figures))
            return 0
        rows = [row for affinity in options.affinity for row in _of_affinity(affinity, folder, options)]
    missed = False
    for verdict in (row for row in rows if "goals" in row):
        print("; ".join(sorted(set(verdict["affinities"].values()))))
        for name, goal in verdict["goals"].items():
            if verdict[name] is not None:
                missed |= verdict[name] > goal
                print(f"  {name}: {verdict[name]:.4g}, goal {goal:g}: {'missed' if verdict[name] > goal else 'met'}")
    print(measure.describe(measure.machine()))
    if options.save:
        measure.save(options.save, rows)
    return int(missed)


def _of_affinity(affinity: str | None, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of one affinity, its verdict last; with pixels kept, small sizes only and none against the whole."""
    linear = set(choose_methods(network(options.model, affinity)[0]).values()) == {"prototypes"}
    rows = [against_whole(folder, options.model, affinity)] if linear else []
    for row in rows:
        print(json.dumps(row), flush=True)
    sides = [side for side in sorted(options.sizes) if linear or side <= options.bank_up_to]
    costs = [float(side**2 if linear else side**4) for side in sides]
    for side in paced(sides, "large", costs=costs):
        rows.append(_measured(side, folder, affinity, options, last=side == max(options.sizes)))
        print(json.dumps(rows[-1]), flush=True)
    return [*rows, _verdict(rows, linear)] if rows else []


def _keep_preview(png: Path, kept: Path) -> None:
    """Small enough for a README, in the format that the name's suffix says."""
    with Image.open(png) as image:
        image.thumbnail((PREVIEW_WIDTH, PREVIEW_WIDTH))
        image.save(kept)


def _measured(
    side: int, folder: Path, affinity: str | None, options: argparse.Namespace, *, last: bool
) -> dict[str, Any]:
    source = folder / f"{side}.tif"
    Field(side).write(source)
    command = [sys.executable, "-m", "bench", "large", "--one", str(source), "--model", options.model]
    command += ["--memory", options.memory, "--disk", options.disk, "--scratch", str(folder)]
    command += ["--affinity", affinity] if affinity is not None else []
    command += ["--tile", str(options.tile)] if options.tile else []
    command += ["--preview", str(options.preview)] if options.preview and last else []
    end_with_this = partial(die_with, os.getpid())
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, cwd=measure.ROOT, check=True, preexec_fn=end_with_this
    )
    source.unlink()
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _verdict(rows: list[dict[str, Any]], linear: bool) -> dict[str, Any]:
    """The figures that goals are about: ``growth`` is the exponent of time against pixels, smallest to largest."""
    sized = [row for row in rows if "seconds" in row]
    growth = None
    if len(sized) > 1:
        small, large = sized[0], sized[-1]
        growth = math.log(large["seconds"] / small["seconds"]) / math.log((large["side"] / small["side"]) ** 2)
    return {
        "affinities": rows[0]["affinities"],
        "peak_gb": max((row["peak_gb"] for row in sized), default=None),
        "difference": rows[0]["difference"] if linear else None,
        "seam": rows[0]["seam"] / rows[0]["seam_of_whole"] if linear else None,  # the image itself may change there
        "growth": growth,
        "goals": GOALS if linear else {"peak_gb": GOALS["peak_gb"]},
    }
