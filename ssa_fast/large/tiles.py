"""The tiles of an image, and the features that the network computes for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ssa_fast.large.resample import Window, iter_windows
from ssa_fast.models.extract import extract_features

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from ssa_fast.io.readers import WindowReader
    from ssa_fast.large.tiling import Tiling
    from ssa_fast.ssa import SSA


@dataclass(frozen=True)
class Tile:
    """One tile in pixels of the image: ``core`` is its own, ``window`` what the network sees."""

    number: int
    core: Window
    window: Window


@dataclass(frozen=True, eq=False)
class TileFeatures:
    """The network's maps for a tile, without a batch dimension.

    Attributes:
        stages: Stage -> (C, h, w) of the core.
        seed: (C, h, w) of the seed layer, core and margin; None where the caller gave the seed.
        seed_window: Where ``seed`` lies in the whole map.
    """

    stages: dict[str, Tensor]
    seed: Tensor | None
    seed_window: Window


class TileExtractor:
    """Iterates over the tiles of an image and extracts their features, cached on disk if all of them fit.

    Args:
        ssa: The network and its stages.
        reader: The image.
        tiling: How it is cut.
        mean, std: Of the normalisation of pixels in [0, 1].
        cache: Folder for the cached features.
        disk: Bytes that they may take.

    Attributes:
        cached: Whether the features are cached; decided at the first tile.
        forwards: Number of forwards so far.
    """

    def __init__(
        self,
        ssa: SSA,
        reader: WindowReader,
        tiling: Tiling,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        cache: Path,
        disk: int,
    ) -> None:
        self.ssa, self.reader, self.tiling = ssa, reader, tiling
        parameter = next(p for p in ssa.model.parameters() if p.is_floating_point())
        self.device, self.dtype = parameter.device, parameter.dtype
        # Images are normalised before they are rounded to half precision, as callers of SSA do.
        self.working_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.mean, self.std = (
            torch.tensor(list(values), dtype=self.working_dtype, device=self.device)[:, None, None]
            for values in (mean, std)
        )
        self.cache, self.disk, self.cached, self._in_cache = cache, disk, False, set[int]()
        self.forwards = 0

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.reader.size

    def __len__(self) -> int:
        H, W = self.size
        return -(-H // self.tiling.tile) * -(-W // self.tiling.tile)

    def __iter__(self) -> Iterator[Tile]:
        for number, core in enumerate(iter_windows(self.size, self.tiling.tile)):
            yield Tile(number, core, core.padded(self.tiling.halo, Window(0, self.size[0], 0, self.size[1])))

    def extract(self, tile: Tile) -> TileFeatures:
        """Return a tile's features, computed or read from the cache."""
        path = self.cache / f"{tile.number}.pt"
        if tile.number in self._in_cache:
            stages, seed, seed_window = torch.load(path, weights_only=True, map_location=self.device)
            return TileFeatures(stages, seed, Window(*seed_window))
        features = self._compute(tile)
        if tile.number == 0:
            self.cached = self._cache_bytes(tile, features) <= self.disk
        if self.cached:
            self.cache.mkdir(exist_ok=True)
            torch.save((features.stages, features.seed, tuple(features.seed_window)), path)
            self._in_cache.add(tile.number)
        return features

    def core(self, name: str, tile: Tile) -> Window:
        """Return the tile's own part of a map; tiles at the image's end include the strides' remainders."""
        stride, (h, w) = self.tiling.field.strides[name], self.tiling.sizes[name]
        (H, W), core = self.size, tile.core
        bottom = h if core.y1 == H else min(core.y1 // stride, h)
        right = w if core.x1 == W else min(core.x1 // stride, w)
        return Window(min(core.y0 // stride, h), bottom, min(core.x0 // stride, w), right)

    def _cache_bytes(self, tile: Tile, features: TileFeatures) -> float:
        """Return an estimate of the bytes of all tiles' features from those of one tile."""
        count = sum(stage.nbytes for stage in features.stages.values())
        count += 0 if features.seed is None else features.seed.nbytes
        return count * math.prod(self.size) / math.prod(tile.core.shape)

    def _compute(self, tile: Tile) -> TileFeatures:
        self.forwards += 1
        images = self._normalize(self.reader.read(*tile.window))
        maps = extract_features(self.ssa.model, images, self.tiling.field.sources).maps
        held = {name: self._held_window(name, tile, each) for name, each in maps.items()}

        def crop(name: str, window: Window) -> Tensor:
            y, x = window.inside(held[name])
            return maps[name][0, :, y, x].clone()  # a view would keep the whole window in memory

        stages = {}
        for name in self.ssa.stage_names:
            core = self.core(name, tile)
            if not core.empty and (core.y1 > held[name].y1 or core.x1 > held[name].x1):
                raise ValueError(
                    f"halo: expected more than {self.tiling.halo} pixels, as the network does not pad and the tiles' "
                    f'windows give too few pixels of {name!r}; pass "auto"'
                )
            stages[name] = crop(name, core)
        if self.tiling.margin is None:
            return TileFeatures(stages, None, Window(0, 0, 0, 0))
        layer = self.ssa.info.seed.layer
        seed_window = self.core(layer, tile).padded(self.tiling.margin, held[layer])
        return TileFeatures(stages, crop(layer, seed_window), seed_window)

    def _normalize(self, rgb: np.ndarray) -> Tensor:
        pixels = torch.tensor(rgb, device=self.device).permute(2, 0, 1).to(self.working_dtype)
        return pixels.div_(255.0).sub_(self.mean).div_(self.std)[None].to(self.dtype)

    def _held_window(self, name: str, tile: Tile, maps: Tensor) -> Window:
        """Return where a tile's map lies in the whole map; around the core its values may differ."""
        stride = self.tiling.field.strides[name]
        y0, x0 = tile.window.y0 // stride, tile.window.x0 // stride
        return Window(y0, y0 + maps.shape[-2], x0, x0 + maps.shape[-1])
