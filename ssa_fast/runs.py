"""A run: pictures through `SSA`, and what comes of each on disk. A bad picture never stops it."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.functional import interpolate

from ssa_fast import localize, outputs, pictures
from ssa_fast.localize.masks import DEFAULT_BACKGROUND, voc_palette
from ssa_fast.localize.overlay import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image
    from torch import Tensor

    from ssa_fast.classifiers import Classifier, Size
    from ssa_fast.pictures import Picture, Source
    from ssa_fast.ssa import SSA, SSAResult

__all__ = ["Failure", "RunOptions", "RunReport", "Step", "run"]

BOXES = "boxes.json"
NO_MEMORY = "not enough memory|can't allocate memory|Storage size calculation overflowed"
LABELS = 254
"""Most classes that an 8-bit mask can number for good: 0 is the background, 255 is ignored."""


@dataclass(frozen=True)
class RunOptions:
    """What to make of each picture; `Classifier` and `SSA` say how.

    Attributes:
        classes: "predicted", "top5", or names and indices between commas.
        size: at what size pictures go into the network (`classifiers.Size`); outputs have the picture's own size.
        background, alpha, ignore: of the masks, see `localize.masks`.
        box_threshold, components: of the boxes, see `localize.boxes`.
        overwrite: replace outputs that exist; without it they make their picture fail.
        max_pixels, backdrop: of reading, see `pictures.read`.
    """

    classes: str = "predicted"
    size: Size = None
    background: float | None = None
    alpha: float | None = None
    ignore: float | None = None
    box_threshold: float = 0.2
    components: Literal["largest", "all"] = "largest"
    overwrite: bool = False
    max_pixels: int = pictures.MAX_PIXELS
    backdrop: tuple[int, int, int] = pictures.WHITE

    @property
    def mask_options(self) -> dict[str, float | None]:
        """The options for masks, by the names `localize.masks` has for them, the default background spelled out."""
        unsaid = self.background is None and self.alpha is None
        background = DEFAULT_BACKGROUND if unsaid else self.background
        return {"background": background, "alpha": self.alpha, "ignore": self.ignore}


@dataclass(frozen=True)
class Failure:
    """A picture that came to nothing: its name, why in one sentence, and the error where there was one."""

    name: str
    reason: str
    error: Exception | None = None


@dataclass(frozen=True)
class Step:
    """Handed to a run's watcher after each picture: how many are through, of how many, and which it was."""

    through: int
    total: int
    name: str
    failure: Failure | None


@dataclass
class RunReport:
    """How a run ended.

    Attributes:
        done: names of the pictures whose outputs are complete.
        failures: the others, with the reason.
        notes: what happened to pictures on the way, with their names.
        skipped: files in folders that were passed over, with the reason.
        boxes: the `boxes.json` written, None if no picture was completed.
        seconds: wall-clock time of reading, computing and writing.
        interrupted: whether Ctrl-C ended it.
    """

    done: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    skipped: tuple[tuple[Path, str], ...] = ()
    boxes: Path | None = None
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def images_per_second(self) -> float:
        """Completed pictures per second of the run."""
        return len(self.done) / self.seconds if self.seconds else 0.0

    @property
    def exit_code(self) -> int:
        """0 if every picture was completed, 1 if some failed, 130 if Ctrl-C ended the run."""
        return 130 if self.interrupted else int(bool(self.failures))


def run(
    paths: Sequence[str | Path],
    ssa: SSA,
    out: str | Path,
    *,
    classifier: Classifier,
    options: RunOptions = RunOptions(),
    settings: dict[str, Any] | None = None,
    watch: Callable[[Step], None] | None = None,
) -> RunReport:
    """Polish the CAMs of every picture in `paths` and write them below `out`.

    Per picture: `cams/NAME.npz` (`outputs.save_cams`), `masks/NAME.png` and `overlays/NAME.png`; for all of them
    `boxes.json` (`outputs.BoxLedger`). A mask's values are class indices + 1 where the network has at most 254
    classes, positions in the picture's list of classes + 1 otherwise; the `.npz` says which under `labels`.

    Args:
        paths: files and folders (searched through).
        ssa: built on `classifier.model`.
        settings: goes into the outputs beside the options, as JSON.
        watch: called after each picture.

    Raises:
        ValueError: an option is wrong, there is nothing to read, or `out/boxes.json` exists; nothing was written.
    """
    return _Run(ssa, Path(out), classifier, options, settings or {}).over(paths, watch)


