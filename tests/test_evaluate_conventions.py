"""Compare every cell with literal, slow versions of the conventions of IRN, SEAM, wsolevaluation and DAVIS."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import disk

from ssa_fast.evaluate import boundary_f, contour_boxes, max_box_acc, pixel_average_precision, threshold_sweep
from ssa_fast.evaluate import resize_boxes as resized
from ssa_fast.evaluate.boxes import DEFAULT_THRESHOLDS, IOUS
from ssa_fast.evaluate.precision import PXAP_THRESHOLDS
from ssa_fast.evaluate.segmentation import SEAM_THRESHOLDS

cv2 = pytest.importorskip("cv2", reason="OpenCV comes with the extra eval")
NUM_CLASSES = 9


def _smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    cells = rng.random((rng.integers(2, 7), rng.integers(2, 7))).astype(np.float32)
    return cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)


def _figures(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return rings, disks, squares and thin lines of different values, some of which leave the map."""
    canvas = np.zeros((height, width), np.float32)
    for _ in range(5):
        value, centre = float(rng.integers(1, 9)) / 8, rng.integers(0, [width, height]).tolist()
        cv2.circle(canvas, centre, int(rng.integers(1, 9)), value, int(rng.choice([-1, 1, 2])))
        cv2.line(canvas, rng.integers(0, [width, height]).tolist(), centre, value, 1)
    return canvas


STRUCTURED = {
    "flat": np.full((6, 5), 0.3),
    "one pixel": np.array([[2.0]]),
    "one row": np.array([[0.0, 1.0, 0.0, 0.5, 0.5, 0.0]]),
    "one column": np.array([[0.0, 1.0, 0.0, 0.5, 0.5, 0.0]]).T,
    "diagonal": np.eye(9),
    "other diagonal": np.eye(9)[::-1],
    "tied pixels": np.diag([1.0, 0, 0, 1, 0, 0, 1, 0, 0, 1]),
    "chequered": np.indices((8, 9)).sum(0) % 2 * 1.0,
    "frame": np.pad(np.zeros((5, 7)), 1, constant_values=1.0),
    "island in a hole": np.pad(np.pad(np.pad(np.ones((1, 1)), 2), 1, constant_values=0.6), 2),
    "two holes": 1.0 - np.pad(np.eye(2).repeat(3, 0).repeat(4, 1), 2),
    "ring with a tail": np.array([[0, 1, 0, 0, 0], [1, 0, 1, 1, 1], [0, 1, 0, 0, 0]], float),
    "last column": np.pad(np.ones((4, 2)), ((1, 2), (6, 0))),
    "last row": np.pad(np.ones((2, 4)), ((6, 0), (1, 2))),
    "below one grey value": np.array([[0.0, 1.0, 0.003, 0.0]]),
}


def _maps() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    drawn = [
        make(rng, *rng.integers(5, 48, 2).tolist())
        for make in (
            _smooth,
            _figures,
            lambda rng, *size: rng.random(size),
            lambda rng, *size: rng.integers(0, 4, size),
        )
        for _ in range(6)
    ]
    return [*STRUCTURED.values(), *(drawn_map.astype(np.float64) for drawn_map in drawn)]


