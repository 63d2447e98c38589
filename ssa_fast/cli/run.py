"""``ssa-fast run``: polish the CAMs of images and write CAM files, masks, overlays and boxes."""

from __future__ import annotations

import dataclasses
import traceback
from functools import partial
from pathlib import Path  # noqa: TC003 - typer evaluates the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from PIL import ImageColor
from rich import progress as rich_progress
from rich.text import Text

from ssa_fast.cli import console
from ssa_fast.cli.options import (
    CAM,
    EXECUTION,
    MASKS,
    MODEL,
    OUTPUT,
    AffinityText,
    Background,
    BoxComponents,
    BoxThreshold,
    Debug,
    Device,
    Fuse,
    Model,
    ProbabilityText,
    Seed,
    Size,
    Stages,
    Weights,
    build,
    note_fixed_size,
    option,
    parse_scales,
    parse_score,
)
from ssa_fast.io.images import MAX_PIXELS
from ssa_fast.io.progress import Pace

if TYPE_CHECKING:
    from ssa_fast.io.datasets import Listing
    from ssa_fast.io.progress import OnProgress, Progress
    from ssa_fast.runs import RunReport

PANELS = (MODEL, CAM, MASKS, EXECUTION, OUTPUT)
_model, _cam, _masks, _exec, _out = (partial(option, panel) for panel in PANELS)

EPILOG = """Examples:

ssa-fast run photos/ --out out

ssa-fast run VOC2012/ --split train --classes labels --alpha 8 --out out

torchrun --nproc-per-node 4 -m ssa_fast run slides/ --memory 16GB --out out
"""  # an empty line is a line break on the terminal

