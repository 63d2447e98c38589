"""Write outputs: images side by side in threads, then a batch's records together; large images in tiles."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from ssa_fast import localize
from ssa_fast.io import cam_files
from ssa_fast.io.atomic import Transaction
from ssa_fast.io.cam_files import CamFile
from ssa_fast.io.stopwatch import activity
from ssa_fast.large import LargeImageSSA, OutputPaths
from ssa_fast.localize.masks import voc_palette
from ssa_fast.localize.panel_images import PanelRow
from ssa_fast.runs.manifest import image_record, output_paths
from ssa_fast.runs.options import MAX_LABEL
from ssa_fast.runs.report import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path, PurePosixPath

    from PIL.Image import Image

    from ssa_fast.io.datasets import ImageSource
    from ssa_fast.io.identity import Identity
    from ssa_fast.runs.manifest import ImageRecord, Manifest
    from ssa_fast.runs.options import RunOptions
    from ssa_fast.runs.predictor import Prediction, Predictor

LARGE_OUTPUTS = {"cams": ".tif", "masks": ".tif", "previews": ".png"}  # folder -> suffix of a large image's outputs
MAX_WAITING = 2  # batches being written while the next is computed; more would only fill the memory


@dataclass(frozen=True, eq=False)
class Job:
    """An image's prediction, to be written."""

    source: ImageSource
    name: PurePosixPath
    identity: Identity
    rgb: np.ndarray
    notes: tuple[str, ...]
    prediction: Prediction


Outcome: TypeAlias = "tuple[str, tuple[str, ...], Failure | None]"  # path, notes, and why it failed if it did


class Writer:
    """Threads that write batches, ``threads`` images at a time; a context that ends when all is written.

    After an exception inside the context only batches that have been begun are written.
    """

    def __init__(self, threads: int, manifest: Manifest, options: RunOptions, *, align_corners: bool) -> None:
        self.manifest, self.options, self.align_corners = manifest, options, align_corners
        self._finished: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._batches = ThreadPoolExecutor(min(threads, MAX_WAITING), thread_name_prefix="ssa_fast-writer")
        self._images = ThreadPoolExecutor(threads, thread_name_prefix="ssa_fast-writer")
        self._slots = threading.Semaphore(MAX_WAITING)
        self._commit_lock = threading.Lock()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with activity("writing"):
            self._batches.shutdown(cancel_futures=kind is not None)
            self._images.shutdown()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Write a batch; waits while ``MAX_WAITING`` batches are unfinished."""
        with activity("writing"):
            self._slots.acquire()
        self._batches.submit(self._write, jobs).add_done_callback(lambda _: self._slots.release())

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the jobs that have finished since the last call, without waiting."""
        while not self._finished.empty():
            yield self._finished.get()

    def _write(self, jobs: Sequence[Job]) -> None:
        """Write a batch: first all files, then the records, which make them count."""
        failures: dict[PurePosixPath, Failure] = {}
        records: dict[PurePosixPath, ImageRecord] = {}
        staged = [self._images.submit(self._stage, job) for job in jobs]
        wait(staged)
        for job, future in zip(jobs, staged, strict=True):
            try:
                transaction, record = future.result()
                transaction.commit()
                records[job.name] = record
            except Exception as error:
                failures[job.name] = Failure.from_error(job.source.path, error)
        try:
            if records:
                with self._commit_lock:
                    self.manifest.commit(list(records.values()))
        except Exception as error:
            failures |= {job.name: Failure.from_error(job.source.path, error) for job in jobs if job.name in records}
        for job in jobs:
            self._finished.put((str(job.source.path), job.notes, failures.get(job.name)))

    def _stage(self, job: Job) -> tuple[Transaction, ImageRecord]:
        """Write the temporary files of an image; return them with its record."""
        prediction, manifest = job.prediction, self.manifest
        targets = targets_of(manifest.out, job.source, job.name, self.options)
        boxes = localize.boxes(prediction.full, self.options.postprocess)[0]
        writers: dict[Path, Callable[[Path], object]] = {
            targets["cams"]: lambda path: self._save_cams(path, job),
            targets["masks"]: lambda path: localize.save_mask(path, prediction.mask),
        }
        if "overlays" in targets:
            writers[targets["overlays"]] = lambda path: draw_panel(job.rgb, prediction, boxes).save(path)
        rest = {"scores": prediction.scores.tolist(), "boxes": [found.tolist() for found in boxes], "notes": job.notes}
        rest |= {"background": prediction.background}
        record = image_record(job.source, job.name, job.identity, job.rgb.shape, prediction, **rest)
        return Transaction(writers, manifest.tmp_dir), record

    def _save_cams(self, path: Path, job: Job) -> None:
        prediction, options = job.prediction, self.options
        stored = prediction.cams
        content = CamFile(
            cams=stored if stored.dtype == np.float16 else stored / np.float32(255),
            classes=np.asarray(prediction.classes, dtype=np.int64),
            size=prediction.mask.shape,
            names=tuple(prediction.names),
            labels=np.asarray(prediction.labels, dtype=np.uint8),
            logits=prediction.logits,
            image=job.source.file_name,
            align_corners=self.align_corners,
            settings=self.manifest.settings,
            version=self.manifest.version,
        )
        cam_files.write_cam(path, content, format=options.cams, dtype=options.store, allow_pickle=options.allow_pickle)


