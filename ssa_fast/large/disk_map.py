"""Maps of whole images that lie on disk and are written and read in windows; and their fusion, window by window."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ssa_fast.large.resample import Window, needed, resample
from ssa_fast.ops.fusion import fuse
from ssa_fast.ops.resize import rescale

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ssa_fast.ssa import SSA


CHUNK = 64 << 20  # bytes of CAMs that are looked at together


class DiskMap:
    """``(K, H, W)`` in a file, with each class's extremes ``(K,)`` of what was written.

    float32, or float64 of a float64 network: a nearly flat map's rescaling enlarges what was rounded off.
    """

    def __init__(self, path: Path, K: int, size: tuple[int, int], dtype: torch.dtype) -> None:
        self.path, self.size, self.shape = path, size, (K, *size)
        self.dtype, self._stored = dtype, np.dtype(np.float64 if dtype == torch.float64 else np.float32)
        count = self._stored.itemsize * K * size[0] * size[1]
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an OSError here, but kills who writes to a map
                os.posix_fallocate(file.fileno(), 0, count)
            else:
                file.truncate(count)
        self.low = torch.full((K,), float("inf"), dtype=dtype)
        self.high = torch.full((K,), float("-inf"), dtype=dtype)

    def write(self, window: Window, values: Tensor) -> None:
        """Put ``(K, h, w)`` where ``window`` is."""
        if window.empty:
            return
        values = values.detach().to("cpu", self.dtype)
        # Opened anew for every window, or all pages that were ever touched would count as the process's own.
        disk = np.memmap(self.path, self._stored, "r+", shape=self.shape)
        disk[:, window.y0 : window.y1, window.x0 : window.x1] = values.numpy()
        self.low = torch.minimum(self.low, values.amin(dim=(1, 2)))
        self.high = torch.maximum(self.high, values.amax(dim=(1, 2)))

    def read(self, window: Window, classes: slice = slice(None)) -> Tensor:
        """``(K, h, w)`` of a window."""
        disk = np.memmap(self.path, self._stored, "r", shape=self.shape)
        return torch.from_numpy(np.array(disk[classes, window.y0 : window.y1, window.x0 : window.x1]))


class Fused:
    """The stages' polished maps as one CAM of the image's size, made window by window and rescaled to [0, 1]."""

    def __init__(self, ssa: SSA, maps: dict[str, DiskMap], size: tuple[int, int]) -> None:
        self.ssa, self.maps, self.size = ssa, maps, size
        first = next(iter(maps.values()))
        self.low, self.high = torch.full_like(first.low, float("inf")), torch.full_like(first.high, float("-inf"))

    def raw(self, window: Window, classes: slice = slice(None)) -> Tensor:
        """``(K, h, w)`` before the last rescaling: each stage rescaled by its own extremes, resized and fused."""
        stages = {}
        for name, disk in self.maps.items():
            held = needed(window, disk.size, self.size, self.ssa.align_corners)
            low, high = (extreme[classes, None, None] for extreme in (disk.low, disk.high))
            piece = rescale(disk.read(held, classes), low, high)
            stages[name] = resample(piece, held, disk.size, window, self.size, self.ssa.align_corners)[None]
        options = replace(self.ssa.fusion, size=window.shape, rescale=False, backend="torch")
        return fuse(stages, options)[0]

    def range_of(self, window: Window) -> None:
        """Let a window's values widen the extremes by which ``cam`` rescales.

        Raises:
            ValueError: a value that is NaN or infinite, which 8 bits cannot hold.
        """
        h, w = window.shape
        count = max(1, CHUNK // (4 * h * w))
        for first in range(0, len(self.low), count):
            classes = slice(first, first + count)
            values = self.raw(window, classes)
            if not bool(values.isfinite().all()):
                raise ValueError("model: expected finite CAMs, got NaN or infinity; try it in float32")
            self.low[classes] = torch.minimum(self.low[classes], values.amin(dim=(1, 2)))
            self.high[classes] = torch.maximum(self.high[classes], values.amax(dim=(1, 2)))

    def cam(self, window: Window, classes: slice = slice(None)) -> Tensor:
        """``(K, h, w)`` in [0, 1]."""
        low, high = (extreme[classes, None, None] for extreme in (self.low, self.high))
        return rescale(self.raw(window, classes), low, high).clamp_(0.0, 1.0)
