"""Turn a run's pseudo-masks into a training set, in the folders that MMSegmentation and Hugging Face read."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from PIL import Image

from ssa_fast.io import datasets
from ssa_fast.io.atomic import atomic_write
from ssa_fast.io.images import read_image
from ssa_fast.localize.masks import IGNORE, save_mask, voc_palette
from ssa_fast.runs.manifest import MANIFEST, RECORDS
from ssa_fast.runs.options import MAX_LABEL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ssa_fast.io.datasets import ImageSource
    from ssa_fast.io.progress import OnProgress
    from ssa_fast.runs.manifest import ImageRecord

__all__ = ["Layout", "TrainingSet", "export_training_set"]

Layout = Literal["mmseg", "hf"]
PLAIN_MODES = ("RGB", "L")  # that every training loop reads as we do
ORIENTATION = 274  # EXIF's tag
_CONTENTS = ("img_dir", "ann_dir", "dataset.py", "train", "validation", "id2label.json")  # of a set, in any layout
READING = ("max_pixels", "backdrop", "bands", "range")  # settings of a run


@dataclass(frozen=True)
class TrainingSet:
    """What was written.

    Attributes:
        out: The folder.
        classes: Names by label: "background" is 0, pixels of 255 are ignored.
        training, validation: Output names of the images of each part.
        skipped: Images left out, with the reason.
        suffix: Of the image files, which are copies; PNGs if the images are of several kinds, or one is not upright.
    """

    out: Path
    classes: tuple[str, ...]
    training: tuple[str, ...]
    validation: tuple[str, ...]
    skipped: tuple[tuple[Path, str], ...] = ()
    suffix: str = ".png"


@dataclass(frozen=True)
class _Item:
    """An image with its record; ``labels`` maps the values of its mask to those of the set."""

    name: str
    source: ImageSource
    labels: np.ndarray = field(repr=False)


def export_training_set(
    paths: Sequence[str | Path],
    results: str | Path,
    out: str | Path,
    layout: Layout,
    *,
    validation: float = 0.1,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> TrainingSet:
    """Write the images of a run with their masks as a training set.

    Labels are the same in all masks: 0 background, then the run's classes in the network's order, 255 ignored. Which
    images are for validation is decided by their names alone. The folder appears whole, or not at all.

    - "mmseg": ``img_dir/`` and ``ann_dir/``, with ``training/`` and ``validation/`` in each, and ``dataset.py``, a
      config of MMSegmentation 1.x to inherit from.
    - "hf": ``train/`` and ``validation/`` with ``images/``, ``labels/`` and a ``metadata.jsonl`` each, which
      ``datasets.load_dataset("imagefolder", data_dir=out)`` gives as columns "image" and "label"; ``id2label.json``.

    Args:
        paths: The images, as the run had them.
        results: The run's output folder.
        out: A folder that is not there, or with ``overwrite`` a training set that is replaced.
        layout: "mmseg" or "hf".
        validation: Share of the images that are for validation.
        overwrite: Whether to replace ``out``, if it holds nothing else than a training set.
        on_progress: Called after each image.

    Raises:
        ValueError: A wrong argument, no image with a mask, or more than 254 classes; nothing was written.
        OSError: A file cannot be read or written; nothing was written.
    """
    results, out = Path(results), Path(out)
    if layout not in get_args(Layout):
        raise ValueError(f"layout: expected one of {', '.join(get_args(Layout))}, got {layout!r}")
    if not 0 <= validation < 1:
        raise ValueError(f"validation: expected a share in [0, 1), got {validation:g}")
    if out.exists() and not overwrite:
        raise ValueError(f"out: {out} exists; pass --overwrite to replace it, or another folder")
    if not (results / MANIFEST).is_file():
        raise ValueError(f"results: {results} is no output folder of ssa-fast run: it has no {MANIFEST}")
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= set(_CONTENTS)):
        raise ValueError(
            f"out: {out} holds other things than a training set, which --overwrite would remove; choose another"
        )
    items, classes, skipped = _collect(paths, results)
    if any(out.resolve() in item.source.path.resolve().parents for item in items):
        raise ValueError(f"out: {out} holds the images themselves; choose another folder")
    settings = json.loads((results / MANIFEST).read_text(encoding="utf-8"))["settings"]
    how = {name: settings[name] for name in READING if name in settings}
    how = {name: tuple(value) if isinstance(value, list) else value for name, value in how.items()}
    suffixes = {item.source.path.suffix for item in items}
    copied = len(suffixes) == 1 and how.get("bands") is None and all(_is_plain(item.source.path) for item in items)
    suffix = suffixes.pop() if copied else ".png"
    order = sorted(items, key=lambda item: hashlib.blake2b(item.name.encode()).digest())
    held_out = {item.name for item in order[: round(validation * len(items))]}

    def write(folder: Path) -> None:
        from ssa_fast.io.progress import Progress

        for done, item in enumerate(items, 1):
            image, mask = _places(folder, layout, item.name, suffix, held_out=item.name in held_out)
            for path in (image, mask):
                path.parent.mkdir(parents=True, exist_ok=True)
            if copied:
                shutil.copyfile(item.source.path, image)
            else:
                Image.fromarray(read_image(item.source.path, **how).rgb).save(image)
            save_mask(mask, _relabelled(results, item))
            if on_progress is not None:
                on_progress(Progress(done, len(items), name=item.name))
        _FINISH[layout](folder, out, [item.name for item in items], held_out, classes, suffix)

    atomic_write(out, write)
    parts = [tuple(item.name for item in items if (item.name in held_out) is part) for part in (False, True)]
    return TrainingSet(out, classes, parts[0], parts[1], tuple(skipped), suffix)


def _collect(paths: Sequence[str | Path], results: Path) -> tuple[list[_Item], tuple[str, ...], list[tuple[Path, str]]]:
    """Return the images with a mask, the classes by label, and the other images with the reason."""
    listing = datasets.find_images(paths, exclude=[results])
    records = {record["output"]: record for record in _records(results)}
    names = map(str, datasets.output_names(listing.sources))
    chosen: list[tuple[str, ImageSource, ImageRecord]] = []
    skipped = list(listing.missing)
    for name, source in zip(names, listing.sources, strict=True):
        record = records.get(name)
        if record is None or record["file_name"] != source.file_name:
            skipped.append((source.path, "the run has no mask of it."))
        elif not (results / "masks" / f"{name}.png").exists():
            skipped.append((source.path, "it was processed in tiles: cut it and its mask into pieces first."))
        else:
            chosen.append((name, source, record))
    if not chosen:
        reason = f" ({skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise ValueError(f"paths: expected the images of the run in {results}, found none with a mask{reason}")
    known = {k: n for _, _, record in chosen for k, n in zip(record["classes"], record["names"], strict=True)}
    if len(known) > MAX_LABEL:
        raise ValueError(
            f"classes: expected at most {MAX_LABEL}, the labels of an 8-bit mask, got {len(known)}; run with --classes"
        )
    label_of = {k: label for label, k in enumerate(sorted(known), 1)}
    items = [_Item(name, source, _table(record, label_of)) for name, source, record in chosen]
    twice = {name for name in known.values() if list(known.values()).count(name) > 1}  # ImageNet has two cranes
    given = (f"{known[k]} ({k})" if known[k] in twice else known[k] for k in sorted(known))
    return items, ("background", *given), skipped


def _records(results: Path) -> list[ImageRecord]:
    files = sorted((results / RECORDS).rglob("*.json"))
    return [record for file in files for record in json.loads(file.read_text(encoding="utf-8"))]


def _table(record: ImageRecord, label_of: Mapping[int, int]) -> np.ndarray:
    """Return the label of each value of an image's mask; -1 for one that it cannot have."""
    table = np.full(256, -1, np.int16)
    table[[0, IGNORE]] = 0, IGNORE
    for k, value in zip(record["classes"], record["labels"], strict=True):
        table[value] = label_of[k]
    return table