def output_folders(options: RunOptions) -> dict[str, str]:
    """Return the folders with a file per image: folder -> the files' suffix."""
    overlays = {"overlays": ".png"} if options.overlays else {}
    return {"cams": cam_files.suffix(options.cams), "masks": ".png", **overlays}


def targets_of(out: Path, source: ImageSource, name: PurePosixPath, options: RunOptions) -> dict[str, Path]:
    """Return the files of an image that is not processed in tiles, by folder."""
    targets = output_paths(out, name, output_folders(options))
    if options.cams == "wsol":  # wsolevaluation opens an image's whole name with ".npy" behind it
        targets["cams"] = out / "cams" / f"{source.file_name}.npy"
    return targets


def draw_panel(rgb: np.ndarray, prediction: Prediction, boxes: Sequence[torch.Tensor]) -> Image:
    """Return the overlay: one row per class, with the boxes and the mask that are written."""
    palette = voc_palette()
    mask = torch.from_numpy(prediction.mask)
    rows = []
    for k, (name, label) in enumerate(zip(prediction.names, prediction.labels, strict=True)):
        maps = {} if prediction.seed is None else {"seed": prediction.seed[k]}
        maps |= {stage: maps_k[k] for stage, maps_k in (prediction.stages or {}).items()}
        red, green, blue = palette[3 * label : 3 * label + 3]
        scores = localize.box_scores(prediction.full[k], [[boxes[k]]])[0][0]
        rows.append(PanelRow(name, maps, prediction.full[k], boxes[k], scores, mask == label, (red, green, blue)))
    pixels = torch.from_numpy(rgb).permute(2, 0, 1).float() / 255.0
    return localize.panel(pixels, rows)


def polish_large_image(
    source: ImageSource,
    name: PurePosixPath,
    identity: Identity,
    predictor: Predictor,
    manifest: Manifest,
    classes: list[int] | None,
) -> list[str]:
    """Write one large image's files and its record; return notes for the user."""
    options, classifier = predictor.options, predictor.classifier
    targets = output_paths(manifest.out, name, LARGE_OUTPUTS)
    temporary = {kind: manifest.tmp_dir / f"large-{kind}{target.suffix}" for kind, target in targets.items()}
    manifest.tmp_dir.mkdir(parents=True, exist_ok=True)
    polish_large = LargeImageSSA(
        predictor.ssa,
        memory=options.memory,
        scratch=manifest.tmp_dir,
        mean=classifier.mean,
        std=classifier.std,
        backdrop=options.backdrop,
        bands=options.bands,
        range=options.range,
    )
    count = len(classifier.categories)
    result = polish_large(
        source.path,
        predictor.classes if classes is None else classes,
        out=OutputPaths(*temporary.values()),
        overwrite=True,
        postprocess=options.postprocess,
        names=classifier.categories,
        labels=range(1, count + 1) if count <= MAX_LABEL else None,
        metadata={"settings": manifest.settings},
        progress=options.progress,
    )
    assert result.logits is not None
    scores = classifier.probabilities(result.logits)[result.classes]
    wide = "" if options.precision_on(predictor.device) == "float32" else ", computed in float32"
    notes = [
        f"done in tiles of {result.tile} pixels with a halo of {result.halo}; outputs are TIFFs, CAMs have 8 bits{wide}"
        + (f", boxes are exact to {result.box_precision} pixels." if result.box_precision > 1 else "."),
        *result.notes,
    ]
    Transaction.of_files({temporary[kind]: target for kind, target in targets.items()}).commit()
    boxes = [found.tolist() for found in result.boxes]
    rest = {"scores": scores.tolist(), "boxes": boxes, "notes": notes, "background": result.background}
    record = image_record(source, name, identity, result.size, result, **rest)
    manifest.commit([record])
    return notes
