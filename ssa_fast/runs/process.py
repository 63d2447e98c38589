"""One process's share of a run: read, compute and write its pending images, and report on them."""

from __future__ import annotations

import signal
import time
from contextlib import closing, suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

from ssa_fast.io import datasets
from ssa_fast.io.progress import Progress
from ssa_fast.io.stopwatch import Stopwatch, activity, timed
from ssa_fast.runs import distributed, loader
from ssa_fast.runs.changes import Changes, forget_changes
from ssa_fast.runs.manifest import REPORT, output_paths
from ssa_fast.runs.report import Failure, RunReport
from ssa_fast.runs.signals import Stopped
from ssa_fast.runs.writer import LARGE_OUTPUTS, Job, Writer, polish_large_image, targets_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ssa_fast.io.datasets import ImageSource, Listing
    from ssa_fast.io.images import DecodedImage
    from ssa_fast.io.progress import OnProgress
    from ssa_fast.runs.distributed import Group
    from ssa_fast.runs.loader import Loaded
    from ssa_fast.runs.manifest import Manifest
    from ssa_fast.runs.predictor import Predictor

Batch: TypeAlias = "list[tuple[Loaded, DecodedImage, list[int] | None]]"  # with the image in it, and its classes

BATCH_ON_GPU = 16
WINDOW = 8  # batches' worth of consecutive images that one process takes, and forms batches of one size from


class DiskFull(Exception):
    """Nothing more can be written."""


