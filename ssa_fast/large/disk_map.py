"""Maps of whole images on disk, written and read in windows, and their fusion, window by window."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ssa_fast.large.resample import Window, resample, source_window
from ssa_fast.ops.fusion import fuse
from ssa_fast.ops.resize import rescale

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ssa_fast.ssa import SSA


CHUNK_BYTES = 64 << 20  # of CAMs that are processed together


class _MinMax:
    """Each class's minimum and maximum ``(K,)`` over the windows seen so far."""

    def __init__(self, K: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.low, self.high = (torch.full((K,), limit, dtype=dtype) for limit in (float("inf"), float("-inf")))

    def _update(self, values: Tensor, classes: slice = slice(None)) -> None:
        self.low[classes] = torch.minimum(self.low[classes], values.amin(dim=(1, 2)))
        self.high[classes] = torch.maximum(self.high[classes], values.amax(dim=(1, 2)))

    def _rescale(self, values: Tensor, classes: slice) -> Tensor:
        return rescale(values, self.low[classes, None, None], self.high[classes, None, None])


class DiskMap(_MinMax):
    """A map ``(K, H, W)`` in a file; float64 for a float64 network, as rescaling a flat map magnifies rounding."""

    def __init__(self, path: Path, K: int, size: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__(K, dtype)
        self.path, self.size, self.shape = path, size, (K, *size)
        if hasattr(os, "posix_fallocate"):  # a full disk raises OSError here, but kills a process that maps the file
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, dtype.itemsize * math.prod(self.shape))

    def _map(self, window: Window, classes: slice = slice(None)) -> Tensor:
        """Map a window, the file anew each time: all pages touched count as this process's memory until unmapped."""
        disk = torch.from_file(str(self.path), shared=True, size=math.prod(self.shape), dtype=self.dtype)
        return disk.view(self.shape)[classes, window.y0 : window.y1, window.x0 : window.x1]

    def write(self, window: Window, values: Tensor) -> None:
        """Write ``(K, h, w)`` at ``window``."""
        values = values.detach().to("cpu", self.dtype)
        self._map(window).copy_(values)
        self._update(values)

    def read(self, window: Window, classes: slice = slice(None)) -> Tensor:
        """Return ``(K, h, w)`` of a window."""
        return self._map(window, classes).clone()


class FusedMap(_MinMax):
    """The stages' polished maps fused window by window to one CAM of the image's size, in [0, 1].

    ``update_minmax`` must have seen all windows before ``cam`` is right.
    """

    def __init__(self, ssa: SSA, maps: dict[str, DiskMap], size: tuple[int, int]) -> None:
        first = next(iter(maps.values()))
        super().__init__(len(first.low), first.dtype)
        self.ssa, self.maps, self.size = ssa, maps, size

    def raw(self, window: Window, classes: slice = slice(None)) -> Tensor:
        """Return ``(K, h, w)`` before the last rescaling: the stages rescaled, resized and fused."""
        stages = {}
        for name, disk in self.maps.items():
            held = source_window(window, disk.size, self.size, self.ssa.align_corners)
            part = disk._rescale(disk.read(held, classes), classes)
            stages[name] = resample(part, held, disk.size, window, self.size, self.ssa.align_corners)[None]
        options = replace(self.ssa.fusion, size=window.shape, rescale=False, backend="torch")
        return fuse(stages, options)[0]

    def update_minmax(self, window: Window) -> None:
        """Include a window's values in the minimum and maximum by which ``cam`` rescales."""
        h, w = window.shape
        count = max(1, CHUNK_BYTES // (4 * h * w))
        for first in range(0, len(self.low), count):
            classes = slice(first, first + count)
            values = self.raw(window, classes)
            if not bool(values.isfinite().all()):
                raise ValueError("model: expected finite CAMs, got NaN or infinity; try it in float32")
            self._update(values, classes)

    def cam(self, window: Window, classes: slice = slice(None)) -> Tensor:
        """Return ``(K, h, w)`` in [0, 1]."""
        return self._rescale(self.raw(window, classes), classes).clamp_(0.0, 1.0)
