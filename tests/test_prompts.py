"""Test that prompts lie where the CAM says, and that SAM's packages take them as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from ssa_fast import SSAResult
from ssa_fast.localize import PostprocessOptions, Prompts, boxes, prompts
from ssa_fast.localize.boxes import find_components, foreground

H, W = 40, 60


def blob(x: float, y: float, sigma: float) -> torch.Tensor:
    """Return a bump (H, W) whose maximum, 1, is at the pixel (x, y)."""
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    return torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))


def scene() -> torch.Tensor:
    """Return CAMs (2, 2, H, W): one object of class 0 and two of class 1; and an image without any."""
    two = torch.maximum(blob(45, 10, 4), 0.8 * blob(20, 30, 3))
    return torch.stack([torch.stack([blob(15, 20, 6), two]), torch.zeros(2, H, W)])


def found(given: Prompts, label: int) -> list[list[tuple[float, float]]]:
    """Return the points with a label, per object."""
    rows = zip(given.points.tolist(), given.labels.tolist(), strict=True)
    return [[(x, y) for (x, y), each in zip(*row, strict=True) if each == label] for row in rows]


def test_a_prompt_is_a_box_and_the_maximum_in_it() -> None:
    largest, empty = prompts(scene())
    assert largest.k.tolist() == [0, 1]
    assert found(largest, 1) == [[(15, 20)], [(45, 10)]]
    assert torch.equal(largest.labels, torch.ones(2, 1, dtype=torch.int64))
    assert torch.equal(largest.boxes, torch.cat(boxes(scene())[0]))
    assert (len(largest), len(empty)) == (2, 0)
    assert (empty.boxes.shape, empty.points.shape, empty.labels.shape) == ((0, 4), (0, 1, 2), (0, 1))

    every = prompts(scene(), PostprocessOptions(components="all"), box_threshold=0.5)[0]
    assert every.k.tolist() == [0, 1, 1]
    assert found(every, 1) == [[(15, 20)], [(45, 10)], [(20, 30)]]
    assert torch.equal(every.boxes, torch.cat(boxes(scene(), components="all", box_threshold=0.5)[0]))


@settings(max_examples=60, deadline=None)
@drawn(st.integers(0, 2**32), st.integers(1, 9), st.integers(0, 5), st.sampled_from([0.3, 0.7, 0.95, "auto"]))
def test_points_lie_on_their_side_and_apart(seed: int, points: int, negative: int, threshold: Any) -> None:
    """On noise, where regions have all forms, many of them smaller than the points they are asked for."""
    plane = torch.nn.functional.avg_pool2d(torch.rand(1, 22, 28, generator=torch.Generator().manual_seed(seed)), 3, 1)
    options = PostprocessOptions(components="all", box_threshold=threshold)
    (given,) = prompts(plane, options, points=points, negative=negative)
    above = foreground(plane[0].numpy(), options)
    labels, numbers, _ = find_components(above, "all")
    assert len(given) == len(numbers)
    for i, number in enumerate(numbers):
        x1, y1, x2, y2 = given.boxes[i].int().tolist()
        outside = ~above
        outside[y1:y2, x1:x2] = False
        for allowed, asked, label, sign in ((labels == number, points, 1, 1), (outside, negative, 0, -1)):
            pixels = np.array(found(given, label)[i], dtype=int).reshape(-1, 2)
            assert len(pixels) == min(asked, allowed.sum())
            assert allowed[pixels[:, 1], pixels[:, 0]].all()
            values = sign * plane[0].numpy()[pixels[:, 1], pixels[:, 0]]
            assert len(values) == 0 or values[0] == (sign * plane[0].numpy())[allowed].max()
            assert (np.diff(values) <= 0).all()
            apart = np.abs(pixels[:, None] - pixels).max(-1) + 10**6 * np.eye(len(pixels), dtype=int)
            side = int(np.sqrt(allowed.sum() / max(1, asked)))
            assert len(pixels) < 2 or apart.min() >= max(1, (side + 1) // 2)
        assert (given.labels[i] == -1).sum() == points + negative - (given.labels[i] >= 0).sum()


def test_points_are_scaled_with_their_pixels() -> None:
    """A pixel's centre stays one, edges of boxes stay edges, and each image has a size of its own if given."""
    small = prompts(scene(), points=2, negative=1)[0]
    for size, given in (
        ((400, 180), prompts(scene(), points=2, negative=1, size=(400, 180))[0]),
        ((10, 6), prompts(scene().flip(0), points=2, negative=1, size=[(9, 9), (10, 6)])[1]),
        ((7, 7), prompts(scene()[0], points=2, negative=1, size=[(7, 7)])[0]),
    ):
        scale = torch.tensor([size[1] / W, size[0] / H])
        assert torch.allclose(given.points, (small.points + 0.5) * scale - 0.5)
        assert torch.allclose(given.boxes, small.boxes * scale.repeat(2))