def _relabelled(results: Path, item: _Item) -> np.ndarray:
    path = results / "masks" / f"{item.name}.png"
    with Image.open(path) as mask:
        labels = item.labels[np.asarray(mask)]
    if (labels < 0).any():
        raise ValueError(f"results: {path} has values that its record does not name; run ssa-fast run again")
    return labels.astype(np.uint8)


def _is_plain(path: Path) -> bool:
    """Return True for an image that every reader sees as the network did: upright, 8-bit, opaque, one frame."""
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            upright = image.getexif().get(ORIENTATION, 1) == 1
            return image.mode in PLAIN_MODES and frames == 1 and upright and "transparency" not in image.info
    except OSError:
        return False


def _places(folder: Path, layout: Layout, name: str, suffix: str, *, held_out: bool) -> tuple[Path, Path]:
    """Return where an image and its mask go."""
    if layout == "mmseg":
        part = "validation" if held_out else "training"
        images, masks = folder / "img_dir" / part, folder / "ann_dir" / part
    else:
        part = "validation" if held_out else "train"
        images, masks = folder / part / "images", folder / part / "labels"
    return images / f"{name}{suffix}", masks / f"{name}.png"


def _finish_mmseg(
    folder: Path, out: Path, names: Sequence[str], held_out: set[str], classes: Sequence[str], suffix: str
) -> None:
    """Write a config to inherit from; parts without an image get their folders all the same."""
    for kind in ("img_dir", "ann_dir"):
        for part in ("training", "validation"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
    palette = np.array(voc_palette()).reshape(-1, 3)[: len(classes)].tolist()
    config = f"""# A training set for MMSegmentation 1.x: name this file in the _base_ of a config.
# Its number of classes is {len(classes)}: set num_classes of the decode heads.
data_root = {out.as_posix()!r}
metainfo = dict(
    classes={tuple(classes)!r},
    palette={palette!r},
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
common = dict(
    type="BaseSegDataset",
    data_root=data_root,
    metainfo=metainfo,
    img_suffix={suffix!r},
    seg_map_suffix=".png",
    reduce_zero_label=False,  # 0 is the background, a class like the others
    ignore_index=255,
)
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        **common,
        data_prefix=dict(img_path="img_dir/training", seg_map_path="ann_dir/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **common,
        data_prefix=dict(img_path="img_dir/validation", seg_map_path="ann_dir/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
"""
    (folder / "dataset.py").write_text(config, encoding="utf-8")


def _finish_hf(
    folder: Path, out: Path, names: Sequence[str], held_out: set[str], classes: Sequence[str], suffix: str
) -> None:
    """Write the pairs of each part and the labels' names."""
    for part, held in (("train", False), ("validation", True)):
        chosen = [name for name in names if (name in held_out) is held]
        pairs = [{"image_file_name": f"images/{n}{suffix}", "label_file_name": f"labels/{n}.png"} for n in chosen]
        if pairs:
            text = "".join(json.dumps(pair) + "\n" for pair in pairs)
            (folder / part / "metadata.jsonl").write_text(text, encoding="utf-8")
    id2label = {str(label): name for label, name in enumerate(classes)}
    (folder / "id2label.json").write_text(json.dumps(id2label, indent=1), encoding="utf-8")


_FINISH: dict[str, Callable[..., None]] = {"mmseg": _finish_mmseg, "hf": _finish_hf}
