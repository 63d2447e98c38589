"""Test boxes, masks and panels against cases worked out by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes

from ssa_fast.localize import (
    PostprocessOptions,
    box_scores,
    boxes,
    estimate_background,
    masks,
    overlay,
    panels,
    save_mask,
)
from ssa_fast.localize.colormaps import table
from ssa_fast.localize.drawing import CELL, GAP, SIDE, TITLE, paint, sheet, shorten, side_by_side
from ssa_fast.localize.masks import voc_palette
from ssa_fast.localize.threshold import self_weighted_mean
from ssa_fast.ssa import SSAResult

if TYPE_CHECKING:
    from pathlib import Path

# Two regions above 0.2 · 0.8: a diagonal of three pixels, which only touch at corners, and a pair of pixels.
SCENE = torch.tensor(
    [
        [0.8, 0.1, 0.0, 0.0, 0.0],
        [0.0, 0.7, 0.1, 0.0, 0.3],
        [0.0, 0.0, 0.6, 0.1, 0.4],
        [0.1, 0.1, 0.1, 0.1, 0.0],
    ]
)


def test_boxes_have_exclusive_pixel_corners_and_come_largest_first() -> None:
    (((largest,),), ((every,),)) = (boxes(SCENE, box_threshold=0.2, components=which) for which in ("largest", "all"))
    assert largest.tolist() == boxes(SCENE, box_threshold=0.2)[0][0].tolist() == [[0, 0, 3, 3]]
    assert every.tolist() == [[0, 0, 3, 3], [4, 1, 5, 3]]
    assert largest.dtype == torch.float32


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.0, [[0, 0, 5, 4]]),
        (0.5, [[0, 0, 3, 3]]),  # 0.4 does not exceed 0.5 · 0.8
        (0.75, [[0, 0, 2, 2]]),
        (1.0, []),
    ],
)
def test_thresholds_are_relative_to_the_maximum_and_strict(threshold: float, expected: list[list[int]]) -> None:
    for factor in (1.0, 0.5):
        ((found,),) = boxes(SCENE.double() * factor, box_threshold=threshold, components="all")
        assert found.tolist() == expected


@pytest.mark.parametrize("plane", [torch.zeros(3, 3), -torch.ones(3, 3), torch.full((3, 3), torch.nan)])
def test_a_map_without_evidence_has_no_box(plane: Tensor) -> None:
    ((found,),) = boxes(plane, box_threshold=0.0)
    assert found.shape == (0, 4)


def test_boxes_keep_images_and_classes_apart() -> None:
    cams = torch.zeros(2, 2, 6, 6)
    for b, k in ((0, 0), (0, 1), (1, 0), (1, 1)):
        cams[b, k, b : b + 2, 3 * k] = 1
    assert [[each.tolist() for each in image] for image in boxes(cams)] == [
        [[[0, 0, 1, 2]], [[3, 0, 4, 2]]],
        [[[0, 1, 1, 3]], [[3, 1, 4, 3]]],
    ]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.5, 0.9]))
def test_one_region_agrees_with_torchvision(seed: int, threshold: float) -> None:
    """For one region torchvision's box of the mask is the same box with inclusive corners."""
    generator = torch.Generator().manual_seed(seed)
    y, x = (torch.rand(2, generator=generator) * 12).tolist()
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    plane = torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8)
    ((found,),) = boxes(plane, box_threshold=threshold)
    inclusive = masks_to_boxes((plane > threshold * plane.max())[None])
    assert found.tolist() == (inclusive + torch.tensor([0, 0, 1, 1])).tolist()


def test_scores_are_the_maps_mean_inside_the_box() -> None:
    found = boxes(SCENE, box_threshold=0.2, components="all")
    ((scores,),) = box_scores(SCENE, found)
    torch.testing.assert_close(scores, torch.tensor([2.3 / 9, 0.7 / 2]))
    assert box_scores(torch.zeros(1, 1, 2, 2), [[torch.empty(0, 4)]])[0][0].shape == (0,)