def _true_boxes(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return 1 to 3 boxes of an image, some of whole pixels, some reaching its far edges."""
    height, width = size
    corners = np.sort(rng.random((rng.integers(1, 4), 2, 2)), axis=1) * [width, height]
    corners = np.floor(corners) if rng.random() < 0.5 else corners
    corners[0, 1] = (width, height) if rng.random() < 0.3 else corners[0, 1]
    return corners.reshape(-1, 4)


# --- wsolevaluation: boxes ---


def _literal_boxes(score: np.ndarray, threshold: float, multiple: bool) -> list[tuple[int, int, int, int]]:
    grey = (score * 255).astype(np.uint8)
    _, binary = cv2.threshold(grey, int(threshold * int(grey.max())), 255, cv2.THRESH_BINARY)
    contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if not len(contours):
        return [(0, 0, 0, 0)]
    height, width = score.shape
    if not multiple:
        areas = [cv2.contourArea(contour) for contour in contours]
        contours = [contours[areas.index(max(areas))]]
    corners = (cv2.boundingRect(contour) for contour in contours)
    return [(x, y, min(x + w, width - 1), min(y + h, height - 1)) for x, y, w, h in corners]


def _literal_iou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Return the IoU of boxes whose far edges count as inside."""
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1) * max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("components", ["all", "largest"])
def test_box_accuracy_equals_wsolevaluation_in_every_cell(components: str) -> None:
    rng = np.random.default_rng(1)
    maps = _maps()
    sizes = [tuple(rng.integers(20, 900, 2).tolist()) for _ in maps]
    boxes = [_true_boxes(rng, size) for size in sizes]
    overlaps = np.zeros((len(maps), len(DEFAULT_THRESHOLDS)))
    for row, cam, (height, width), true in zip(overlaps, maps, sizes, boxes, strict=True):
        score = np.zeros_like(cam) if cam.min() == cam.max() else (cam - cam.min()) / (cam - cam.min()).max()
        scale = [cam.shape[1], cam.shape[0]] * 2
        truncated = [
            tuple(int(edge * new / old) for edge, new, old in zip(box, scale, [width, height] * 2, strict=True))
            for box in true.tolist()
        ]
        for column, threshold in enumerate(np.arange(0, 1, 0.01)):
            found = _literal_boxes(score, threshold, multiple=components == "all")
            row[column] = max(_literal_iou(each, one) for each in found for one in truncated)
    given = [resized(true, size, cam.shape) for cam, size, true in zip(maps, sizes, boxes, strict=True)]
    result = max_box_acc(maps, given, components=components)
    np.testing.assert_array_equal(result.overlaps, overlaps)
    for cells, iou in zip(result.accuracies, IOUS, strict=True):
        np.testing.assert_array_equal(cells, (overlaps >= iou).sum(0) / len(maps))


def test_maps_that_are_not_rescaled_equal_wsolevaluation_too() -> None:
    maps = [np.minimum(0.1 + cam / (2 * cam.max()), 1.0) for cam in _maps()]
    result = max_box_acc(maps, [[[0, 0, 4, 4]]] * len(maps), rescale=False)
    expected = [
        [
            max(_literal_iou(box, (0, 0, 4, 4)) for box in _literal_boxes(cam, threshold, multiple=True))
            for threshold in DEFAULT_THRESHOLDS[::9]
        ]
        for cam in maps
    ]
    np.testing.assert_array_equal(result.overlaps[:, ::9], expected)


def _boxes_without_opencv(mask: np.ndarray) -> tuple[Counter, list[float], list[tuple]]:
    """Return the boxes of regions and holes, the polygon areas of the regions, and the regions' boxes.

    The polygon through a filled region's outer pixels is made of its 2 x 2 pixel squares: each with all four pixels
    adds 1, with three 1/2.
    """
    padded = np.pad(mask, 1)
    regions, holes = label(padded, connectivity=2), label(~padded, connectivity=1, background=0)
    height, width = mask.shape

    def box(pixels: np.ndarray, margin: int) -> tuple[int, ...]:
        (y0, x0), (y1, x1) = np.argwhere(pixels).min(0) - 1 - margin, np.argwhere(pixels).max(0) + margin
        return int(x0), int(y0), int(min(x1, width - 1)), int(min(y1, height - 1))

    found = [box(regions == index, 0) for index in range(1, regions.max() + 1)]
    around = [box(holes == index, 1) for index in range(1, holes.max() + 1) if index != holes[0, 0]]
    areas = []
    for index in range(1, regions.max() + 1):
        solid = ndimage.binary_fill_holes(regions == index).astype(int)
        squares = solid[1:, 1:] + solid[:-1, 1:] + solid[1:, :-1] + solid[:-1, :-1]
        areas.append((squares == 4).sum() + (squares == 3).sum() / 2)
    return Counter(found + around), areas, found


def test_contour_boxes_are_those_of_regions_and_holes_without_opencv() -> None:
    unique = 0
    for cam in _maps():
        mask = cam > (cam.min() + cam.max()) / 2
        expected, areas, regions = _boxes_without_opencv(mask)
        assert Counter(map(tuple, contour_boxes(mask, "all").tolist())) == (expected or Counter({(0, 0, 0, 0): 1}))
        if len(areas) and areas.count(max(areas)) == 1:
            unique += 1
            assert [regions[int(np.argmax(areas))]] == [tuple(box) for box in contour_boxes(mask, "largest").tolist()]
    assert unique > 15


def test_true_boxes_are_truncated_and_far_edges_count_as_inside() -> None:
    cam = np.pad(np.ones((4, 4)), ((2, 4), (3, 3)))  # box 3, 2, 7, 6, far edges inside: 5 x 5 pixels
    result = max_box_acc([cam], [[[3.9, 2.0, 7.99, 5.5]]], thresholds=(0.5,))
    assert result.overlaps.tolist() == [[20 / 25]]
    assert resized([[0, 0, 50, 50]], (100, 200)).tolist() == [[0.0, 0.0, 56.0, 112.0]]


