"""Read images ahead in worker processes, in the order in which they are asked for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, Dataset

from ssa_fast.io import images
from ssa_fast.io.datasets import labels_of
from ssa_fast.io.identity import identify

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import torch

    from ssa_fast.io.datasets import ImageSource
    from ssa_fast.io.identity import Identity
    from ssa_fast.io.images import DecodedImage
    from ssa_fast.runs.options import RunOptions

TILED_SUFFIXES = (".zarr", ".npy")  # of images that Pillow cannot read: processed in tiles whatever their size
PARENT_CHECK_S = 1.0


@dataclass(frozen=True, eq=False)
class Loaded:
    """The image at ``index`` of the sources, or the reason why there is none."""

    index: int
    image: DecodedImage | None = None  # None for an image to be processed in tiles, or after an error
    labels: tuple[str, ...] = ()  # the dataset's class names, if asked for
    error: Exception | None = None
    identity: Identity = field(default_factory=dict)  # of the file, from before it was read


class _ImageDataset(Dataset[Loaded]):
    def __init__(self, sources: Sequence[ImageSource], indices: Sequence[int], options: RunOptions) -> None:
        self.sources, self.indices, self.options = sources, indices, options

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Loaded:
        index = self.indices[position]
        source, options = self.sources[index], self.options
        try:
            identity = _identify(source)
            labels = labels_of(source) if options.classes == "labels" else ()
            if _is_in_tiles(source, options):
                options.check_tiles()
                return Loaded(index, labels=labels, identity=identity)
            how = {name: getattr(options, name) for name in ("max_pixels", "backdrop", "bands", "range")}
            image = images.read_image(source.path, **how)
            return Loaded(index, image, labels, identity=identity)
        except Exception as error:  # an unreadable image must not end the worker
            return Loaded(index, error=error)


def _identify(source: ImageSource) -> Identity:
    try:
        return identify(source.path)
    except OSError:
        return {}  # reading it raises the proper error


def needs_tiles(source: ImageSource) -> bool:
    """Return True for an image that is processed in tiles whatever its size."""
    return source.path.suffix.lower() in TILED_SUFFIXES


def _is_in_tiles(source: ImageSource, options: RunOptions) -> bool:
    from ssa_fast.io.readers import size_of

    if needs_tiles(source) or options.size is not None:
        return needs_tiles(source)
    try:
        H, W = size_of(source.path, options.bands)
    except ValueError:
        return False  # reading it raises the proper error
    return options.large_above < H * W


def _set_up_worker(_: int) -> None:
    """Ignore SIGINT and SIGTERM in a loader worker, which the main process shuts down; end it if that one is killed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(started_by: int) -> None:
    """Wait until the main process has ended, however that came about, then end this one at once.

    PyTorch's own check lets the worker return, but then joins the thread that feeds the queue of results. That thread
    writes to a full pipe for ever: nobody reads, and the workers themselves hold its reading end open. The sentinel is
    a pipe, too, whose writing end only the main process and workers forked later hold, so the last worker ends first;
    a process that the caller forked in the meantime may hold it as well, hence the second condition.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    while not wait([parent.sentinel], timeout=PARENT_CHECK_S) and os.getppid() == started_by:
        pass
    os._exit(1)


def load(
    sources: Sequence[ImageSource], indices: Sequence[int], options: RunOptions, device: torch.device
) -> Generator[Loaded, None, None]:
    """Yield the images at ``indices`` one by one, read ahead by ``options.workers`` processes."""
    workers = options.workers
    if workers is None:  # few images are read faster than a process starts; the network on a CPU needs cores, too
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        most = min(8, cores - 1) if device.type == "cuda" else min(4, cores // 2)
        workers = 0 if len(indices) < 8 else max(1, most)
    yield from DataLoader(
        _ImageDataset(sources, indices, options),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_set_up_worker,
        prefetch_factor=4 if workers else None,
    )