class _Run:
    def __init__(
        self, ssa: SSA, out: Path, classifier: Classifier, options: RunOptions, settings: dict[str, Any]
    ) -> None:
        from ssa_fast import __version__

        self.ssa, self.out, self.classifier, self.options = ssa, out, classifier, options
        self.classes = classifier.select(options.classes)
        self.settings = {**settings, **asdict(options), **options.mask_options}
        self.version = __version__
        self.ledger = outputs.BoxLedger()
        self.report = RunReport()
        self._check()

    def _check(self) -> None:
        """Refuse now what would otherwise make every picture fail."""
        options, classifier = self.options, self.classifier
        top = self.classes.removeprefix("top") if isinstance(self.classes, str) else str(len(self.classes))
        if top.isdecimal() and int(top) > LABELS:
            raise ValueError(f"classes: expected at most {LABELS}, which an 8-bit mask can tell apart, got {top}")
        blank = torch.zeros(1, 1, 2, 2)
        localize.masks(blank, **options.mask_options)
        localize.boxes(blank, threshold=options.box_threshold, components=options.components)
        if classifier.input_size and options.size not in (None, classifier.input_size):
            raise ValueError(
                "size: {} takes pictures of {}x{} only; leave it out".format(classifier.name, *classifier.input_size)
            )
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out: expected a folder, {self.out} is a file")
        if (self.out / BOXES).exists() and not options.overwrite:
            raise ValueError(f"out: {self.out / BOXES} exists; pass --overwrite, or another folder")

    def over(self, paths: Sequence[str | Path], watch: Callable[[Step], None] | None) -> RunReport:
        found = pictures.find(paths, leave_out=[self.out / folder for folder in outputs.FOLDERS])
        if not found.sources:
            seen = [f"{path}: {reason}" for path, reason in (*found.missing, *found.skipped)]
            raise ValueError(f"paths: no picture to read ({seen[0] if seen else 'the folders are empty'})")
        self.report.failures.extend(Failure(str(path), reason) for path, reason in found.missing)
        self.report.skipped = found.skipped
        self.originals = {source.path.resolve() for source in found.sources}
        start = time.perf_counter()
        try:
            for index, (source, name) in enumerate(
                zip(found.sources, pictures.output_names(found.sources), strict=True)
            ):
                failure = self._attempt(source, name)
                if watch is not None:
                    watch(Step(index + 1, len(found.sources), str(source.path), failure))
        except KeyboardInterrupt:
            self.report.interrupted = True
        try:
            with outputs.interrupts_held():
                self._write_boxes()
        except KeyboardInterrupt:
            self.report.interrupted = True
        self.report.seconds = time.perf_counter() - start
        return self.report

    def _attempt(self, source: Source, name: PurePosixPath) -> Failure | None:
        try:
            self._one(source, name)
        except Exception as error:  # whatever is wrong with one picture, the others shall have their turn
            failure = Failure(str(source.path), _reason(error), error)
            self.report.failures.append(failure)
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            return failure
        return None

    def _one(self, source: Source, name: PurePosixPath) -> None:
        targets = outputs.targets(self.out, name)
        for target in targets.values():
            if target.exists() and not self.options.overwrite:
                raise FileExistsError(f"{target} exists; pass --overwrite to replace it.")
            if target.resolve() in self.originals:
                raise FileExistsError(f"its output {target} would replace a picture of this run; choose another --out.")
        picture = pictures.read(source.path, max_pixels=self.options.max_pixels, backdrop=self.options.backdrop)
        result = self._infer(picture)
        self._write(source, name, targets, picture, result)
        for note in picture.notes:
            self.report.notes.setdefault(note, []).append(str(source.path))

    def _infer(self, picture: Picture) -> SSAResult:
        images = self.classifier.prepare(picture.rgb, self.options.size)
        result = self.ssa(images, classes=self.classes)
        if result.logits.isnan().any():
            raise ValueError(f"{self.classifier.name} gave NaN for it; check the weights.")
        own = picture.rgb.shape[:2]
        if result.cams.shape[-2:] != own:
            cams = interpolate(result.cams, own, mode="bilinear", align_corners=self.ssa.align_corners).clamp_(0.0, 1.0)
            result = replace(result, cams=cams)
        return result

    def _write(
        self, source: Source, name: PurePosixPath, targets: dict[str, Path], picture: Picture, result: SSAResult
    ) -> None:
        options = self.options
        classes = result.classes[0].tolist()
        names = [self.classifier.categories[index] for index in classes]
        scores = self.classifier.probabilities(result.logits.float())[0, result.classes[0]]
        boxes = result.boxes(threshold=options.box_threshold, components=options.components)[0]
        labels = self._labels(classes)
        mask = _relabel(result.masks(**options.mask_options)[0], labels)
        panel = _panel(picture, result, names, boxes, mask, labels)
        writers: dict[Path, Callable[[Path], object]] = {
            targets["masks"]: lambda path: localize.save_mask(path, mask),
            targets["overlays"]: lambda path: panel.save(path),
            targets["cams"]: lambda path: outputs.save_cams(
                path,
                result.cams[0].cpu().numpy(),
                classes=classes,
                names=names,
                labels=labels,
                logits=result.logits[0, result.classes[0]].float().cpu().numpy(),
                settings=self.settings,
                version=self.version,
            ),
        }
        with outputs.interrupts_held():  # a picture's files and its boxes are there together, or not at all
            outputs.place(writers, overwrite=options.overwrite)
            self.ledger.add(
                source.relative.as_posix(),
                picture.rgb.shape[:2],
                output=str(name),
                classes=classes,
                names=names,
                scores=scores.tolist(),
                boxes=[found.cpu().numpy() for found in boxes],
            )
            self.report.done.append(str(source.path))

    def _labels(self, classes: list[int]) -> list[int]:
        """The classes' values in the mask: the same in every picture where 8 bits have room for all classes."""
        if len(self.classifier.categories) <= LABELS:
            return [index + 1 for index in classes]
        return list(range(1, len(classes) + 1))

    def _write_boxes(self) -> None:
        if not self.ledger.images:
            return
        text = self.ledger.as_json(settings=self.settings, version=self.version)
        path = self.out / BOXES
        try:
            outputs.place({path: lambda draft: _write_text(draft, text)}, overwrite=self.options.overwrite)
        except OSError as error:
            self.report.failures.append(Failure(str(path), _reason(error), error))
        else:
            self.report.boxes = path