CAMS = torch.tensor([[0.9, 0.2, 0.3, 0.0], [0.1, 0.5, 0.28, 0.0]]).reshape(2, 1, 4)


def test_masks_take_the_largest_class_above_the_background() -> None:
    assert masks(CAMS, background=0.25).tolist() == [[[1, 2, 1, 0]]]
    assert masks(CAMS, background=0.3).tolist() == [[[1, 2, 0, 0]]]
    assert masks(CAMS, background=0.0).tolist() == [[[1, 2, 1, 0]]]
    assert masks(CAMS).dtype == torch.uint8


def test_masks_with_a_background_of_one_minus_the_maximum() -> None:
    # (1 - 0.9)^1 < 0.9; (1 - 0.5)^1 = 0.5 does not exceed itself; (1 - 0.3)^1 = 0.7, (1 - 0.3)^4 = 0.24
    assert masks(CAMS, alpha=1).tolist() == [[[1, 0, 0, 0]]]
    assert masks(CAMS, alpha=4).tolist() == [[[1, 2, 1, 0]]]


def test_the_ignore_band_lies_between_two_backgrounds() -> None:
    assert masks(CAMS, background=0.6, ignore=0.25).tolist() == [[[1, 255, 255, 0]]]
    assert masks(CAMS, alpha=1, ignore=4).tolist() == [[[1, 255, 255, 0]]]


def test_nan_pixels_are_unsure() -> None:
    cams = CAMS.clone()
    cams[0, 0, 3] = torch.nan
    assert masks(cams, background=0.25).tolist() == [[[1, 2, 1, 255]]]


def test_the_background_is_the_strongest_cam_averaged_with_itself_as_weight() -> None:
    # the strongest CAMs are 0.9, 0.5, 0.3 and 0: (0.81 + 0.25 + 0.09) / (0.9 + 0.5 + 0.3)
    torch.testing.assert_close(estimate_background(CAMS, power=1), torch.tensor([1.15 / 1.7]))
    torch.testing.assert_close(estimate_background(CAMS), torch.tensor([0.99450520 / 1.3716851]))  # Σ p^2.5 / Σ p^1.5
    assert masks(CAMS, background="auto").tolist() == masks(CAMS).tolist() == [[[1, 0, 0, 0]]]
    assert masks(CAMS, background="auto", ignore=0.3).tolist() == [[[1, 255, 0, 0]]]
    assert masks(CAMS, background="auto", ignore=0.9).tolist() == [[[1, 0, 0, 0]]]  # above the background: none unsure


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 0.5, 1.0]), st.integers(1, 3))
def test_the_background_is_each_images_own_and_scales_with_it(seed: int, factor: float, num_classes: int) -> None:
    cams = torch.rand(3, num_classes, 6, 5, generator=torch.Generator().manual_seed(seed)) ** 2
    scores = estimate_background(cams)
    peaks = cams.amax(dim=1).double().flatten(1)
    literal = [sum(p**2.5 for p in peak) / sum(p**1.5 for p in peak) for peak in peaks.tolist()]
    torch.testing.assert_close(scores, torch.tensor(literal))
    torch.testing.assert_close(estimate_background(cams * factor), scores * factor)
    torch.testing.assert_close(estimate_background(cams.repeat(1, 2, 2, 1).flip(3)), scores)
    assert bool((scores < peaks.amax(dim=1)).all() & (scores >= peaks.mean(dim=1)).all())
    each = torch.cat([masks(cam[None], background=float(score)) for cam, score in zip(cams, scores, strict=True)])
    assert torch.equal(masks(cams, background="auto"), each)


