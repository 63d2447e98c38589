"""`ssa-fast run`: pictures in, CAMs, masks, overlays and boxes out."""

from __future__ import annotations

import traceback
from pathlib import Path  # noqa: TC003 - typer reads the annotations when the command is made
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from PIL import ImageColor
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ssa_fast.cli import console
from ssa_fast.cli.options import AffinityText, Debug, Device, Model, Stages, Weights, build
from ssa_fast.io.images import MAX_PIXELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssa_fast.runs import RunReport, Step

__all__ = ["command"]

SUMMARY = ("done", "failed", "seconds", "images/s", "outputs")
SHOWN = 3
"""Names shown of the pictures that share a note."""


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Pictures, folders, ImageFolders, VOC folders, globs, and lists (.txt)."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the outputs.")],
    model: Model = "resnet50",
    weights: Weights = "DEFAULT",
    classes: Annotated[
        str,
        typer.Option("--classes", "-c", help="'predicted', 'top5', names and indices, or 'labels': the dataset's own."),
    ] = "predicted",
    split: Annotated[str | None, typer.Option(help="Of VOC folders: train, val, ..., or a file of ids.")] = None,
    stages: Stages = "auto",
    affinity: AffinityText = "",
    scales: Annotated[str, typer.Option(help="Factors at which each picture is seen, e.g. 0.5,1,1.5,2.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="See each picture mirrored too.")] = False,
    fuse: Annotated[Literal["mean", "max", "sum", "product"], typer.Option(help="How stages become one map.")] = "mean",
    align_corners: Annotated[
        bool, typer.Option(help="Bilinear resizing as in PCM; without, pixels count by their centres.")
    ] = True,
    seed: Annotated[str, typer.Option(help="'auto', 'cam', 'grad-cam', or the layer for Grad-CAM.")] = "auto",
    size: Annotated[
        str | None, typer.Option(help="Shorter side, or HEIGHTxWIDTH, at which pictures go in; else their own.")
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(help="float32, or mixed: float16 or bfloat16; 'auto' is float16 on a GPU.")
    ] = "auto",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Pictures of one size taken together; 1 on a CPU, 16 on a GPU.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read pictures; by the cores.")] = None,
    background: Annotated[
        float | None, typer.Option(help="Masks: the background's constant score; 0.25 if not said.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Masks: background score (1 - max)^alpha instead.")] = None,
    ignore: Annotated[
        float | None, typer.Option(help="Masks: a lower background (higher alpha); unsure (255) between.")
    ] = None,
    box_threshold: Annotated[float, typer.Option(help="Boxes: share of the map's maximum.")] = 0.2,
    components: Annotated[Literal["largest", "all"], typer.Option(help="Boxes: of which connected parts.")] = "largest",
    cams: Annotated[
        str, typer.Option(help="Format of the CAM files: ssa (.npz), or psa, irn, clip-es, wsol (.npy).")
    ] = "ssa",
    store: Annotated[
        Literal["float16", "uint8"], typer.Option(help="Numbers in ssa's CAM files, at the largest stage's size.")
    ] = "float16",
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Write psa, irn or clip-es files, which are pickles.")
    ] = False,
    overlays: Annotated[bool, typer.Option(help="Draw a panel to look at for every picture.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew and replace outputs that exist; else the run is taken up.")
    ] = False,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse pictures with more pixels than this.")] = MAX_PIXELS,
    large_above: Annotated[
        int, typer.Option(min=1, help="Pictures of more pixels are done in tiles, and written as TIFF.")
    ] = 1 << 24,
    memory: Annotated[str, typer.Option(help="What a picture done in tiles may take, e.g. 3GB.")] = "4GB",
    backdrop: Annotated[str, typer.Option(help="Colour behind transparent pictures.")] = "white",
    debug: Debug = False,
) -> None:
    """Polish the CAMs of pictures: one .npz, mask and overlay for each, boxes.json and report.json for all.

    A run that was stopped goes on when the same command is started again. Under torchrun the pictures are dealt out to
    all processes. Exit code: 0 all done, 1 something failed, 2 wrong usage, 130 after Ctrl-C, 143 after SIGTERM.
    """
    with console.usage_errors(debug=debug):
        from ssa_fast import runs
        from ssa_fast.models import zoo

        options = runs.RunOptions(
            classes=classes,
            size=zoo.parse_size(size),
            background=background,
            alpha=alpha,
            ignore=ignore,
            box_threshold=box_threshold,
            components=components,
            precision=precision,
            batch=batch,
            workers=workers,
            cams=cams,
            store=store,
            allow_pickle=allow_pickle,
            overlays=overlays,
            large_above=large_above,
            memory=memory,
            overwrite=overwrite,
            max_pixels=max_pixels,
            backdrop=_colour(backdrop),
        )
        how: dict[str, Any] = {"stages": stages, "affinity": affinity, "scales": scales, "flip": flip, "fuse": fuse}
        how["align_corners"] = align_corners
        classifier, ssa = build(model=model, weights=weights, device=device, seed=seed, output_size="stage", **how)
        if classifier.input_size:
            only = "{}x{}".format(*classifier.input_size)
            console.err().print(
                f"notice: {model} takes {only} only; pictures are resized to it, outputs back to their size"
            )
        settings = {
            "model": model,
            "weights": classifier.weights,
            **how,
            "affinity": str(ssa.affinity),
            "stages": list(ssa.stage_names),
            "seed": ssa.seed_kind,
            "seed_layer": ssa.seed_layer,
        }
        report = _watched(paths, ssa, out, classifier=classifier, options=options, split=split, settings=settings)
    _close(report, out, debug=debug)
    raise typer.Exit(report.exit_code)


