"""``python -m bench throughput``: images per second of ``ssa-fast run`` against the backbone alone on the same files.

Both read the same JPEGs by the same processes and preprocess them alike; the backbone alone stops at its logits, the
run polishes, fuses and writes CAMs, masks and records (no overlays), with one class per image and with five. Rounds
are interleaved; a ratio is the median over rounds.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.command import parser_of, save
from bench.figures import number, table
from bench.measure import Device
from ssa_fast import SSA, runs
from ssa_fast.demo.scenes import make_scenes
from ssa_fast.io import datasets
from ssa_fast.io.progress import paced
from ssa_fast.models import zoo
from ssa_fast.runs import loader

PICTURES, SHAPE, SEED = 32, (375, 500), 5
CLASSES = ("predicted", "top5")
GOAL = 0.9


def write_pictures(folder: Path, count: int) -> None:
    """Write JPEGs of VOC's commonest size: generated scenes, enlarged."""
    for index, scene in enumerate(make_scenes(count, SEED, 256)):
        image = Image.fromarray(scene.image).resize(SHAPE[::-1], Image.Resampling.BICUBIC)
        image.save(folder / f"{index:05d}.jpg", quality=90)


@torch.inference_mode()
def run_backbone(folder: Path, classifier: zoo.Classifier) -> None:
    """Read all files and take each through the network."""
    found = datasets.find_images([folder]).sources
    for loaded in loader.load(found, range(len(found)), runs.RunOptions(), torch.device("cpu")):
        assert loaded.image is not None
        classifier.model(classifier.preprocess(loaded.image.rgb, None))


def run_polished(folder: Path, classifier: zoo.Classifier, ssa: SSA, classes: str) -> None:
    """Do a whole run over the files."""
    options = runs.RunOptions(classes=classes, overlays=False)
    with tempfile.TemporaryDirectory() as out:
        report = runs.run([folder], ssa, out, classifier=classifier, options=options)
    assert report.exit_code == 0, report.failures


def rows(model: str = "resnet50", count: int = PICTURES, rounds: int = 5) -> list[dict[str, Any]]:
    """Return one row per number of classes: medians over rounds in which each run and the backbone alone take part."""
    classifier, cpu = zoo.load(model, "none"), Device()
    ssa = SSA(classifier.model, size="stage")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_pictures(folder, count)
        calls = [partial(run_backbone, folder, classifier)]
        calls += [partial(run_polished, folder, classifier, ssa, classes) for classes in CLASSES]
        turns = paced(range(1 + rounds), "throughput", costs=[1.0] * (1 + rounds))
        times = np.array([[cpu.seconds(call) for call in calls] for _ in turns])[1:]  # the first warms up
    alone, *whole = times.T
    return [
        {
            "model": model,
            "pictures": count,
            "shape": SHAPE,
            "classes": classes,
            "backbone_images_per_s": count / np.median(alone),
            "run_images_per_s": count / np.median(seconds),
            "ratio": np.median(alone / seconds),
            "ratios": sorted(alone / seconds),
            "goal": GOAL,
        }
        for classes, seconds in zip(CLASSES, whole, strict=True)
    ]


def main(given: list[str]) -> int:
    """Measure, print; with ``--save`` keep the figures. Return 1 where a goal is missed."""
    options, found = parser_of("throughput", __doc__).parse_args(given), rows()
    shown = ("backbone_images_per_s", "run_images_per_s", "ratio", "goal")
    cells = [[row["classes"], *(number(row[name]) for name in shown)] for row in found]
    print(*table(["classes", *shown], cells, aligned=True), sep="\n")
    save(options, ["throughput", *given], found)
    return int(any(row["ratio"] < GOAL for row in found))
