"""The passes over a large image's tiles (logits if needed, gather, apply) and the fusion."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.affinity import Affinity
from ssa_fast.io.progress import Progress
from ssa_fast.large.disk_map import DiskMap, FusedMap
from ssa_fast.large.resample import Window, iter_windows, resample
from ssa_fast.models.class_spec import resolve_classes
from ssa_fast.models.extract import Features
from ssa_fast.models.seed_cam import cam_seed
from ssa_fast.streaming import PixelBank, Prototypes
from ssa_fast.validation import per_stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from ssa_fast.io.progress import OnProgress
    from ssa_fast.large.tiles import Tile, TileExtractor, TileFeatures
    from ssa_fast.models.class_spec import Classes
    from ssa_fast.ssa import SSA

FUSION_WINDOW = 1024  # side of the windows in which the fused map's extremes are found


@dataclass(frozen=True, eq=False)
class Gathered:
    """State between the two passes; a context manager that removes the stored pixels.

    Attributes:
        accumulators: Stage -> what was gathered of it.
        seed: (K, h, w) of the whole image, before polishing.
        logits: (num_classes,) float32 of the whole image; None where the caller gave the seed.
    """

    accumulators: dict[str, Prototypes | PixelBank]
    seed: Tensor
    logits: Tensor | None
    banks: ExitStack

    @property
    def methods(self) -> dict[str, str]:
        """Stage -> "prototypes" or "pixel_bank"."""
        return {
            name: "pixel_bank" if isinstance(a, PixelBank) else "prototypes" for name, a in self.accumulators.items()
        }

    def __enter__(self) -> Gathered:
        return self

    def __exit__(self, *_: object) -> None:
        self.banks.close()


class _NegativeFeatures(Exception):
    """A stage taken for non-negative is not."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


