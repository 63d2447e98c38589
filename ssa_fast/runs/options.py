"""What a run makes of each picture, and with what means."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch

from ssa_fast import localize
from ssa_fast.io import images
from ssa_fast.io.cam_files import FORMATS, PICKLED
from ssa_fast.io.sizes import parse_bytes
from ssa_fast.localize.options import DEFAULT_BACKGROUND

if TYPE_CHECKING:
    from ssa_fast.models.zoo import Classifier, Size

LABELS = 254
"""Most classes that an 8-bit mask can number for good: 0 is the background, 255 is ignored."""

MEANS = ("overwrite", "batch", "workers", "memory", "allow_pickle", "progress")
"""Options that say how to run, not what comes out: they may differ when a run is taken up again."""

PRECISIONS = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class RunOptions:
    """What to make of each picture, beside what `Classifier` and `SSA` say, and with what means.

    Attributes:
        classes: "predicted", "top5", names and indices between commas, or "labels": those that the dataset names.
        size: at what size pictures go into the network (`classifiers.Size`); outputs have the picture's own size.
        precision: of the network: "float32", or mixed precision in "float16" or "bfloat16"; "auto" is float16 on a GPU.
        background, alpha, ignore: of the masks, see `localize.masks`.
        box_threshold, components: of the boxes, see `localize.boxes`.
        cams: format of the CAM files, see `cam_files.write_cam`; "ssa" is the project's own.
        store: numbers of the CAMs in the project's own format: "float16" or "uint8".
        overlays: whether panels to look at are drawn.
        max_pixels, backdrop: of reading, see `images.read_image`.
        large_above: pictures that go into the network with more pixels than this are done in tiles, see `SSA.large`.
        overwrite: replace outputs that exist; without it they make their picture fail.
        batch: most pictures of one size that go through the network together; None: 1 on a CPU, 16 on a GPU.
        workers: processes that read pictures; None: by the machine's cores.
        memory: what a picture done in tiles may take, in bytes or as in "4GB".
        progress: show bars on stderr for each picture done in tiles.
        allow_pickle: whether CAM files may be pickles, as IRN's, PSA's and CLIP-ES's are.
    """

    classes: str = "predicted"
    size: Size = None
    precision: str = "auto"
    background: float | None = None
    alpha: float | None = None
    ignore: float | None = None
    box_threshold: float = 0.2
    components: Literal["largest", "all"] = "largest"
    cams: str = "ssa"
    store: Literal["float16", "uint8"] = "float16"
    overlays: bool = True
    max_pixels: int = images.MAX_PIXELS
    backdrop: tuple[int, int, int] = images.WHITE
    large_above: int = 1 << 24
    overwrite: bool = False
    batch: int | None = None
    workers: int | None = None
    memory: int | str = "4GB"
    progress: bool = False
    allow_pickle: bool = False

    @property
    def mask_options(self) -> dict[str, Any]:
        """The options for masks, by the names `localize.masks` has for them, the default background spelled out."""
        unsaid = self.background is None and self.alpha is None
        background = DEFAULT_BACKGROUND if unsaid else self.background
        return {"background": background, "alpha": self.alpha, "ignore": self.ignore}

    def settings(self, device: torch.device) -> dict[str, Any]:
        """What decides the outputs, as JSON knows it."""
        said = {**asdict(self), **self.mask_options, "precision": self.precision_on(device)}
        settings = {field.name: said[field.name] for field in fields(self) if field.name not in MEANS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}

    def precision_on(self, device: torch.device) -> str:
        """The precision that "auto" means on a device."""
        if self.precision != "auto":
            return self.precision
        return "float16" if device.type == "cuda" else "float32"

    def check(self, classifier: Classifier) -> None:
        """Refuse now what would otherwise make every picture fail.

        Raises:
            ValueError: an option that is unknown, out of range, or does not go with the classifier or another one.
        """
        for name, known in (("precision", PRECISIONS), ("cams", FORMATS), ("store", ("float16", "uint8"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, least in (("batch", 1), ("workers", 0), ("large_above", 1), ("max_pixels", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected a number >= {least}, got {value}")
        if self.cams in PICKLED and not self.allow_pickle:
            raise ValueError(
                f"cams: {self.cams!r} files are pickles, which run any code when they are read; pass --allow-pickle if "
                "whoever reads them trusts you, or take another format"
            )
        parse_bytes(self.memory)
        blank = torch.zeros(1, 1, 2, 2)
        localize.masks(blank, **self.mask_options)
        localize.boxes(blank, box_threshold=self.box_threshold, components=self.components)
        if classifier.input_size and self.size not in (None, classifier.input_size):
            raise ValueError(
                "size: {} takes pictures of {}x{} only; leave it out".format(classifier.name, *classifier.input_size)
            )
