"""``python -m bench measures``: what the measures of ``ssa_fast.evaluate`` cost, against one search per threshold.

Milliseconds per map or image, medians of interleaved rounds. Box accuracy: 1,000 thresholds on maps of 224 x 224 that
were enlarged from coarser noise, as CAMs are. The baselines give the same figures by their definitions: a search for
contours, or a confusion matrix, at every threshold. Beside them what OpenCV's rival costs before any box is known: two
component trees (regions, holes) of scikit-image.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from skimage.morphology import max_tree
from torch.nn.functional import interpolate

from bench.command import parser_of, save
from bench.measure import Device, time_interleaved
from ssa_fast.evaluate import box_iou, confusion_matrix, contour_boxes, max_box_acc, threshold_sweep
from ssa_fast.ops.resize import minmax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

SIDE, ROUNDS = 224, 5
CELLS = (7, 14, 56, SIDE)  # of the coarse map; the last is noise
THRESHOLDS = np.arange(0, 1, 0.001)
TRUE_BOX = np.array([[40, 30, 180, 200]])
VOC, BACKGROUNDS = (375, 500), np.arange(1, 100) / 100


def median_ms(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of calls, timed in interleaved rounds."""
    times = time_interleaved(Device(), calls, cold=0, warm=rounds, least=rounds)
    return {name: round(1000 * float(np.median(each.warm)), 3) for name, each in times.items()}


def search_at_every_threshold(cam: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the best IoU at each threshold, by the definition."""
    pixels, inside = (255 * cam).astype(np.uint8), np.array([0, 0, 1, 1])
    masks = (pixels > int(threshold * 255) for threshold in THRESHOLDS)
    return np.array([box_iou(contour_boxes(mask) + inside, TRUE_BOX + inside).max() for mask in masks])


def argmax_at_every_threshold(cam: NDArray[np.float32], truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the confusion matrices of one image's CAMs, of classes 0, 1, …, by the definition."""
    padded = (np.concatenate([np.full((1, *truth.shape), each, np.float32), cam]) for each in BACKGROUNDS)
    return np.stack([confusion_matrix(stack.argmax(0), truth, 21) for stack in padded])


def two_trees(pixels: NDArray[np.uint8]) -> object:
    """Return the trees of regions and of holes."""
    return max_tree(pixels, connectivity=2), max_tree(255 - pixels, connectivity=1)


def rows() -> Iterator[dict[str, Any]]:
    """Yield what each measure costs; raise where a baseline gives another figure."""
    for cells in CELLS:
        noise = torch.rand(1, 1, cells, cells, generator=torch.Generator().manual_seed(cells), dtype=torch.float64)
        cam = minmax(interpolate(noise, (SIDE, SIDE), mode="bicubic"))[0, 0].numpy()
        accuracy = partial(max_box_acc, [cam], [TRUE_BOX], thresholds=THRESHOLDS.tolist())
        np.testing.assert_array_equal(accuracy().overlaps[0], search_at_every_threshold(cam))
        calls: dict[str, Callable[[], object]] = {
            "wsol": accuracy,
            "continuous": partial(accuracy, convention="continuous"),
            "every threshold": partial(search_at_every_threshold, cam),
            "two trees": partial(two_trees, (255 * cam).astype(np.uint8)),
        }
        yield {"measure": f"max_box_acc, map of {cells} x {cells}"} | median_ms(calls, ROUNDS)
    rng = np.random.default_rng(0)
    cams, truth = rng.random((3, *VOC), np.float32), rng.integers(0, 4, VOC).astype(np.uint8)
    sweep: Any = partial(threshold_sweep, [cams], [[0, 1, 2]], [truth], 21, BACKGROUNDS.tolist())
    np.testing.assert_array_equal(sweep().confusions, argmax_at_every_threshold(cams, truth))
    calls = {"one pass": sweep, "every threshold": partial(argmax_at_every_threshold, cams, truth)}
    yield {"measure": "threshold_sweep, 3 classes, 99 thresholds"} | median_ms(calls, ROUNDS)


def main(given: Sequence[str]) -> int:
    """Measure and print; with ``--save`` keep the figures and the machine as JSON."""
    options, found = parser_of("measures", __doc__).parse_args(given), []
    for row in rows():
        found.append(row)
        print(*(f"{name} {value}" for name, value in row.items()), sep="  ", flush=True)
    save(options, ["measures", *given], found)
    return 0
