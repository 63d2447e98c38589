"""``large``: the CAMs of one image that is never in memory as a whole.

A first pass over its tiles gathers what every pixel needs of all others, a second applies it; what they need of the
network is computed once and kept on disk, or computed again.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ssa_fast.affinity import Affinity
from ssa_fast.classifiers import IMAGENET_MEAN, IMAGENET_STD
from ssa_fast.fusion import minmax
from ssa_fast.inputs import per_stage
from ssa_fast.large import outputs, plan, readers
from ssa_fast.large.maps import DiskMap, Fused
from ssa_fast.large.tiles import Record, Tile, Tiles
from ssa_fast.large.windows import Window, resample
from ssa_fast.models.capture import Captured
from ssa_fast.models.classes import resolve_classes
from ssa_fast.models.seeds import cam_seed
from ssa_fast.streaming import Keys, Prototypes, parse_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from torch import Tensor

    from ssa_fast.models.classes import Classes
    from ssa_fast.ssa import SSA

SWEEP = 1024  # side of the windows in which the fused map is looked through


@dataclass(frozen=True)
class LargeStep:
    """Handed to the watcher after each window: which phase it belongs to, and how many of how many are through."""

    phase: str
    through: int
    total: int


@dataclass(frozen=True, eq=False)
class LargeResult:
    """What came of a large image.

    Attributes:
        cams: the file of the CAMs, (K, H, W) uint8: 255 times the CAM. mask: labels (H, W) uint8. preview: a PNG.
        size: (H, W). classes: K indices. logits: (num_classes,) float32 of the whole image, None with a seed given.
        seed: (K, h, w) float32 in [0, 1], the CAMs before polishing.
        boxes: per class (n, 4) float32 x1 y1 x2 y2 in pixels; they are right to ``box_precision`` pixels.
        tile, halo: pixels of a tile's side, and around it. passes: forwards of the network per tile, on average.
        paths: stage -> "prototypes" or "keys". cached: whether the features were kept on disk.
        exact: False where the halo is smaller than what is felt, or keys are strided: an approximation.
        seconds: phase -> wall-clock time.
    """

    cams: Path
    mask: Path
    preview: Path
    size: tuple[int, int]
    classes: list[int]
    logits: Tensor | None
    seed: Tensor
    boxes: list[Tensor]
    box_precision: int
    tile: int
    halo: int
    passes: float
    paths: dict[str, str]
    cached: bool
    exact: bool
    seconds: dict[str, float]


def to_files(
    ssa: SSA, image: Any, classes: Classes = None, *, out: str | Path, overwrite: bool, progress: bool, **options: Any
) -> LargeResult:
    """``SSA.large``: the files' names from one, and a progress bar."""
    cams = Path(out)
    if cams.suffix.lower() not in (".tif", ".tiff", ".zarr"):
        raise ValueError(f"out: expected a name that ends in .tif or .zarr, got {cams.name!r}")
    files = {
        "cams": cams,
        "mask": cams.with_name(f"{cams.stem}.mask{cams.suffix}"),
        "preview": cams.with_name(f"{cams.stem}.preview.png"),
    }
    existing = [path for path in files.values() if path.exists()]
    if existing and not overwrite:
        raise ValueError(f"out: {existing[0]} exists; pass overwrite=True, or another name")
    if not progress:
        return large(ssa, image, classes, **files, **options)
    with bars() as watch:
        return large(ssa, image, classes, **files, **{"watch": watch, **options})


@contextmanager
def bars() -> Iterator[Callable[[LargeStep], None]]:
    """A watcher that shows a bar with the time left for every phase, on stderr."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("progress: needs rich; pip install 'ssa_fast[app]'", name="rich") from error
    columns = (TextColumn("{task.description:>8}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def watch(step: LargeStep) -> None:
            if step.phase not in tasks:
                tasks[step.phase] = progress.add_task(step.phase)
            progress.update(tasks[step.phase], completed=step.through, total=step.total)

        yield watch


def large(
    ssa: SSA,
    image: Any,
    classes: Classes = None,
    *,
    cams: Path,
    mask: Path,
    preview: Path,
    tile: int | Literal["auto"] = "auto",
    halo: int | Literal["auto"] = "auto",
    memory: int | str = "4GB",
    disk: int | str = "auto",
    scratch: str | Path | None = None,
    key_stride: int = 1,
    seed: Tensor | np.ndarray | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    look: outputs.Look = outputs.Look(),  # noqa: B008 - frozen
    watch: Callable[[LargeStep], None] | None = None,
) -> LargeResult:
    """Polish a large image; ``SSA.large`` says what the arguments mean. Targets are replaced."""
    plan.check(ssa, seed, classes, key_stride)
    start = time.perf_counter()
    scratch = Path(scratch) if scratch is not None else cams.parent
    scratch.mkdir(parents=True, exist_ok=True)
    budget = parse_bytes(memory)
    folder = Path(tempfile.mkdtemp(prefix=".ssa-fast-", dir=scratch))
    try:
        with readers.open_image(image, memory=budget // 8) as reader:
            cut = plan.cut(ssa, reader.size, tile=tile, halo=halo, memory=budget, with_seed=seed is None)
            tiles = Tiles(
                ssa,
                reader,
                side=cut.tile,
                halo=cut.halo,
                strides=cut.strides,
                seed_layer=ssa.anatomy.seed.layer if seed is None else None,
                mean=mean,
                std=std,
            )
            work = _Work(ssa, tiles, folder, seed, key_stride, budget, plan.room(disk, scratch), watch)
            with torch.inference_mode(False), torch.no_grad():
                work.polish(classes)
                fused = work.fuse()
                written = outputs.write(
                    fused,
                    reader,
                    work.classes[0].tolist(),
                    cams=cams,
                    mask=mask,
                    preview=preview,
                    look=look,
                    watch=lambda through, total: work.tell("write", through, total),
                )
            work.mark("write")
            return LargeResult(
                cams=cams,
                mask=mask,
                preview=preview,
                size=reader.size,
                classes=work.classes[0].tolist(),
                logits=work.logits,
                seed=minmax(work.seed[None])[0].cpu(),
                boxes=written.boxes,
                box_precision=written.box_precision,
                tile=cut.tile,
                halo=cut.halo,
                passes=tiles.forwards / len(tiles),
                paths=work.paths,
                cached=tiles.kept is not None,
                exact=cut.exact and (key_stride == 1 or "keys" not in work.paths.values()),
                seconds={**work.seconds, "all": time.perf_counter() - start},
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Negative(Exception):
    """A stage taken for non-negative is not."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage


