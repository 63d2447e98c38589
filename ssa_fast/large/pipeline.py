"""The passes over a large image's tiles (survey if needed, gather, apply) and the fusion."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ssa_fast.io.progress import Progress
from ssa_fast.large.disk_map import DiskMap, FusedMap
from ssa_fast.large.resample import Window, iter_windows, resample
from ssa_fast.models.class_spec import asks_for_top, resolve_classes
from ssa_fast.models.extract import Features
from ssa_fast.models.module_kinds import head_weights
from ssa_fast.models.seed_cam import cam_seed
from ssa_fast.streaming import FeatureMean, PixelBank, Prototypes
from ssa_fast.validation import InputWarning

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from ssa_fast.io.progress import OnProgress
    from ssa_fast.large.tiles import Tile, TileExtractor, TileFeatures
    from ssa_fast.models.class_spec import Classes
    from ssa_fast.ssa import SSA

FUSION_WINDOW = 1024  # side of the windows in which the fused map's extremes are found


def choose_methods(ssa: SSA) -> dict[str, str]:
    """Return how each stage is accumulated: "prototypes" where its affinity is linear, else "pixel_bank"."""
    return {
        name: "prototypes"
        if affinity.degree == 1 and (affinity.any_sign or ssa.info.signs[name] == "non-negative")
        else "pixel_bank"
        for name, affinity in ssa.affinities.items()
    }


@dataclass(frozen=True, eq=False)
class Gathered:
    """State between the two passes."""

    accumulators: dict[str, Prototypes | PixelBank]  # stage -> what was gathered of it
    methods: dict[str, str]  # stage -> "prototypes" or "pixel_bank"
    seed: Tensor  # (K, h, w) of the whole image, before polishing
    logits: Tensor | None  # (num_classes,) float32 of the whole image; None where the caller gave the seed


class Pipeline:
    """One image's passes, with temporary files in ``folder``; ``seconds`` holds each phase's time.

    ``seed`` (K, h, w) is None for the classifier's own CAM; ``memory`` is that of the whole process in bytes.
    """

    def __init__(
        self,
        tiles: TileExtractor,
        folder: Path,
        seed: Tensor | np.ndarray | None,
        stride: int,
        memory: int,
        callbacks: Sequence[OnProgress],
        start: float,
    ) -> None:
        self.ssa, self.tiles, self.folder = tiles.ssa, tiles, folder
        self.seed_layer, self.sizes = tiles.ssa.info.seed.layer, tiles.tiling.sizes
        self.given_seed = None if seed is None else torch.as_tensor(seed).float().to(tiles.device)
        self.stride, self.memory, self.callbacks = stride, memory, callbacks
        self.seconds: dict[str, float] = {}
        self._last_time = start

    def select_classes(self, classes: Classes, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the class indices (1, K) on the model's device; the top classes need a pass of their own.

        Also the centred stages' mean features if there was one, else None.
        """
        self.record_time("prepare")
        logits, means = torch.zeros(self.ssa.info.num_classes), None  # for listed classes, only the number counts
        if self.given_seed is None and asks_for_top(classes):
            total, means = self._survey("logits")
            logits = self._logits(total)
        selection = resolve_classes(classes, logits[None], names)
        guessed = self.ssa.names_note if selection.named and names is self.ssa.names else None
        for note in (*selection.notes, *([guessed] if guessed else [])):
            warnings.warn(note, InputWarning, stacklevel=3)
        return selection.index.to(self.tiles.device), means

    def gather(self, classes: Tensor, means: dict[str, Tensor] | None, banks: ExitStack) -> Gathered:
        """Accumulate every stage over all tiles; again, with a ``PixelBank``, for stages that turn out signed.

        Centred stages' unit features depend on their ``means``: None sums these first. Closing ``banks`` removes the
        stored pixels.
        """
        methods = choose_methods(self.ssa)
        if means is None:
            means = self._survey("means")[1]
        while (gathered := self._gather_pass(classes, means, methods, banks)) is None:
            banks.close()
        self.record_time("gather")
        return gathered

    def apply(self, gathered: Gathered) -> dict[str, DiskMap]:
        """Return every stage's polished map, on disk."""
        K, dtype = len(gathered.seed), self.tiles.working_dtype
        maps = {
            name: DiskMap(self.folder / f"stage-{n}.raw", K, self.sizes[name], dtype)
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

    def _tile_features(self, phase: str) -> Iterator[tuple[Tile, TileFeatures]]:
        for index, tile in enumerate(self.tiles):
            yield tile, self.tiles.extract(tile)
            self.report(phase, index + 1, len(self.tiles))

    def _seed_layer_sum(self, tile: Tile, features: TileFeatures) -> Tensor:
        """Return the sum of the seed layer's map over the tile's own pixels, (C,) float64."""
        assert features.seed is not None
        y, x = self.tiles.core(self.seed_layer, tile).inside(features.seed_window)
        return features.seed[:, y, x].double().sum(dim=(1, 2))

    def _survey(self, phase: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the seed layer's map (in the phase "logits"), and centred stages' mean features (C,)."""
        device, total = self.tiles.device, torch.zeros((), device=self.tiles.device)
        means = {
            name: FeatureMean(self.ssa.info.stages[name].layout.channels, device=device)
            for name, method in choose_methods(self.ssa).items()
            if method == "prototypes" and self.ssa.affinities[name].center
        }
        if phase == "logits" or means:
            for tile, features in self._tile_features(phase):
                if phase == "logits":
                    total = total + self._seed_layer_sum(tile, features)
                for name, mean in means.items():
                    mean.add(features.stages[name])
            self.record_time(phase)
        return total, {name: mean.value for name, mean in means.items()}

    def _logits(self, total: Tensor) -> Tensor:
        """Return the logits of the mean over all pixels, which is what makes the CAM exact."""
        h, w = self.sizes[self.seed_layer]
        logits = total / (h * w)
        if self.ssa.info.seed.head is not None:
            weight, bias = head_weights(self.ssa.model.get_submodule(self.ssa.info.seed.head))
            logits = weight.double() @ logits
            logits = logits if bias is None else logits + bias.double()
        logits = logits.float().cpu()
        if not bool(logits.isfinite().all()):
            raise ValueError("model: expected finite logits, got NaN or infinity; try it in float32")
        return logits

    def _gather_pass(
        self, classes: Tensor, means: dict[str, Tensor], methods: dict[str, str], banks: ExitStack
    ) -> Gathered | None:
        """Return what one pass gathered; None after a stage turned out signed, with its method changed."""
        K, total, whole_seed = classes.shape[1], torch.zeros((), device=self.tiles.device), self.given_seed
        accumulators = {name: self._accumulator(name, methods, K, means.get(name), banks) for name in methods}
        affinities = self.ssa.affinities
        if whole_seed is None:
            size = (K, *self.sizes[self.seed_layer])
            whole_seed = torch.zeros(size, dtype=self.tiles.working_dtype, device=self.tiles.device)
        source = whole_seed.shape[1], whole_seed.shape[2]
        seed, held = whole_seed, Window(0, source[0], 0, source[1])
        for tile, features in self._tile_features("gather"):
            assumed = [name for name in methods if methods[name] == "prototypes" and not affinities[name].any_sign]
            unproved = [name for name in assumed if name not in features.nonnegative]
            signed = [name for name in unproved if bool((features.stages[name] < 0).any())]
            if signed:
                methods.update(dict.fromkeys(signed, "pixel_bank"))
                return None
            if features.seed is not None:
                total = total + self._seed_layer_sum(tile, features)
                extracted = Features(self.tiles.size, {self.seed_layer: features.seed[None]})
                with torch.autocast(self.tiles.device.type, enabled=False):
                    seed = cam_seed(self.ssa.model, self.ssa.info.seed, extracted, classes)[0]
                core, held = self.tiles.core(self.seed_layer, tile), features.seed_window
                y, x = core.inside(held)
                whole_seed[:, core.y0 : core.y1, core.x0 : core.x1] = seed[:, y, x]
            for name, stage in features.stages.items():
                core = self.tiles.core(name, tile)
                if core.empty:
                    continue
                with torch.autocast(self.tiles.device.type, enabled=False):
                    cam = resample(seed, held, source, core, self.sizes[name], self.ssa.align_corners)
                accumulator = accumulators[name]
                if isinstance(accumulator, PixelBank):
                    accumulator.add(cam, stage, at=(core.y0, core.x0))
                else:
                    accumulator.add(cam, stage, nonnegative=True)
        logits = self._logits(total) if self.given_seed is None else None
        return Gathered(accumulators, methods, whole_seed, logits)

    def _accumulator(
        self, name: str, methods: dict[str, str], K: int, mean: Tensor | None, banks: ExitStack
    ) -> Prototypes | PixelBank:
        C, device, affinity = self.ssa.info.stages[name].layout.channels, self.tiles.device, self.ssa.affinities[name]
        if methods[name] == "prototypes":
            return Prototypes(K, C, affinity=affinity, mean=mean, device=device)
        memory = self.memory // (4 * list(methods.values()).count("pixel_bank"))
        bank = PixelBank(K, C, affinity=affinity, stride=self.stride, memory=memory, scratch=self.folder, device=device)
        return banks.enter_context(bank)
