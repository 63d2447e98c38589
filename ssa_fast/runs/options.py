"""Options of a run: outputs per image, and how to execute."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ssa_fast.io import images
from ssa_fast.io.cam_files import FORMATS, PICKLED
from ssa_fast.io.samples import ReadOptions
from ssa_fast.io.sizes import parse_bytes
from ssa_fast.localize.options import PostprocessOptions

if TYPE_CHECKING:
    import torch

    from ssa_fast.io.samples import ValueRange
    from ssa_fast.models.zoo import Classifier, Size

MAX_LABEL = 254  # of an 8-bit mask: 0 is the background, 255 is ignored
EXECUTION_FIELDS = ("overwrite", "batch", "workers", "memory", "allow_pickle", "progress")  # do not change the outputs


@dataclass(frozen=True)
class RunOptions:
    """Options of a run: outputs per image, and how to execute.

    Attributes:
        classes: "predicted", "top5", comma-separated names and indices, or "labels": the dataset's own.
        size: Size at which images enter the network (``zoo.Size``); outputs have the image's own size.
        precision: "float32", or mixed precision in "float16" or "bfloat16"; "auto" is float16 on a GPU.
        postprocess: How CAMs become masks and boxes.
        refine: Whether CAMs get the image's size and follow its edges, see ``localize.refine``.
        cams, store: Format of the CAM files (see ``cam_files.write_cam``), and the number type of "ssa" files.
        overlays: Whether to draw a panel per image.
        max_pixels, backdrop, bands, range: Of reading, see ``images.read_image``.
        large_above: Images that enter the network with more pixels than this are processed in tiles.
        overwrite: Replace existing outputs; otherwise an existing output is its image's failure.
        batch: Most images of one size in a batch; None: 1 on a CPU, 16 on a GPU.
        workers: Processes that read images; None: by the number of cores.
        memory, progress: Memory limit, in bytes or as in "4GB", and bars on stderr for an image processed in tiles.
        allow_pickle: Whether CAM files may be pickles, as those of IRN, PSA and CLIP-ES are.
    """

    classes: str = "predicted"
    size: Size = None
    precision: str = "auto"
    postprocess: PostprocessOptions = field(default_factory=PostprocessOptions)
    refine: bool = False
    cams: str = "ssa"
    store: Literal["float16", "uint8"] = "float16"
    overlays: bool = True
    max_pixels: int = images.MAX_PIXELS
    backdrop: tuple[int, int, int] = images.WHITE
    bands: tuple[int, ...] | None = None
    range: ValueRange = "auto"
    large_above: int = 1 << 24
    overwrite: bool = False
    batch: int | None = None
    workers: int | None = None
    memory: int | str = "4GB"
    progress: bool = False
    allow_pickle: bool = False

    def fingerprint(self, device: torch.device) -> dict[str, Any]:
        """Return the settings that decide the outputs, flat and ready for JSON, defaults filled in."""
        values: dict[str, Any] = {}
        for name, value in {**asdict(self), "precision": self.precision_on(device)}.items():
            if name == "postprocess":
                background = None if self.postprocess.alpha is not None else self.postprocess.background_score
                values |= {**value, "background": background}
            elif name not in EXECUTION_FIELDS:
                values[name] = list(value) if isinstance(value, tuple) else value
        return values

    def precision_on(self, device: torch.device) -> str:
        """Return the precision on a device, "auto" resolved."""
        automatic = "float16" if device.type == "cuda" else "float32"
        return automatic if self.precision == "auto" else self.precision

    @property
    def reading(self) -> ReadOptions:
        """Return how samples become RGB; ValueError if bands or range are wrong."""
        return ReadOptions(self.bands, self.range, self.backdrop)

    def check(self, classifier: Classifier | None = None) -> None:
        """Check all options at once, before any work; without a classifier all that needs none.

        Raises:
            ValueError: An option is unknown, out of range, or does not go with the classifier or another option.
        """
        precisions, stores = ("auto", "float32", "float16", "bfloat16"), ("float16", "uint8")
        for name, known in (("precision", precisions), ("cams", FORMATS), ("store", stores)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, least in (("batch", 1), ("workers", 0), ("large_above", 1), ("max_pixels", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected a number >= {least}, got {value}")
        if self.cams in PICKLED and not self.allow_pickle:
            raise ValueError(
                f"cams: {self.cams!r} files are pickles, which can run any code when they are read; pass "
                "--allow-pickle if their readers trust you, or choose another format"
            )
        parse_bytes(self.memory)
        _ = self.reading
        if self.store != "float16" and self.cams != "ssa":
            raise ValueError(f"store: {self.store!r} is for 'ssa' files, got cams={self.cams!r}; leave it out")
        if self.cams == "wsol" and self._several_classes(classifier):
            raise ValueError(
                f"classes: 'wsol' files hold the map of one class, got {self.classes!r}; give one, or 'predicted'"
            )
        if classifier and classifier.input_size and self.size not in (None, classifier.input_size):
            raise ValueError(
                "size: {} takes images of {}x{} only; leave it out".format(classifier.name, *classifier.input_size)
            )

    def check_tiles(self) -> None:
        """Raise ValueError if images cannot be processed in tiles with these options."""
        if self.size is not None:
            raise ValueError("size: an image processed in tiles keeps its own size; leave --size out for it.")
        if self.refine:
            raise ValueError("refine: an image processed in tiles is not refined; leave --refine out for it")
        if self.cams != "ssa":
            raise ValueError(
                f"cams: an image processed in tiles gets TIFFs, no {self.cams!r} files; leave --cams out for it, or "
                "pass --size, or a higher --large-above if memory allows."
            )

    def _several_classes(self, classifier: Classifier | None) -> bool:
        """Return True if every image has several classes; without a classifier, True only if that is certain."""
        if self.classes == "labels":
            return False
        if match := re.fullmatch(r"top(\d+)", self.classes.strip()):
            return int(match[1]) > 1
        if classifier is not None:
            chosen = classifier.select(self.classes)
            return not isinstance(chosen, str) and len(chosen) > 1
        given = {part.strip().casefold() for part in self.classes.split(",")} - {""}
        indices = {part for part in given if part.isdecimal()}
        return max(len(indices), len(given - indices)) > 1  # an index and a name may be one class
