"""Files of a view: CAMs, mask, boxes and figures, by the package's own writers."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ssa_fast import __version__, localize
from ssa_fast.io import cam_files
from ssa_fast.io.cam_files import CamFile
from ssa_fast.localize import PostprocessOptions
from ssa_fast.runs.options import MAX_LABEL, RunOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ssa_fast.explore.images import Entry, Picture
    from ssa_fast.explore.networks import Network
    from ssa_fast.explore.settings import DownloadOptions
    from ssa_fast.explore.views import View
    from ssa_fast.models.zoo import Size
    from ssa_fast.ssa import SSA

TYPES = {
    "cams.npz": "application/octet-stream",
    "mask.png": "image/png",
    "boxes.json": "application/json",
    "figure.png": "image/png",
    "figure.svg": "image/svg+xml",
    "figure.pdf": "application/pdf",
}
"""The files that a view has -> their media types."""


def postprocess(options: DownloadOptions) -> PostprocessOptions:
    """Return the options of boxes and masks."""
    return PostprocessOptions(
        background=options.background, box_threshold=options.threshold, components=options.components
    )


def cams(view: View, entry: Entry, picture: Picture, network: Network, ssa: SSA, size: Size, folder: Path) -> bytes:
    """Return the CAM file that ``ssa-fast run`` writes for the view's settings."""
    settings, classifier, index = view.settings, network.classifier, view.settings.classes
    affinities = [str(each) for each in ssa.affinities.values()]
    held: dict[str, Any] = {"model": classifier.name, "weights": classifier.weights}
    held |= {"probability": classifier.probability, "stages": list(ssa.stage_names)}
    held["affinity"] = affinities[0] if len(set(affinities)) == 1 else affinities
    held |= {"scales": "1", "flip": False, "prior": settings.prior, "fuse": settings.fuse, "align_corners": False}
    held |= {"seed": ssa.seed_kind, "seed_layer": ssa.seed_layer}
    if settings.weights is not None:
        held["stage_weights"] = list(ssa.fusion.weights)
    run = RunOptions(classes=",".join(map(str, index)), size=size, precision="float32")
    held |= run.fingerprint(torch.device("cpu"))
    few = len(classifier.categories) <= MAX_LABEL
    content = CamFile(
        cams=view.cams[0].half().numpy(),
        classes=np.asarray(index, dtype=np.int64),
        size=(picture.rgb.shape[0], picture.rgb.shape[1]),
        names=tuple(classifier.categories[i] for i in index),
        labels=np.asarray([k + 1 for k in (index if few else range(len(index)))], dtype=np.uint8),
        logits=view.result.logits[0, index].numpy(),
        image=entry.name,
        align_corners=ssa.align_corners,
        settings=json.loads(json.dumps(held)),
        version=__version__,
    )
    return _written(folder / "cams.npz", lambda path: cam_files.write_cam(path, content))


def mask(view: View, options: DownloadOptions, folder: Path) -> bytes:
    """Return the mask as an indexed PNG in VOC's colours: 0 background, k + 1 for the view's class k."""
    labels = view.result.masks(postprocess(options))[0]
    return _written(folder / "mask.png", lambda path: localize.save_mask(path, labels))


def boxes(view: View, entry: Entry, options: DownloadOptions) -> bytes:
    """Return the boxes in the layout of COCO's detection annotations, as ``ssa-fast run`` writes them."""
    result, height, width = view.result, *view.result.cams.shape[2:]
    annotations: list[dict[str, Any]] = []
    index, scores = result.classes[0].tolist(), result.scores[0].tolist()
    for category, score, found in zip(index, scores, result.boxes(postprocess(options))[0], strict=True):
        for x1, y1, x2, y2 in found.tolist():
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0, "score": score}
            annotations.append({"id": len(annotations) + 1, "image_id": 1, "category_id": category, **box})
    settings = {**view.settings.model_dump(), **options.model_dump(exclude={"background", "colormap"})}
    content = {
        "info": {"description": f"ssa_fast {__version__}", "settings": settings},
        "images": [{"id": 1, "file_name": entry.name, "width": width, "height": height}],
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in sorted(zip(index, result.names[0], strict=True))],
    }
    return json.dumps(content, indent=1).encode()


def figure(view: View, picture: Picture, options: DownloadOptions, format: str) -> bytes:
    """Return a figure of the view, by ``SSAResult.figure``."""
    pixels = torch.from_numpy(picture.shown.copy()).permute(2, 0, 1)[None] / 255.0
    file = io.BytesIO()
    drawn = view.result.figure(pixels, mask=True, colormap=options.colormap, options=postprocess(options))
    drawn.savefig(file, format=format)
    return file.getvalue()


def _written(path: Path, write: Callable[[Path], object]) -> bytes:
    """Return what a function writes to a file, and remove it."""
    write(path)
    try:
        return path.read_bytes()
    finally:
        path.unlink()
