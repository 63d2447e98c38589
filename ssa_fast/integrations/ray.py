"""Polished CAMs on a Ray cluster: the predictor of `ssa_fast.runs`, mapped over a Ray dataset."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ssa_fast import SSA, localize
from ssa_fast.io import datasets, images
from ssa_fast.localize.options import PostprocessOptions
from ssa_fast.models import zoo
from ssa_fast.runs import Prediction, Predictor, RunOptions
from ssa_fast.runs.report import describe_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ray.data import Dataset

POSTPROCESS = {field.name for field in fields(PostprocessOptions)}
OPTIONS = {"classes", "size", "precision", "store", "large_above", *POSTPROCESS}
FLOATS, INDICES, BYTES = np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.uint8)
NOTHING: dict[str, Any] = {"cams": FLOATS.reshape(0, 0, 0), "mask": BYTES.reshape(0, 0), "classes": INDICES}
NOTHING |= {"names": [], "labels": BYTES, "scores": FLOATS, "boxes": FLOATS.reshape(0, 4), "box_classes": INDICES}


class PolishCams:
    """For `map_batches(PolishCams, fn_constructor_kwargs={...}, batch_size=16, compute=ActorPoolStrategy(size=4))`.

    Takes the column "image", uint8 RGB (H, W, 3) of any sizes, and gives the other columns and: "cams" (K, h, w)
    float16 or uint8 as `ssa_fast.runs` stores them, "mask" (H, W) uint8 of "labels" (K,), "classes" (K,) int64,
    "names" (K strings), "scores" (K,) float32, "boxes" (n, 4) float32 x1, y1, x2, y2 in pixels of "box_classes" (n,)
    int64, and "error": "" or why a picture came to nothing, its arrays being empty then. Pictures that come with an
    "error" keep it. Pictures of a batch that go into the network at one size go through it together. An actor with a
    GPU uses it, one without has as many threads as CPUs; outside Ray a GPU is used if there is one.

    Args:
        model, weights: see `classifiers.load`.
        ssa: options of `SSA` by name, but for `size`, which is "stage" and keeps "cams" small.
        options: those of `runs.RunOptions` that `OPTIONS` names. Nothing is done in tiles: pictures that go into the
            network with more pixels than `large_above` have an "error".

    Raises:
        TypeError, ValueError: an option that is unknown or wrong; a batch without "image", or with a column of ours.
    """

    def __init__(
        self, model: str = "resnet50", weights: str = "DEFAULT", *, ssa: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        self.options = _run_options(options)
        classifier = zoo.load(model, weights, device=_own_device())
        self.options.check(classifier)
        polish = SSA(classifier.model, size="stage", **(ssa or {}))
        self.predictor = Predictor(classifier, polish, self.options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """B rows, from column names to arrays of B."""
        if "image" not in batch or NOTHING.keys() & batch:
            raise ValueError(
                f'batch: expected a column "image" and none of {", ".join(NOTHING)}, got {", ".join(batch)}; rename or '
                "drop columns first"
            )
        images = [np.asarray(image) for image in batch["image"]]
        errors = [str(error) for error in batch.get("error", [""] * len(images))]
        groups: dict[tuple[int, int], list[int]] = {}
        for b, image in enumerate(images):
            errors[b] = errors[b] or self._refusal(image)
            if not errors[b]:
                groups.setdefault(self.predictor.size(image), []).append(b)
        rows = [{**NOTHING, "cams": NOTHING["cams"].astype(self.options.store)} for _ in images]
        for group in groups.values():
            # Ray's arrays are read-only views of shared memory, and torch warns of those.
            results = self.predictor([np.require(images[b], requirements=["C", "W"]) for b in group])
            for b, result in zip(group, results, strict=True):
                if isinstance(result, Exception):
                    errors[b] = describe_error(result)
                else:
                    rows[b] = self._row(result)
        kept = {name: column for name, column in batch.items() if name not in ("image", "error")}
        return {**kept, **{name: _column([row[name] for row in rows]) for name in NOTHING}, "error": _column(errors)}

    def _refusal(self, image: np.ndarray) -> str:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            return f"image: expected uint8 RGB (H, W, 3), got {image.dtype} {image.shape}."
        (height, width), most = self.predictor.size(image), self.options.large_above
        large = f"image: {height} x {width} is more than {most} pixels; pass a smaller size, or use ssa-fast run."
        return large if height * width > most else ""

    def _row(self, made: Prediction) -> dict[str, Any]:
        boxes = localize.boxes(made.full, self.options.postprocess)[0]
        classes = np.array(made.classes, np.int64)
        row = {"cams": made.cams, "mask": made.mask, "classes": classes, "names": made.names, "scores": made.scores}
        row |= {"labels": np.array(made.labels, np.uint8), "boxes": torch.cat(boxes).numpy()}
        return {**row, "box_classes": classes.repeat([len(each) for each in boxes])}


def polish_images(
    paths: Sequence[str | Path], *, batch_size: int = 16, concurrency: int = 1, num_gpus: float = 0, **options: Any
) -> Dataset:
    """A `ray.data.Dataset` of the pictures that `paths` mean (`sources.find`), with "path", "notes" and our columns.

    Pictures are read on the nodes, where `paths` must mean the same, and as `ssa_fast.runs` reads them; what cannot be
    read has an "error", where `ray.data.read_images` stops. `concurrency` actors have `num_gpus` each. `options` are
    those of `PolishCams`.

    Raises:
        ModuleNotFoundError: Ray is missing. TypeError: an unknown option. ValueError: no picture in `paths`.
    """
    try:
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("polish_images: needs Ray; pip install 'ssa_fast[ray]'", name="ray") from error
    _run_options({name: value for name, value in options.items() if name not in ("model", "weights", "ssa")})
    found = datasets.find(paths)
    files = [*(source.path for source in found.sources), *(path for path, _ in found.missing)]
    if not files:
        raise ValueError(f"paths: expected pictures, got none in {', '.join(map(str, paths))}; give other folders")
    read = ray.data.from_items([{"path": str(path)} for path in files]).map(_read)
    actors = ray.data.ActorPoolStrategy(size=concurrency)
    how: dict[str, Any] = {"batch_size": batch_size, "compute": actors, "num_gpus": num_gpus}
    return read.map_batches(PolishCams, fn_constructor_kwargs=options, **how)


def _read(row: dict[str, Any]) -> dict[str, Any]:
    try:
        picture = images.read(row["path"])
    except images.ImageError as error:
        return {**row, "image": np.zeros((0, 0, 3), np.uint8), "notes": "", "error": describe_error(error)}
    return {**row, "image": picture.rgb, "notes": " ".join(picture.notes), "error": ""}


def _run_options(options: Mapping[str, Any]) -> RunOptions:
    unknown = sorted(options.keys() - OPTIONS)
    if unknown or options.get("classes") == "labels":
        got = ", ".join(unknown) or "classes='labels', which only ssa-fast run knows"
        raise TypeError(f"options: expected some of {', '.join(sorted(OPTIONS))}, got {got}; leave it out")
    postprocess = PostprocessOptions(**{name: options[name] for name in options.keys() & POSTPROCESS})
    rest = {name: options[name] for name in options.keys() - POSTPROCESS}
    return RunOptions(overlays=False, postprocess=postprocess, **rest)


def _own_device() -> str:
    """Where this process may compute; in an actor its threads are limited to its CPUs."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    mine = ray.get_runtime_context().get_assigned_resources()
    if mine.get("CPU"):
        torch.set_num_threads(max(1, int(mine["CPU"])))
    if mine.get("GPU") and not torch.cuda.is_available():
        raise ValueError("num_gpus: expected a GPU that this PyTorch can use, got none; leave num_gpus out")
    return "cuda" if mine.get("GPU") else "cpu"


def _column(values: Sequence[Any]) -> np.ndarray:
    """An array of objects, which Ray takes as arrays of their own sizes even where all are of one size."""
    column = np.empty(len(values), dtype=object)
    for b, value in enumerate(values):
        column[b] = value
    return column
