"""Which classes a network predicted for each image, for top-1 and top-5 localisation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ssa_fast.evaluate.datasets.base import read_lines
from ssa_fast.evaluate.datasets.cam_folder import CamFolder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ssa_fast.io.cam_files import CamFile

    Predictions: TypeAlias = "Mapping[str, Sequence[int]] | CamFolder"

__all__ = ["Predictions", "predicted_classes", "rank_true_classes", "read_predictions"]

PREDICTED = re.compile("predicted|top[0-9]+")  # of ``run --classes``: the network's choice, not the caller's


def read_predictions(path: str | Path) -> Predictions:
    """Return what a file or folder says of predicted classes.

    Args:
        path: A text file with a line ``image,class[,class,...]`` per image, best class first; or the folder of a run
            with ``--classes predicted`` or ``top5``.

    Raises:
        FileNotFoundError: There is nothing there.
        ValueError: A line has another form.
    """
    if Path(path).is_dir():
        return CamFolder(path)
    found = {}
    for line in read_lines(Path(path), "a list of predicted classes"):
        image, *classes = line.split(",")
        try:
            found[image.strip()] = tuple(map(int, classes))
        except ValueError:
            classes = []
        if not classes:
            raise ValueError(f"predictions: expected lines 'image,class,class,...' in {path}, got {line!r}")
    return found


def predicted_classes(image: str, cam: CamFile | None, predictions: Predictions | None) -> tuple[int, ...]:
    """Return an image's predicted classes, best first; () if they are not known.

    Args:
        image: Its name in the dataset.
        cam: Its CAM file, which tells them if it is of predicted classes.
        predictions: Where to look instead.

    Raises:
        ValueError: ``predictions`` lacks the image.
    """
    if isinstance(predictions, CamFolder):
        path = predictions.find(image)
        cam = None if path is None else predictions.read(path)
    elif predictions is not None:
        if image not in predictions:
            raise ValueError(f"predictions: expected the classes of every image, got none for {image}")
        return tuple(predictions[image])
    if cam is None or cam.classes is None or cam.logits is None:
        return ()
    if not PREDICTED.fullmatch(str(cam.settings.get("classes", "")).strip()):
        return ()
    return tuple(cam.classes[np.argsort(-cam.logits, kind="stable")].tolist())


def rank_true_classes(labels: Sequence[int], predicted: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], int]:
    """Return how many classes come before the true one, at most ``depth``, and the depth: the classes known of all."""
    depth = min(map(len, predicted), default=0)
    ranks = [[*classes[:depth], label].index(label) for label, classes in zip(labels, predicted, strict=True)]
    return np.array(ranks, np.int64), depth
