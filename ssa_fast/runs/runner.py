"""The run itself: what is left to do is read, computed in batches and written; a bad picture never stops it."""

from __future__ import annotations

import queue
import signal
import time
from contextlib import closing
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ssa_fast.io import datasets
from ssa_fast.runs import distributed, large_images, loader, writer
from ssa_fast.runs.manifest import BOXES, MANIFEST, RECORDS, REPORT, Ledger, output_paths
from ssa_fast.runs.options import RunOptions
from ssa_fast.runs.predictor import Predictor
from ssa_fast.runs.report import Failure, RunReport, Step
from ssa_fast.runs.signals import Stopped, signals_as_interrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ssa_fast.models.zoo import Classifier
    from ssa_fast.runs.loader import Loaded
    from ssa_fast.runs.writer import Outcome
    from ssa_fast.ssa import SSA

BATCH_ON_GPU = 16
WINDOW = 8
"""Batches' worth of pictures among which those of one size are sought for a batch, and which one process takes."""


def run(
    paths: Sequence[str | Path],
    ssa: SSA,
    out: str | Path,
    *,
    classifier: Classifier,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    split: str | None = None,
    settings: dict[str, Any] | None = None,
    watch: Callable[[Step], None] | None = None,
) -> RunReport:
    """Polish the CAMs of every picture in `paths` and write them below `out`.

    Per picture: `cams/NAME.npz` (`camfiles`; at the size that `ssa` gives), `masks/NAME.png` and `overlays/NAME.png`,
    and a record of it in `records/`; for all of them `boxes.json`, in the layout of COCO's detection annotations, and
    `report.json`. Pictures that are done in tiles have TIFFs and a preview instead (`SSA.large`). A mask's values are
    class indices + 1 where the network has at most 254 classes, positions in the picture's list of classes + 1
    otherwise; the CAM file says which under `labels`.

    A run that was stopped, however that happened, goes on when it is started again: pictures with a record are
    complete and are not touched, whatever else is there is made again. Under `torchrun` the pictures are dealt out to
    all processes; `out` must be one folder to all of them.

    Args:
        paths, split: see `sources.find`.
        ssa: built on `classifier.model`; `size="stage"` keeps CAM files small.
        settings: go into the outputs beside the options, as JSON; a run is only taken up with the same ones.
        watch: called as pictures are through; with several processes on rank 0 alone.

    Raises:
        ValueError: an option is wrong, there is nothing to read, or `out` holds something else; nothing was written.
    """
    return _Run(ssa, Path(out), classifier, options, settings or {}).over(paths, split, watch)


