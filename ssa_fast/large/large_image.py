"""``LargeImageSSA``: the CAMs of one image that is never in memory as a whole."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.io.placement import find_placement
from ssa_fast.io.progress import progress_bars
from ssa_fast.io.readers import open_image
from ssa_fast.io.samples import WHITE, ReadOptions
from ssa_fast.io.sizes import parse_bytes
from ssa_fast.io.stopwatch import activity
from ssa_fast.large.export import OutputPaths, lost_in, names_and_labels, write_outputs
from ssa_fast.large.pipeline import Pipeline
from ssa_fast.large.tiles import TileExtractor
from ssa_fast.large.tiling import check_model, check_pixels, check_seed, make_tiling, measure_field
from ssa_fast.localize import PostprocessOptions
from ssa_fast.models.zoo import IMAGENET_MEAN, IMAGENET_STD
from ssa_fast.ops.resize import minmax
from ssa_fast.streaming.base import check_positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from ssa_fast.io.progress import OnProgress
    from ssa_fast.io.samples import Color, ValueRange
    from ssa_fast.large.receptive_field import ReceptiveField
    from ssa_fast.models.class_spec import Classes
    from ssa_fast.ssa import SSA


@dataclass(frozen=True, eq=False)
class LargeImageResult:
    """The outputs of ``LargeImageSSA`` for one image, and how they were computed.

    Attributes:
        cams: File of the CAMs, (K, H, W) uint8: 255 times the CAM.
        mask: File of the labels, (H, W) uint8.
        preview: A PNG of image, heat map and mask.
        size: (H, W).
        classes, names, labels: Of each of the K classes: index, name and value in the mask.
        logits: (num_classes,) float32 of the whole image, None with a seed given.
        seed: (K, h, w) float32 in [0, 1], the CAMs before polishing.
        boxes: Per class (n, 4) float32 x1 y1 x2 y2 in pixels.
        box_precision: Pixels to which the boxes are exact.
        background: The mask's background score; of "auto" the preview's. None with ``alpha``.
        tile, halo: Pixels of a tile's side, and around it that the network also saw.
        passes: Forwards of the network per tile, on average.
        methods: Stage -> "prototypes" or "pixel_bank".
        cached: Whether the features were cached on disk.
        exact: False for an approximation: a halo smaller than the receptive field, or a ``stride`` that had effect.
        notes: How the image was read where it leaves a choice, and what of its place and scale the outputs lack, one
            sentence each.
        seconds: Phase -> wall-clock time: "prepare", "logits" or "means" if needed, "gather", "apply", "fuse", "write";
            "all".
    """

    cams: Path
    mask: Path
    preview: Path
    size: tuple[int, int]
    classes: list[int]
    names: list[str]
    labels: list[int]
    logits: Tensor | None
    seed: Tensor
    boxes: list[Tensor]
    box_precision: int
    background: float | None
    tile: int
    halo: int
    passes: float
    methods: dict[str, str]
    cached: bool
    exact: bool
    notes: tuple[str, ...]
    seconds: dict[str, float]

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the preview, the classes, and whether the CAMs are exact."""
        from ssa_fast.localize.html import file_html

        H, W = self.size
        exact = "exact" if self.exact else "an approximation"
        classes = ", ".join(f"{name} ({label})" for name, label in zip(self.names, self.labels, strict=True))
        lines = [f"classes (and their values in the mask): {classes}", f"{self.cams.name}: {exact}"]
        lines += [f"note: {note}" for note in self.notes]
        return file_html(self.preview, f"LargeImageResult: {H} × {W} pixels", lines)