def _relabel(mask: Tensor, labels: list[int]) -> Tensor:
    """Positions + 1 in `mask` (H, W) replaced by `labels`; 0 and 255 stay what they are."""
    table = torch.arange(256, dtype=torch.uint8)
    table[1 : len(labels) + 1] = torch.tensor(labels, dtype=torch.uint8)
    return table[mask.cpu().long()]


def _panel(
    picture: Picture, result: SSAResult, names: list[str], boxes: list[Tensor], mask: Tensor, labels: list[int]
) -> Image:
    """The overlay: one row per class, with the very boxes and mask that are written."""
    palette = voc_palette()
    rows = []
    for k, (name, label) in enumerate(zip(names, labels, strict=True)):
        stages = {"seed": result.seed[0, k], **{stage: maps[0, k] for stage, maps in result.stages.items()}}
        red, green, blue = palette[3 * label : 3 * label + 3]
        scores = localize.box_scores(result.cams[0, k], [[boxes[k]]])[0][0]
        rows.append(Row(name, stages, result.cams[0, k], boxes[k], scores, mask == label, (red, green, blue)))
    pixels = torch.from_numpy(picture.rgb).permute(2, 0, 1).float() / 255.0
    return localize.panel(pixels, rows)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _reason(error: Exception) -> str:
    """One line for the closing table: what went wrong and, where something can be done, what."""
    line = str(error).strip().split("\n")[0] or type(error).__name__
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU ran out of memory; pass a smaller --size, fewer --scales, no --flip, or --device cpu."
    if isinstance(error, MemoryError) or re.search(NO_MEMORY, str(error)):
        return "the machine ran out of memory; pass a smaller --size or fewer --scales."
    if isinstance(error, OSError) and error.strerror:
        where = f" to {error.filename}" if error.filename else ""  # a full disk shows in write(), which knows no name
        return f"its output cannot be written{where} ({error.strerror})."
    if isinstance(error, ValueError | OSError | RuntimeError):
        return line
    return f"{type(error).__name__}: {line}"
