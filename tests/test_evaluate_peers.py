"""Compare the measures with torchmetrics, pycocotools and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssa_fast.evaluate import (
    average_precision,
    box_iou,
    confusion_matrix,
    iou_per_class,
    localization_accuracy,
    max_box_acc,
    mean_iou,
    pixel_average_precision,
)


def _label_maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a predicted and a true map of labels below 8 (7 in neither) with void pixels."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 7, (30, 40))
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 7, truth.shape))
    truth[rng.random(truth.shape) < 0.1] = 255
    return predicted, truth


@pytest.mark.slow  # its import takes four seconds
@pytest.mark.parametrize("seed", range(3))
def test_ious_equal_torchmetrics(seed: int) -> None:
    jaccard = pytest.importorskip("torchmetrics.functional.classification").multiclass_jaccard_index
    predicted, truth = _label_maps(seed)
    counts = confusion_matrix(predicted, truth, 8)
    maps = (torch.from_numpy(predicted), torch.from_numpy(truth))
    options = {"num_classes": 8, "ignore_index": 255}
    rounding = 8 * float(np.finfo(np.float32).eps)  # torchmetrics computes in float32
    np.testing.assert_allclose(iou_per_class(counts, "zero"), jaccard(*maps, average=None, **options), atol=rounding)
    assert mean_iou(counts, "skip") == pytest.approx(float(jaccard(*maps, average="macro", **options)), abs=rounding)


@pytest.mark.slow  # its import takes more than a second
@pytest.mark.parametrize("seed", range(3))
def test_ious_and_average_precision_equal_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    predicted, truth = _label_maps(seed)
    counted = truth < 255
    pixels = (truth[counted], predicted[counted])
    counts = confusion_matrix(predicted, truth, 8)
    np.testing.assert_array_equal(counts, metrics.confusion_matrix(*pixels, labels=range(8)))
    np.testing.assert_allclose(iou_per_class(counts)[:7], metrics.jaccard_score(*pixels, average=None), rtol=1e-14)
    assert mean_iou(counts) == pytest.approx(metrics.jaccard_score(*pixels, average="macro"), rel=1e-14)
    rng = np.random.default_rng(seed)
    scores = rng.random((3, 20, 30)).astype(np.float32)
    scores[1] = np.round(scores[1], 1)
    masks, ignore = rng.random(scores.shape) < 0.2 + 0.5 * scores, rng.random(scores.shape) < 0.1
    exact = pixel_average_precision(scores, masks, ignore, convention="exact")
    assert exact == pytest.approx(metrics.average_precision_score(masks[~ignore], scores[~ignore]), rel=1e-12)
    assert exact == average_precision(scores[~ignore], masks[~ignore])


@pytest.mark.slow  # its import takes more than a second
def test_top_k_equals_scikit_learn_where_every_box_is_right() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, 200)
    scores = rng.random((200, 12)) + 0.3 * np.eye(12)[labels]
    everywhere = max_box_acc([np.pad(np.ones((1, 1)), 1)] * 200, [[[1, 1, 2, 2]]] * 200, thresholds=(0.5,))
    found = localization_accuracy(everywhere, scores, labels)
    top = [metrics.top_k_accuracy_score(labels, scores, k=k) for k in (1, 5)]
    assert [found.gt_known, found.top1, found.top5] == [1.0, *top]


def test_ious_of_boxes_and_masks_equal_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(1)
    corners = np.sort(rng.random((2, 15, 2, 2)) * 50, axis=2)  # [set, box, corner, x or y]
    first, second = corners.reshape(2, 15, 4)
    by_size = [np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1) for boxes in (first, second)]
    theirs = coco.iou(*by_size, [0] * 15)
    np.testing.assert_allclose(box_iou(first, second), theirs, rtol=1e-12)
    assert (theirs > 0).any()
    masks = rng.random((2, 30, 40)) < 0.5
    encoded = [[coco.encode(np.asfortranarray(mask.astype(np.uint8)))] for mask in masks]
    counts = confusion_matrix(*masks.astype(int), 2)
    assert iou_per_class(counts)[1] == pytest.approx(coco.iou(*encoded, [0]).item(), rel=1e-14)
