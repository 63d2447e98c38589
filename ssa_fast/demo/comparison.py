"""Compare seed and polished CAMs on scenes used neither for training nor for choosing thresholds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ssa_fast import SSA
from ssa_fast.demo.scenes import CLASSES, Scene, make_scenes
from ssa_fast.demo.timing import check_new, check_threads, measure_added, torch_threads
from ssa_fast.evaluate import average_precision, box_accuracy, max_box_acc, threshold_sweep
from ssa_fast.io.atomic import write_files
from ssa_fast.localize import PostprocessOptions, drawing, overlay
from ssa_fast.models.demo_net import load_classifier, preprocess
from ssa_fast.ops.resize import minmax, resize

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

VALIDATION_SEED, VALIDATION_SCENES = 3, 100
BATCH = 20
PANEL_ROWS = SINGLE_PANELS = 4
ALL_CLASSES = list(range(len(CLASSES)))
THRESHOLDS = [step / 25 for step in range(25)]  # of the boxes
MASK_OPACITY = 0.75

# Chosen on validation scenes, where double weight of the finest stage gains and seed="layercam" loses; the report tells
# what the weight gains over the default on other scenes.
OPTIONS: Mapping[str, Any] = {"weights": {"layer1": 2.0, "layer2": 1.0, "layer3": 1.0, "layer4": 1.0}}

# Background, then a colour per class that stays bright on a dark ground, unlike VOC's.
COLOURS = np.array(
    [(24, 26, 32), (255, 112, 67), (102, 187, 106), (255, 202, 40), (66, 165, 245), (236, 64, 122), (38, 208, 206)],
    dtype=np.uint8,
)

Cams = list["NDArray[np.float32]"]


@dataclass(frozen=True)
class Score:
    """Quality of one kind of CAM on the reported scenes, at thresholds chosen on the validation scenes.

    Attributes:
        miou: Mean IoU of the pseudo-masks over background and classes, in [0, 1].
        box: Fraction of (image, class) pairs whose largest component's box has IoU ≥ 0.5 with the truth.
        background, box_threshold: Background score of the pseudo-masks, and threshold of the boxes.
    """

    miou: float
    box: float
    background: float
    box_threshold: float


@dataclass(frozen=True)
class DemoReport:
    """Results of the demo.

    Attributes:
        images, seed: Number of reported scenes, and the seed of their generator.
        validation_images, validation_seed: The same of the validation scenes.
        scores: By kind of CAM: ``"seed"`` (the classifier's own CAM), ``"polished"`` (SSA with the demo's options),
            ``"refined"`` (the same along the image's edges, ``localize.refine``), ``"default"`` (``SSA(model)`` without
            options), and per stage name that stage alone, which is PCM.
        average_precision: Of the classifier, mean over classes on the reported scenes, in [0, 1].
        backbone_ms, polish_ms: The classifier's forward pass, and what SSA adds to it, in milliseconds per image.
        threads: CPU threads of torch.
        panels: The images written, ``panel.png`` first.
        seconds: Wall time of the whole demo.
    """

    images: int
    seed: int
    validation_images: int
    validation_seed: int
    scores: dict[str, Score]
    average_precision: float
    backbone_ms: float
    polish_ms: float
    threads: int
    panels: list[Path]
    seconds: float


def run(
    out: Path, *, images: int = 200, seed: int = 2024, threads: int | None = None, overwrite: bool = False
) -> DemoReport:
    """Measure seed and polished CAMs of the shipped classifier on new scenes; write panels to ``out``.

    The thresholds are chosen on other scenes (seed 3), for each kind of CAM those that suit it best.

    Args:
        out: Folder for ``panel.png`` and ``scene-*.png``; made if missing.
        images: Number of scenes, ≥ 1.
        seed: Of the scenes; not 1, 2 or 3, which training and validation use.
        threads: CPU threads of torch during the demo; unchanged by default.
        overwrite: Replace panels that exist.

    Raises:
        ValueError: ``images``, ``seed`` or ``threads`` is out of range.
        FileExistsError: A panel exists and ``overwrite`` is not set.
        OSError: ``out`` cannot be written.
    """
    start = time.perf_counter()
    paths = check(out, images=images, seed=seed, threads=threads, overwrite=overwrite)
    with torch_threads(threads) as used:
        ssa = SSA(load_classifier(), **OPTIONS)
        validation, scenes = make_scenes(VALIDATION_SCENES, VALIDATION_SEED), make_scenes(images, seed)
        validation_cams, _ = _compute_cams(ssa, validation)
        cams, logits = _compute_cams(ssa, scenes)
        scores = {kind: _score(cams[kind], scenes, validation_cams[kind], validation) for kind in cams}
        labels = np.stack([scene.labels for scene in scenes])
        precisions = [average_precision(logits[:, k], labels[:, k]) for k in np.flatnonzero(labels.any(0))]
        times = measure_added(ssa, _batch(scenes[:BATCH]), ALL_CLASSES)
        drawn = [_panel(scenes, cams, scores)]
        drawn += [_panel_of(ssa, scene, scores["polished"]) for scene in scenes[:SINGLE_PANELS]]
    write_files({path: image.save for path, image in zip(paths, drawn, strict=True)}, overwrite=overwrite)
    of = (images, seed, VALIDATION_SCENES, VALIDATION_SEED)
    return DemoReport(*of, scores, float(np.mean(precisions)), *times, used, paths, time.perf_counter() - start)


def check(
    out: Path, *, images: int = 200, seed: int = 2024, threads: int | None = None, overwrite: bool = False
) -> list[Path]:
    """Return the images that ``run`` will write, or raise what it raises for these arguments."""
    if images < 1:
        raise ValueError(f"images: expected at least 1, got {images}; ask for some scenes")
    if seed < 0 or seed in (1, 2, VALIDATION_SEED):
        raise ValueError(
            f"seed: expected a number >= 0 other than 1, 2 and 3, got {seed}; training and validation used those scenes"
        )
    check_threads(threads)
    paths = [out / "panel.png", *(out / f"scene-{index}.png" for index in range(min(images, SINGLE_PANELS)))]
    check_new(paths, overwrite=overwrite)
    return paths


def _batch(scenes: list[Scene]) -> Tensor:
    return preprocess(np.stack([scene.image for scene in scenes]))


def _pixels(scenes: list[Scene]) -> Tensor:
    return torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2) / 255.0


def _compute_cams(polished: SSA, scenes: list[Scene]) -> tuple[dict[str, Cams], NDArray[np.float32]]:
    """Return each kind of CAM, per scene ``(K, H, W)`` of its classes, and the logits ``(B, N)``."""
    default = SSA(polished.model)
    cams: dict[str, Cams] = {}
    logits = []
    for start in range(0, len(scenes), BATCH):
        batch = scenes[start : start + BATCH]
        size = batch[0].mask.shape
        ours, plain = (ssa(_batch(batch), classes=ALL_CLASSES) for ssa in (polished, default))
        maps = {"seed": resize(ours.seed, size, align_corners=False), "polished": ours.cams}
        maps |= {"refined": ours.refine(_pixels(batch)).cams, "default": plain.cams}
        maps |= {name: resize(stage, size, align_corners=False) for name, stage in plain.stages.items()}
        for kind, values in maps.items():  # rescaled again, because resizing lowers the maxima
            present = [cam[scene.labels] for cam, scene in zip(minmax(values).numpy(), batch, strict=True)]
            cams.setdefault(kind, []).extend(present)
        logits.append(ours.logits.numpy())
    return cams, np.concatenate(logits)


def _score(cams: Cams, scenes: list[Scene], validation_cams: Cams, validation: list[Scene]) -> Score:
    def sweep(maps: Cams, of: list[Scene], **thresholds: Any) -> Any:
        present, truths = [scene.box_classes for scene in of], [scene.mask for scene in of]
        return threshold_sweep(maps, present, truths, len(CLASSES) + 1, **thresholds)

    def pairs(maps: Cams, of: list[Scene]) -> tuple[Cams, list[NDArray[np.int64]]]:
        return [cam for each in maps for cam in each], [box[None] for scene in of for box in scene.boxes]

    background = sweep(validation_cams, validation).best_threshold
    largest: Any = {"components": "largest", "convention": "continuous"}
    boxes = max_box_acc(*pairs(validation_cams, validation), thresholds=THRESHOLDS, ious=(0.5,), **largest)
    miou = sweep(cams, scenes, thresholds=(background,)).best_miou
    accuracy = box_accuracy(*pairs(cams, scenes), threshold=boxes.best_threshold, **largest)
    return Score(miou, accuracy, background, boxes.best_threshold)


def _panel(scenes: list[Scene], cams: Mapping[str, Cams], scores: Mapping[str, Score]) -> Image.Image:
    """Return a sheet of the first scenes, preferably with several classes, drawn by their largest CAM."""
    rows = []
    for index in sorted(range(len(scenes)), key=lambda index: scenes[index].labels.sum() < 2)[:PANEL_ROWS]:
        scene = scenes[index]
        image = drawing.fit(Image.fromarray(scene.image))
        cells = [image]
        for kind in ("seed", "polished"):
            peak, best = cams[kind][index].max(0), cams[kind][index].argmax(0)
            mask = np.where(peak > scores[kind].background, scene.box_classes[best] + 1, 0)
            cells += [overlay(image, peak), drawing.paint(image, mask, COLOURS, MASK_OPACITY)]
        rows.append([*cells, drawing.paint(image, scene.mask, COLOURS, MASK_OPACITY)])
    return drawing.sheet(["image", "seed CAM", "its mask", "polished CAM", "its mask", "truth"], rows)


def _panel_of(ssa: SSA, scene: Scene, score: Score) -> Image.Image:
    result = ssa(_batch([scene]), classes=scene.box_classes.tolist())
    options = PostprocessOptions(score.background, box_threshold=score.box_threshold, components="all")
    return result.panels(_pixels([scene]), names=CLASSES, options=options)[0]
