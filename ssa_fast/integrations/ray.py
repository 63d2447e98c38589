"""Polish CAMs on a Ray cluster: the predictor of ``ssa_fast.runs``, mapped over a Ray dataset."""

from __future__ import annotations

import sys
import warnings
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ssa_fast import SSA, localize
from ssa_fast.io import datasets
from ssa_fast.io.images import ImageError, read_image
from ssa_fast.localize.options import PostprocessOptions
from ssa_fast.models import zoo
from ssa_fast.models.class_spec import resolve_classes
from ssa_fast.runs import Prediction, Predictor, RunOptions
from ssa_fast.runs.report import describe_error
from ssa_fast.validation import InputWarning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ray.data import Dataset

POSTPROCESS = {field.name for field in fields(PostprocessOptions)}
OPTIONS = {"classes", "size", "precision", "store", "large_above", *POSTPROCESS}
CONSTRUCTOR = ("model", "weights", "probability", "ssa")
EMPTY: dict[str, Any] = {
    "cams": np.zeros((0, 0, 0), np.float32),
    "mask": np.zeros((0, 0), np.uint8),
    "classes": np.zeros(0, np.int64),
    "names": [],
    "labels": np.zeros(0, np.uint8),
    "scores": np.zeros(0, np.float32),
    "boxes": np.zeros((0, 4), np.float32),
    "box_classes": np.zeros(0, np.int64),
}
"""The columns that ``PolishCams`` adds, as they are for an image with an error."""