# --- wsolevaluation: PxAP ---


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("interval", [0.001, 0.01])
def test_pxap_equals_wsolevaluation_to_the_last_digit(dtype: type, interval: float) -> None:
    rng = np.random.default_rng(2)
    thresholds = np.arange(0, 1, interval)
    cams = [rng.random(rng.integers(3, 40, 2)) ** power for power in (1, 2, 4, 6) for _ in range(4)]
    cams = [((cam - cam.min()) / (cam - cam.min()).max()).astype(dtype) for cam in cams]
    cams[1], cams[2] = np.round(cams[1], 2), np.round(cams[2])
    masks = [rng.random(cam.shape) < 0.7 * cam + 0.1 for cam in cams]
    ignore = [rng.random(cam.shape) < 0.1 for cam in cams]
    edges = [*thresholds, 1.0, 2.0, 3.0]
    hits, misses = np.zeros((2, len(edges) - 1))
    for cam, mask, ignored in zip(cams, masks, ignore, strict=True):
        hits += np.histogram(cam[mask & ~ignored].astype(float), edges)[0]
        misses += np.histogram(cam[~mask & ~ignored].astype(float), edges)[0]
    above, wrong = hits[::-1].cumsum(), misses[::-1].cumsum()
    used = above + wrong > 0
    precision = np.divide(above, above + wrong, out=np.zeros_like(above), where=used)
    expected = (precision[1:] * np.diff(above / hits.sum()))[used[1:]].sum()
    assert pixel_average_precision(cams, masks, ignore, thresholds=thresholds.tolist()) == expected
    exact = pixel_average_precision(cams, masks, ignore, convention="exact")
    assert 0 < abs(exact - expected) < 2 * interval


def test_pxap_steps_are_those_of_the_script() -> None:
    assert tuple(np.arange(0, 1, 0.001)) == PXAP_THRESHOLDS
    assert tuple(np.arange(0, 1, 0.01)) == DEFAULT_THRESHOLDS


# --- IRN and SEAM: mIoU ---


def _segmentations() -> tuple[list, list, list]:
    """Return float32 CAMs, classes in any order and truths; values tie with thresholds and with each other."""
    rng = np.random.default_rng(3)
    cams, classes, truths = [], [], []
    for index in range(14):
        size = rng.integers(4, 30, 2)
        present = rng.permutation(NUM_CLASSES - 3)[: 1 + index % 4]  # the last two classes are in no map
        scores = rng.random((len(present), *size)) ** 2
        cams.append((np.round(scores * 20) / 20 if index % 2 else scores).astype(np.float32))
        classes.append(present)
        truth = rng.choice([0, *(present + 1)], size).astype(np.uint8)
        truth[rng.random(size) < 0.1] = 255
        truths.append(truth)
    return cams, classes, truths


def _seam(threshold: float) -> list[float]:
    """Return the IoUs by counting three kinds of pixels per class on a float32 stack of all classes."""
    right, found, true = np.zeros((3, NUM_CLASSES), int)
    for cam, present, truth in zip(*_segmentations(), strict=True):
        stack = np.zeros((NUM_CLASSES, *truth.shape), np.float32)
        stack[present + 1] = cam
        stack[0] = threshold
        predicted, counted = stack.argmax(0), truth < 255
        for k in range(NUM_CLASSES):
            right[k] += ((predicted == k) & (truth == k)).sum()
            found[k] += ((predicted == k) & counted).sum()
            true[k] += (truth == k).sum()
    return [r / (t + f - r + 1e-10) for r, f, t in zip(right, found, true, strict=True)]