class _Work:
    """The passes over one image's tiles."""

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
    ) -> None:
        self.ssa, self.tiles, self.folder, self.disk = ssa, tiles, folder, disk
        self.given = None if seed is None else torch.as_tensor(seed).float().to(tiles.mean.device)
        self.key_stride, self.memory, self.watch = key_stride, memory, watch
        self.logits: Tensor | None = None
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()
        dry = {name: torch.zeros(1, 1, 1, 1) for name in ssa.stage_names}
        self.affinities = per_stage("affinity", ssa.affinity, dry, Affinity)
        self.paths = {name: self._path(name) for name in ssa.stage_names}

    def polish(self, classes: Classes) -> None:
        """Every stage's polished map on disk."""
        self.tiles.measure()
        self.mark("prepare")
        if self.given is None and (classes is None or isinstance(classes, str)):
            self._survey()
            self.mark("survey")
        self.classes = self._resolve(classes)
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
                if isinstance(each, Keys):
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
        sums = affinity.degree == 1 and not affinity.center and self.ssa.anatomy.signs[name] == "non-negative"
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
        y, x = self.tiles.core(self.ssa.anatomy.seed.layer, tile).inside(record.seed_window)
        part = record.seed[:, y, x].double().sum(dim=(1, 2))
        return part if total is None else total + part

    def _find_logits(self, total: Tensor | None) -> None:
        """The logits are those of the mean over all pixels: that is what makes the CAM exact."""
        if total is None:
            return
        h, w = self.tiles.sizes[self.ssa.anatomy.seed.layer]
        mean = total / (h * w)
        head = self.ssa.anatomy.seed.head
        if head is not None:
            module: Any = self.ssa.model.get_submodule(head)
            mean = module.weight.detach().flatten(1).double() @ mean
            mean = mean if module.bias is None else mean + module.bias.detach().double()
        self.logits = mean.float().cpu()

    def _resolve(self, classes: Classes) -> Tensor:
        """(1, K) indices on the model's device."""
        count = self.ssa.anatomy.num_classes
        logits = self.logits if self.logits is not None else torch.zeros(count)
        return resolve_classes(classes, logits[None]).to(self.tiles.mean.device)

    def _seed_of(self, record: Record) -> tuple[Tensor, Window, tuple[int, int]]:
        """The seed (K, h, w) around a tile, where it lies, and the whole seed's size."""
        if self.given is not None:
            h, w = self.given.shape[1:]
            return self.given, Window(0, h, 0, w), (h, w)
        layer = self.ssa.anatomy.seed.layer
        assert record.seed is not None
        captured = Captured(self.tiles.size, {layer: record.seed[None]})
        seed = cam_seed(self.ssa.model, self.ssa.anatomy.seed, captured, self.classes)[0]
        return seed, record.seed_window, self.tiles.sizes[layer]

    def _gather(self) -> dict[str, Prototypes | Keys]:
        gathered: dict[str, Prototypes | Keys] = {}
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
                        cam = resample(seed, held, whole, core, self.tiles.sizes[name], self.ssa.align_corners)
                        self._add(name, gathered[name], cam, features, core)
        except BaseException:
            for each in gathered.values():
                if isinstance(each, Keys):
                    each.close()
            raise
        self._find_logits(total)
        return gathered

    def _accumulator(self, name: str, K: int, features: Tensor) -> Prototypes | Keys:
        C, device = features.shape[0], features.device
        if self.paths[name] == "prototypes":
            return Prototypes(K, C, affinity=self.affinities[name], device=device)
        share = self.memory // (4 * list(self.paths.values()).count("keys"))
        return Keys(
            K,
            C,
            affinity=self.affinities[name],
            stride=self.key_stride,
            memory=share,
            scratch=self.folder,
            device=device,
        )

    def _add(self, name: str, gathered: Prototypes | Keys, cam: Tensor, features: Tensor, core: Window) -> None:
        if isinstance(gathered, Keys):
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
        core = self.tiles.core(self.ssa.anatomy.seed.layer, tile)
        y, x = core.inside(held)
        self.seed[:, core.y0 : core.y1, core.x0 : core.x1] = seed[:, y, x]

    def _apply(self, gathered: dict[str, Prototypes | Keys]) -> None:
        K = self.classes.shape[1]
        self.maps = {
            name: DiskMap(self.folder / f"stage-{n}.raw", K, self.tiles.sizes[name])
            for n, name in enumerate(self.ssa.stage_names)
        }
        for tile, record in self._records("apply"):
            for name, features in record.stages.items():
                core = self.tiles.core(name, tile)
                if not core.empty:
                    self.maps[name].write(core, gathered[name].apply(features))
