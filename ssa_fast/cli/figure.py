"""``ssa-fast figure``: draw images, seeds and polished CAMs as a figure for a paper."""

from __future__ import annotations

from functools import partial
from pathlib import Path  # noqa: TC003 - typer evaluates the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ssa_fast.cli import console
from ssa_fast.cli.options import (
    CAM,
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
    parse_score,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ssa_fast.models.zoo import Classifier
    from ssa_fast.ssa import SSA, SSAResult

_out = partial(option, OUTPUT)


def command(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, each of any size.")],
    *,
    model: Model = "resnet50",
    weights: Weights = "DEFAULT",
    size: Size = None,
    probability: ProbabilityText = None,
    classes: Annotated[
        str, option(CAM, "'predicted', 'top2', or names and indices; a row each.", "--classes", "-c")
    ] = "predicted",
    seed: Seed = "auto",
    stages: Stages = "auto",
    affinity: AffinityText = "auto",
    fuse: Fuse = "mean",
    background: Background = None,
    box_threshold: BoxThreshold = "auto",
    components: BoxComponents = "largest",
    device: Device = "auto",
    debug: Debug = False,
    out: Annotated[Path, _out("File to write: .png, .svg or .pdf.", "--out", "-o")],
    show_stages: Annotated[bool, _out("Draw the polished CAM of each stage.", "--show-stages")] = False,
    boxes: Annotated[bool, _out("Draw boxes.")] = True,
    mask: Annotated[bool, _out("Draw the pseudo-mask.", "--mask")] = False,
    columns: Annotated[int | None, _out("Images side by side; default: by their number.", min=1)] = None,
    colormap: Annotated[Literal["viridis", "cividis", "magma", "turbo"], _out("Colours of the maps.")] = "viridis",
    width: Annotated[float, _out("Of the figure, in inches.")] = 7.0,
    dpi: Annotated[int, _out("Pixels per inch.", min=30, max=1200)] = 300,
    overwrite: Annotated[bool, _out("Replace an existing file.", "--overwrite")] = False,
) -> None:
    """Draw images, seeds and polished CAMs as one figure: a row per class, with its probability.

    The same images and options give the same bytes.
    """
    with console.usage_errors(debug=debug):
        from ssa_fast.io.atomic import write_files
        from ssa_fast.localize import PostprocessOptions
        from ssa_fast.localize.figure import FORMATS, figure  # first, as nothing works without matplotlib
        from ssa_fast.models import zoo

        if out.suffix[1:].lower() not in FORMATS:
            raise ValueError(f"out: expected a name that ends in .png, .svg or .pdf, got {out.name!r}")
        if out.exists() and not overwrite:
            raise FileExistsError(f"{out} exists; pass --overwrite to replace it.")
        score = None if background is None else parse_score("background", background)
        share = parse_score("box_threshold", box_threshold)
        options = PostprocessOptions(score, box_threshold=share, components=components)
        side = zoo.parse_size(size)
        which: dict[str, Any] = {"model": model, "weights": weights, "device": device, "probability": probability}
        classifier, ssa = build(**which, stages=stages, affinity=affinity, scales="1", seed=seed, fuse=fuse)
        note_fixed_size(classifier)
        pixels, results = _polish(images, classifier, ssa, classes, side)
        shown: dict[str, Any] = {"stages": show_stages, "boxes": boxes, "mask": mask, "options": options}
        drawn = figure(pixels, results, **shown, columns=columns, colormap=colormap, width=width)
        write_files({out: partial(drawn.savefig, dpi=dpi)}, overwrite=overwrite)
    inches = " × ".join(f"{side:.1f}" for side in drawn.get_size_inches())
    console.out().print(f"{out}: {len(images)} {'image' if len(images) == 1 else 'images'}, {inches} inches")


def _polish(
    paths: Sequence[Path], classifier: Classifier, ssa: SSA, classes: str, size: Any
) -> tuple[list[Tensor], list[SSAResult]]:
    """Return each image as (1, 3, H, W) in [0, 1], and its result."""
    import torch

    from ssa_fast.io.images import ImageError, read_image

    selected = classifier.select(classes)
    pixels, results = [], []
    for path in paths:
        with console.err().status(f"polishing {path.name}"):
            try:
                image = read_image(path)
            except ImageError as error:
                raise ValueError(f"{path}: {error}") from error
            results.append(ssa(classifier.preprocess(image.rgb, size), selected))
        pixels.append(torch.from_numpy(image.rgb).permute(2, 0, 1)[None] / 255.0)
        for note in image.notes:
            console.err().print(f"notice: {path}: {note}")
    return pixels, results
