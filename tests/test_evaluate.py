"""Test the measures against cases worked out by hand and slow, literal versions of their definitions."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ssa_fast.evaluate import (
    BoxAccuracy,
    LocalizationAccuracy,
    average_precision,
    boundary_f,
    box_accuracy,
    box_iou,
    component_boxes,
    confusion_matrix,
    contour_boxes,
    iou_per_class,
    localization_accuracy,
    max_box_acc,
    mean_iou,
    pixel_average_precision,
    resize_boxes,
    threshold_sweep,
)


def test_confusion_matrix_counts_truth_by_row_and_leaves_255_out() -> None:
    truth = np.array([[0, 0, 1], [2, 255, 1]], np.uint8)
    predicted = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
    counts = confusion_matrix(predicted, truth, 3)
    assert counts.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert iou_per_class(counts).tolist() == [1 / 3, 1 / 3, 1.0]
    assert mean_iou(counts) == pytest.approx(5 / 9)


def test_class_in_neither_map_is_not_part_of_the_mean() -> None:
    counts = confusion_matrix(np.array([0, 1]), np.array([0, 1]), 3)
    assert np.isnan(iou_per_class(counts)[2])
    assert mean_iou(counts) == 1.0
    assert np.isnan(mean_iou(np.zeros((3, 3))))


def _random_set(rng: np.random.Generator, images: int) -> tuple[list, list, list]:
    cams, classes, truths = [], [], []
    for index in range(images):
        present = rng.permutation(4)[: index % 4]
        # Coarse values, so that scores equal thresholds and each other exactly.
        cams.append(rng.integers(0, 11, (len(present), 7, 5)) / 10)
        classes.append(present)
        truth = rng.integers(0, 5, (7, 5))
        truth[rng.random((7, 5)) < 0.1] = 255
        truths.append(truth)
    return cams, classes, truths


def test_sweep_equals_argmax_with_the_threshold_as_background_score() -> None:
    cams, classes, truths = _random_set(np.random.default_rng(0), 9)
    thresholds = (0.35, 0.0, 0.5, 0.8, 1.0, 0.3)
    sweep = threshold_sweep(cams, classes, truths, 5, thresholds)
    assert sweep.thresholds.tolist() == sorted(thresholds)
    for threshold, miou, confusion in zip(sweep.thresholds, sweep.mious, sweep.confusions, strict=True):
        expected = np.zeros((5, 5), np.int64)
        for cam, present, truth in zip(cams, classes, truths, strict=True):
            stack = np.concatenate([np.full((1, 7, 5), threshold), cam])
            keys = np.concatenate([[0], np.asarray(present, int) + 1])
            expected += confusion_matrix(keys[stack.argmax(0)], truth, 5)
        np.testing.assert_array_equal(confusion, expected)
        assert miou == mean_iou(expected)
    assert sweep.best_miou == max(sweep.mious)
    assert sweep.best_threshold == sweep.thresholds[np.argmax(sweep.mious)]


def test_sweep_finds_the_threshold_that_separates() -> None:
    truth = np.array([[0, 0, 3, 3]])
    sweep = threshold_sweep([np.array([[[0.1, 0.4, 0.6, 0.9]]])], [[2]], [truth], 4, (0.2, 0.5, 0.7))
    assert (sweep.best_threshold, sweep.best_miou) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cams": [np.zeros((2, 2, 2))]}, "cams: expected \\(K, H, W\\) with K = 1"),
        ({"cams": [np.full((1, 2, 2), np.nan)]}, "got NaN"),
        ({"truths": [np.zeros((3, 2), int)]}, "expected the shape of truth"),
        ({"truths": [np.full((2, 2), 9)]}, "truth: expected labels in"),
        ({"classes": [[7]], "cams": [np.ones((1, 2, 2))]}, "predicted: expected labels in"),
        ({"thresholds": ()}, "thresholds: expected at least one number"),
        ({"classes": [[0], [1]]}, "zip"),
        ({"truths": [np.full((2, 2), 255)]}, "truths: expected at least one pixel that is not 255"),
        ({"cams": [], "classes": [], "truths": []}, "truths: expected at least one pixel"),
        ({"absent": "nan"}, 'absent: expected "skip" or "zero"'),
    ],
)
def test_sweep_refuses_what_does_not_fit(change: dict, message: str) -> None:
    given = {"cams": [np.zeros((1, 2, 2))], "classes": [[0]], "truths": [np.zeros((2, 2), int)], "thresholds": (0.5,)}
    with pytest.raises(ValueError, match=message):
        threshold_sweep(**{**given, **change}, num_classes=3)


def test_confusion_matrix_refuses_scores() -> None:
    with pytest.raises(TypeError, match="predicted: expected a label map of integers, got float64"):
        confusion_matrix(np.zeros((2, 2)), np.zeros((2, 2), int), 2)


def test_component_boxes_end_one_past_their_last_pixel() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:7] = True
    mask[5, 0] = True
    assert component_boxes(mask).tolist() == [[2, 1, 7, 3]]
    assert component_boxes(mask, "all").tolist() == [[2, 1, 7, 3], [0, 5, 1, 6]]
    assert component_boxes(mask[::-1], "all").tolist() == [[2, 3, 7, 5], [0, 0, 1, 1]], "largest first"
    assert component_boxes(np.zeros((3, 3), bool)).shape == (0, 4)


def test_components_are_8_connected_and_the_largest_has_the_most_pixels() -> None:
    assert component_boxes(np.eye(3, dtype=bool), "all").tolist() == [[0, 0, 3, 3]]
    mask = np.zeros((9, 9), bool)
    mask[0:3, 0:3] = True
    mask[4, 3:9] = True
    assert component_boxes(mask).tolist() == [[0, 0, 3, 3]]


def test_box_iou_by_counting_pixels() -> None:
    rng = np.random.default_rng(1)
    corners = np.sort(rng.integers(0, 9, (2, 6, 2, 2)), axis=2)
    first, second = (np.concatenate([c[:, 0], c[:, 1]], axis=1) for c in corners)
    masks = np.zeros((2, 6, 9, 9), bool)
    for plane, (x0, y0, x1, y1) in zip(masks.reshape(12, 9, 9), [*first, *second], strict=True):
        plane[y0:y1, x0:x1] = True
    shared, union = ((masks[0][:, None] & masks[1]).sum((2, 3)), (masks[0][:, None] | masks[1]).sum((2, 3)))
    np.testing.assert_allclose(box_iou(first, second), shared / np.maximum(union, 1))


def _square_cam(value_of_second: float = 0.0) -> np.ndarray:
    cam = np.zeros((20, 20))
    cam[4:12, 4:12] = 0.5
    cam[4:8, 4:8] = 1.0
    cam[15:20, 15:20] = value_of_second
    return cam


def test_max_box_acc_takes_each_overlap_at_its_own_threshold() -> None:
    # The first map's true box suffices for a low IoU only; the second map's is the square's core.
    cams, boxes = [_square_cam(), _square_cam()], [[[0, 0, 12, 12]], [[4, 4, 8, 8]]]
    result = max_box_acc(cams, boxes, thresholds=(0.3, 0.7), ious=(0.2, 0.9), convention="continuous")
    assert result.accuracies.tolist() == [[1.0, 0.5], [0.0, 0.5]]
    assert result.max_box_acc == {0.2: 1.0, 0.9: 0.5}
    assert result.max_box_acc_v2 == 0.75
    assert box_accuracy(cams, boxes, threshold=0.7, iou=0.9, convention="continuous") == 0.5


def test_all_components_may_be_right_where_the_largest_is_not() -> None:
    cam, second = _square_cam(0.6), [[[15, 15, 20, 20]]]
    assert max_box_acc([cam], second, components="all", convention="continuous").max_box_acc_v2 == 1.0
    for convention in ("continuous", "wsol"):
        assert box_accuracy([cam], second, threshold=0.3, components="largest", convention=convention) == 0.0


def test_any_true_box_will_do_and_scale_does_not_matter() -> None:
    cam = 40.0 * _square_cam() - 7.0
    for convention in ("continuous", "wsol"):  # both end one past the last pixel
        boxes = [[[0, 0, 2, 2], [4, 4, 12, 12]]]
        assert box_accuracy([cam], boxes, threshold=0.3, iou=1.0, convention=convention) == 1.0


def test_constant_map_has_no_box_and_is_wrong() -> None:
    assert max_box_acc([np.ones((4, 4))], [[[0, 0, 4, 4]]]).max_box_acc_v2 == 0.0


def test_max_box_acc_equals_its_definition_written_out() -> None:
    rng = np.random.default_rng(2)
    cams = [rng.random((12, 10)) ** 3 for _ in range(6)]
    boxes = [np.array([[1, 2, 6, 9], [0, 0, 3, 3]]), *([np.array([[2, 1, 9, 11]])] * 5)]
    thresholds, ious = (0.0, 0.1, 0.5), (0.1, 0.3)
    result = max_box_acc(cams, boxes, thresholds=thresholds, ious=ious, convention="continuous")
    for row, iou in enumerate(ious):
        for column, threshold in enumerate(thresholds):
            correct = 0
            for cam, true in zip(cams, boxes, strict=True):
                score = (cam - cam.min()) / (cam.max() - cam.min())
                correct += any(
                    box_iou([guess], [each]).item() >= iou
                    for guess in component_boxes(score > threshold, "all")
                    for each in true
                )
            assert result.accuracies[row, column] == correct / 6
    assert result.max_box_acc_v2 == pytest.approx(np.mean([max(row) for row in result.accuracies.tolist()]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cams": []}, "cams: expected at least one map"),
        ({"cams": [np.zeros((1, 4, 4))]}, "cams: expected maps \\(H, W\\)"),
        ({"cams": [np.full((4, 4), np.nan)]}, "got NaN"),
        ({"boxes": [np.zeros((0, 4))]}, "boxes: expected at least one true box"),
        ({"cams": [np.zeros((0, 4))]}, "cams: expected maps \\(H, W\\) of finite numbers, got shape"),
        ({"cams": [np.full((4, 4), 2.0)], "rescale": False}, "cams: expected scores in \\[0, 1\\], got 2.0 to 2.0"),
        ({"boxes": [[[2, 0, 1, 4]]]}, "boxes: expected x0 <= x1"),
        ({"boxes": [[[0, 0, np.nan, 4]]]}, "boxes: expected x0 <= x1 and y0 <= y1, all finite"),
        ({"boxes": [[[-1, 0, 4, 4]]]}, "boxes: expected coordinates >= 0"),
        ({"boxes": [[[0, 0, 4, 4]]] * 2}, "zip"),
        ({"convention": "exact"}, 'convention: expected "wsol" or "continuous"'),
        ({"thresholds": (1.0,)}, "thresholds: expected"),
        ({"ious": (0.0,)}, "ious: expected"),
        ({"components": "biggest"}, "components: expected"),
    ],
)
def test_max_box_acc_refuses_what_does_not_fit(change: dict, message: str) -> None:
    given = {"cams": [np.eye(4)], "boxes": [[[0, 0, 4, 4]]]}
    if change == {"cams": []}:
        given["boxes"] = []
    with pytest.raises(ValueError, match=message):
        max_box_acc(**{**given, **change})


def test_average_precision_by_hand() -> None:
    # Ranked: hit, miss, hit → ½·1 + ½·⅔.
    assert average_precision([0.9, 0.8, 0.7], [1, 0, 1]) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precision([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0]) == 0.25, "ties are one step"


def test_average_precision_equals_the_sum_over_distinct_cuts() -> None:
    rng = np.random.default_rng(3)
    scores, truth = rng.integers(0, 6, 40) / 5, rng.random(40) < 0.3
    total, before = 0.0, 0.0
    for cut in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= cut
        recall = (truth & chosen).sum() / truth.sum()
        total += (recall - before) * truth[chosen].mean()
        before = recall
    assert average_precision(scores, truth) == pytest.approx(total)


def test_pixel_average_precision_leaves_ignored_pixels_out() -> None:
    cams = np.array([[[0.9, 0.8], [0.2, 0.1]]])
    masks, ignore = np.array([[[1, 0], [1, 0]]]), np.array([[[0, 1], [0, 0]]])
    assert pixel_average_precision(cams, masks, ignore) == 1.0
    assert pixel_average_precision(cams, masks) == pytest.approx(0.5 + 0.5 * 2 / 3)


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [([1.0], [0], "at least one positive"), ([np.nan], [1], "got NaN"), ([1.0], [[1]], "expected the shape of scores")],
)
def test_average_precision_refuses_what_has_no_value(scores: list, positive: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_precision(scores, positive)


def test_eight_bit_scores_are_ranked_as_numbers() -> None:
    scores = np.array([0, 10, 200, 255], dtype=np.uint8)
    assert average_precision(scores, scores > 150) == average_precision(scores.astype(float), scores > 150) == 1.0


def _localized(overlaps: list[list[float]]) -> BoxAccuracy:
    table = np.array(overlaps)
    return BoxAccuracy(np.array([0.1, 0.2, 0.3])[: table.shape[1]], (0.5,), (table >= 0.5).mean(0)[None], table)


def test_localization_needs_the_box_and_the_class() -> None:
    found = _localized([[0.9, 0.5, 0.0], [0.2, 0.6, 0.6], [0.7, 0.4, 0.1], [0.1, 0.8, 0.1]])
    scores = np.array([[9, 8, 7, 6, 5, 4, 3]] * 4)
    result = localization_accuracy(found, scores, [0, 4, 1, 5])
    assert result == LocalizationAccuracy(threshold=0.2, iou=0.5, gt_known=0.75, top1=0.25, top5=0.5)
    chosen = localization_accuracy(found, scores, [0, 4, 1, 5], threshold=0.1, iou=0.7)
    assert chosen == LocalizationAccuracy(threshold=0.1, iou=0.7, gt_known=0.5, top1=0.25, top5=0.5)


def test_equal_class_scores_rank_by_index() -> None:
    found = _localized([[1.0]] * 6)
    result = localization_accuracy(found, np.zeros((6, 6)), np.arange(6))
    assert (result.top1, result.top5) == (1 / 6, 5 / 6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": np.zeros((3, 4))}, ValueError, "scores: expected \\(M, N\\) with M = 2 maps"),
        ({"scores": np.full((2, 4), np.nan)}, ValueError, "scores: expected numbers, got NaN"),
        (
            {"labels": [0, 4]},
            ValueError,
            "labels: expected \\(2,\\) indices in \\[0, 4\\), got shape \\(2,\\) from 0 to 4",
        ),
        ({"labels": [0, -1]}, ValueError, "labels: expected"),
        ({"labels": [0]}, ValueError, "labels: expected"),
        ({"labels": [0.0, 1.0]}, TypeError, "labels: expected integers, got float64"),
        ({"iou": 0.0}, ValueError, "iou: expected a number in"),
        ({"threshold": 0.15}, ValueError, "threshold: expected one of found.thresholds"),
    ],
)
def test_localization_refuses_what_does_not_fit(change: dict, error: type, message: str) -> None:
    given = {"scores": np.zeros((2, 4)), "labels": [0, 1]}
    with pytest.raises(error, match=message):
        localization_accuracy(_localized([[1.0], [1.0]]), **{**given, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cams": [np.zeros((2, 3))]}, "masks: expected the shape of cams, \\(2, 3\\), got \\(2, 2\\)"),
        ({"ignore": [np.zeros((2, 3))]}, "ignore: expected the shape of cams"),
        ({"ignore": [np.ones((2, 2))]}, "at least one p"),
        ({"cams": [np.full((2, 2), np.nan)]}, "got NaN"),
        ({"masks": [np.zeros((2, 2))]}, "at least one p"),
        ({"cams": [], "masks": []}, "at least one p"),
        ({"masks": []}, "zip"),
        ({"convention": "continuous"}, "convention: expected"),
    ],
)
@pytest.mark.parametrize("convention", ["wsol", "exact"])
def test_pixel_average_precision_refuses_what_does_not_fit(change: dict, message: str, convention: str) -> None:
    given = {"cams": [np.eye(2)], "masks": [np.eye(2)], "convention": convention}
    with pytest.raises(ValueError, match=message):
        pixel_average_precision(**{**given, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cams": [2 * np.eye(2)]}, "cams: expected scores in \\[0, 1\\], got 0.0 to 2.0"),
        ({"cams": [-np.eye(2)]}, "cams: expected scores in"),
        *(({"thresholds": bad}, "thresholds: expected") for bad in ((), (0.1, 0.5), (0.0, 0.5, 0.5), (0.0, 1.0))),
    ],
)
def test_pxap_steps_need_scores_and_thresholds_in_range(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pixel_average_precision(**{"cams": [np.eye(2)], "masks": [np.eye(2)], **change})


def test_boundary_f_by_hand() -> None:
    square = np.zeros((20, 20), bool)
    square[5:10, 5:10] = True
    assert boundary_f(square, square) == 1.0
    assert boundary_f(square, np.roll(square, 1, axis=1), bound=1) == 1.0
    assert boundary_f(square, np.roll(square, 12, axis=1), bound=1) == 0.0
    assert boundary_f(np.zeros_like(square), square) == 0.0
    assert boundary_f(np.zeros_like(square), np.ones_like(square)) == 1.0, "neither has a boundary"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicted": np.zeros((4, 5))}, "predicted: expected \\(H, W\\) in the shape of truth"),
        ({"ignore": np.zeros((4, 5))}, "ignore: expected"),
        ({"predicted": np.zeros((1, 4, 4)), "truth": np.zeros((1, 4, 4))}, "predicted: expected"),
        *(({"bound": bad}, "bound: expected") for bad in (0.0, -1, 1.5, float("nan"))),
    ],
)
def test_boundary_f_refuses_what_does_not_fit(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        boundary_f(**{"predicted": np.zeros((4, 4)), "truth": np.zeros((4, 4)), **change})


def test_contour_boxes_refuse_what_is_no_map() -> None:
    with pytest.raises(ValueError, match="mask: expected \\(H, W\\) with at least one pixel, got shape \\(0, 3\\)"):
        contour_boxes(np.zeros((0, 3), bool))
    with pytest.raises(ValueError, match="size, new_size: expected heights and widths > 0"):
        resize_boxes([[0, 0, 1, 1]], (0, 5))


def test_without_opencv_the_field_s_boxes_are_refused_and_the_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    given = {"cams": [np.eye(4)], "boxes": [[[0, 0, 4, 4]]]}
    with pytest.raises(ModuleNotFoundError, match=r"needs OpenCV; pip install 'ssa_fast\[eval\]'"):
        max_box_acc(**given)
    assert max_box_acc(**given, convention="continuous").max_box_acc_v2 == 1.0