def _irn(threshold: float) -> np.ndarray:
    """Return the confusion matrix of the argmax over the CAMs, padded by a plane that holds the threshold."""
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    for cam, present, truth in zip(*_segmentations(), strict=True):
        stack = np.pad(cam, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
        predicted = np.array([0, *(present + 1)])[stack.argmax(0)]
        for t, p in zip(truth[truth < 255].tolist(), predicted[truth < 255].tolist(), strict=True):
            confusion[t, p] += 1
    return confusion


def test_sweep_with_absent_zero_equals_seam_in_every_cell() -> None:
    sweep = threshold_sweep(*_segmentations(), NUM_CLASSES, SEAM_THRESHOLDS, absent="zero")
    for threshold, ious, miou in zip(SEAM_THRESHOLDS, sweep.ious, sweep.mious, strict=True):
        expected = _seam(threshold)
        assert ious.tolist() == expected
        assert miou == np.mean(expected)


def test_sweep_with_absent_skip_equals_irn_in_every_cell() -> None:
    thresholds = SEAM_THRESHOLDS[::3]
    sweep = threshold_sweep(*_segmentations(), NUM_CLASSES, thresholds, absent="skip")
    for threshold, cells, ious, miou in zip(thresholds, sweep.confusions, sweep.ious, sweep.mious, strict=True):
        expected = _irn(threshold)
        np.testing.assert_array_equal(cells, expected)
        with np.errstate(invalid="ignore"):
            literal = np.diag(expected) / (expected.sum(0) + expected.sum(1) - np.diag(expected))
        np.testing.assert_array_equal(ious, literal)
        assert miou == np.nanmean(literal)


def test_absent_classes_make_the_two_means_differ_by_their_share() -> None:
    cams, classes, truths = _segmentations()
    cams = [cam[np.argsort(present)] for cam, present in zip(cams, classes, strict=True)]  # so that ties are the same
    given = (cams, [np.sort(present) for present in classes], truths, NUM_CLASSES, (0.3,))
    skipped, zero = (threshold_sweep(*given, absent=how) for how in ("skip", "zero"))
    absent = np.isnan(skipped.ious[0])
    assert absent.sum() == 2
    assert zero.ious[0][absent].tolist() == [0.0, 0.0]
    assert zero.best_miou == pytest.approx(skipped.best_miou * (NUM_CLASSES - 2) / NUM_CLASSES)


@pytest.mark.parametrize("absent", ["skip", "zero"])
def test_scores_and_thresholds_are_compared_as_float32(absent: str) -> None:
    cam = np.full((1, 1, 1), np.float32(0.3))  # 0.30000001 as float64
    for dtype in (np.float32, np.float64):
        sweep = threshold_sweep([cam.astype(dtype)], [[0]], [np.ones((1, 1), int)], 2, (0.29, 0.3), absent=absent)
        assert sweep.confusions[:, 1].tolist() == [[0, 1], [1, 0]], "equal as float32: background"


def test_which_class_wins_a_tie_is_the_convention_s() -> None:
    cams, truth = [np.full((2, 1, 1), 0.5)], [np.full((1, 1), 2)]
    for absent, label_of_winner in (("skip", 4), ("zero", 2)):
        confusion = threshold_sweep(cams, [[3, 1]], truth, 5, (0.2,), absent=absent).confusions[0]
        assert confusion[2].argmax() == label_of_winner


# --- DAVIS: boundary F ---


def _literal_boundary(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            found[y, x] = any(mask[v, u] != mask[y, x] for v, u in others if v < height and u < width)
    return found


def _literal_boundary_f(predicted: np.ndarray, truth: np.ndarray, bound: float) -> float:
    radius = bound if bound >= 1 else math.ceil(bound * math.hypot(*truth.shape))
    found, true = _literal_boundary(predicted), _literal_boundary(truth)
    wide_found, wide_true = (ndimage.binary_dilation(each, disk(radius)) for each in (found, true))
    if found.any() != true.any():
        return 0.0
    if not found.any():
        return 1.0
    precision, recall = (found & wide_true).sum() / found.sum(), (true & wide_found).sum() / true.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("bound", [0.0075, 0.008, 0.1, 1, 4])
def test_boundary_f_equals_dilation_by_a_disk(bound: float) -> None:
    rng = np.random.default_rng(4)
    values = []
    for index in range(30):
        size = rng.integers(1, 26, 2)
        first, second = (ndimage.gaussian_filter(rng.random(size), index % 4) for _ in range(2))
        quantiles = rng.choice([0.0, 0.5, 0.9, 1.0], 2)
        predicted, truth = (
            each > np.quantile(each, q) for each, q in zip((first, 0.3 * second + first), quantiles, strict=True)
        )
        values.append(boundary_f(predicted, truth, bound=bound))
        assert values[-1] == pytest.approx(_literal_boundary_f(predicted, truth, bound), abs=1e-15)
    assert 0.0 in values
    assert 1.0 in values
    assert any(0 < value < 1 for value in values)


def test_ignored_pixels_count_as_background_in_both_masks() -> None:
    rng = np.random.default_rng(5)
    predicted, truth, ignore = rng.random((3, 20, 24)) < 0.4
    expected = boundary_f(predicted & ~ignore, truth & ~ignore, bound=1)
    assert boundary_f(predicted, truth, bound=1, ignore=ignore) == expected != boundary_f(predicted, truth, bound=1)