SUMMARY = ("done", "failed", "seconds", "images/s", "outputs")
WAITING = {"waiting": "waiting for new images", "settling": "waiting until files are complete"}  # by phase
NAMES_SHOWN = 3
EARLIER = ("were complete before", "made again")  # images with a record of an earlier start
NOTES_SHOWN = 20


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Images, folders, ImageFolders, VOC folders, globs, and lists (.txt)."),
    ],
    *,
    model: Model = "resnet50",
    weights: Weights = "DEFAULT",
    size: Size = None,
    precision: Annotated[
        str, _model("float32, or mixed precision: float16 or bfloat16; 'auto' is float16 on a GPU.")
    ] = "auto",
    classes: Annotated[
        str, _cam("'predicted', 'top5', names and indices, or 'labels': the dataset's own.", "--classes", "-c")
    ] = "predicted",
    probability: ProbabilityText = None,
    seed: Seed = "auto",
    stages: Stages = "auto",
    affinity: AffinityText = "auto",
    scales: Annotated[str, _cam("Image scales, e.g. 0.5,1,1.5,2.")] = "1",
    flip: Annotated[bool, _cam("Also use the horizontally flipped image.", "--flip")] = False,
    prior: Annotated[
        Literal["center"] | None, _cam("Weight seeds by their distance from the centre: an assumption, no evidence.")
    ] = None,
    fuse: Fuse = "mean",
    align_corners: Annotated[
        bool, _cam("Align corner pixels, not centres, in bilinear resizing, as PCM does.")
    ] = False,
    refine: Annotated[
        bool, _cam("Let CAMs, masks and boxes follow the image's edges, at its full size (PAMR).", "--refine")
    ] = False,
    background: Background = None,
    alpha: Annotated[float | None, _masks("Masks: background score (1 - max)^alpha instead.")] = None,
    ignore: Annotated[
        float | None, _masks("Masks: a lower background (or higher alpha); pixels in between become 255.")
    ] = None,
    box_threshold: BoxThreshold = "auto",
    components: BoxComponents = "largest",
    device: Device = "auto",
    batch: Annotated[
        int | None, _exec("Images of one size per batch; default: 1 on a CPU, 16 on a GPU.", min=1)
    ] = None,
    workers: Annotated[int | None, _exec("Processes that read images; default: by the cores.", min=0)] = None,
    split: Annotated[str | None, _exec("Split of VOC folders: train, val, ..., or a file of ids.")] = None,
    backdrop: Annotated[str, _exec("Colour behind transparent images.")] = "white",
    bands: Annotated[str | None, _exec("Bands to read: red,green,blue or one, from 1, e.g. 3,2,1.")] = None,
    range: Annotated[
        str, _exec("Values that become black and white: 'auto', LOW,HIGH, or the % cut off at each end, e.g. 2.")
    ] = "auto",
    max_pixels: Annotated[int, _exec("Refuse images with more pixels.", min=1)] = MAX_PIXELS,
    large_above: Annotated[int, _exec("Process images with more pixels in tiles, and write TIFFs.", min=1)] = 2**24,
    memory: Annotated[str, _exec("Memory limit for an image processed in tiles, e.g. 3GB.")] = "4GB",
    watch: Annotated[
        bool, _exec("Then wait for new and changed images in the folders, until Ctrl-C.", "--watch")
    ] = False,
    interval: Annotated[float | None, _exec("Seconds between two looks at watched folders; default: 2.")] = None,
    debug: Debug = False,
    out: Annotated[Path, _out("Output folder.", "--out", "-o")],
    cams: Annotated[str, _out("Format of the CAM files: ssa (.npz), or psa, irn, clip-es, wsol (.npy).")] = "ssa",
    store: Annotated[Literal["float16", "uint8"], _out("Number type of ssa's CAM files.")] = "float16",
    allow_pickle: Annotated[
        bool, _out("Write psa, irn or clip-es files, which are pickles.", "--allow-pickle")
    ] = False,
    overlays: Annotated[bool, _out("Draw an overlay panel per image.")] = True,
    overwrite: Annotated[
        bool, _out("Start anew and replace existing outputs; default: resume.", "--overwrite")
    ] = False,
) -> None:
    """Polish the CAMs of images: a .npz, mask and overlay per image, boxes.json and report.json for all.

    Run the same command again to resume an interrupted run; --watch goes on with images that come later.
    Under torchrun the images are distributed over all processes.
    Exit codes: 0 all done, 1 failures, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM.
    """
    given = locals()
    with console.usage_errors(debug=debug):
        from ssa_fast import runs
        from ssa_fast.io.samples import parse_bands, parse_range
        from ssa_fast.localize.options import PostprocessOptions
        from ssa_fast.models import zoo
        from ssa_fast.runs.loader import needs_tiles

        score = None if background is None else parse_score("background", background)
        share = parse_score("box_threshold", box_threshold)
        postprocess = PostprocessOptions(score, alpha, ignore, share, components)
        parsed: dict[str, Any] = {"bands": parse_bands(bands), "range": parse_range(range)}
        parsed |= {"size": zoo.parse_size(size), "backdrop": _parse_colour(backdrop), "postprocess": postprocess}
        fields = [field.name for field in dataclasses.fields(runs.RunOptions) if field.name != "progress"]
        options = runs.RunOptions(**{name: {**given, **parsed}[name] for name in fields})
        if interval is not None and not watch:
            raise ValueError("interval: it is that of --watch; pass --watch too, or leave --interval out")
        later = runs.Watch(runs.Watch.interval if interval is None else interval) if watch else None
        images = runs.list_images(paths, out, options, split=split, watched=watch)
        if images.sources and all(map(needs_tiles, images.sources)):
            _check_tiles(scales, seed, prior, flip=flip)
        how = {name: given[name] for name in ("stages", "affinity", "scales", "flip", "prior", "fuse", "align_corners")}
        which: dict[str, Any] = {"model": model, "weights": weights, "device": device, "probability": probability}
        classifier, ssa = build(**which, seed=seed, size="stage", **how)
        note_fixed_size(classifier)
        affinities = [str(each) for each in ssa.affinities.values()]  # of "auto", what it chose decides the outputs
        settings = {"model": model, "weights": classifier.weights, "probability": classifier.probability, **how}
        settings["affinity"] = affinities[0] if len(set(affinities)) == 1 else affinities
        settings |= {"stages": list(ssa.stage_names), "seed": ssa.seed_kind, "seed_layer": ssa.seed_layer}
        run = {"classifier": classifier, "options": options, "settings": settings}
        report = _run(paths if watch else images, ssa, out, **run, watch=later)
    if debug:
        for failure in report.failures:
            if failure.error is not None:
                traceback.print_exception(failure.error)
    if report.rank == 0:
        _print_summary(report, out)
    raise typer.Exit(report.exit_code)


def _check_tiles(scales: str, seed: str, prior: str | None, *, flip: bool) -> None:
    """Raise ValueError for options that images processed in tiles exclude."""
    if flip or parse_scales(scales) != (1.0,):
        raise ValueError("scales: images in tiles are seen once, at their own size; leave out --scales and --flip")
    if seed not in ("auto", "cam"):
        raise ValueError(f"seed: images in tiles need the classifier's own CAM, got {seed!r}; leave --seed out")
    if prior is not None:
        raise ValueError("prior: images in tiles are polished without one; leave --prior out")


