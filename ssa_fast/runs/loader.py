"""Read images ahead in worker processes, in the order in which they are asked for."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
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


def _ignore_signals(_: int) -> None:
    """Ignore SIGINT and SIGTERM in loader workers; the main process shuts them down."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


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
        worker_init_fn=_ignore_signals,
        prefetch_factor=4 if workers else None,
    )