def test_the_background_of_degenerate_maps() -> None:
    hard = torch.zeros(1, 1, 4, 4)
    hard[..., 1:3, 1:3] = 0.7
    assert estimate_background(hard).item() == pytest.approx(0.35)
    assert torch.equal(masks(hard, background="auto")[0].bool(), hard[0, 0] > 0)
    assert estimate_background(torch.zeros(2, 1, 3, 3)).tolist() == [0, 0]
    assert masks(torch.zeros(1, 1, 3, 3), background="auto").max() == 0
    cams = CAMS.clone()
    cams[0, 0, 0] = torch.nan  # does not count, and is unsure
    torch.testing.assert_close(estimate_background(cams), torch.tensor([0.43654133]))
    assert masks(cams, background="auto").tolist() == [[[255, 2, 0, 0]]]
    with pytest.raises(ValueError, match=r"cams: expected values >= 0, got -0.5"):
        estimate_background(-CAMS.flip(0) + 0.4)
    with pytest.raises(ValueError, match="power: expected a number > 0, got 0"):
        estimate_background(CAMS, power=0)


@pytest.mark.parametrize("power", [0.75, 1.0, 1.5])
def test_levels_in_float32_are_those_of_float64(power: float) -> None:
    maps = torch.rand(7, 2, 90, 120, generator=torch.Generator().manual_seed(3)) ** 3
    wide = maps.double()
    truth = (wide ** (power + 1)).sum((2, 3)) / (wide**power).sum((2, 3))
    torch.testing.assert_close(self_weighted_mean(maps, power), truth.float(), rtol=2e-7, atol=0)
    assert self_weighted_mean(torch.full((3, 4), 1e-40), power).item() == pytest.approx(5e-41, rel=0.01)
    assert self_weighted_mean(torch.tensor([[torch.inf, 1.0]]), power) > 1


def test_masks_look_at_values_out_of_range_beside_nan() -> None:
    for wrong in (-0.5, 1.5, torch.inf):
        with pytest.raises(ValueError, match=r"cams: expected values in \[0, 1\], got"):
            masks(torch.tensor([[torch.nan, wrong]]))


