"""``python -m bench throughput``: images per second of ``ssa-fast run`` against the backbone alone on the same files.

Both read the same JPEGs by the same reading processes and prepare them alike; the backbone alone stops at its logits,
the run polishes, fuses and writes CAMs, masks and records (no overlays). Rounds are interleaved; the ratio is the
median over rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from bench import measure
from ssa_fast import SSA, runs
from ssa_fast.demo.scenes import make_scenes
from ssa_fast.io import datasets
from ssa_fast.io.progress import Pace
from ssa_fast.models import zoo
from ssa_fast.runs import loader

if TYPE_CHECKING:
    from collections.abc import Sequence

PICTURES, SHAPE, SEED = 48, (375, 500), 5
GOAL = 0.9


def pictures(folder: Path, count: int) -> None:
    """JPEGs of VOC's commonest size: generated scenes, enlarged."""
    for index, scene in enumerate(make_scenes(count, SEED, 256)):
        image = Image.fromarray(scene.image).resize(SHAPE[::-1], Image.Resampling.BICUBIC)
        image.save(folder / f"{index:05d}.jpg", quality=90)


def backbone_alone(folder: Path, classifier: zoo.Classifier, options: runs.RunOptions) -> float:
    """Seconds to read all files and take each through the network."""
    begin = time.perf_counter()
    found = datasets.find_images([folder]).sources
    with torch.inference_mode():
        for loaded in loader.load(found, range(len(found)), options, torch.device("cpu")):
            assert loaded.image is not None
            classifier.model(classifier.preprocess(loaded.image.rgb, options.size))
    return time.perf_counter() - begin


def polished(folder: Path, classifier: zoo.Classifier, ssa: SSA, options: runs.RunOptions) -> float:
    """Seconds for a whole run over the files."""
    with tempfile.TemporaryDirectory() as out:
        begin = time.perf_counter()
        report = runs.run([folder], ssa, out, classifier=classifier, options=options)
        assert report.exit_code == 0, report.failures
        return time.perf_counter() - begin


def rows(model: str, count: int, rounds: int) -> list[dict[str, Any]]:
    """One row per setting: medians over interleaved rounds."""
    classifier = zoo.load(model, "none")
    ssa = SSA(classifier.model, size="stage")
    found = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        pictures(folder, count)
        kinds = ("predicted", "top5")
        alone = backbone_alone(folder, classifier, runs.RunOptions())
        pace = Pace("throughput", len(kinds) * (rounds + 1) * (1 + 1 / GOAL) * alone)  # if the goal is just met
        for at, classes in enumerate(kinds):
            options = runs.RunOptions(classes=classes, overlays=False)
            pairs = []
            for index in range(rounds + 1):
                pace.update(at * (rounds + 1) + index, len(kinds) * (rounds + 1))
                alone = backbone_alone(folder, classifier, options)
                whole = polished(folder, classifier, ssa, options)
                if index:  # the first warms up
                    pairs.append((alone, whole))
            alone_, whole_ = np.median(pairs, axis=0)
            ratios = sorted(alone / whole for alone, whole in pairs)
            found.append(
                {
                    "model": model,
                    "pictures": count,
                    "shape": SHAPE,
                    "classes": classes,
                    "backbone_images_per_s": count / alone_,
                    "run_images_per_s": count / whole_,
                    "ratio": float(np.median(ratios)),
                    "ratios": ratios,
                    "goal": GOAL,
                }
            )
    return found


def main(given: Sequence[str]) -> int:
    """Measure, print; with ``--save`` keep the figures. Exit code 1 where the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench throughput", description=__doc__)
    parser.add_argument("--model", default="resnet50", help="of torchvision, with random weights (%(default)s)")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", type=Path, help="write the figures and the machine to a JSON file")
    options = parser.parse_args(given)
    found = rows(options.model, options.pictures, options.rounds)
    for row in found:
        print(
            f"{row['model']}, {row['classes']}: backbone alone {row['backbone_images_per_s']:.2f} images/s, run "
            f"{row['run_images_per_s']:.2f}: {row['ratio']:.3f} (goal {GOAL}), rounds {row['ratios'][0]:.3f} to "
            f"{row['ratios'][-1]:.3f}"
        )
    print(measure.describe(measure.machine()))
    if options.save:
        measure.save(options.save, found)
    return int(found[0]["ratio"] < GOAL)