def _run(images: Listing | list[Path], ssa: Any, out: Path, **options: Any) -> RunReport:
    """Run under a progress bar, and print each failure once: as it happens, or at the end if it is new.

    A run that waits for images (``images`` are then the paths it watches) prints the later ones, too.
    """
    from ssa_fast import runs

    bars = (rich_progress.BarColumn(), rich_progress.MofNCompleteColumn(), rich_progress.TimeRemainingColumn())
    texts = [rich_progress.TextColumn(f"{{task.fields[{field}]}}", markup=False) for field in ("rate", "name")]
    screen, printed, waiting = console.err(), set[str](), False

    def print_failure(name: str, reason: str) -> None:
        screen.print(Text("failed: ", "red").append(f"{name}: {reason}", "default"), soft_wrap=True)

    terminal = screen.is_terminal
    with rich_progress.Progress(
        "polishing", *bars, *texts, console=screen, transient=True, disable=not terminal
    ) as bar:
        show = progress_callback(bar) if terminal else progress_lines()

        def on_progress(progress: Progress) -> None:
            nonlocal waiting
            if terminal or not waiting:
                show(progress)
            if progress.error is not None:
                printed.add(progress.name)
                print_failure(progress.name, progress.error)
            elif waiting and progress.name:
                screen.print(f"done: {progress.name}", soft_wrap=True)
            elif progress.phase == "waiting" and not waiting and isinstance(images, list):
                waiting, folders = True, ", ".join(map(str, images))
                screen.print(f"{progress.done} done; watching {folders} until Ctrl-C", soft_wrap=True)

        report = runs.run(images, ssa, out, on_progress=on_progress, **options)
    for failure in report.failures:
        if report.rank == 0 and failure.name not in printed:
            print_failure(failure.name, failure.reason)
    return report


def progress_callback(bar: rich_progress.Progress) -> OnProgress:
    """Return a callback that shows a run on ``bar``; resumed images do not count for the time left."""
    task = bar.add_task("", total=None, name="", rate="")
    resumed = 0

    def show(progress: Progress) -> None:
        nonlocal resumed
        if progress.resumed != resumed:
            resumed = progress.resumed
            bar.reset(task, completed=resumed)
        speed = bar.tasks[0].speed
        rate = f"{speed:.2f} images/s" if speed else ""
        name = WAITING.get(progress.phase, progress.name)
        bar.update(task, completed=progress.done, total=progress.total, name=name, rate=rate)

    return show


def progress_lines() -> OnProgress:
    """Return a callback that says on stderr how far a run is; resumed images do not count."""
    pace = Pace("polishing")
    return lambda progress: pace.update(progress.done - progress.resumed, progress.total - progress.resumed)


def _print_summary(report: RunReport, out: Path) -> None:
    """Print notices on stderr and the closing table on stdout."""
    screen, done, failed = console.err(), len(report.done), len(report.failures)
    notes = {note: names for note, names in report.notes.items() if note not in console.notices}
    for note, names in list(notes.items())[:NOTES_SHOWN]:
        rest = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        screen.print(f"notice: {', '.join(names[:NAMES_SHOWN])}{rest}: {note}")
    if len(notes) > NOTES_SHOWN:
        screen.print(f"notice: {len(notes) - NOTES_SHOWN} more notices are in {out / 'report.json'}")
    if report.skipped:
        path, reason = report.skipped[0]
        screen.print(f"notice: {len(report.skipped)} skipped, the first being {path}: {reason}")
    if failed:
        screen.print(f"notice: {failed} failed; all reasons are in {out / 'report.json'}")
    for process in report.processes:
        if process.state != "finished":
            screen.print(
                f"process {process.rank} on {process.host} {process.state} after {process.done} images; run the same "
                "command again to process the rest of its share"
            )
    if report.stopped:
        screen.print(f"stopped: {report.stopped}")
    title = "interrupted; complete images were kept" if report.interrupted and not report.idle else "run"
    if report.leftovers:
        screen.print(
            f"notice: {out} also holds outputs of {len(report.leftovers)} images that are not among those given, such "
            f"as {report.leftovers[0]}; they were left as they are, and are not in boxes.json"
        )
    if counts := [f"{n} {what}" for n, what in zip((report.resumed, report.remade), EARLIER, strict=True) if n]:
        title += f" ({', '.join(counts)})"
    row = (done, failed, f"{report.seconds:.1f}", f"{report.images_per_second:.2f}", out if done else "-")
    console.out().print(console.table(title, SUMMARY, [row], right=SUMMARY[:4]))
    if report.limit:
        console.out().print(report.limit)


def _parse_colour(text: str) -> tuple[int, int, int]:
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        raise ValueError(f"backdrop: expected a colour such as white, #808080 or rgb(1,2,3), got {text!r}") from None
