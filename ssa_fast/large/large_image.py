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

from ssa_fast.io.readers import open_image
from ssa_fast.io.sizes import parse_bytes
from ssa_fast.large import export, tiling
from ssa_fast.large.pipeline import LargeStep, Passes
from ssa_fast.large.tiles import Tiles
from ssa_fast.models.zoo import IMAGENET_MEAN, IMAGENET_STD
from ssa_fast.ops.resize import minmax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from torch import Tensor

    from ssa_fast.models.class_spec import Classes
    from ssa_fast.ssa import SSA


@dataclass(frozen=True, eq=False)
class LargeImageResult:
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
) -> LargeImageResult:
    """``SSA.large``: the files' names from one, and a progress bar."""
    cams = Path(out)
    if cams.suffix.lower() not in (".tif", ".tiff", ".zarr"):
        raise ValueError(f"out: expected a name that ends in .tif or .zarr, got {cams.name!r}")
    files: dict[str, Any] = {
        "cams": cams,
        "mask": cams.with_name(f"{cams.stem}.mask{cams.suffix}"),
        "preview": cams.with_name(f"{cams.stem}.preview.png"),
    }
    if isinstance(image, str | Path) and any(path.exists() and path.samefile(image) for path in files.values()):
        raise ValueError(f"out: expected a name of its own, got the image's, {image}")
    existing = [path for path in files.values() if path.exists()]
    if existing and not overwrite:
        raise ValueError(f"out: {existing[0]} exists; pass overwrite=True, or another name")
    if not progress:
        return large(ssa, image, classes, **files, **options)
    own = options.pop("watch", None)
    with bars() as show:

        def watch(step: LargeStep) -> None:
            show(step)
            if own is not None:
                own(step)

        return large(ssa, image, classes, **files, watch=watch, **options)


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
    look: export.Look = export.Look(),  # noqa: B008 - frozen
    watch: Callable[[LargeStep], None] | None = None,
) -> LargeImageResult:
    """Polish a large image; ``SSA.large`` says what the arguments mean. Targets are replaced."""
    tiling.check(ssa, seed, classes, key_stride)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ValueError(f"{name}: expected three numbers, for R, G and B, got {values!r}")
    start = time.perf_counter()
    scratch = Path(scratch) if scratch is not None else cams.parent
    scratch.mkdir(parents=True, exist_ok=True)
    budget = parse_bytes(memory)
    folder = Path(tempfile.mkdtemp(prefix=".ssa-fast-", dir=scratch))
    try:
        with open_image(image, memory=budget // 8) as reader:
            cut = tiling.cut(ssa, reader.size, tile=tile, halo=halo, memory=budget, with_seed=seed is None)
            tiles = Tiles(
                ssa,
                reader,
                cut=cut,
                seed_layer=ssa.info.seed.layer if seed is None else None,
                mean=mean,
                std=std,
            )
            work = Passes(ssa, tiles, folder, seed, key_stride, budget, tiling.room(disk, scratch), watch, start)
            with torch.inference_mode(False), torch.no_grad():
                chosen = work.choose(classes)
                names, labels = look.called(chosen)
                work.polish()
                written = export.write(
                    work.fuse(),
                    reader,
                    chosen,
                    names,
                    labels,
                    cams=cams,
                    mask=mask,
                    preview=preview,
                    look=look,
                    watch=lambda through, total: work.tell("write", through, total),
                )
            work.mark("write")
            return LargeImageResult(
                cams=cams,
                mask=mask,
                preview=preview,
                size=reader.size,
                classes=chosen,
                logits=work.logits,
                seed=minmax(work.seed[None])[0].float().cpu(),
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
