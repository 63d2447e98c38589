"""``python -m bench quality``: how well polished CAMs fit true masks or boxes of photographs, affinity by affinity.

The backbone runs once per image; every affinity polishes the same seed along the same features. Thresholds are chosen
on every other image and the score is that of the images left, both ways round. Masks: mean foreground IoU. Boxes: mean
accuracy at IoU 30, 50 and 70 % (the box of any component counts), each with its own threshold, as in MaxBoxAccV2
(Choe et al., CVPR 2020). The interval of a difference is a bootstrap over images of the per-image differences; the
thresholds stay those of the whole run. Times are of the process's CPU clock, medians over images.
"""

from __future__ import annotations

import argparse
import importlib
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from bench import measure
from ssa_fast import Affinity, polish
from ssa_fast.evaluate import max_box_acc, threshold_sweep
from ssa_fast.evaluate.boxes import IOUS
from ssa_fast.io.progress import paced
from ssa_fast.models import inspect_model, zoo
from ssa_fast.models.layout import find_first_tensor, replace_first_tensor
from ssa_fast.models.trace import hooked_inference
from ssa_fast.ops.features import UnitFeatures
from ssa_fast.ops.resize import minmax, resize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from ssa_fast.models.inspect import ModelInfo

    Method = Callable[[Tensor, dict[str, Tensor]], Tensor]  # seed and stages to maps (1, K, h, w) of any size

LEVELS = tuple(step / 50 for step in range(50))  # thresholds
SAMPLES, SAMPLE_SEED, PIXELS = 4000, 0, 512  # of the bootstrap; pixels drawn for what is said of a stage
IMAGENET_SIZE = (224, 224)
LAYERCAM, BLOB = "layercam", "blob"  # seeds beside those of ``SSA``
BACKBONE = "backbone and seed"


@dataclass(frozen=True)
class Example:
    """One image with its class (None: the predicted one) and its truth: a mask's file, or boxes in its pixels."""

    image: Path
    label: int | None
    mask: Path | None = None
    boxes: list[list[float]] = field(default_factory=list)

    def score(self, cam: Tensor) -> NDArray[np.float64]:
        """Return (criteria, thresholds) in [0, 1] for a map (h, w): the IoU with the mask, or a box within each IoU."""
        values = cam.double().numpy()
        height, width = values.shape
        if self.mask is not None:
            image = Image.open(self.mask).convert("L").resize((width, height), Image.Resampling.BILINEAR)
            truth = np.asarray(image)
            truth = (truth > truth.max() / 2).astype(np.int64)
            counts = threshold_sweep([values[None]], [[0]], [truth], 2, LEVELS).confusions
            union = counts[:, 1, :].sum(1) + counts[:, 0, 1]
            return (counts[:, 1, 1] / np.maximum(union, 1))[None]
        with Image.open(self.image) as image:
            scale = np.array([width / image.width, height / image.height] * 2)
        return max_box_acc([values], [np.array(self.boxes) * scale], thresholds=LEVELS, ious=IOUS).accuracies


