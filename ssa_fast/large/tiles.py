"""The tiles of an image, and the features that the network computes for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ssa_fast.io.stopwatch import activity
from ssa_fast.large.resample import Window, iter_windows
from ssa_fast.models.extract import extract_features

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

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
    """The network's maps for a tile, without a batch dimension."""

    stages: dict[str, Tensor]  # stage -> (C, h, w) of the core
    seed: Tensor | None  # (C, h, w) of the seed layer, core and margin; None where the caller gave the seed
    seed_window: Window  # where ``seed`` lies in the whole map
    nonnegative: frozenset[str]  # stages that are ≥ 0 by construction


class TileExtractor:
    """Iterates over an image's tiles and extracts their features, cached in a folder if all of them fit ``disk`` bytes.

    ``mean`` and ``std`` normalise pixels in [0, 1]. After the first tile ``cached`` says whether features are cached.
    """

    def __init__(
        self,
        ssa: SSA,
        reader: WindowReader,
        tiling: Tiling,
        mean: Sequence[float],
        std: Sequence[float],
        cache: Path,
        disk: int,
    ) -> None:
        self.ssa, self.reader, self.tiling, self.size = ssa, reader, tiling, reader.size
        parameter = next(p for p in ssa.model.parameters() if p.is_floating_point())
        self.device, self.dtype = parameter.device, parameter.dtype
        # Images are normalised before they are rounded to half precision, as callers of SSA do.
        self.working_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.mean, self.std = (
            torch.tensor(list(values), dtype=self.working_dtype, device=self.device)[:, None, None]
            for values in (mean, std)
        )
        self.cache, self.disk, self.cached, self.forwards = cache, disk, False, 0

    def __len__(self) -> int:
        H, W = self.size
        return -(-H // self.tiling.tile) * -(-W // self.tiling.tile)

    def __iter__(self) -> Iterator[Tile]:
        for number, core in enumerate(iter_windows(self.size, self.tiling.tile)):
            yield Tile(number, core, core.padded(self.tiling.halo, Window(0, self.size[0], 0, self.size[1])))

    def extract(self, tile: Tile) -> TileFeatures:
        """Return a tile's features, computed or read from the cache."""
        path = self.cache / f"{tile.number}.pt"
        if path.exists():
            stages, seed, seed_window, nonnegative = torch.load(path, weights_only=True, map_location=self.device)
            return TileFeatures(stages, seed, Window(*seed_window), frozenset(nonnegative))
        features = self._compute(tile)
        if tile.number == 0:
            held = [each.nbytes for each in (*features.stages.values(), features.seed) if each is not None]
            self.cached = sum(held) * math.prod(self.size) / math.prod(tile.core.shape) <= self.disk
        if self.cached:
            self.cache.mkdir(exist_ok=True)
            kept = (features.stages, features.seed, tuple(features.seed_window), sorted(features.nonnegative))
            torch.save(kept, path)
        return features

    def core(self, name: str, tile: Tile) -> Window:
        """Return the tile's own part of a map; tiles at the image's end include the strides' remainders."""
        stride, (h, w) = self.tiling.field.strides[name], self.tiling.sizes[name]
        (H, W), core = self.size, tile.core
        bottom = h if core.y1 == H else min(core.y1 // stride, h)
        right = w if core.x1 == W else min(core.x1 // stride, w)
        return Window(min(core.y0 // stride, h), bottom, min(core.x0 // stride, w), right)

    def _compute(self, tile: Tile) -> TileFeatures:
        self.forwards += 1
        with activity("reading"):
            window = self.reader.read(*tile.window)
        pixels = torch.tensor(window, device=self.device).permute(2, 0, 1)
        pixels = pixels.to(self.working_dtype).div_(255.0).sub_(self.mean).div_(self.std)
        with activity("network"):
            extracted = extract_features(self.ssa.model, pixels[None].to(self.dtype), self.tiling.field.sources)
        maps = extracted.maps
        held = {}  # where the maps lie in the whole ones; around the core their values may differ
        for name, stride in self.tiling.field.strides.items():
            y0, x0 = tile.window.y0 // stride, tile.window.x0 // stride
            held[name] = Window(y0, y0 + maps[name].shape[-2], x0, x0 + maps[name].shape[-1])

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
            return TileFeatures(stages, None, Window(0, 0, 0, 0), extracted.nonnegative)
        layer = self.ssa.info.seed.layer
        seed_window = self.core(layer, tile).padded(self.tiling.margin, held[layer])
        return TileFeatures(stages, crop(layer, seed_window), seed_window, extracted.nonnegative)
