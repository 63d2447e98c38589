"""Writing off the main thread: drafts picture by picture, then a batch's files and records in one go."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ssa_fast import localize
from ssa_fast.io import atomic, cam_files
from ssa_fast.io.cam_files import CamFile
from ssa_fast.localize.masks import voc_palette
from ssa_fast.localize.overlay import PanelRow
from ssa_fast.runs.manifest import output_paths
from ssa_fast.runs.report import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path, PurePosixPath

    import numpy as np
    from PIL.Image import Image

    from ssa_fast.io.datasets import ImageSource
    from ssa_fast.runs.manifest import Ledger, Record
    from ssa_fast.runs.options import RunOptions
    from ssa_fast.runs.predictor import Prediction

WAITING = 2
"""Batches that may wait to be written while the next are computed: more would only fill the memory."""


@dataclass(frozen=True, eq=False)
class Job:
    """A picture that was computed and is to be written."""

    source: ImageSource
    name: PurePosixPath
    rgb: np.ndarray
    notes: tuple[str, ...]
    prediction: Prediction


@dataclass
class _Batch:
    jobs: Sequence[Job]
    staged: dict[int, tuple[atomic.Transaction, Record]] = field(default_factory=dict)
    failed: dict[int, Failure] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_last(self) -> bool:
        return len(self.staged) + len(self.failed) == len(self.jobs)


@dataclass(frozen=True)
class Outcome:
    """A job that is through: its picture's name and notes, and why it failed if it did."""

    name: str
    notes: tuple[str, ...]
    failure: Failure | None


class Writer:
    """Threads that write what `submit` hands them; `finished` holds an `Outcome` for every job that is through.

    Args:
        threads: how many.
        settings, version: go into the CAM files.
        align_corners: of the resizing from the stored size to the picture's.
    """

    def __init__(
        self,
        threads: int,
        ledger: Ledger,
        options: RunOptions,
        *,
        settings: dict[str, Any],
        version: str,
        align_corners: bool,
    ) -> None:
        self.ledger, self.options = ledger, options
        self.settings, self.version, self.align_corners = settings, version, align_corners
        self.kinds = kinds(options)
        self.finished: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ssa_fast-writer")
        self._room = threading.Semaphore(WAITING)
        self._commits = threading.Lock()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Have a batch written; waits while `WAITING` others are not done."""
        self._room.acquire()
        batch = _Batch(jobs)
        for index in range(len(jobs)):
            self._pool.submit(self._one, batch, index)

    def close(self, *, cancel: bool = False) -> None:
        """Wait until everything is written; with `cancel` for what has begun only."""
        self._pool.shutdown(wait=True, cancel_futures=cancel)

    def _one(self, batch: _Batch, index: int) -> None:
        job = batch.jobs[index]
        try:
            staged = self._stage(job)
        except Exception as error:
            with batch.lock:
                batch.failed[index] = Failure.of(str(job.source.path), error)
                last = batch.is_last()
        else:
            with batch.lock:
                batch.staged[index] = staged
                last = batch.is_last()
        if last:
            try:
                self._commit(batch)
            finally:
                self._room.release()

    def _commit(self, batch: _Batch) -> None:
        """Make whole what could be written of a batch: files first, then the records, which make them count."""
        placed = []
        for index, (staged, record) in sorted(batch.staged.items()):
            try:
                staged.commit()
                placed.append((index, record))
            except Exception as error:
                batch.failed[index] = Failure.of(str(batch.jobs[index].source.path), error)
        if placed:
            try:
                with self._commits:
                    self.ledger.commit([record for _, record in placed])
            except Exception as error:
                batch.failed.update(
                    {index: Failure.of(str(batch.jobs[index].source.path), error) for index, _ in placed}
                )
        for index, job in enumerate(batch.jobs):
            self.finished.put(Outcome(str(job.source.path), job.notes, batch.failed.get(index)))

    def _stage(self, job: Job) -> tuple[atomic.Transaction, Record]:
        prediction, options = job.prediction, self.options
        targets = output_paths(self.ledger.out, job.name, self.kinds)
        boxes = localize.boxes(prediction.full, box_threshold=options.box_threshold, components=options.components)[0]
        writers: dict[Path, Callable[[Path], object]] = {
            targets["cams"]: lambda path: self._save_cams(path, prediction),
            targets["masks"]: lambda path: localize.save_mask(path, prediction.mask),
        }
        if options.overlays:
            writers[targets["overlays"]] = lambda path: panel(job.rgb, prediction, boxes).save(path)
        staged = atomic.Transaction(writers, self.ledger.drafts)
        H, W = job.rgb.shape[:2]
        return staged, {
            "output": str(job.name),
            "file_name": job.source.relative.as_posix(),
            "bytes": job.source.path.stat().st_size,
            "width": W,
            "height": H,
            "classes": prediction.classes,
            "names": prediction.names,
            "labels": prediction.labels,
            "scores": prediction.scores.tolist(),
            "boxes": [found.tolist() for found in boxes],
            "notes": list(job.notes),
        }

    def _save_cams(self, path: Path, prediction: Prediction) -> None:
        import numpy as np

        H, W = prediction.mask.shape
        stored = prediction.cams
        content = CamFile(
            cams=stored.astype(np.float32) / (255 if stored.dtype == np.uint8 else 1),
            classes=np.asarray(prediction.classes, dtype=np.int64),
            size=(H, W),
            names=tuple(prediction.names),
            labels=np.asarray(prediction.labels, dtype=np.uint8),
            logits=prediction.logits,
            align_corners=self.align_corners,
            settings=self.settings,
            version=self.version,
        )
        cam_files.write_cam(
            path, content, format=self.options.cams, dtype=self.options.store, allow_pickle=self.options.allow_pickle
        )


def kinds(options: RunOptions) -> dict[str, str]:
    """The folders that a run writes a file per picture into, with the files' suffixes."""
    drawn = {"overlays": ".png"} if options.overlays else {}
    return {"cams": cam_files.suffix(options.cams), "masks": ".png", **drawn}


def panel(rgb: np.ndarray, prediction: Prediction, boxes: Sequence[torch.Tensor]) -> Image:
    """The overlay: one row per class, with the very boxes and mask that are written."""
    palette = voc_palette()
    mask = torch.from_numpy(prediction.mask)
    rows = []
    for k, (name, label) in enumerate(zip(prediction.names, prediction.labels, strict=True)):
        before = {} if prediction.seed is None else {"seed": prediction.seed[k]}
        stages = {stage: maps[k] for stage, maps in (prediction.stages or {}).items()}
        red, green, blue = palette[3 * label : 3 * label + 3]
        scores = localize.box_scores(prediction.full[k], [[boxes[k]]])[0][0]
        maps = {**before, **stages}
        rows.append(PanelRow(name, maps, prediction.full[k], boxes[k], scores, mask == label, (red, green, blue)))
    pixels = torch.from_numpy(rgb).permute(2, 0, 1).float() / 255.0
    return localize.panel(pixels, rows)
