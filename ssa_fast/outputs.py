"""What a run leaves on disk: the files of one picture, placed together and whole or not at all, and `boxes.json`."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path, PurePosixPath
    from types import FrameType

__all__ = ["FOLDERS", "BoxLedger", "interrupts_held", "place", "save_cams", "targets"]

FOLDERS = {"cams": ".npz", "masks": ".png", "overlays": ".png"}
"""Folders below the output folder, with the suffix of the files in each."""

_drafts = itertools.count()


def targets(out: Path, name: PurePosixPath) -> dict[str, Path]:
    """Where the files of the picture called `name` go: one path per folder of `FOLDERS`."""
    return {folder: out / folder / name.with_name(name.name + suffix) for folder, suffix in FOLDERS.items()}


def place(writers: Mapping[Path, Callable[[Path], object]], *, overwrite: bool) -> None:
    """Write several files that belong together: all of them appear whole, or none does.

    Each writer is handed a draft's path beside its target, with the target's suffix. The drafts are renamed once all
    are written; an error or an interrupt before the last one removes the drafts and the files already renamed.

    Args:
        writers: target path -> function that writes the file at the path it is given.
        overwrite: whether targets that exist may be replaced.

    Raises:
        FileExistsError: a target exists and `overwrite` is not set; nothing was written.
        OSError: a file or folder could not be written.
    """
    if not overwrite:
        _refuse_existing(writers)
    drafts = {path: path.with_name(f".ssa-fast-{os.getpid()}-{next(_drafts)}{path.suffix}") for path in writers}
    placed: list[Path] = []
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(drafts[path])
        if not overwrite:
            _refuse_existing(writers)  # another process may have placed its own meanwhile
        for path, draft in drafts.items():
            fresh = not path.exists()
            os.replace(draft, path)
            if fresh:
                placed.append(path)
    except BaseException:
        for path in (*drafts.values(), *placed):
            path.unlink(missing_ok=True)
        raise


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C inside takes effect at the end of the block; a second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _refuse_existing(paths: Mapping[Path, object]) -> None:
    existing = [str(path) for path in paths if path.exists()]
    if existing:
        raise FileExistsError(f"{existing[0]} exists; pass --overwrite to replace it.")


def save_cams(
    path: Path,
    cams: np.ndarray,
    *,
    classes: Sequence[int],
    names: Sequence[str],
    labels: Sequence[int],
    logits: np.ndarray,
    settings: Mapping[str, Any],
    version: str,
) -> None:
    """One picture's CAMs as an `.npz` that `numpy.load` opens with its defaults, pickle being off.

    It holds `cams` float16 (K, H, W) in [0, 1], `classes` int64 (K,), `names` str (K,), `labels` uint8 (K,): the
    classes' values in the mask, `logits` float32 (K,), `size` int64 (2,): height and width of the picture, `settings`
    and `version`: a string each, the first being JSON.
    """
    np.savez_compressed(
        path,
        cams=cams.astype(np.float16),
        classes=np.asarray(classes, dtype=np.int64),
        names=np.asarray(names, dtype=np.str_),
        labels=np.asarray(labels, dtype=np.uint8),
        logits=np.asarray(logits, dtype=np.float32),
        size=np.asarray(cams.shape[-2:], dtype=np.int64),
        settings=np.asarray(json.dumps(settings)),
        version=np.asarray(version),
    )


@dataclass
class BoxLedger:
    """Boxes of the pictures done so far, in the layout of COCO's detection annotations.

    `category_id` is the class index of the network, `bbox` is [x, y, width, height] in pixels of the picture, `score`
    the network's probability of the class.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    categories: dict[int, str] = field(default_factory=dict)

    def add(
        self,
        file_name: str,
        size: tuple[int, int],
        *,
        output: str,
        classes: Sequence[int],
        names: Sequence[str],
        scores: Sequence[float],
        boxes: Sequence[np.ndarray],
    ) -> None:
        """Enter one picture: `size` is (height, width), `boxes` one (n, 4) array of x1, y1, x2, y2 per class.

        `output` is the name its files go by.
        """
        image_id = len(self.images) + 1
        entry = {"id": image_id, "file_name": file_name, "width": size[1], "height": size[0], "output": output}
        self.images.append(entry)
        self.categories.update(zip(classes, names, strict=True))
        for index, score, found in zip(classes, scores, boxes, strict=True):
            for x1, y1, x2, y2 in found.tolist():
                self.annotations.append(
                    {
                        "id": len(self.annotations) + 1,
                        "image_id": image_id,
                        "category_id": index,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "score": score,
                    }
                )

    def as_json(self, *, settings: Mapping[str, Any], version: str) -> str:
        """The ledger as the text of a `boxes.json`."""
        return json.dumps(
            {
                "info": {"description": f"ssa_fast {version}", "settings": dict(settings)},
                "images": self.images,
                "annotations": self.annotations,
                "categories": [{"id": index, "name": name} for index, name in sorted(self.categories.items())],
            },
            indent=1,
        )
