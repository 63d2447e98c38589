"""The tiles of one image, and what the network gives for each: computed, or read from where it was kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ssa_fast.large.resample import Window
from ssa_fast.models.extract import Features, extract_features

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from ssa_fast.io.readers.open import Reader
    from ssa_fast.large.tiling import Cut
    from ssa_fast.ssa import SSA


@dataclass(frozen=True)
class Tile:
    """One tile in pixels of the image: ``core`` is its own, ``window`` what the network sees."""

    number: int
    core: Window
    window: Window


@dataclass(frozen=True, eq=False)
class Record:
    """What the network gave for a tile, without a batch dimension.

    ``stages``: (C, h, w) of the core. ``seed``: (C, h, w) of the seed layer's core and its margin, None where the
    seed is the caller's; ``seed_window`` says where it lies in the whole map.
    """

    stages: dict[str, Tensor]
    seed: Tensor | None
    seed_window: Window


class Tiles:
    """An image cut as ``cut`` says; of the seed layer's map with its margin, if there is such a layer."""

    def __init__(
        self,
        ssa: SSA,
        reader: Reader,
        *,
        cut: Cut,
        seed_layer: str | None,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.ssa, self.reader, self.seed_layer = ssa, reader, seed_layer
        self.side, self.halo, self.margin = cut.tile, cut.halo, cut.margin
        self.strides, self.sizes = cut.strides, cut.sizes
        parameter = next(p for p in ssa.model.parameters() if p.is_floating_point())
        self.device, self.dtype = parameter.device, parameter.dtype
        # Normalised before they are rounded to half precision, as who calls SSA does it.
        precise = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.mean, self.std = (
            torch.tensor(list(values), dtype=precise, device=self.device)[:, None, None] for values in (mean, std)
        )
        self.kept: Path | None = None
        self._stored: set[int] = set()
        self.forwards = 0

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.reader.size

    def __len__(self) -> int:
        rows, columns = (len(_cuts(length, self.side)) for length in self.size)
        return rows * columns

    def __iter__(self) -> Iterator[Tile]:
        H, W = self.size
        number = 0
        for y0, y1 in _cuts(H, self.side):
            for x0, x1 in _cuts(W, self.side):
                halo = self.halo
                window = Window(max(0, y0 - halo), min(H, y1 + halo), max(0, x0 - halo), min(W, x1 + halo))
                yield Tile(number, Window(y0, y1, x0, x1), window)
                number += 1

    def keep_in(self, folder: Path) -> None:
        """From now on records are kept there once they are computed."""
        self.kept = folder

    def record(self, tile: Tile) -> Record:
        """What the network gives for a tile."""
        if self.kept is not None and tile.number in self._stored:
            held = torch.load(self._path(tile), weights_only=True, map_location=self.device)
            return Record(held["stages"], held["seed"], Window(*held["seed_window"]))
        record = self._compute(tile)
        if self.kept is not None:
            self.keep(tile, record)
        return record

    def keep(self, tile: Tile, record: Record) -> None:
        """Keep a tile's record where ``keep_in`` said."""
        content = {"stages": record.stages, "seed": record.seed, "seed_window": tuple(record.seed_window)}
        torch.save(content, self._path(tile))
        self._stored.add(tile.number)

    def core(self, name: str, tile: Tile) -> Window:
        """The tile's own part of a map; tiles at the image's end take what the strides leave over."""
        return self._cells(name, tile.core)

    def _compute(self, tile: Tile) -> Record:
        maps = self._forward(tile)
        stages = {}
        for name in self.ssa.stage_names:
            core, held = self.core(name, tile), self._window(name, tile, maps[name])
            if not core.empty and (core.y1 > held.y1 or core.x1 > held.x1):
                raise ValueError(
                    f"halo: expected more than {self.halo} pixels, with which windows give too few of {name!r}'s "
                    'pixels, as the network pads nothing; pass "auto"'
                )
            y, x = core.inside(held)
            stages[name] = maps[name][0, :, y, x].clone()  # or the whole window would stay in memory
        if self.seed_layer is None:
            return Record(stages, None, Window(0, 0, 0, 0))
        held = self._window(self.seed_layer, tile, maps[self.seed_layer])
        own = self.core(self.seed_layer, tile)
        piece = Window(
            max(own.y0 - self.margin, held.y0),
            min(own.y1 + self.margin, held.y1),
            max(own.x0 - self.margin, held.x0),
            min(own.x1 + self.margin, held.x1),
        )
        y, x = piece.inside(held)
        return Record(stages, maps[self.seed_layer][0, :, y, x].clone(), piece)

    def _forward(self, tile: Tile) -> dict[str, Tensor]:
        self.forwards += 1
        images = self._prepare(self.reader.read(*tile.window))
        sources = dict(self.ssa.info.stages)
        if self.seed_layer is not None:
            sources.setdefault(self.seed_layer, self.ssa.info.seed.ref)
        extracted: Features = extract_features(self.ssa.model, images, sources)
        return extracted.maps

    def _prepare(self, rgb: np.ndarray) -> Tensor:
        pixels = torch.tensor(rgb, device=self.device).permute(2, 0, 1).to(self.mean.dtype)
        return pixels.div_(255.0).sub_(self.mean).div_(self.std)[None].to(self.dtype)

    def _cells(self, name: str, core: Window) -> Window:
        stride, (h, w) = self.strides[name], self.sizes[name]
        H, W = self.size
        bottom = h if core.y1 == H else min(core.y1 // stride, h)
        right = w if core.x1 == W else min(core.x1 // stride, w)
        return Window(min(core.y0 // stride, h), bottom, min(core.x0 // stride, w), right)

    def _window(self, name: str, tile: Tile, maps: Tensor) -> Window:
        """The part of a whole map that the tile's window gave; cells beside its core may not be the whole's own."""
        stride = self.strides[name]
        y0, x0 = tile.window.y0 // stride, tile.window.x0 // stride
        return Window(y0, y0 + maps.shape[-2], x0, x0 + maps.shape[-1])

    def _path(self, tile: Tile) -> Path:
        assert self.kept is not None
        return self.kept / f"{tile.number}.pt"


def _cuts(length: int, side: int) -> list[tuple[int, int]]:
    return [(lo, min(lo + side, length)) for lo in range(0, length, side)]