class RunProcess:
    """This process's share of a run, and its report."""

    def __init__(
        self, images: Listing, predictor: Predictor, manifest: Manifest, group: Group, on_progress: OnProgress | None
    ) -> None:
        self.predictor, self.manifest, self.group = predictor, manifest, group
        self.sources, self.names = images.sources, datasets.output_names(images.sources)
        self.options = predictor.options
        self.on_progress = on_progress if group.rank == 0 else None
        self.on_gpu = predictor.device.type == "cuda"
        self.batch_size = self.options.batch or (BATCH_ON_GPU if self.on_gpu else 1)
        self.window = WINDOW * self.batch_size
        self.report = RunReport(rank=group.rank)
        self.stopwatch = Stopwatch(predictor.device)
        self._started = 0.0
        self.changes = Changes()
        self.failed = 0  # images of this process; the report's failures also hold paths without an image
        if group.rank == 0:
            model = predictor.classifier
            read = (*model.notes, *getattr(getattr(predictor.ssa, "info", None), "notes", ()))
            self.report.notes = {note: [model.name] for note in read}
            self.report.failures = [Failure(str(path), reason) for path, reason in images.missing]
            self.report.skipped = images.skipped

    def open(self) -> None:
        """Start or resume the run on disk, by rank 0 for all processes; raise ValueError if it cannot be."""
        error = None
        if self.group.rank == 0:
            try:
                targets = (target for index in range(len(self.sources)) for target in self._targets(index))
                self.manifest.open(targets, overwrite=self.options.overwrite)
                self.changes = self._forget_changes(self._named())
            except (ValueError, OSError) as failure:
                error = str(failure)
        self.group.wait_for_rank0(error)
        self.manifest.refresh(self.changes.done if self.group.rank == 0 else None)

    def execute(self) -> None:
        """Process the pending images; a signal or a full disk ends that early."""
        report, self._started = self.report, time.perf_counter()
        try:
            with self.stopwatch.running():
                self._work()
        except DiskFull:
            report.stopped = "the disk is full; free some space and run the same command again"
        except KeyboardInterrupt as stop:
            report.signal = stop.args[0] if isinstance(stop, Stopped) else signal.SIGINT
            report.stopped = "interrupted" if report.signal == signal.SIGINT else "ended by SIGTERM"
            report.stopped += " while waiting for new images" if report.idle else ""
        self._note_times()

    def close(self) -> RunReport:
        """On rank 0, merge the reports of all processes and write the common files; else hand the report over."""
        report = self.report
        for (height, width), most in self.predictor.max_batch_by_size.items():
            note = f"batches were cut to {most} where memory ran out, at {height}x{width}."
            report.notes.setdefault(note, []).append(f"process {report.rank}")
        if report.rank != 0:
            failures = [[failure.name, failure.reason] for failure in report.failures]
            rest: dict[str, Any] = {"notes": report.notes, "stopped": report.stopped, "resumed": report.resumed}
            rest["activities"] = report.activities
            self.group.finish({"failures": failures, **rest})
            return report
        timeout = 2 * distributed.HEARTBEAT_S if report.interrupted else float("inf")
        report.processes, others = self.group.gather(timeout)
        for other in others:
            report.failures += [Failure(name, reason) for name, reason in other["failures"]]
            report.stopped = report.stopped or other["stopped"]
            report.resumed += other["resumed"]
            for name, spent in other["activities"].items():
                report.activities[name] = report.activities.get(name, 0.0) + spent
            for note, names in other["notes"].items():
                report.notes.setdefault(note, []).extend(names)
        if report.processes:
            self.manifest.refresh()
            done = self.manifest.done
            report.done = [str(source.path) for name, source in self._named().items() if name in done]
        try:
            self._write_common_files()
            self.manifest.close(complete=report.complete)
        except OSError as error:
            report.failures.append(Failure.from_error(self.manifest.out, error))
        return report

    def _work(self) -> None:
        """Process the pending images."""
        if pending := self._pending(range(len(self.sources))):
            self._process(pending)

    def _named(self) -> dict[str, ImageSource]:
        """Return the images of all processes by their output names."""
        return {str(name): source for name, source in zip(self.names, self.sources, strict=True)}

    def _forget_changes(self, given: dict[str, ImageSource]) -> Changes:
        return forget_changes(self.manifest, given, self._labels if self.options.classes == "labels" else None)

    def _note_times(self) -> None:
        """Report the time until now, and what it went on."""
        report, known = self.report, self.stopwatch.seconds
        report.seconds = time.perf_counter() - self._started - report.waited
        report.activities = {**known, "other": max(0.0, report.seconds - sum(known.values()))}

    def _write_common_files(self) -> None:
        """Write ``boxes.json`` and ``report.json``."""
        report, named, done = self.report, self._named(), self.manifest.done
        report.leftovers = self._leftovers(named)
        remade = {name: reason for name, reason in self.changes.reasons.items() if name in done and name in named}
        report.remade = len(remade)
        for reason in dict.fromkeys(remade.values()):
            paths = [str(named[name].path) for name, why in remade.items() if why == reason]
            report.notes[f"made again, as {reason}."] = paths
        report.boxes = self.manifest.write_boxes({name: source.file_name for name, source in named.items()})
        self.manifest.write(REPORT, report.to_json())

    def _leftovers(self, named: dict[str, ImageSource]) -> list[str]:
        return self.changes.leftovers

    def _targets(self, index: int) -> list[Path]:
        """Return the files that an image may write."""
        out, name = self.manifest.out, self.names[index]
        usual = targets_of(out, self.sources[index], name, self.options)
        return [*usual.values(), *output_paths(out, name, LARGE_OUTPUTS).values()]

    def _pending(self, indices: Iterable[int]) -> list[int]:
        """Return those of the images that are this process's and not complete; record the others."""
        pending, failures = [], []
        originals = {source.path.resolve() for source in self.sources}
        for index in indices:
            if not self.group.owns(index // self.window):
                continue
            source, name = self.sources[index], self.names[index]
            try:
                if str(name) in self.manifest.done:
                    self.report.resumed += 1
                    self.report.done.append(str(source.path))
                    continue
                for target in self._targets(index):
                    if self.manifest.is_preexisting(target):
                        raise ValueError(f"{target} exists; pass --overwrite to replace it.")
                    if target.resolve() in originals:
                        reason = "would replace an image of this run; choose another --out."
                        raise ValueError(f"its output {target} {reason}")
            except (ValueError, OSError) as error:
                failures.append((index, error))
            else:
                pending.append(index)
        self._report_progress()
        for index, failure in failures:
            self._record_error(index, failure)
        return pending

    def _process(self, pending: list[int]) -> None:
        """Read, compute and write the pending images."""
        threads = 4 if self.on_gpu else 1
        writer = Writer(threads, self.manifest, self.options, align_corners=self.predictor.ssa.align_corners)
        images = loader.load(self.sources, pending, self.options, self.predictor.device)
        try:
            # After a first signal, batches in writing are still finished; a second one ends even that.
            with writer, closing(images):
                for batch in self._batches(timed(images, "reading")):
                    if jobs := self._compute(batch):
                        writer.submit(jobs)
                    for outcome in writer.outcomes():
                        self._record(*outcome)
        finally:
            for outcome in writer.outcomes():
                with suppress(DiskFull):
                    self._record(*outcome)

    def _batches(self, images: Iterable[Loaded]) -> Iterator[Batch]:
        """Yield images with their classes in batches of one size and number of classes, window by window.

        Large images are processed, and unreadable ones recorded, on the way.
        """
        for _, window in groupby(images, key=lambda image: image.index // self.window):
            groups: dict[Any, Batch] = {}
            for loaded in window:
                index, image = loaded.index, loaded.image
                try:
                    if loaded.error is not None:
                        raise loaded.error
                    classes = self._classes(loaded)
                    if image is None:
                        source, name = self.sources[index], self.names[index]
                        large = (source, name, loaded.identity, self.predictor, self.manifest, classes)
                        with activity("polishing"):
                            notes = polish_large_image(*large)
                except Exception as error:
                    self._record_error(index, error)
                    continue
                if image is None:
                    self._record(str(source.path), notes)
                    continue
                key = (self.predictor.size(image.rgb), None if classes is None else len(classes))
                groups.setdefault(key, []).append((loaded, image, classes))
                if len(groups[key]) == self.batch_size:
                    yield groups.pop(key)
            yield from groups.values()

    def _classes(self, loaded: Loaded) -> list[int] | None:
        """Return the image's own classes if the dataset's labels are asked for, else None."""
        if self.options.classes != "labels":
            return None
        classes = self._labels(self.sources[loaded.index], loaded.labels)
        if not classes:
            raise ValueError("the dataset names no class in it.")
        if self.options.cams == "wsol" and len(classes) > 1:
            raise ValueError(f"its labels are {len(classes)} classes, and a 'wsol' file holds the map of one.")
        return classes

    def _labels(self, source: ImageSource, labels: Sequence[str]) -> list[int]:
        return self.predictor.classifier.resolve_labels(labels, source.dataset or ())

    def _compute(self, batch: Batch) -> list[Job]:
        """Return the predictions of a batch, to be written; record the images that failed."""
        classes = [chosen for _, _, chosen in batch if chosen is not None]
        results = self.predictor([image.rgb for _, image, _ in batch], classes or None)
        jobs = []
        for (loaded, image, _), result in zip(batch, results, strict=True):
            index = loaded.index
            if isinstance(result, Exception):
                self._record_error(index, result)
            else:
                source, name = self.sources[index], self.names[index]
                jobs.append(Job(source, name, loaded.identity, image.rgb, image.notes, result))
        return jobs

    def _record_error(self, index: int, error: Exception) -> None:
        path = self.sources[index].path
        self._record(str(path), failure=Failure.from_error(path, error))

    def _record(self, name: str, notes: Sequence[str] = (), failure: Failure | None = None) -> None:
        """Add a finished image to the report and report progress; raise DiskFull where writing is futile."""
        if failure is None:
            self.report.done.append(name)
        else:
            self.report.failures.append(failure)
            self.failed += 1
        for note in notes:
            self.report.notes.setdefault(note, []).append(name)
        self._report_progress(name, failure)
        if failure is not None and failure.disk_full:
            raise DiskFull

    def _report_progress(self, name: str = "", failure: Failure | None = None, phase: str = "") -> None:
        done, resumed = self.group.report(len(self.report.done), self.failed, self.report.resumed)
        if self.on_progress is not None:
            error = None if failure is None else failure.reason
            self.on_progress(Progress(done, self._total(), phase, name, error, resumed))

    def _total(self) -> int:
        return len(self.sources)