class _Run:
    def __init__(
        self, ssa: SSA, out: Path, classifier: Classifier, options: RunOptions, settings: dict[str, Any]
    ) -> None:
        from ssa_fast import __version__

        options.check(classifier)
        self.ssa, self.options = ssa, options
        self.predictor = Predictor(classifier, ssa, options)
        self.settings = {**settings, **options.settings(self.predictor.device)}
        self.version = __version__
        self.ledger = Ledger(out, self.settings, __version__)
        self.kinds = writer.kinds(options)
        self.report = RunReport()
        self.failed = 0  # of this process's pictures

    def over(self, paths: Sequence[str | Path], split: str | None, watch: Callable[[Step], None] | None) -> RunReport:
        out = self.ledger.out
        own = [out / folder for folder in (*self.kinds, *large_images.KINDS, RECORDS)]
        found = datasets.find_images(paths, split=split, exclude=own)
        found = _without(found, {out / name for name in (BOXES, REPORT, MANIFEST)})
        if not found.sources:
            seen = [f"{path}: {reason}" for path, reason in (*found.missing, *found.skipped)]
            raise ValueError(f"paths: no picture to read ({seen[0] if seen else 'the folders are empty'})")
        self.sources, self.names = found.sources, datasets.output_names(found.sources)
        self.originals = {source.path.resolve() for source in found.sources}
        start = time.perf_counter()
        with distributed.join() as self.shards, signals_as_interrupts():
            self._open()
            self.watch = watch if self.shards.rank == 0 else None
            if self.shards.rank == 0:
                self.report.failures.extend(Failure(str(path), reason) for path, reason in found.missing)
                self.report.skipped = found.skipped
            try:
                self._work()
            except Stopped as stop:
                self.report.signal = stop.number
                self.report.stopped = "interrupted" if stop.number == signal.SIGINT else "ended by SIGTERM"
            except KeyboardInterrupt:
                self.report.signal, self.report.stopped = signal.SIGINT, "interrupted"
            self.report.seconds = time.perf_counter() - start
            self._close()
        return self.report

    # What is there, and what is left.

    def _open(self) -> None:
        """Rank 0 begins the run on disk or takes it up; then all of them know what is complete."""
        error = None
        if self.shards.rank == 0:
            try:
                self.ledger.open(self._all_targets(), overwrite=self.options.overwrite)
            except (ValueError, OSError) as failure:
                error = str(failure)
        if self.shards.world == 1 and error is not None:
            raise ValueError(error)
        self.shards.agree(error)
        self.ledger.read()

    def _all_targets(self) -> list[Path]:
        return [path for name in self.names for path in self._targets(name)]

    def _targets(self, name: PurePosixPath) -> list[Path]:
        kinds = (self.kinds, large_images.KINDS)
        return [path for each in kinds for path in output_paths(self.ledger.out, name, each).values()]

    def _left(self) -> list[int]:
        """The pictures of this process's windows that are not complete; what stands in a picture's way is told."""
        left = []
        for index, (source, name) in enumerate(zip(self.sources, self.names, strict=True)):
            if not self.shards.mine(index // self._window):
                continue
            try:
                if self.ledger.is_done(source, name):
                    self.report.resumed += 1
                    self.report.done.append(str(source.path))
                    continue
                self._check_targets(name)
            except (ValueError, OSError) as error:
                self._failed(Failure.of(str(source.path), error))
            else:
                left.append(index)
        return left

    def _check_targets(self, name: PurePosixPath) -> None:
        for target in self._targets(name):
            if self.ledger.foreign(target):
                raise ValueError(f"{target} exists; pass --overwrite to replace it.")
            if target.resolve() in self.originals:
                raise ValueError(f"its output {target} would replace a picture of this run; choose another --out.")

    @property
    def _batch(self) -> int:
        return self.options.batch or (BATCH_ON_GPU if self.predictor.device.type == "cuda" else 1)

    @property
    def _window(self) -> int:
        return WINDOW * self._batch

    # The work.

    def _work(self) -> None:
        left = self._left()
        self._tell(None)
        if not left:
            return
        self.writer = writer.Writer(
            4 if self.predictor.device.type == "cuda" else 1,
            self.ledger,
            self.options,
            settings=self.settings,
            version=self.version,
            align_corners=self.ssa.align_corners,
        )
        cancelled = True
        try:
            with closing(loader.load(self.sources, left, self.options, self.predictor.device)) as loaded:
                for _, window in groupby(loaded, key=lambda picture: picture.index // self._window):
                    for batch in self._batches(window):
                        self._compute(batch)
                        self._collect()
            cancelled = False
        except _NoSpace:
            pass
        finally:
            # A batch in writing is finished, whatever the signal: a second one ends even that.
            self.writer.close(cancel=cancelled)
            self._collect(last=True)

    def _batches(self, window: Iterator[Loaded]) -> Iterator[list[tuple[Loaded, list[int] | None]]]:
        """A window's pictures by size and number of classes, in batches; what is not for batches is dealt with here."""
        groups: dict[Any, list[tuple[Loaded, list[int] | None]]] = {}
        for loaded in window:
            try:
                if loaded.error is not None:
                    raise loaded.error
                classes = self._classes(loaded)
            except Exception as error:
                self._failed(Failure.of(str(self.sources[loaded.index].path), error))
                continue
            if loaded.picture is None:
                self._giant(loaded.index, classes)
                continue
            key = (self.predictor.size(loaded.picture.rgb), None if classes is None else len(classes))
            groups.setdefault(key, []).append((loaded, classes))
            if len(groups[key]) == self._batch:
                yield groups.pop(key)
        yield from groups.values()

    def _classes(self, loaded: Loaded) -> list[int] | None:
        """The picture's own classes, where the dataset's labels are asked for."""
        if self.options.classes != "labels":
            return None
        source = self.sources[loaded.index]
        classes = self.predictor.classifier.resolve_labels(loaded.labels, source.dataset or ())
        if not classes:
            raise ValueError("the dataset names no class in it.")
        return classes

    def _compute(self, batch: list[tuple[Loaded, list[int] | None]]) -> None:
        pictures = [loaded.picture for loaded, _ in batch]
        classes = [wanted for _, wanted in batch if wanted is not None]
        results = self.predictor([picture.rgb for picture in pictures if picture is not None], classes or None)
        jobs = []
        for (loaded, _), picture, result in zip(batch, pictures, results, strict=True):
            source, name = self.sources[loaded.index], self.names[loaded.index]
            if isinstance(result, Exception):
                self._failed(Failure.of(str(source.path), result))
            elif picture is not None:
                jobs.append(writer.Job(source, name, picture.rgb, picture.notes, result))
        if jobs:
            self.writer.submit(jobs)

    def _giant(self, index: int, classes: list[int] | None) -> None:
        """A picture done in tiles, in this thread: there is one at a time."""
        source, name = self.sources[index], self.names[index]
        try:
            notes = large_images.polish(
                source, name, self.predictor, self.ledger, classes, self.settings, progress=self.options.progress
            )
        except Exception as error:
            failure = Failure.of(str(source.path), error)
            self._failed(failure)
            self._stop_without_space(failure)
        else:
            self._through(str(source.path), notes, None)

    # What came of it.

    def _collect(self, *, last: bool = False) -> None:
        """Count what the writer is through with; a disk without space ends the run."""
        while True:
            try:
                outcome: Outcome = self.writer.finished.get_nowait()
            except queue.Empty:
                return
            self._through(outcome.name, outcome.notes, outcome.failure)
            if outcome.failure is not None and not last:
                self._stop_without_space(outcome.failure)

    def _stop_without_space(self, failure: Failure) -> None:
        if failure.no_space:
            self.report.stopped = "the disk is full; make room and start the same command again"
            raise _NoSpace

    def _failed(self, failure: Failure) -> None:
        self._through(failure.name, (), failure)

    def _through(self, name: str, notes: Sequence[str], failure: Failure | None) -> None:
        if failure is not None:
            self.report.failures.append(failure)
            self.failed += 1
        else:
            self.report.done.append(name)
        for note in notes:
            self.report.notes.setdefault(note, []).append(name)
        self._tell(Step(0, 0, name, failure))

    def _tell(self, step: Step | None) -> None:
        through = self.shards.tell(len(self.report.done), self.failed)
        if self.watch is not None:
            name, failure = ("", None) if step is None else (step.name, step.failure)
            self.watch(Step(through, len(self.sources), name, failure))

    def _close(self) -> None:
        """Rank 0 hears the others and writes what belongs to all; the others leave their reports with it."""
        for size, most in self.predictor.halved.items():
            note = f"batches were cut to {most} where memory ran out, at {size[0]}x{size[1]}."
            self.report.notes.setdefault(note, []).append(f"process {self.shards.rank}")
        if self.shards.rank != 0:
            failed = [[failure.name, failure.reason] for failure in self.report.failures]
            self.shards.finish({"failures": failed, "notes": self.report.notes, "stopped": self.report.stopped})
            return
        patience = 2 * distributed.BEAT if self.report.interrupted else float("inf")
        self.report.processes, others = self.shards.gather(patience)
        for other in others:
            self.report.failures += [Failure(name, reason) for name, reason in other["failures"]]
            self.report.stopped = self.report.stopped or other["stopped"]
            for note, names in other["notes"].items():
                self.report.notes.setdefault(note, []).extend(names)
        if others or self.report.processes:
            self._count_all()
        self._write_ends()

    def _count_all(self) -> None:
        """The pictures that are complete, whoever did them."""
        self.ledger.read()
        named = zip(self.sources, self.names, strict=True)
        self.report.done = [str(source.path) for source, name in named if str(name) in self.ledger.done]

    def _write_ends(self) -> None:
        try:
            self.report.boxes = self.ledger.write_boxes()
            self.ledger.write_report(self.report.as_json())
            self.ledger.close(complete=self.report.complete)
        except OSError as error:
            self.report.failures.append(Failure.of(str(self.ledger.out), error))


class _NoSpace(Exception):
    """Nothing more can be written."""


def _without(found: datasets.Listing, files: set[Path]) -> datasets.Listing:
    """Less what a run itself writes beside its folders, which is no picture and no news."""
    kept = tuple((path, reason) for path, reason in found.skipped if path not in files)
    return datasets.Listing(found.sources, found.missing, kept)