def test_each_maps_own_box_threshold() -> None:
    cams = torch.stack([SCENE, SCENE.flip(0) * 0.5])[None] - 0.05  # values below 0 count as 0
    (found,) = boxes(cams, box_threshold="auto", components="all")
    for plane, corners in zip(cams[0].clamp_min(0), found, strict=True):
        level = float((plane**1.75).sum() / (plane**0.75).sum())
        assert (
            corners.tolist() == boxes(plane, box_threshold=level / float(plane.max()), components="all")[0][0].tolist()
        )
        assert len(corners) == 1
    ramp = torch.linspace(0, 1, 1001)[None]
    level = float((ramp**1.75).sum() / (ramp**0.75).sum())  # near ∫ x^1.75 / ∫ x^0.75 = 1.75 / 2.75
    assert boxes(ramp)[0][0].tolist() == [[math.floor(1000 * level) + 1, 0, 1001, 1]]
    for plane in (torch.zeros(3, 3), -torch.ones(3, 3), torch.full((3, 3), torch.nan)):
        assert boxes(plane, box_threshold="auto")[0][0].shape == (0, 4)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: boxes(SCENE, box_threshold=1.1), ValueError, r'box_threshold: .* in \[0, 1\] or "auto", got 1.1'),
        (lambda: boxes(SCENE, box_threshold=float("nan")), ValueError, "box_threshold: .* got nan"),
        (lambda: boxes(SCENE, box_threshold="0.2"), TypeError, "box_threshold: .* got '0.2'"),
        (lambda: boxes(SCENE, box_threshold=0.2, components="some"), ValueError, "components: .* got 'some'"),
        (lambda: boxes(SCENE.int()), TypeError, "cams: .* got torch.int32"),
        (lambda: boxes(SCENE.numpy()), TypeError, "cams: .* got ndarray"),
        (lambda: boxes(SCENE[0]), ValueError, r"cams: .* got \(5,\)"),
        (lambda: boxes(torch.empty(1, 0, 3, 3)), ValueError, r"cams: .* got \(1, 0, 3, 3\)"),
        (lambda: masks(CAMS, background=1.5), ValueError, "background: .* got 1.5"),
        (lambda: masks(CAMS, background="otsu"), TypeError, "background: .* or \"auto\", got 'otsu'"),
        (lambda: masks(CAMS, background="auto", ignore=1.0), ValueError, r"ignore: .* in \[0, 1\), got 1.0"),
        (lambda: masks(CAMS, background=0.2, alpha=2), ValueError, "alpha: expected either background or alpha"),
        (lambda: masks(CAMS, alpha=0), ValueError, "alpha: expected a number > 0"),
        (
            lambda: masks(CAMS, background=0.2, ignore=0.3),
            ValueError,
            r"ignore: .* in \[0, background = 0.2\), got 0.3",
        ),
        (lambda: masks(CAMS, alpha=4, ignore=2), ValueError, "ignore: expected an exponent above alpha = 4"),
        (lambda: masks(CAMS * 2), ValueError, r"cams: expected values in \[0, 1\], got 0 to 1.8"),
        (lambda: masks(torch.zeros(255, 1, 1)), ValueError, "cams: expected at most 254 classes"),
    ],
)
def test_wrong_arguments(call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()  # type: ignore[operator]


def test_voc_palette_is_the_devkits() -> None:
    colours = np.array(voc_palette()).reshape(256, 3).tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]  # background, aeroplane, bicycle, bird
    assert (colours[15], colours[20], colours[255]) == (
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    )  # person, tv, void


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, "numpy"])
def test_saved_masks_hold_the_labels(tmp_path: Path, kind: torch.dtype | str) -> None:
    labels = torch.tensor([[0, 1, 255], [20, 0, 3]])
    save_mask(tmp_path / "m.png", labels.numpy() if kind == "numpy" else labels.to(kind))  # type: ignore[call-overload]
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert np.asarray(image).tolist() == labels.tolist()
        assert image.convert("RGB").getpixel((1, 0)) == (128, 0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


@pytest.mark.parametrize(
    ("mask", "palette", "error", "text"),
    [
        (torch.zeros(2, 2), "voc", TypeError, "mask: expected whole numbers, got float32"),
        (torch.zeros(1, 2, 2, dtype=torch.uint8), "voc", ValueError, r"mask: expected shape \(H, W\), got \(1, 2, 2\)"),
        (torch.tensor([[256]]), "voc", ValueError, r"mask: expected labels in 0..255, got 256..256"),
        (torch.tensor([[1]]), "ade", ValueError, 'palette: expected "voc"'),
        (torch.tensor([[1]]), [0, 1], ValueError, "palette: "),
    ],
)
def test_wrong_masks_leave_no_file(
    tmp_path: Path, mask: Tensor, palette: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        save_mask(tmp_path / "m.png", mask, palette)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


GREY_8 = torch.full((3, 8, 8), 0.5)
VIRIDIS = table("viridis").astype(np.float64) / 255


def test_overlay_blends_each_pixel_by_its_value() -> None:
    image = torch.tensor([0.2, 0.4, 0.6])[:, None, None].expand(3, 2, 2)
    cam = torch.tensor([[0.0, 0.25], [0.999, 1.0]])
    drawn = overlay(image, cam, opacity=0.5).double().numpy()
    assert np.array_equal(drawn[:, 0, 0], image[:, 0, 0].double().numpy()), "the image itself where the CAM is 0"
    for (y, x), entry in {(0, 1): 64, (1, 0): 255, (1, 1): 255}.items():
        share = 0.5 * float(cam[y, x])
        expected = (1 - share) * np.array([0.2, 0.4, 0.6]) + share * VIRIDIS[entry]
        np.testing.assert_allclose(drawn[:, y, x], expected, atol=1e-6)
    opaque = overlay(image, torch.ones(1, 1), colormap="magma", opacity=1)
    np.testing.assert_allclose(opaque[:, 0, 0], table("magma")[255] / 255, atol=1e-6)


def test_overlay_keeps_more_of_the_image_the_lower_the_value() -> None:
    black = torch.zeros(3, 1, 256)
    ramp = torch.linspace(0, 1, 256)[None]
    colour = torch.from_numpy(table("turbo")).T[:, None] / 255  # [3, 1, 256]
    torch.testing.assert_close(overlay(black, ramp, colormap="turbo", opacity=0.6), 0.6 * ramp * colour)


def test_unknown_values_are_grey() -> None:
    drawn = overlay(torch.zeros(3, 2, 2), torch.tensor([[math.nan, 0.0], [0.0, 0.0]]), opacity=0.5)
    assert drawn[:, 0, 0].tolist() == [0.25] * 3
    assert drawn.sum() == 0.75


CAM = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_overlays_are_what_the_image_was(dtype: torch.dtype) -> None:
    rgb = torch.randint(0, 256, (2, 3, 20, 28), dtype=torch.uint8)
    images = rgb if dtype == torch.uint8 else (rgb / 255).to(dtype)
    drawn = overlay(images, torch.stack([CAM, CAM.flip(0)])[:, None])
    assert (drawn.dtype, drawn.shape) == (dtype, images.shape)
    one = overlay(images[0], CAM)
    assert torch.equal(one, drawn[0])
    channels_last = images.movedim(1, -1).numpy()
    for array, expected in ((channels_last, drawn), (channels_last[0], one)):
        found = overlay(array, CAM.numpy() if array.ndim == 3 else np.stack([CAM, CAM.flip(0)]))
        assert (found.dtype, found.shape, found.flags.c_contiguous) == (array.dtype, array.shape, True)
        assert np.array_equal(found, expected.movedim(-3, -1).numpy())
    assert torch.equal(images, rgb if dtype == torch.uint8 else (rgb / 255).to(dtype)), "the image is as it was"


def test_overlay_of_pil_images() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (20, 28, 3), dtype=np.uint8)
    drawn = overlay(Image.fromarray(rgb), CAM)
    assert (drawn.mode, drawn.size) == ("RGB", (28, 20))
    assert np.array_equal(drawn, overlay(rgb, CAM))
    as_pil = overlay(Image.fromarray(rgb), Image.fromarray(CAM.numpy()))  # torch-cam's examples pass such a map
    assert np.array_equal(as_pil, drawn)
    grey = Image.fromarray(rgb[..., 0])
    assert np.array_equal(overlay(grey, CAM), overlay(rgb[..., 0], CAM))
    assert np.array_equal(overlay(grey, CAM), overlay(rgb[..., :1].repeat(3, -1), CAM))
    clear = Image.new("RGBA", (28, 20), (0, 0, 0, 0))
    assert np.array_equal(overlay(clear, torch.zeros(1, 1)), np.full((20, 28, 3), 255)), "laid on white"


def test_overlay_of_other_peoples_cams() -> None:
    image = torch.rand(1, 3, 20, 28)
    expected = overlay(image, CAM)
    for cam in (CAM[None], CAM[None, None], CAM.numpy()[None], CAM.requires_grad_()):  # torch-cam, ours, grad-cam
        assert torch.equal(overlay(image, cam), expected)


@pytest.mark.parametrize(
    ("image", "cam", "options", "error", "text"),
    [
        ([[0.5]], CAM, {}, TypeError, "image: expected a torch tensor, a NumPy array or a PIL image, got list"),
        (torch.rand(8, 8, 3), CAM, {}, ValueError, r"image: .* got \(8, 8, 3\); move the channels with .movedim"),
        (np.zeros((3, 8, 8)), CAM, {}, ValueError, r"image: .* got \(3, 8, 8\); move the channels with np.moveaxis"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), CAM, {}, TypeError, "image: expected uint8, .* got torch.int64"),
        (np.zeros((8, 8, 3), np.int32), CAM, {}, TypeError, "image: expected uint8, .* got int32"),
        (np.zeros((8, 8, 3), np.uint16), CAM, {}, TypeError, "image: expected uint8, .* got torch.uint16"),
        (torch.full((3, 8, 8), 2.0), CAM, {}, ValueError, r"image: .* \[0, 1\], got 2 to 2; divide it by 255"),
        (torch.full((3, 8, 8), -2.0), CAM, {}, ValueError, r"image: .* got -2 to -2; undo the normalisation"),
        (torch.full((3, 8, 8), math.nan), CAM, {}, ValueError, r"image: expected values in \[0, 1\], got nan"),
        (Image.new("I;16", (8, 8)), CAM, {}, ValueError, "image: expected a PIL image of 8 bits, got mode I;16"),
        (GREY_8, "cam", {}, TypeError, "cam: expected a torch tensor or a NumPy array, got str"),
        (GREY_8, CAM > 0.5, {}, TypeError, "cam: expected float16, .* got torch.bool; convert it with .float"),
        (GREY_8, 5 * CAM, {}, ValueError, r"cam: expected values in \[0, 1\], got .* to 4.*; rescale it"),
        (GREY_8, CAM * math.inf, {}, ValueError, r"cam: expected values in \[0, 1\], got .* to inf"),
        (GREY_8, torch.rand(2, 5, 7), {}, ValueError, r"cam: expected \(h, w\), got \(2, 5, 7\); pass one class"),
        (torch.rand(2, 3, 8, 8), CAM, {}, ValueError, r"cam: expected \(2, h, w\) or \(2, 1, h, w\), got \(5, 7\)"),
        (GREY_8, Image.new("RGB", (7, 5)), {}, ValueError, "cam: expected a PIL image of mode F or L, got RGB"),
        (GREY_8, CAM, {"opacity": 1.5}, ValueError, r"opacity: expected a number in \[0, 1\], got 1.5"),
        (GREY_8, CAM, {"colormap": "jet"}, ValueError, "colormap: expected one of viridis, .* got 'jet'"),
    ],
)
def test_wrong_overlay_arguments(image: Any, cam: Any, options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        overlay(image, cam, **options)


def test_long_names_keep_their_front_and_their_end() -> None:
    assert shorten("tabby", lambda line: True) == "tabby"
    assert shorten("Greater Swiss Mountain dog (238)", lambda line: len(line) <= 23) == "Greater Swiss M…g (238)"
    assert shorten("features.denseblock4.denselayer16.conv2", lambda line: len(line) <= 22) == "features.dense…6.conv2"
    assert shorten("Greater Swiss Mountain dog", lambda line: len(line) <= 23, tail=0) == "Greater Swiss Mountain…"
    assert shorten("tabby", lambda line: len(line) <= 2) == "t…"


def test_side_by_side_puts_images_in_a_row_on_white() -> None:
    row = side_by_side([Image.new("RGB", (4, 9)), Image.new("RGB", (6, 5))], gap=3)
    assert row.size == (13, 9)
    expected = np.full((9, 13, 3), 255)
    expected[:, :4], expected[:5, 7:] = 0, 0
    assert np.array_equal(row, expected)


def test_paint_enlarges_labels_without_smoothing() -> None:
    colours = np.array([(0, 0, 0), (200, 100, 50)], dtype=np.uint8)
    painted = paint(Image.new("RGB", (6, 4)), np.array([[1, 0], [0, 0]]), colours, opacity=0.5)
    assert np.asarray(painted)[..., 0].tolist() == [[100] * 3 + [0] * 3] * 2 + [[0] * 6] * 2


SHOWN = torch.zeros(1, 2, 30, 60)
SHOWN[:, 0, 10:20, 40:60] = 1
SHOWN[:, 1, :15, :30] = 0.8
STAGES = {"layer3": SHOWN[..., ::2, ::2], "a.module.with.a.name.too.long.for.its.cell": SHOWN}
GREY = torch.full((1, 3, 60, 120), 0.5)
VALID = torch.ones(1, 2, dtype=torch.bool)
RESULT = SSAResult(SHOWN, SHOWN[..., ::5, ::5], STAGES, torch.zeros(1, 9), torch.tensor([[7, 3]]), VALID, VALID.float())


def test_panel_has_a_row_per_class_and_a_column_per_map() -> None:
    for drawn, columns in ((RESULT.panels(GREY), 7), (panels(GREY, SHOWN), 4)):  # with seed and stages, and without
        assert drawn[0].size == (SIDE + columns * (CELL + GAP), TITLE + 2 * (CELL // 2 + GAP))


def test_panel_draws_each_class_where_it_is() -> None:
    (panel,) = RESULT.panels(GREY, background=0.25)
    pixels = np.asarray(panel).astype(int)
    left = SIDE + 6 * (CELL + GAP)
    mask_cells = [pixels[TITLE + row * (CELL // 2 + GAP) :, left : left + CELL][: CELL // 2] for row in (0, 1)]
    redness, greenness = mask_cells[0][..., 0] - mask_cells[0][..., 1], mask_cells[1][..., 1] - mask_cells[1][..., 0]
    for colour, (top, bottom, west, east) in ((redness, (10, 20, 40, 60)), (greenness, (0, 15, 0, 30))):
        rows, columns = np.nonzero(colour > 20)
        scale = CELL / 60
        expected = [top * scale, bottom * scale - 1, west * scale, east * scale - 1]
        assert np.abs(np.array([rows.min(), rows.max(), columns.min(), columns.max()]) - expected).max() <= 1


def test_grey_images_are_drawn() -> None:
    (panel,) = RESULT.panels(torch.full((1, 1, 30, 60), 0.5), names=[f"n{i}" for i in range(9)])
    assert panel.getpixel((SIDE + 5, TITLE + 5)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("images", "names", "error", "text"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), None, TypeError, "images: .* got torch.uint8"),
        (torch.zeros(2, 3, 8, 8), None, ValueError, r"images: expected \(1, 3, H, W\).* got \(2, 3, 8, 8\)"),
        (torch.full((1, 3, 8, 8), -2.0), None, ValueError, r"images: expected values in \[0, 1\], got -2 to -2"),
        (torch.zeros(1, 3, 8, 8), ["a", "b"], ValueError, "names: expected a name per output .* at least 8, got 2"),
    ],
)
def test_wrong_panel_arguments(images: Tensor, names: list[str] | None, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        RESULT.panels(images, names=names)


def test_panels_draw_all_components_unless_options_say_otherwise() -> None:
    cams = torch.zeros(1, 1, 30, 60)
    cams[..., 2:10, 2:10], cams[..., 20:24, 40:50] = 1, 1
    choices = (None, PostprocessOptions(components="all"), PostprocessOptions(components="largest"))
    default, every, largest = (np.asarray(panels(GREY, cams, options=options)[0]) for options in choices)
    assert np.array_equal(default, every)
    assert not np.array_equal(default, largest)
    with pytest.raises(ValueError, match=r"box_threshold: .* got 2"):
        RESULT.panels(GREY, box_threshold=2)


def test_boxes_of_a_few_pixels_get_no_label() -> None:
    cams = torch.zeros(1, 1, 60, 120)
    cams[..., 10:50, 10:60], cams[..., 20:22, 90:92], cams[..., 40:42, 100:102] = 1, 1, 1
    cells = np.asarray(panels(GREY, cams, box_threshold=0.5)[0])
    left, scale = SIDE + 2 * (CELL + GAP), CELL / 120
    cell = cells[TITLE : TITLE + CELL // 2, left : left + CELL]
    ink = (cell == 30).all(-1)
    assert ink[round(10 * scale) + 6 : round(10 * scale) + 14, round(10 * scale) + 6 : round(10 * scale) + 24].any()
    for y, x in ((20, 90), (40, 100)):
        x1, y1, x2, y2 = (round(edge * scale) for edge in (x, y, x + 2, y + 2))
        around = cell[y1 - 8 : y2 + 24, x1 - 8 : x2 + 36].copy()
        around[4 : 12 + y2 - y1, 4 : 12 + x2 - x1] = 128  # the frame itself
        assert (around == 128).all(), "a label is wider"


def test_titles_and_labels_keep_their_front() -> None:
    cell = [[Image.new("RGB", (60, 80))]]
    long, short = (np.asarray(sheet(["t"], cell, [f"Greater Swiss{rest}"])) for rest in (" Mountain dog (238)", ""))
    assert np.array_equal(long[60:, :SIDE], short[60:, :SIDE])  # written upwards: the front is below
    assert long[: TITLE + 30, :SIDE].min() < 100