def _watched(paths: Sequence[Path], ssa: Any, out: Path, **options: Any) -> RunReport:
    """The run under a progress bar, failures told as they come."""
    from ssa_fast import runs

    columns = (TextColumn("polishing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    screen = console.err()
    name = TextColumn("{task.fields[name]}", markup=False)
    with Progress(*columns, name, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=None, name="")

        def watch(step: Step) -> None:
            bar.update(task, completed=step.through, total=step.total, name=step.name)
            if step.failure is not None:
                line = Text("failed: ", "red").append(f"{step.name}: {step.failure.reason}", "default")
                bar.console.print(line, soft_wrap=True)

        return runs.run(paths, ssa, out, watch=watch, **options)


def _close(report: RunReport, out: Path, *, debug: bool) -> None:
    """The closing tables: what was done, how fast, and what failed."""
    screen = console.out()
    for note, names in report.notes.items():
        rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        console.err().print(f"notice: {', '.join(names[:SHOWN])}{rest}: {note}")
    if report.skipped:
        path, reason = report.skipped[0]
        console.err().print(f"notice: {len(report.skipped)} passed over, the first being {path}: {reason}")
    if debug:
        for failure in report.failures:
            if failure.error is not None:
                traceback.print_exception(failure.error)
    if report.failures:
        rows = [(failure.name, failure.reason) for failure in report.failures]
        screen.print(console.table("failed", ("picture", "reason"), rows))
    done, failed = len(report.done), len(report.failures)
    row = (done, failed, f"{report.seconds:.1f}", f"{report.images_per_second:.2f}", out if done else "-")
    for process in report.processes:
        if process.state != "finished":
            console.err().print(
                f"process {process.rank} on {process.host} {process.state} after {process.done} pictures; start the "
                "same command again for the rest of its share"
            )
    if report.stopped:
        console.err().print(f"stopped: {report.stopped}")
    title = "interrupted; what is complete was kept" if report.interrupted else "run"
    if report.resumed:
        title += f" ({report.resumed} were complete before)"
    screen.print(console.table(title, SUMMARY, [row], right=SUMMARY[:4]))


def _colour(text: str) -> tuple[int, int, int]:
    try:
        colour = ImageColor.getrgb(text)
    except ValueError:
        raise ValueError(f"backdrop: expected a colour such as white, #808080 or rgb(1,2,3), got {text!r}") from None
    return colour[0], colour[1], colour[2]