class LargeImageSSA:
    """Polishes, exactly, images that are too large for the network or the memory.

        result = LargeImageSSA(ssa)("slide.tif", classes=[3], out="cams.tif")

    The image is cut into tiles, padded by the model's receptive field, which the first call measures by tracing a NaN
    through the network. A first pass over the tiles gathers each stage's prototypes, a second applies them: linear time
    for ``Affinity(phi="shifted")`` on any features, centred or not, and for the ReLU on features ≥ 0, both of power 1
    (``SSA`` takes no other by itself). For the ReLU on signed features and for other affinities the pixels themselves
    are kept: L² time, ``PixelBank``. The mean features of stages with centred prototypes, and the logits for
    "predicted" and "topN", are needed before: one more pass for both. The network runs once per tile if there is room
    on disk for its features, otherwise once per pass. CAMs have the image's size, whatever the ``size`` of ``ssa``.

    Args:
        ssa: An ``SSA`` with scales=(1.0,), flip=False and prior=None.
        tile: Pixels of a tile's side, a multiple of the coarsest stride; "auto": the largest that fits the memory.
        halo: Pixels around a tile that the network also sees; "auto" is the receptive field (ResNet-18 and ResNet-50:
            224 pixels), a smaller one an approximation. A margin for the seed's resizing is added (64 pixels there).
        memory: What the process may take in all, bytes or text such as "4GB".
        disk: Bytes that cached features may take; "auto" is half of what is free, 0 none.
        scratch: Folder for them; default beside the outputs.
        stride: Where pixels are stored, store every stride-th only: an approximation, see ``PixelBank``.
        mean: What is subtracted from R, G and B in [0, 1]; default ImageNet's.
        std: What they are then divided by; default ImageNet's.
        bands: Of the file, read as RGB, see ``ssa_fast.io.images.read_image``.
        range: The values that become 0 and 255, see ``read_image``.
        backdrop: RGB colour behind transparent parts.

    Raises:
        ValueError: An option out of range, or an ``ssa`` that cannot be run in tiles, with what to do instead.
    """

    def __init__(
        self,
        ssa: SSA,
        *,
        tile: int | str = "auto",
        halo: int | str = "auto",
        memory: int | str = "4GB",
        disk: int | str = "auto",
        scratch: str | Path | None = None,
        stride: int = 1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        bands: Sequence[int] | None = None,
        range: ValueRange = "auto",
        backdrop: Color = WHITE,
    ) -> None:
        check_model(ssa)
        check_pixels("tile", tile, least=1)
        check_pixels("halo", halo, least=0)
        check_positive("stride", stride)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise ValueError(f"{name}: expected three numbers, for R, G and B, got {values!r}")
        self.ssa, self.tile, self.halo, self.stride = ssa, tile, halo, stride
        self.memory = parse_bytes(memory)
        self.disk = disk if disk in ("auto", 0) else parse_bytes(disk, "disk")
        self.scratch = None if scratch is None else Path(scratch)
        self.mean, self.std = mean, std
        self.reading = ReadOptions(None if bands is None else tuple(bands), range, backdrop)
        self._fields: dict[bool, ReceptiveField] = {}  # of the stages; True: and of the map that the seed is made from

    def __call__(
        self,
        image: Any,
        classes: Classes = None,
        *,
        out: str | Path | OutputPaths,
        overwrite: bool = False,
        seed: Tensor | np.ndarray | None = None,
        postprocess: PostprocessOptions = PostprocessOptions(),  # noqa: B008 - frozen
        names: Sequence[str] | None = None,
        labels: Sequence[int] | None = None,
        metadata: dict[str, Any] | None = None,
        on_progress: OnProgress | None = None,
        progress: bool = False,
    ) -> LargeImageResult:
        """Polish one image and write its CAMs, mask and preview; all three files appear, or none.

        Args:
            image: A path (TIFF and BigTIFF, zarr, .npy, slides, or what Pillow reads), an array or memmap (H, W, 3), a
                zarr array, an open rasterio dataset or OpenSlide, or any reader (``ssa_fast.io.readers``).
            classes: As for ``SSA``, for one image.
            out: The CAMs' file, see ``OutputPaths.beside``, or all three paths.
            overwrite: Replace these files.
            seed: (K, h, w) of the whole image, instead of the classifier's own CAM; with listed classes.
            postprocess: Options of the mask and the boxes.
            names: One per model output; default those of the ``ssa`` unless they are a guess, else "class 0", …
            labels: Values in the mask, one per model output; default 1 to K in the order of ``classes``.
            metadata: JSON values to store in the files.
            on_progress: Called with a ``Progress`` after every window of every phase.
            progress: Show a bar with the time left for every phase on stderr; needs rich.

        Raises:
            TypeError: A seed that is no tensor or array, or metadata that is not JSON.
            ValueError: An image, network or option that cannot be used, with what to do instead; existing files; NaN
                or infinity in logits or CAMs.
            OSError: A file could not be read or written.
        """
        start = time.perf_counter()
        paths = out if isinstance(out, OutputPaths) else OutputPaths.beside(out)
        paths.check(image, overwrite)
        count = self.ssa.info.num_classes
        known = self.ssa.names if names is None else names
        if names is None and known and self.ssa.names_note is None:
            names = known
        for argument, values in (("names", names), ("labels", labels)):
            if values is not None and len(values) != count:
                raise ValueError(f"{argument}: expected {count}, one per model output, got {len(values)}")
        check_seed(self.ssa, seed, classes, known)
        json.dumps(metadata)  # a TypeError now, not after hours
        scratch = self.scratch or paths.cams.parent
        scratch.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix=".ssa-fast-", dir=scratch))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            callbacks = [stack.enter_context(progress_bars())] if progress else []
            callbacks += [] if on_progress is None else [on_progress]
            reader = stack.enter_context(open_image(image, memory=self.memory // 8, **vars(self.reading)))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            with_seed = seed is None
            if with_seed not in self._fields:
                self._fields[with_seed] = measure_field(self.ssa, with_seed)
            field, memory = self._fields[with_seed], self.memory
            placement = find_placement(image, reader.size)
            tiling = make_tiling(
                self.ssa, field, reader.size, tile=self.tile, halo=self.halo, memory=memory, with_seed=with_seed
            )
            disk = shutil.disk_usage(folder).free // 2 if self.disk == "auto" else int(self.disk)
            tiles = TileExtractor(self.ssa, reader, tiling, self.mean, self.std, folder / "features", disk)
            pipeline = Pipeline(tiles, folder, seed, self.stride, memory, callbacks, start)
            class_tensor, means = pipeline.select_classes(classes, known)
            indices = class_tensor[0].tolist()
            chosen_names, chosen_labels = names_and_labels(indices, names, labels)
            with ExitStack() as banks:
                gathered = pipeline.gather(class_tensor, means, banks)
                maps = pipeline.apply(gathered)
            fused = pipeline.fuse(maps)
            with activity("writing"):
                boxes, box_precision, background = write_outputs(
                    fused,
                    reader,
                    paths,
                    names=chosen_names,
                    labels=chosen_labels,
                    metadata={**(metadata or {}), "classes": indices, "names": chosen_names, "labels": chosen_labels},
                    placement=placement,
                    postprocess=postprocess,
                    report=partial(pipeline.report, "write"),
                )
            pipeline.record_time("write")
        return LargeImageResult(
            **vars(paths),
            size=tiles.size,
            classes=indices,
            names=chosen_names,
            labels=chosen_labels,
            logits=gathered.logits,
            seed=minmax(gathered.seed[None])[0].float().cpu(),
            boxes=boxes,
            box_precision=box_precision,
            background=background,
            tile=tiling.tile,
            halo=tiling.halo,
            passes=tiles.forwards / len(tiles),
            methods=gathered.methods,
            cached=tiles.cached,
            exact=tiling.exact and (self.stride == 1 or "pixel_bank" not in gathered.methods.values()),
            notes=tuple(dict.fromkeys((*reader.notes, *placement.notes, *lost_in(paths.cams, placement)))),
            seconds={**pipeline.seconds, "all": time.perf_counter() - start},
        )
