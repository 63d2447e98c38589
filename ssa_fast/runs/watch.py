"""Watch folders that grow: find the images that are new or changed and no longer being written, and process them."""

from __future__ import annotations

import glob
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ssa_fast.io import datasets
from ssa_fast.io.datasets import ZARR, Listing
from ssa_fast.io.identity import describe
from ssa_fast.runs.process import RunProcess
from ssa_fast.runs.report import Failure
from ssa_fast.runs.writer import LARGE_OUTPUTS, output_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ssa_fast.io.datasets import ImageSource
    from ssa_fast.io.progress import OnProgress
    from ssa_fast.runs.distributed import Group
    from ssa_fast.runs.manifest import Manifest
    from ssa_fast.runs.predictor import Predictor

Signature: TypeAlias = "tuple[Any, ...]"  # what changes when an image, its annotation or its dataset's classes do


@dataclass(frozen=True)
class Watch:
    """How a run waits for images that come later.

    Attributes:
        interval: Seconds from one look at the folders to the next. An image is read once its size and time of
            modification have stayed the same for as long.
        clock, sleep: As in ``time``.

    Raises:
        ValueError: An interval that is no positive number.
    """

    interval: float = 2.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep

    def __post_init__(self) -> None:
        if not 0 < self.interval < float("inf"):
            raise ValueError(f"interval: expected a positive number of seconds, got {self.interval:g}")


@dataclass(frozen=True)
class Look:
    """What one look at the folders found.

    Attributes:
        listing: All images, and what could not be read.
        fresh: Images that are new or have changed since a run took them up, and are not being written.
        unsettled: Images that may still be written; nothing else is left to do once there are none.
    """

    listing: Listing
    fresh: dict[Path, Signature]
    unsettled: AbstractSet[Path]


class Watcher:
    """Looks at folders again and again.

    Args:
        watch: How.
        find: Returns the images that are there now.
        labels: Whether an image changes with its dataset's labels, too.
    """

    def __init__(self, watch: Watch, find: Callable[[], Listing], *, labels: bool) -> None:
        self.watch, self._find, self._labels = watch, find, labels
        self._seen: dict[Path, tuple[Signature, float]] = {}  # and since when
        self._taken: dict[Path, Signature] = {}
        self._start = watch.clock()

    def look(self) -> Look:
        """Look at the folders once."""
        self._start = start = self.watch.clock()
        listing = self._find()
        signatures = dict(self._signatures(listing.sources))
        end = self.watch.clock()
        same = {path: self._seen[path] for path, now in signatures.items() if self._seen.get(path, ((), 0))[0] == now}
        self._seen = {path: (now, end) for path, now in signatures.items()} | same
        due = {path: now for path, now in signatures.items() if self._taken.get(path) != now}
        fresh = {path: now for path, now in due.items() if start - self._seen[path][1] >= self.watch.interval}
        return Look(listing, fresh, due.keys() - fresh.keys())

    def take(self, fresh: dict[Path, Signature]) -> None:
        """Note that a run takes images up: they are fresh again when they change."""
        self._taken.update(fresh)

    def wait(self) -> None:
        """Wait for an interval, or as long as it has taken since the last look: very large folders take longer."""
        self.watch.sleep(max(self.watch.interval, self.watch.clock() - self._start))

    def _signatures(self, sources: Sequence[ImageSource]) -> Iterator[tuple[Path, Signature]]:
        """Yield each image's size and time of modification, with those of its labels."""
        for source in sources:
            files = [source.path]
            if self._labels and source.annotation is not None and source.annotation.exists():
                files.append(source.annotation)
            try:
                found: Any = [(each["bytes"], each["modified"]) for each in map(describe, files)]
            except OSError as error:  # a link to nothing, say: reading it raises the proper error
                found = str(error)
            yield source.path, (found, source.dataset if self._labels else None)


