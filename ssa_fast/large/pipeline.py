"""The passes over a large image's tiles: survey where classes are asked for, gather, apply; then the fusion."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.affinity import Affinity
from ssa_fast.large.disk_map import DiskMap, Fused
from ssa_fast.large.resample import Window, resample
from ssa_fast.models.class_spec import resolve_classes
from ssa_fast.models.extract import Features
from ssa_fast.models.seed_cam import cam_seed
from ssa_fast.streaming import PixelBank, Prototypes
from ssa_fast.validation import per_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from ssa_fast.large.tiles import Record, Tile, Tiles
    from ssa_fast.models.class_spec import Classes
    from ssa_fast.ssa import SSA

SWEEP = 1024  # side of the windows in which the fused map is looked through


@dataclass(frozen=True)
class LargeStep:
    """Handed to the watcher after each window: which phase it belongs to, and how many of how many are through."""

    phase: str
    through: int
    total: int


class _Negative(Exception):
    """A stage taken for non-negative is not."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage


class Passes:
    """One image's passes: choose its classes, polish, fuse."""

    def __init__(
        self,
        ssa: SSA,
        tiles: Tiles,
        folder: Path,
        seed: Tensor | np.ndarray | None,
        key_stride: int,
        memory: int,
        disk: int,
        watch: Callable[[LargeStep], None] | None,
        start: float,
    ) -> None:
        self.ssa, self.tiles, self.folder, self.disk = ssa, tiles, folder, disk
        self.given = None if seed is None else torch.as_tensor(seed).float().to(tiles.device)
        self.key_stride, self.memory, self.watch = key_stride, memory, watch
        self.logits: Tensor | None = None
        self.seconds: dict[str, float] = {}
        self._since = start
        dry = {name: torch.zeros(1, 1, 1, 1) for name in ssa.stage_names}
        self.affinities = per_stage("affinity", ssa.affinity, dry, Affinity)
        self.paths = {name: self._path(name) for name in ssa.stage_names}

    def choose(self, classes: Classes) -> list[int]:
        """The classes, for which those of highest logit take a pass of their own."""
        self.mark("prepare")
        if self.given is None and (classes is None or isinstance(classes, str)):
            self._survey()
            self.mark("survey")
        self.classes = self._resolve(classes)
        chosen: list[int] = self.classes[0].tolist()
        return chosen

    def polish(self) -> None:
        """Every stage's polished map on disk."""
        while True:
            try:
                gathered = self._gather()
                break
            except _Negative as negative:
                self.paths[negative.stage] = "keys"
        self.mark("gather")
        try:
            self._apply(gathered)
        finally:
            for each in gathered.values():
                if isinstance(each, PixelBank):
                    each.close()
        self.mark("apply")

    def fuse(self) -> Fused:
        """The fused map, with its extremes known."""
        fused = Fused(self.ssa, self.maps, self.tiles.size)
        H, W = self.tiles.size
        windows = [
            Window(y, min(y + SWEEP, H), x, min(x + SWEEP, W)) for y in range(0, H, SWEEP) for x in range(0, W, SWEEP)
        ]
        for index, window in enumerate(windows):
            fused.range_of(window)
            self.tell("fuse", index + 1, len(windows))
        self.mark("fuse")
        return fused

    def tell(self, phase: str, through: int, total: int) -> None:
        """Let the watcher know."""
        if self.watch is not None:
            self.watch(LargeStep(phase, through, total))

    def mark(self, phase: str) -> None:
        """Note how long a phase took."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._since
        self._since = now

    def _path(self, name: str) -> str:
        affinity = self.affinities[name]
        sums = affinity.degree == 1 and not affinity.center and self.ssa.info.signs[name] == "non-negative"
        return "prototypes" if sums else "keys"

    def _records(self, phase: str) -> Iterator[tuple[Tile, Record]]:
        """All tiles with what the network gives for them, kept on disk from the first on if all of them fit."""
        total = len(self.tiles)
        for index, tile in enumerate(self.tiles):
            record = self.tiles.record(tile)
            if index == 0 and self.tiles.kept is None and self._bytes(record, tile) <= self.disk:
                folder = self.folder / "features"
                folder.mkdir()
                self.tiles.keep_in(folder)
                self.tiles.keep(tile, record)
            yield tile, record
            self.tell(phase, index + 1, total)

    def _bytes(self, record: Record, tile: Tile) -> float:
        tensors = [*record.stages.values(), *([] if record.seed is None else [record.seed])]
        pixels = tile.core.shape[0] * tile.core.shape[1]
        H, W = self.tiles.size
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) * (H * W / pixels)

    def _survey(self) -> None:
        """Find the whole image's logits, by which classes are chosen, before any class is gathered for."""
        total: Tensor | None = None
        for tile, record in self._records("survey"):
            total = self._summed(total, tile, record)
        self._find_logits(total)

    def _summed(self, total: Tensor | None, tile: Tile, record: Record) -> Tensor | None:
        """The sum over the tile's pixels of the seed layer's map, added to that of the tiles before."""
        if record.seed is None:
            return None
        y, x = self.tiles.core(self.ssa.info.seed.layer, tile).inside(record.seed_window)
        part = record.seed[:, y, x].double().sum(dim=(1, 2))
        return part if total is None else total + part

    def _find_logits(self, total: Tensor | None) -> None:
        """The logits are those of the mean over all pixels: that is what makes the CAM exact."""
        if total is None:
            return
        h, w = self.tiles.sizes[self.ssa.info.seed.layer]
        mean = total / (h * w)
        head = self.ssa.info.seed.head
        if head is not None:
            module: Any = self.ssa.model.get_submodule(head)
            mean = module.weight.detach().flatten(1).double() @ mean
            mean = mean if module.bias is None else mean + module.bias.detach().double()
        self.logits = mean.float().cpu()
        if not bool(self.logits.isfinite().all()):
            raise ValueError("model: expected finite logits, got NaN or infinity; try it in float32")

    def _resolve(self, classes: Classes) -> Tensor:
        """(1, K) indices on the model's device."""
        count = self.ssa.info.num_classes
        logits = self.logits if self.logits is not None else torch.zeros(count)
        return resolve_classes(classes, logits[None]).to(self.tiles.device)

    def _seed_of(self, record: Record) -> tuple[Tensor, Window, tuple[int, int]]:
        """The seed (K, h, w) around a tile, where it lies, and the whole seed's size."""
        if self.given is not None:
            h, w = self.given.shape[1:]
            return self.given, Window(0, h, 0, w), (h, w)
        layer = self.ssa.info.seed.layer
        assert record.seed is not None
        extracted = Features(self.tiles.size, {layer: record.seed[None]})
        with torch.autocast(self.tiles.device.type, enabled=False):
            seed = cam_seed(self.ssa.model, self.ssa.info.seed, extracted, self.classes)[0]
        return seed, record.seed_window, self.tiles.sizes[layer]

    def _gather(self) -> dict[str, Prototypes | PixelBank]:
        gathered: dict[str, Prototypes | PixelBank] = {}
        K = self.classes.shape[1]
        total: Tensor | None = None
        try:
            for tile, record in self._records("gather"):
                total = self._summed(total, tile, record)
                seed, held, whole = self._seed_of(record)
                self._remember(seed, held, whole, tile)
                for name, features in record.stages.items():
                    if name not in gathered:
                        gathered[name] = self._accumulator(name, K, features)
                    core = self.tiles.core(name, tile)
                    if not core.empty:
                        with torch.autocast(self.tiles.device.type, enabled=False):
                            cam = resample(seed, held, whole, core, self.tiles.sizes[name], self.ssa.align_corners)
                        self._add(name, gathered[name], cam, features, core)
        except BaseException:
            for each in gathered.values():
                if isinstance(each, PixelBank):
                    each.close()
            raise
        self._find_logits(total)
        return gathered

    def _accumulator(self, name: str, K: int, features: Tensor) -> Prototypes | PixelBank:
        C, device = features.shape[0], features.device
        if self.paths[name] == "prototypes":
            return Prototypes(K, C, affinity=self.affinities[name], device=device)
        share = self.memory // (4 * list(self.paths.values()).count("keys"))
        return PixelBank(
            K,
            C,
            affinity=self.affinities[name],
            stride=self.key_stride,
            memory=share,
            scratch=self.folder,
            device=device,
        )

    def _add(self, name: str, gathered: Prototypes | PixelBank, cam: Tensor, features: Tensor, core: Window) -> None:
        if isinstance(gathered, PixelBank):
            gathered.add(cam, features, at=(core.y0, core.x0))
        elif bool((features < 0).any()):
            raise _Negative(name)
        else:
            gathered.add(cam, features, nonnegative=True)

    def _remember(self, seed: Tensor, held: Window, whole: tuple[int, int], tile: Tile) -> None:
        """Put the tile's part of the seed into the whole one, which is small."""
        if self.given is not None:
            self.seed = self.given
            return
        if tile.number == 0:
            self.seed = seed.new_zeros((len(seed), *whole))
        core = self.tiles.core(self.ssa.info.seed.layer, tile)
        y, x = core.inside(held)
        self.seed[:, core.y0 : core.y1, core.x0 : core.x1] = seed[:, y, x]

    def _apply(self, gathered: dict[str, Prototypes | PixelBank]) -> None:
        K = self.classes.shape[1]
        self.maps = {
            name: DiskMap(self.folder / f"stage-{n}.raw", K, self.tiles.sizes[name], self.tiles.mean.dtype)
            for n, name in enumerate(self.ssa.stage_names)
        }
        for tile, record in self._records("apply"):
            for name, features in record.stages.items():
                core = self.tiles.core(name, tile)
                if not core.empty:
                    self.maps[name].write(core, gathered[name].apply(features))
