"""Maps of whole images that lie on disk and are written and read in windows; and their fusion, window by window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ssa_fast.fusion import fuse_stages, rescale
from ssa_fast.large.windows import Window, needed, resample

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ssa_fast.ssa import SSA


class DiskMap:
    """``(K, H, W)`` float32 in a file, with each class's extremes ``(K,)`` of what was written."""

    def __init__(self, path: Path, K: int, size: tuple[int, int]) -> None:
        self.path, self.size, self.shape = path, size, (K, *size)
        np.memmap(path, np.float32, "w+", shape=self.shape)
        self.low, self.high = torch.full((K,), float("inf")), torch.full((K,), float("-inf"))

    def write(self, window: Window, values: Tensor) -> None:
        """Put ``(K, h, w)`` where ``window`` is."""
        if window.empty:
            return
        values = values.detach().float().cpu()
        # Opened anew for every window, or all pages that were ever touched would count as the process's own.
        disk = np.memmap(self.path, np.float32, "r+", shape=self.shape)
        disk[:, window.y0 : window.y1, window.x0 : window.x1] = values.numpy()
        disk.flush()
        self.low = torch.minimum(self.low, values.amin(dim=(1, 2)))
        self.high = torch.maximum(self.high, values.amax(dim=(1, 2)))

    def read(self, window: Window, classes: slice = slice(None)) -> Tensor:
        """``(K, h, w)`` of a window."""
        disk = np.memmap(self.path, np.float32, "r", shape=self.shape)
        return torch.from_numpy(np.array(disk[classes, window.y0 : window.y1, window.x0 : window.x1]))


class Fused:
    """The stages' polished maps as one CAM of the image's size, made window by window and rescaled to [0, 1]."""

    def __init__(self, ssa: SSA, maps: dict[str, DiskMap], size: tuple[int, int]) -> None:
        self.ssa, self.maps, self.size = ssa, maps, size
        K = next(iter(maps.values())).shape[0]
        self.low, self.high = torch.full((K,), float("inf")), torch.full((K,), float("-inf"))

    def raw(self, window: Window, classes: slice = slice(None)) -> Tensor:
        """``(K, h, w)`` before the last rescaling: each stage rescaled by its own extremes, resized and fused."""
        stages = {}
        for name, disk in self.maps.items():
            held = needed(window, disk.size, self.size, self.ssa.align_corners)
            low, high = (extreme[classes, None, None] for extreme in (disk.low, disk.high))
            piece = rescale(disk.read(held, classes), low, high)
            stages[name] = resample(piece, held, disk.size, window, self.size, self.ssa.align_corners)[None]
        fused = fuse_stages(
            stages, size=window.shape, fuse=self.ssa.fuse, weights=self.ssa.weights, rescale=False, backend="torch"
        )
        return fused[0]

    def range_of(self, window: Window) -> None:
        """Let a window's values widen the extremes by which ``cam`` rescales."""
        values = self.raw(window)
        self.low = torch.minimum(self.low, values.amin(dim=(1, 2)))
        self.high = torch.maximum(self.high, values.amax(dim=(1, 2)))

    def cam(self, window: Window, classes: slice = slice(None)) -> Tensor:
        """``(K, h, w)`` in [0, 1]."""
        low, high = (extreme[classes, None, None] for extreme in (self.low, self.high))
        return rescale(self.raw(window, classes), low, high).clamp_(0.0, 1.0)