class WatchedRun(RunProcess):
    """A run that never has all images: it processes what each look finds until a signal ends it."""

    def __init__(
        self, watcher: Watcher, predictor: Predictor, manifest: Manifest, group: Group, on_progress: OnProgress | None
    ) -> None:
        super().__init__(Listing(()), predictor, manifest, group, on_progress)
        self.watcher = watcher
        self._known: dict[str, ImageSource] = {}  # output name -> image, those too that were removed when done
        self._resumed: set[str] = set()
        self._missing: set[str] = set()  # paths that the last look could not read

    def open(self) -> None:
        """Start or resume the run on disk; every file in the output folders is older than a first start."""
        folders = [self.manifest.out / folder for folder in (*output_folders(self.options), *LARGE_OUTPUTS)]
        files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
        self.manifest.open(files, overwrite=self.options.overwrite)
        self.manifest.refresh()

    def _work(self) -> None:
        """Process what each look finds, for ever; ``boxes.json`` and ``report.json`` follow when nothing is left."""
        behind = True
        while True:
            with self._waiting():
                look = self.watcher.look()
            if look.fresh:
                self.report.idle, behind = False, True
                if pending := self._pending(self._take(look)):
                    self._process(pending)
                continue
            with self._waiting():
                self._take_missing(look.listing)
                if behind:
                    self._note_times()
                    self._write_common_files()
                self.report.idle, behind = not look.unsettled, False
                self._report_progress(phase="waiting" if self.report.idle else "settling")
                self.watcher.wait()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for images."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.report.waited += time.perf_counter() - start

    def _take(self, look: Look) -> list[int]:
        """Take up the images of a look; return those to do, and those that an earlier start has done."""
        report, before = self.report, self._known
        self.sources, self.names = look.listing.sources, datasets.output_names(look.listing.sources)
        named, failed = super()._named(), {failure.name for failure in report.failures}
        listed = {source.path for source in self.sources}
        ended = {n: each for n, each in before.items() if n in self.manifest.done or str(each.path) in failed}
        self._known = {n: each for n, each in ended.items() if each.path not in listed} | named
        # A record may be that of a file before it changed. A second image of one stem gives the first one another name,
        # of which there may be a record, too.
        unsure = {n for n, each in named.items() if each.path in look.fresh or n not in before}
        if unsure & self.manifest.done:
            settled = {n: each for n, each in named.items() if each.path not in look.unsettled}
            changes = self._forget_changes(settled)
            self.manifest.refresh(changes.done)
            self.changes.reasons.update(changes.reasons)
        self.watcher.take(look.fresh)
        reported, again, taken = set(report.done), set[str](), []
        for index, (name, source) in enumerate(named.items()):
            path, complete = str(source.path), name in self.manifest.done
            if source.path in look.unsettled or (complete and path in reported):
                continue
            if complete or source.path in look.fresh or path not in failed:
                taken.append(index)
                (self._resumed if complete else again).add(path)
        report.forget(again)
        report.resumed -= len(self._resumed & again)  # those that are complete are counted when they are passed over
        self._resumed -= again
        self.failed = sum(failure.name not in self._missing for failure in report.failures)
        return taken

    def _take_missing(self, listing: Listing) -> None:
        """Report what the last look could not read; a glob may match later."""
        missing = [(str(path), reason) for path, reason in listing.missing if not glob.has_magic(str(path))]
        kept = [failure for failure in self.report.failures if failure.name not in self._missing]
        self.report.failures = kept + [Failure(path, reason) for path, reason in missing]
        self.report.skipped, self._missing = listing.skipped, {path for path, _ in missing}

    def _named(self) -> dict[str, ImageSource]:
        return self._known

    def _total(self) -> int:
        return len(self._known)

    def _leftovers(self, named: dict[str, ImageSource]) -> list[str]:
        return sorted(self.manifest.done - named.keys())


def check_paths(paths: Sequence[Path], split: str | None) -> None:
    """Raise ValueError for paths that cannot grow."""
    if split is not None:
        raise ValueError(f"split: {split!r} is a list of images, which does not grow; leave out --split or --watch")
    for path in paths:
        if path.is_dir() and path.suffix.lower() != ZARR:
            continue
        if path.exists():
            raise ValueError(f"watch: expected folders and globs, which can grow, got the file {path}; give its folder")
        if not glob.has_magic(str(path)):
            raise ValueError(f"watch: expected a folder, but there is no {path}; create it first")