def test_a_map_with_nan_has_no_prompt_and_one_that_fills_the_image_no_background() -> None:
    cams = scene()
    cams[0, 0, 0, 0] = torch.nan
    assert prompts(cams)[0].k.tolist() == [1]
    (full,) = prompts(torch.ones(5, 6), points=1, negative=2, size=(50, 60))
    assert full.labels.tolist() == [[1, -1, -1]]
    assert full.points[0, 1:].tolist() == [[0, 0], [0, 0]]


def test_another_region_of_the_class_is_no_background() -> None:
    (given,) = prompts(torch.tensor([[0.8, 0.1, 1.0, 0.9]]), negative=2, box_threshold=0.5)
    assert given.boxes.tolist() == [[2, 0, 4, 1]]
    assert given.points.tolist() == [[[2, 0], [1, 0], [0, 0]]]
    assert given.labels.tolist() == [[1, 0, -1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": -1}, "points: expected a number >= 0, got -1"),
        ({"negative": -2}, "negative: expected a number >= 0, got -2"),
        ({"size": (0, 5)}, r"size: expected \(H, W\) in pixels, or one for each of 2 images, got \(0, 5\)"),
        ({"size": [(4, 5)]}, "one for each of 2 images"),
        ({"size": (4.5, 5)}, "size: expected"),
        ({"size": 224}, "size: expected"),
        ({"size": []}, "size: expected"),
        ({"components": "some"}, "components: expected"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts(scene(), **options)
    if "points" in options:
        with pytest.raises(TypeError, match="points: expected a whole number, got float; pass an int"):
            prompts(scene(), points=1.0)  # type: ignore[arg-type]


def test_a_result_has_the_prompts_of_its_cams() -> None:
    valid = torch.tensor([[True, True], [True, False]])
    classes = torch.tensor([[7, 3], [2, -1]])
    result = SSAResult(scene(), scene(), {}, torch.zeros(2, 9), classes, valid, valid.float())
    given = result.prompts(components="all", points=3, negative=1, size=(80, 120))
    expected = prompts(scene(), components="all", points=3, negative=1, size=(80, 120))
    assert [len(each) for each in given] == [3, 0]
    assert torch.equal(given[0].points, expected[0].points)
    assert [result.names[0][k] for k in given[0].k] == ["class 7", "class 3", "class 3"]


def test_segment_anything_takes_an_object_at_a_time() -> None:
    """Its predictor wants NumPy arrays (m, 2), (m,) and (4,), and both or neither of the first two."""
    (given,) = prompts(torch.ones(5, 6), points=2, negative=3)
    (arguments,) = given.segment_anything()
    assert set(arguments) == {"point_coords", "point_labels", "box"}
    assert all(isinstance(value, np.ndarray) for value in arguments.values())
    assert arguments["point_coords"].shape == (2, 2)  # nothing is beside it: no point is left out, not sent as (0, 0)
    assert arguments["point_labels"].tolist() == [1, 1]
    assert arguments["box"].tolist() == [0, 0, 6, 5]
    each = list(prompts(scene(), components="all", negative=1)[0].segment_anything())
    assert [arguments["point_labels"].tolist() for arguments in each] == [[1, 0]] * 3
    boxes_alone = next(prompts(scene(), points=0)[0].segment_anything())
    assert boxes_alone["point_coords"] is boxes_alone["point_labels"] is None


@pytest.mark.slow
@pytest.mark.parametrize(("points", "negative"), [(1, 0), (3, 2), (0, 0)])
def test_hugging_face_sam_takes_them_as_they_are(points: int, negative: int) -> None:
    """Its processor moves them to where it puts the image's pixels, and its model gives masks for every object."""
    transformers = pytest.importorskip("transformers", reason="transformers comes with the extra peers")
    (given, empty) = prompts(scene(), components="all", points=points, negative=negative, size=(80, 120))
    side = {"longest_edge": 64}
    process = transformers.SamProcessor(
        transformers.SamImageProcessor(size=side, pad_size={"height": 64, "width": 64}, mask_size=side)
    )
    image = np.zeros((80, 120, 3), dtype=np.uint8)
    inputs = process(image, **given.transformers(), return_tensors="pt")
    scale = torch.tensor([64 / 120, 43 / 80])  # 43 are its rows: 80 · 64/120, rounded
    assert inputs["input_boxes"].shape == (1, 3, 4)
    assert torch.allclose(inputs["input_boxes"][0].float(), given.boxes * scale.repeat(2))
    if points:
        assert torch.allclose(inputs["input_points"][0].float(), given.points * scale)
        assert torch.equal(inputs["input_labels"][0], given.labels)
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "global_attn_indexes": [0]}
    vision |= {"image_size": 64, "output_channels": 32, "mlp_dim": 32, "num_pos_feats": 16}
    config = transformers.SamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "image_embedding_size": 4},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 32},
    )
    given_to_model = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        masks = transformers.SamModel(config).eval()(**given_to_model).pred_masks
    assert masks.shape == (1, 3, 3, 16, 16)
    with pytest.raises(ValueError, match="expected an object, but no CAM of this image has a region"):
        empty.transformers()