class Pipeline:
    """One image's passes.

    Args:
        ssa: The network and its options.
        tiles: The image's tiles and their features.
        folder: For temporary files.
        seed: (K, h, w) of the whole image, or None for the classifier's own CAM.
        stride: Of ``PixelBank``.
        memory: Bytes for the whole process.
        callbacks: Called with a ``Progress`` after each window of a phase.
        start: ``time.perf_counter()`` when the work began.

    Attributes:
        seconds: Phase -> wall-clock time.
    """

    def __init__(
        self,
        ssa: SSA,
        tiles: TileExtractor,
        folder: Path,
        *,
        seed: Tensor | np.ndarray | None,
        stride: int,
        memory: int,
        callbacks: Sequence[OnProgress],
        start: float,
    ) -> None:
        self.ssa, self.tiles, self.folder = ssa, tiles, folder
        self.given_seed = None if seed is None else torch.as_tensor(seed).float().to(tiles.device)
        self.stride, self.memory, self.callbacks = stride, memory, callbacks
        self.seconds: dict[str, float] = {}
        self._last_time = start
        self.affinities = per_stage("affinity", ssa.affinity, ssa.info.stages, Affinity)

    def select_classes(self, classes: Classes) -> Tensor:
        """Return the class indices (1, K) on the model's device; the top classes need a pass of their own."""
        self.record_time("prepare")
        logits = torch.zeros(self.ssa.info.num_classes)  # for listed classes, only the number counts
        if self.given_seed is None and (classes is None or isinstance(classes, str)):
            logits = self._logits_pass()
            self.record_time("logits")
        return resolve_classes(classes, logits[None]).to(self.tiles.device)

    def gather(self, classes: Tensor) -> Gathered:
        """Accumulate every stage over all tiles; again, with a ``PixelBank``, for stages that turn out signed."""
        methods = {name: self._expected_method(name) for name in self.ssa.stage_names}
        while True:
            try:
                gathered = self._gather_pass(classes, methods)
            except _NegativeFeatures as negative:
                methods[negative.stage] = "pixel_bank"
            else:
                self.record_time("gather")
                return gathered

    def apply(self, gathered: Gathered) -> dict[str, DiskMap]:
        """Return every stage's polished map, on disk."""
        maps = {
            name: DiskMap(
                self.folder / f"stage-{n}.raw",
                len(gathered.seed),
                self.tiles.tiling.sizes[name],
                self.tiles.working_dtype,
            )
            for n, name in enumerate(self.ssa.stage_names)
        }
        for tile, features in self._tile_features("apply"):
            for name, stage in features.stages.items():
                core = self.tiles.core(name, tile)
                if not core.empty:
                    maps[name].write(core, gathered.accumulators[name].apply(stage))
        self.record_time("apply")
        return maps

    def fuse(self, maps: dict[str, DiskMap]) -> FusedMap:
        """Return the fused map, with its extremes known."""
        fused = FusedMap(self.ssa, maps, self.tiles.size)
        windows = list(iter_windows(self.tiles.size, FUSION_WINDOW))
        for index, window in enumerate(windows):
            fused.update_minmax(window)
            self.report("fuse", index + 1, len(windows))
        self.record_time("fuse")
        return fused

    def report(self, phase: str, done: int, total: int) -> None:
        """Call the callbacks."""
        for callback in self.callbacks:
            callback(Progress(done, total, phase))

    def record_time(self, phase: str) -> None:
        """Record the time since the phase before."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._last_time
        self._last_time = now

    def _expected_method(self, name: str) -> str:
        affinity = self.affinities[name]
        linear = affinity.degree == 1 and not affinity.center and self.ssa.info.signs[name] == "non-negative"
        return "prototypes" if linear else "pixel_bank"

    def _tile_features(self, phase: str) -> Iterator[tuple[Tile, TileFeatures]]:
        total = len(self.tiles)
        for index, tile in enumerate(self.tiles):
            yield tile, self.tiles.extract(tile)
            self.report(phase, index + 1, total)

    def _logits_pass(self) -> Tensor:
        """Return the whole image's logits, needed to choose classes before anything is gathered for them."""
        total = torch.zeros((), dtype=torch.float64, device=self.tiles.device)
        for tile, features in self._tile_features("logits"):
            total = total + self._seed_layer_sum(tile, features)
        return self._logits(total)

    def _seed_layer_sum(self, tile: Tile, features: TileFeatures) -> Tensor:
        """Return the sum of the seed layer's map over the tile's own pixels, (C,) float64."""
        assert features.seed is not None
        y, x = self.tiles.core(self.ssa.info.seed.layer, tile).inside(features.seed_window)
        return features.seed[:, y, x].double().sum(dim=(1, 2))

    def _logits(self, total: Tensor) -> Tensor:
        """Return the logits of the mean over all pixels, which is what makes the CAM exact."""
        h, w = self.tiles.tiling.sizes[self.ssa.info.seed.layer]
        logits = total / (h * w)
        head = self.ssa.info.seed.head
        if head is not None:
            module: Any = self.ssa.model.get_submodule(head)
            logits = module.weight.detach().flatten(1).double() @ logits
            logits = logits if module.bias is None else logits + module.bias.detach().double()
        logits = logits.float().cpu()
        if not bool(logits.isfinite().all()):
            raise ValueError("model: expected finite logits, got NaN or infinity; try it in float32")
        return logits

    def _gather_pass(self, classes: Tensor, methods: dict[str, str]) -> Gathered:
        accumulators: dict[str, Prototypes | PixelBank] = {}
        total, whole_seed = torch.zeros((), dtype=torch.float64, device=self.tiles.device), self.given_seed
        with ExitStack() as banks:
            for tile, features in self._tile_features("gather"):
                seed, held, size = self._tile_seed(features, classes)
                if self.given_seed is None:
                    total = total + self._seed_layer_sum(tile, features)
                    whole_seed = seed.new_zeros((len(seed), *size)) if whole_seed is None else whole_seed
                    self._paste_seed(whole_seed, seed, held, tile)
                for name, stage in features.stages.items():
                    if name not in accumulators:
                        accumulators[name] = self._accumulator(name, methods, len(seed), stage, banks)
                    core = self.tiles.core(name, tile)
                    if not core.empty:
                        target = self.tiles.tiling.sizes[name]
                        with torch.autocast(self.tiles.device.type, enabled=False):
                            cam = resample(seed, held, size, core, target, self.ssa.align_corners)
                        self._add(name, accumulators[name], cam, stage, core)
            assert whole_seed is not None
            logits = self._logits(total) if self.given_seed is None else None
            return Gathered(accumulators, whole_seed, logits, banks.pop_all())

    def _tile_seed(self, features: TileFeatures, classes: Tensor) -> tuple[Tensor, Window, tuple[int, int]]:
        """Return the seed (K, h, w) around a tile, where it lies, and the whole seed's size."""
        if self.given_seed is not None:
            h, w = self.given_seed.shape[1:]
            return self.given_seed, Window(0, h, 0, w), (h, w)
        layer = self.ssa.info.seed.layer
        assert features.seed is not None
        extracted = Features(self.tiles.size, {layer: features.seed[None]})
        with torch.autocast(self.tiles.device.type, enabled=False):
            seed = cam_seed(self.ssa.model, self.ssa.info.seed, extracted, classes)[0]
        return seed, features.seed_window, self.tiles.tiling.sizes[layer]

    def _paste_seed(self, whole_seed: Tensor, seed: Tensor, held: Window, tile: Tile) -> None:
        """Copy the tile's part of the seed into the whole one, which is small."""
        core = self.tiles.core(self.ssa.info.seed.layer, tile)
        y, x = core.inside(held)
        whole_seed[:, core.y0 : core.y1, core.x0 : core.x1] = seed[:, y, x]

    def _accumulator(
        self, name: str, methods: dict[str, str], K: int, stage: Tensor, banks: ExitStack
    ) -> Prototypes | PixelBank:
        C, device, affinity = len(stage), stage.device, self.affinities[name]
        if methods[name] == "prototypes":
            return Prototypes(K, C, affinity=affinity, device=device)
        memory = self.memory // (4 * list(methods.values()).count("pixel_bank"))
        bank = PixelBank(K, C, affinity=affinity, stride=self.stride, memory=memory, scratch=self.folder, device=device)
        return banks.enter_context(bank)

    def _add(self, name: str, accumulator: Prototypes | PixelBank, cam: Tensor, stage: Tensor, core: Window) -> None:
        if isinstance(accumulator, PixelBank):
            accumulator.add(cam, stage, at=(core.y0, core.x0))
        elif bool((stage < 0).any()):
            raise _NegativeFeatures(name)
        else:
            accumulator.add(cam, stage, nonnegative=True)