class PolishCams:
    """A callable class for ``Dataset.map_batches`` that polishes the CAMs of a batch of images.

    ``map_batches(PolishCams, fn_constructor_kwargs={...}, batch_size=16, compute=ActorPoolStrategy(size=4))``
    takes the column "image", uint8 RGB (H, W, 3) of any sizes, keeps the other columns, and adds the following. With
    ``classes="labels"`` it also takes a column "classes" with each image's own: a list of any length of class indices
    and names, or a multi-hot row; in the result that column holds indices.

    - "cams": (K, h, w) float16 or uint8, as ``ssa_fast.runs`` stores them
    - "mask": (H, W) uint8, with the values "labels" (K,)
    - "classes": (K,) int64; "names": K strings; "scores": (K,) float32
    - "boxes": (n, 4) float32 x1, y1, x2, y2 in pixels, of the classes "box_classes" (n,) int64
    - "error": "", or why an image failed; its arrays are then empty. Rows that come with an "error" keep it.

    Images of one size at the network's input share a forward pass. An actor uses its GPU, or as many threads as it has
    CPUs; outside Ray, a GPU is used if there is one.

    Args:
        model: See ``models.zoo.load``.
        weights: See ``models.zoo.load``.
        probability: See ``models.zoo.load``.
        ssa: Options of ``SSA`` by name, except ``size``, which is "stage" to keep "cams" small.
        options: The options of ``runs.RunOptions`` listed in ``OPTIONS``. Images with more than ``large_above`` pixels
            at the network's input get an "error": nothing is processed in tiles here.

    Raises:
        TypeError: An option is unknown.
        ValueError: An option is wrong, or a batch has no column "image" or already has one of the new columns.
    """

    def __init__(
        self,
        model: str = "resnet50",
        weights: str = "DEFAULT",
        *,
        probability: str | None = None,
        ssa: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.options = _run_options(options)
        classifier = zoo.load(model, weights, device=_assigned_device(), probability=probability)
        self.options.check(classifier)
        self.predictor = Predictor(classifier, SSA(classifier.model, size="stage", **(ssa or {})), self.options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Polish a batch, a dictionary of columns with B rows each."""
        needed = ("image", "classes") if self.options.classes == "labels" else ("image",)
        added = [name for name in EMPTY if name not in needed]
        if not batch.keys() >= set(needed) or batch.keys() & set(added):
            columns = " and ".join(f'"{name}"' for name in needed)
            raise ValueError(
                f"batch: expected a column {columns} and none of {', '.join(added)}, got {', '.join(batch)}; rename or "
                "drop columns first"
            )
        images = [np.asarray(image) for image in batch["image"]]
        errors = [str(error) for error in batch.get("error", [""] * len(images))]
        own: dict[int, list[int]] = {}  # row -> the image's own classes
        groups: dict[tuple[int, int], list[int]] = {}  # size at the network's input -> rows
        for b, image in enumerate(images):
            errors[b] = errors[b] or self._input_error(image)
            if "classes" in batch and not errors[b]:
                try:
                    own[b] = self._own_classes(batch["classes"][b])
                except (TypeError, ValueError) as error:
                    errors[b] = describe_error(error)
            if not errors[b]:
                groups.setdefault(self.predictor.size(image), []).append(b)
        rows = [{**EMPTY, "cams": EMPTY["cams"].astype(self.options.store)} for _ in images]
        for group in groups.values():
            # Ray's arrays are read-only views of shared memory, for which torch warns.
            pixels = [np.require(images[b], requirements=["C", "W"]) for b in group]
            results = self.predictor(pixels, [own[b] for b in group] if own else None)
            for b, result in zip(group, results, strict=True):
                if isinstance(result, Exception):
                    errors[b] = describe_error(result)
                else:
                    rows[b] = self._row(result)
        kept = {name: column for name, column in batch.items() if name not in (*needed, "error")}
        made = {name: object_column([row[name] for row in rows]) for name in EMPTY}
        return {**kept, **made, "error": object_column(errors)}

    def _own_classes(self, classes: Any) -> list[int]:
        """Return the indices of a row of the column "classes"."""
        names = self.predictor.classifier.categories
        row = np.asarray(classes)
        each = [list(classes)] if row.dtype.kind in "OUS" else row[None]
        selection = resolve_classes(each, torch.zeros(1, len(names)), names)
        for note in selection.notes:
            warnings.warn(note, InputWarning, stacklevel=2)
        return selection.index[0].tolist()

    def _input_error(self, image: np.ndarray) -> str:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            return f"image: expected uint8 RGB (H, W, 3), got {image.dtype} {image.shape}."
        (height, width), limit = self.predictor.size(image), self.options.large_above
        if height * width > limit:
            return f"image: {height} x {width} is more than {limit} pixels; pass a smaller size, or use ssa-fast run."
        return ""

    def _row(self, prediction: Prediction) -> dict[str, Any]:
        boxes = localize.boxes(prediction.full, self.options.postprocess)[0]
        classes = np.array(prediction.classes, np.int64)
        return {
            "cams": prediction.cams,
            "mask": prediction.mask,
            "classes": classes,
            "names": prediction.names,
            "labels": np.array(prediction.labels, np.uint8),
            "scores": prediction.scores,
            "boxes": torch.cat(boxes).numpy(),
            "box_classes": classes.repeat([len(each) for each in boxes]),
        }


def polish_images(
    paths: Sequence[str | Path], *, batch_size: int = 16, concurrency: int = 1, num_gpus: float = 0, **options: Any
) -> Dataset:
    """Return a ``ray.data.Dataset`` of images with their polished CAMs.

    Its columns are "path", "notes" and those of ``PolishCams``. A file that cannot be read gets an "error".

    Args:
        paths: Files, folders and globs, see ``io.datasets.find_images``; valid on every node, as each reads its own.
        batch_size: Images per batch.
        concurrency: Number of actors.
        num_gpus: GPUs per actor.
        options: Arguments of ``PolishCams``.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        TypeError, ValueError: An option is unknown; there is no image in ``paths``.
    """
    try:
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("polish_images: needs Ray; pip install 'ssa_fast[ray]'", name="ray") from error
    checked = _run_options({name: value for name, value in options.items() if name not in CONSTRUCTOR})
    if checked.classes == "labels":
        raise TypeError(
            "classes: expected classes for all images, got 'labels', which need a column \"classes\"; map PolishCams "
            "over a dataset with one"
        )
    listing = datasets.find_images(paths)
    files = [*(source.path for source in listing.sources), *(path for path, _ in listing.missing)]
    if not files:
        raise ValueError(f"paths: expected images, got none in {', '.join(map(str, paths))}; give other folders")
    rows = ray.data.from_items([{"path": str(path)} for path in files]).map(_read)
    actors = ray.data.ActorPoolStrategy(size=concurrency)
    return rows.map_batches(
        PolishCams, fn_constructor_kwargs=options, batch_size=batch_size, compute=actors, num_gpus=num_gpus
    )


def _read(row: dict[str, Any]) -> dict[str, Any]:
    try:
        image = read_image(row["path"])
        return {**row, "image": image.rgb, "notes": " ".join(image.notes), "error": ""}
    except ImageError as error:
        return {**row, "image": np.zeros((0, 0, 3), np.uint8), "notes": "", "error": describe_error(error)}


def _run_options(options: Mapping[str, Any]) -> RunOptions:
    unknown = sorted(options.keys() - OPTIONS)
    if unknown:
        raise TypeError(
            f"options: expected some of {', '.join(sorted(OPTIONS))}, got {', '.join(unknown)}; leave it out"
        )
    postprocess = PostprocessOptions(**{name: options[name] for name in options.keys() & POSTPROCESS})
    rest = {name: options[name] for name in options.keys() - POSTPROCESS}
    return RunOptions(overlays=False, postprocess=postprocess, **rest)


def _assigned_device() -> str:
    """Return the device this process may use; in an actor, also limit torch to the actor's CPUs."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    assigned = ray.get_runtime_context().get_assigned_resources()
    if assigned.get("CPU"):
        torch.set_num_threads(max(1, int(assigned["CPU"])))
    if assigned.get("GPU") and not torch.cuda.is_available():
        raise ValueError("num_gpus: expected a GPU that this PyTorch can use, got none; leave num_gpus out")
    return "cuda" if assigned.get("GPU") else "cpu"


def object_column(values: Sequence[Any]) -> np.ndarray:
    """Return an object array, which Ray stores as arrays of different sizes even if all sizes are equal."""
    return np.fromiter(values, dtype=object, count=len(values))
