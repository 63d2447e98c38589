"""Pictures read ahead by other processes, in the order in which they are wanted."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Dataset

from ssa_fast.io import images
from ssa_fast.io.datasets import labels_of

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import torch

    from ssa_fast.io.datasets import ImageSource
    from ssa_fast.io.images import DecodedImage
    from ssa_fast.runs.options import RunOptions

WINDOWED = (".zarr", ".npy")
"""Suffixes of images that Pillow does not know, and that are read in windows whatever their size."""

FEW = 8
"""Pictures for which no process is worth its start."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """What came of reading the picture at `index`: the picture, None where it is one for tiles, or why it was not read.

    `labels` are the dataset's class names, where they were asked for.
    """

    index: int
    picture: DecodedImage | None = None
    labels: tuple[str, ...] = ()
    error: Exception | None = None


class _Pictures(Dataset[Loaded]):
    def __init__(self, sources: Sequence[ImageSource], wanted: Sequence[int], options: RunOptions) -> None:
        self.sources, self.wanted, self.options = sources, wanted, options

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, position: int) -> Loaded:
        index = self.wanted[position]
        source, options = self.sources[index], self.options
        try:
            labels = labels_of(source) if options.classes == "labels" else ()
            if options.size is None and _is_large(source, options):
                return Loaded(index, labels=labels)
            picture = images.read_image(source.path, max_pixels=options.max_pixels, backdrop=options.backdrop)
            return Loaded(index, picture, labels)
        except Exception as error:  # a reader's error is the picture's, and no reason to end the reading process
            return Loaded(index, error=error)


def _is_large(source: ImageSource, options: RunOptions) -> bool:
    from ssa_fast.io.readers import size_of

    try:
        H, W = size_of(source.path)
    except ValueError:
        return False  # whoever reads it says what is wrong with it
    return options.large_above < H * W or source.path.suffix.lower() in WINDOWED


def _leave_signals(_: int) -> None:
    """A signal to the whole group asks the run to end; whoever reads for it is needed until it has."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _keep(loaded: Any) -> Any:
    return loaded


def load(
    sources: Sequence[ImageSource], wanted: Sequence[int], options: RunOptions, device: torch.device
) -> Generator[Loaded, None, None]:
    """The pictures at the indices `wanted`, one after the other, read ahead by `options.workers` processes."""
    workers = options.workers if options.workers is not None else default_workers(len(wanted), device)
    loader = DataLoader(
        _Pictures(sources, wanted, options),
        batch_size=None,
        num_workers=workers,
        collate_fn=_keep,
        worker_init_fn=_leave_signals,
        prefetch_factor=4 if workers else None,
    )
    yield from loader


def default_workers(pictures: int, device: torch.device) -> int:
    """Half the cores where the network needs the others, all but one where it runs on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if pictures < FEW:
        return 0
    return max(1, min(8, cores - 1)) if device.type == "cuda" else max(1, min(4, cores // 2))