def examples(images: Path, masks: Path | None, boxes: Path | None, classes: str) -> list[Example]:
    """List the images that have a truth, by name.

    Raises:
        ValueError: Neither or both of ``masks`` and ``boxes``, an image without a class, or no image with a truth.
    """
    if (masks is None) == (boxes is None):
        raise ValueError("masks, boxes: expected one of the two; give --masks FOLDER or --boxes FILE")
    labels = dict(_lines(Path(classes))) if Path(classes).is_file() else {}

    def label(image: Path) -> int | None:
        if labels and image.name not in labels:
            raise ValueError(f"classes: expected a line for every image, got none for {image.name} in {classes}")
        return None if classes == "predicted" else int(labels[image.name][0] if labels else classes)

    files = sorted(path for path in images.rglob("*") if path.is_file())
    if masks is not None:
        truths = {path.stem: path for path in masks.iterdir()}
        found = [Example(path, label(path), mask=truths[path.stem]) for path in files if path.stem in truths]
    else:
        assert boxes is not None
        corners: dict[str, list[list[float]]] = {}
        for name, box in _lines(boxes):
            corners.setdefault(name, []).append([float(edge) for edge in box])
        found = [Example(path, label(path), boxes=corners[path.name]) for path in files if path.name in corners]
    if not found:
        raise ValueError(f"images: expected images that have a mask or a box, got none in {images}; names must agree")
    return found


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield name and fields of each line ``name,field,…``, names without their folders (wsolevaluation's form)."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            name, *fields = (part.strip() for part in line.split(","))
            yield Path(name).name, fields


def load(model: str, weights: str) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """Return a network and its preprocessing, of torchvision by name or of ``module:function``."""
    if ":" in model:
        network, preprocess = _imported(model)()
        return network, preprocess
    classifier = zoo.load(model, weights)
    return classifier.model, lambda image: classifier.preprocess(np.asarray(image), IMAGENET_SIZE)


def _imported(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def make_method(text: str, align_corners: bool) -> Method:
    """Return the method that an affinity's text or ``module:function`` names.

    An affinity is that of the signed stages, and the others keep the default, which is linear there; with "all:" before
    it, that of all stages.
    """
    everywhere = text.startswith("all:")
    if ":" in text and not everywhere:
        return partial(_imported(text), align_corners=align_corners)
    affinity = Affinity.parse(text.removeprefix("all:"))

    def polished(seed: Tensor, stages: dict[str, Tensor]) -> Tensor:
        chosen = {name: affinity if everywhere or _signed(maps) else Affinity() for name, maps in stages.items()}
        cams: Tensor = polish(seed, stages, affinity=chosen, rescale=True, align_corners=align_corners)
        return cams

    return polished


def _signed(maps: Tensor) -> bool:
    return bool((maps < 0).any())


def layercam(model: nn.Module, info: ModelInfo, images: Tensor, label: int) -> Tensor:
    """Return LayerCAM (Jiang et al., TIP 2021) as (1, 1, h, w): the mean of the stages' rescaled maps."""
    outputs: dict[str, Tensor] = {}

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        torch.set_grad_enabled(True)  # ``hooked_inference`` restores the mode
        tensor = find_first_tensor(output)
        assert tensor is not None
        outputs[name] = tensor if tensor.requires_grad else tensor.detach().requires_grad_(True)
        return replace_first_tensor(output, outputs[name].clone())  # the clone may be modified in place

    hooks = {name: partial(hook, name) for name in info.stages}
    with hooked_inference(model, hooks), info.output.follow() as flow:
        score = info.output.read(model(images), len(images), flow)[0, label]
        gradients = torch.autograd.grad(score, list(outputs.values()), allow_unused=True)
    size = (images.shape[2], images.shape[3])
    maps = []
    for (name, tensor), gradient in zip(outputs.items(), gradients, strict=True):
        if gradient is not None:
            view = info.stages[name].layout.view
            cam = (view(gradient, size).relu() * view(tensor.detach(), size)).sum(1, keepdim=True).relu()
            maps.append(resize(minmax(cam), (size[0] // 4, size[1] // 4), align_corners=False))
    return torch.stack(maps).mean(0)


def blob(height: int, width: int) -> Tensor:
    """Return a map (1, 1, height, width) that falls off from the centre: the control that sees no image."""
    y, x = (torch.linspace(-1, 1, side) for side in (height, width))
    return torch.exp(-(y[:, None] ** 2 + x**2))[None, None]


def describe_stage(maps: Tensor) -> dict[str, float]:
    """Return what an affinity depends on, from one image's features (1, C, H, W).

    With ``mean_cosine`` of a pixel to all pixels, the shifted cosine's denominator is ``L·(s + mean_cosine)/(1 + s)``:
    it is positive at every pixel if the shift ``s`` exceeds minus the least of them. The last two are of drawn pixels:
    the share of negative cosines, and how many pixels' worth a pixel averages over with relu, as a share of all.
    """
    x = UnitFeatures(maps, Affinity(), torch.float32).unit(0, maps.shape[2] * maps.shape[3])[0].double()  # [C, L]
    mean_cosine = x.mean(1) @ x
    drawn = x[:, torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(SAMPLE_SEED))[:PIXELS]]
    cosines = drawn.T @ drawn
    weights = cosines.clamp_min(0)
    used = weights.sum(0).square() / (len(weights) * weights.square().sum(0)).clamp_min(1e-12)
    return {
        "signed": float(_signed(maps)),
        "mean_cosine_min": float(mean_cosine.min()),
        "mean_cosine_median": float(mean_cosine.median()),
        "negative_cosines": float((cosines < 0).double().mean()),
        "pixels_averaged_by_relu": float(used.mean()),
    }


class Run:
    """Scores and times of every method, and the stages' figures, image by image."""

    def __init__(self, model: nn.Module, seed: str, align_corners: bool, side: int, methods: dict[str, Method]) -> None:
        self.model, self.seed, self.align_corners, self.side, self.methods = model, seed, align_corners, side, methods
        self.info = inspect_model(model, seed="auto" if seed in (LAYERCAM, BLOB) else seed)
        self.scores: dict[str, list[NDArray[np.float64]]] = {}
        self.times: dict[str, list[float]] = {}
        self.stages: dict[str, list[dict[str, float]]] = {}
        self.num_predicted = 0  # images whose class is the predicted one

    def add(self, example: Example, images: Tensor) -> None:
        """Score one image, preprocessed to (1, 3, H, W), with every method."""
        with torch.no_grad():
            seed, stages = self._timed(BACKBONE, lambda: self._forward(example, images))
            for name, maps in stages.items():
                self.stages.setdefault(name, []).append(describe_stage(maps))
            found = {"centre blob": blob(self.side, self.side), "seed": seed}
            for name, method in self.methods.items():
                found[name] = self._timed(name, partial(method, seed, stages))
        for name, maps in found.items():
            align_corners = self.align_corners and name != "seed"
            cam = minmax(resize(maps, (self.side, self.side), align_corners))[0, 0]
            self.scores.setdefault(name, []).append(example.score(cam))

    def _timed(self, name: str, function: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = function()
        self.times.setdefault(name, []).append(1000 * (time.process_time() - begin))
        return result

    def _forward(self, example: Example, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the seed (1, 1, h, w) and the stages."""
        features = self.info.forward(self.model, images)
        predicted = int(features.logits[0].argmax())
        label = predicted if example.label is None else example.label
        self.num_predicted += predicted == label
        stages = {name: features.maps[name] for name in self.info.stages}
        if self.seed == LAYERCAM:
            return layercam(self.model, self.info, images, label), stages
        seed = self.info.seed_maps(self.model, features, torch.tensor([[label]]))
        return blob(seed.shape[2], seed.shape[3]) if self.seed == BLOB else seed, stages


def held_out(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (images,) from (images, criteria, thresholds): the score at the thresholds best on the other half."""
    found = np.empty(len(scores))
    for half in (0, 1):
        best = scores[1 - half :: 2].mean(0).argmax(1)  # [criteria]
        found[half::2] = np.take_along_axis(scores[half::2], best[None, :, None], 2).mean((1, 2))
    return found


def interval(differences: NDArray[np.float64]) -> list[float]:
    """Return the ends of the bootstrap 95 % interval of the mean difference, resampling images."""
    drawn = np.random.default_rng(SAMPLE_SEED).integers(len(differences), size=(SAMPLES, len(differences)))
    return [float(edge) for edge in np.quantile(differences[drawn].mean(1), (0.025, 0.975))]


def rows(run: Run, baseline: str) -> list[dict[str, Any]]:
    """Return a row per method, scores in percent and times in ms, then one per stage: means over images."""
    held = {name: 100 * held_out(np.stack(scores)) for name, scores in run.scores.items()}
    found: list[dict[str, Any]] = []
    for name, scores in held.items():
        difference = scores - held[baseline]
        row = {"method": name, "score": scores.mean(), "difference": difference.mean()}
        row |= {"interval": interval(difference), "halves": [difference[half::2].mean() for half in (0, 1)]}
        found.append(row | {"cpu_ms": np.median(run.times[name]) if name in run.times else None})
    for name, figures in run.stages.items():
        row = {"stage": name} | {key: np.mean([each[key] for each in figures]) for key in figures[0]}
        found.append(row | {"mean_cosine_min": min(each["mean_cosine_min"] for each in figures)})  # of all images
    return [{key: _rounded(value) for key, value in row.items()} for row in found]


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(float(value), 3) if isinstance(value, float | np.floating) else value


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="FOLDER")
    add("--masks", type=Path, metavar="FOLDER", help="masks named as the images; object: above half of the largest")
    add("--boxes", type=Path, metavar="FILE", help="lines name,x0,y0,x1,y1 in pixels of the image, as wsolevaluation's")
    add("--classes", default="predicted", help="an index, a file of lines name,index, or %(default)r")
    add("--model", required=True, help="of torchvision, or module:function that returns (network, preprocess)")
    add("--weights", default="DEFAULT", help="of a torchvision model, as for ssa-fast run")
    add("--affinity", action="append", default=[], metavar="TEXT", help="of signed stages, any number; after 'all:', of"
        " all stages; or module:function(seed, stages, align_corners=…)")  # fmt: skip
    add("--baseline", default="phi=relu", metavar="TEXT", help="the affinity to compare with (%(default)s)")
    add("--seed", default="auto", help="as for SSA, or layercam, or blob (%(default)s)")
    add("--align-corners", action=argparse.BooleanOptionalAction, default=False)
    add("--side", type=int, default=112, help="of the square maps that are scored (%(default)s)")
    add("--limit", type=int, metavar="N", help="only the first N images")
    add("--save", type=Path, metavar="FILE", help="write the figures and the machine as JSON")
    return parser


def main(given: Sequence[str]) -> int:
    """Measure and print; with ``--save`` keep the figures and the machine as JSON."""
    parser = arguments()
    options = parser.parse_args(given)
    try:
        chosen = examples(options.images, options.masks, options.boxes, options.classes)[: options.limit]
        names = dict.fromkeys([options.baseline, *options.affinity])
        methods = {name: make_method(name, options.align_corners) for name in names}
        model, preprocess = load(options.model, options.weights)
    except ValueError as error:
        parser.error(str(error))
    run = Run(model, options.seed, options.align_corners, options.side, methods)
    for example in paced(chosen, "quality", costs=[1.0] * len(chosen)):
        run.add(example, preprocess(Image.open(example.image).convert("RGB")))
    table = rows(run, options.baseline)
    asked = [word for word in given if word != str(options.save) and not word.startswith("--save")]
    head = {
        "command": " ".join(["python -m bench quality", *asked]),
        "images": len(chosen),
        "class_is_predicted": run.num_predicted,
        "metric": "foreground IoU" if options.masks else "box accuracy at IoU 30/50/70",
        "backbone_cpu_ms": _rounded(np.median(run.times[BACKBONE])),
    }
    print(*(f"{key}: {value}" for key, value in head.items()), *map(_line, table), sep="\n")
    print(measure.describe(measure.machine()))
    if options.save:
        measure.save(options.save, [head, *table])
    return 0


def _line(row: dict[str, Any]) -> str:
    if "stage" in row:
        return "  ".join(f"{key} {value}" for key, value in row.items())
    low, high = row["interval"]
    spent = "" if row["cpu_ms"] is None else f"{row['cpu_ms']:>8.1f} ms"
    return f"{row['method']:<40} {row['score']:>6.2f}  {row['difference']:>+6.2f} [{low:+.2f}, {high:+.2f}]{spent}"
