"""Figures: what they show and where, and the files that they are saved to."""

from __future__ import annotations

import io
import itertools
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image
from typer.testing import CliRunner

from ssa_fast.cli.app import app
from ssa_fast.localize import boxes, overlay
from ssa_fast.localize.colormaps import table
from ssa_fast.localize.figure import BAR_TEXT, Figure, figure
from ssa_fast.ssa import SSAResult

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from torch import Tensor

NAMES = ("tabby", "Greater Swiss Mountain dog", "cup")


def make_result(count: int = 1, size: tuple[int, int] = (30, 60), scores: tuple[float, ...] = (0.75, 0.2)) -> SSAResult:
    """Return a result of two classes: 0 within rows 10 to 20 and columns 40 to 60, and fainter 1 in a corner."""
    cams = torch.zeros(count, 2, *size)
    cams[:, 0, 10:20, 40:60], cams[:, 1, :15, :30] = 1, 0.8
    classes, valid = torch.tensor([[0, 1]]).expand(count, -1), torch.ones(count, 2, dtype=torch.bool)
    stages = {"layer3": cams[..., ::2, ::2], "layer4": cams[..., ::3, ::3]}
    known = torch.tensor([scores]).expand(count, -1)
    return SSAResult(cams, cams[..., ::5, ::5], stages, torch.zeros(count, 3), classes, valid, known, NAMES)


def grey(count: int = 1, size: tuple[int, int] = (60, 120)) -> Tensor:
    return torch.full((count, 3, *size), 0.5)


def texts(drawn: Figure) -> list[str]:
    return [text.get_text() for text in drawn.texts]


def cells(drawn: Figure) -> list[Axes]:
    """Return the axes of the images, in reading order within a row of classes; the bar is the last axes."""
    return drawn.axes[:-1]


def pixels(axes: Axes) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def place(axes: Axes) -> tuple[float, float, float, float]:
    """Return left, top, width and height in inches."""
    width, height = axes.figure.get_size_inches()
    box = axes.get_position()
    return box.x0 * width, (1 - box.y1) * height, box.width * width, box.height * height


def test_a_row_per_class_under_its_name_and_probability() -> None:
    drawn = make_result().figure(grey())
    assert texts(drawn) == ["image", "seed", "polished", "tabby (0.75)", "Greater Swiss Mountain dog (0.20)"]
    assert len(cells(drawn)) == 3 + 2, "the image is in the first row only"
    lefts = [place(axes)[0] for axes in cells(drawn)]
    assert lefts == pytest.approx([*lefts[:3], *lefts[1:3]])


def test_maps_share_one_colour_scale_which_a_bar_shows() -> None:
    drawn = make_result().figure(grey(), colormap="magma")
    bar = drawn.axes[-1]
    assert np.array_equal(pixels(bar)[:, 0], table("magma"))
    assert [text.get_text() for text in bar.get_yticklabels()] == ["0", "0.5", "1"]
    assert bar.get_ylabel() == "CAM"
    image, _, tabby, _, dog = (pixels(axes) for axes in cells(drawn))
    for cam, value, y, x in ((tabby, 1.0, 15, 50), (dog, 0.8, 5, 10), (tabby, 0.0, 5, 10)):
        row, column = y * len(cam) // 30, x * cam.shape[1] // 60
        expected = overlay(grey(size=(1, 1)), torch.full((1, 1), value), colormap="magma")
        np.testing.assert_allclose(cam[row, column] / 255, expected.flatten(), atol=0.003)
    assert np.ptp(image) == 0


def test_stages_and_mask_on_request() -> None:
    drawn = make_result().figure(torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 60, 120), stages=True)
    assert texts(drawn)[:5] == ["image", "seed", "layer3", "layer4", "polished"]
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 60, 120)
    drawn = make_result().figure(red, mask=True, background=0.5, classes=["tabby"])
    assert texts(drawn)[:4] == ["image", "seed", "polished", "mask"]
    mask = pixels(cells(drawn)[-1])
    inside, outside = mask[len(mask) // 2, -5], mask[2, 2]
    assert inside.tolist() == [255, 0, 0]
    assert outside.tolist() == [27] * 3, "0.35 of red's luminance, 0.299"
    width = mask.shape[1]
    covered = np.count_nonzero(mask[len(mask) // 2, :, 0] == 255)
    assert covered == pytest.approx(width / 3, abs=2)


def test_boxes_are_where_the_boxes_are_and_specks_have_no_label() -> None:
    result = make_result()
    result.cams[0, 0, 1, 1] = result.cams[0, 0, 5, 20] = 1
    drawn = result.figure(grey(), classes=["tabby"], components="all", box_threshold=0.5)
    axes = cells(drawn)[-1]
    found = [patch.get_bbox().extents for patch in axes.patches if isinstance(patch, Rectangle)]
    expected = boxes(result.cams, components="all", box_threshold=0.5)[0][0] / torch.tensor([60, 30, 60, 30])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(found) == 3
    assert [text.get_text() for text in axes.texts] == ["1.00"]
    assert not cells(result.figure(grey(), boxes=False))[2].patches


def test_long_names_keep_their_front_and_their_probability() -> None:
    names = ["Greater Swiss Mountain dog " * 8, "a$b$c_2", "cup"]
    drawn = make_result().figure(grey(), names=names, width=3.5)
    long, dollars = texts(drawn)[3:]
    assert long.startswith("Greater Swiss Mountain dog Greater")
    assert long.endswith("… (0.75)")
    assert dollars == "a$b$c_2 (0.20)"
    written = drawn.texts[3].get_window_extent().width / drawn.dpi
    assert 0.85 * (3.5 - BAR_TEXT) < written + 0.2 < 3.5 - BAR_TEXT, "as long as it can be, and no longer"
    module = replace(make_result(), stages={"features.denseblock4.denselayer16.conv2": make_result().cams})
    title = texts(module.figure(grey(), stages=True))[2]
    assert title.startswith("features.de")
    assert title.endswith(".conv2")
    assert "…" in title


def test_which_classes() -> None:
    result = make_result(2)
    result.valid[1, 1] = False
    assert texts(result.figure(grey(2)))[3:] == ["tabby (0.75)", "Greater Swiss Mountain dog (0.20)", "tabby (0.75)"]
    assert texts(result.figure(grey(2), classes=[1, "tabby"]))[3:5] == [
        "Greater Swiss Mountain dog (0.20)",
        "tabby (0.75)",
    ]
    drawn = result.figure(grey(2), classes=[1])
    assert texts(drawn)[3:] == ["Greater Swiss Mountain dog (0.20)", "no class"]
    assert len(cells(drawn)) == 3 + 1
    unknown = make_result(scores=(float("nan"), 0.5))
    assert texts(unknown.figure(grey()))[3] == "tabby"


SIZES = ((60, 120), (100, 100), (120, 60), (50, 200))


def test_images_of_different_shapes_keep_them_in_a_grid() -> None:
    drawn = figure([grey(size=size) for size in SIZES], [make_result(size=(30, 60))] * 4, classes=["tabby"])
    assert texts(drawn)[:6] == ["image", "seed", "polished"] * 2
    places = [place(axes) for axes in cells(drawn)]
    for n, (height, width) in enumerate(SIZES):
        assert {round(h / w, 2) for _, _, w, h in places[3 * n : 3 * n + 3]} == {height / width}
    width, height = drawn.get_size_inches()
    for (x, y, w, h), (x2, y2, w2, h2) in itertools.combinations(places, 2):
        assert x + w < x2 or x2 + w2 < x or y + h < y2 or y2 + h2 < y, "cells overlap"
    assert all(x >= 0 and y > 0 and x + w <= width and y + h <= height for x, y, w, h in map(place, drawn.axes))
    tops = [round(y, 6) for _, y, _, _ in places[::3]]
    assert tops[0] == tops[1] < tops[2] == tops[3], "two images side by side"
    # A wide image, and a tall one below it.
    for (x, _, w, _), (x2, _, w2, h2) in zip(places[:3], places[6:9], strict=True):
        assert x + w / 2 == pytest.approx(x2 + w2 / 2)
        assert h2 == pytest.approx(w), "as high as a square"
    column = figure([grey(size=size) for size in SIZES], [make_result()] * 4, columns=1)
    assert column.get_size_inches()[1] > 2 * height


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_files_are_valid_and_the_same_each_time(kind: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"a.{kind}", io.BytesIO()
    make_result().figure(grey(), width=3.5).savefig(first)
    make_result().figure(grey(), width=3.5).savefig(second, format=kind)
    content = first.read_bytes()
    assert content == second.getvalue()
    if kind == "png":
        with Image.open(first) as image:
            assert image.width == 3.5 * 300
            assert len(image.convert("RGB").getcolors(1 << 24)) > 100
    elif kind == "svg":
        root = ElementTree.fromstring(content)
        written = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
        assert "Greater Swiss Mountain dog (0.20)" in written, "text is text"
        assert b"dc:date" not in content
    else:
        assert content.startswith(b"%PDF")
        assert content.rstrip().endswith(b"%%EOF")
        assert b"/CIDFontType2" in content, "fonts are embedded"
        assert b"/Type3" not in content
        assert b"CreationDate" not in content


def test_a_figure_is_matplotlibs_and_not_pyplots() -> None:
    before = plt.get_fignums()
    drawn = make_result().figure(grey())
    assert isinstance(drawn, Figure)
    assert plt.get_fignums() == before
    with Image.open(io.BytesIO(drawn._repr_png_())) as image:
        assert image.width == 7 * 150
    drawn.savefig(file := io.BytesIO(), dpi=50, metadata={"Title": "mine"})
    with Image.open(file) as image:
        assert (image.width, image.text["Title"]) == (350, "mine")


@pytest.mark.parametrize(
    ("images", "options", "error", "text"),
    [
        (grey().byte(), {}, TypeError, "images: expected a floating-point tensor"),
        (grey(2), {}, ValueError, r"images: expected \(1, 3, H, W\)"),
        (grey(), {"names": ["a"]}, ValueError, "names: expected a name per output .* at least 2, got 1"),
        (grey(), {"classes": ["dog"]}, ValueError, r"classes: expected some of the results' \(Greater.*, tabby\)"),
        (grey(), {"columns": 0}, ValueError, "columns: expected a number >= 1, got 0"),
        (grey(), {"width": 0.2}, ValueError, "width: expected at least 1 inch, got 0.2"),
        (grey(), {"width": 1.2}, ValueError, "width: expected more than 1.2 inches for 3 cells side by side"),
        (grey(), {"colormap": "jet"}, ValueError, "colormap: expected one of viridis"),
        (grey(), {"opacity": 2}, ValueError, "opacity: expected a number"),
        (grey(), {"box_threshold": 2}, ValueError, "box_threshold: expected a number"),
    ],
)
def test_wrong_arguments(images: Tensor, options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_result().figure(images, **options)


def test_results_that_go_together() -> None:
    with pytest.raises(ValueError, match=r"images: expected a batch per result \(1\), got 2"):
        figure([grey(), grey()], [make_result()])
    other = replace(make_result(), stages={"features": make_result().cams})
    figure([grey(), grey()], [make_result(), other])
    with pytest.raises(
        ValueError, match=r"results: expected the same stages in all, got .*'features'.*draw them apart"
    ):
        figure([grey(), grey()], [make_result(), other], stages=True)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ssa_fast.localize.figure")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"a figure needs matplotlib.* pip install 'ssa_fast\[figures\]'"):
        make_result().figure(grey())


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["figure", *map(str, arguments), "--model", "demo", "--device", "cpu"])


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two images of different shapes."""
    paths = [tmp_path / "wide.png", tmp_path / "tall.png"]
    for path, (height, width) in zip(paths, ((48, 80), (80, 48)), strict=True):
        ramp = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
        Image.fromarray(ramp.astype(np.uint8)).save(path)
    return paths


@pytest.mark.slow
def test_the_command_draws_images_of_several_shapes(photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "figure.svg"
    shown = ("--classes", "top2", "--show-stages", "--mask", "--stages", "layer3,layer4", "--seed", "layercam")
    done = run(*photos, *shown, "--columns", 2, "--out", out)
    assert done.exit_code == 0, done.output
    assert f"{out}: 2 images, 7.0 × " in done.stdout.replace("\n", "")
    root = ElementTree.fromstring(out.read_bytes())
    written = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [written.count(title) for title in ("image", "layer3", "layer4", "mask")] == [2] * 4
    first = out.read_bytes()
    assert run(*photos, *shown, "--columns", 2, "--out", out, "--overwrite").exit_code == 0
    assert out.read_bytes() == first


@pytest.mark.parametrize(
    ("out", "image", "text"),
    [
        ("a.gif", "wide.png", "error: out: expected a name that ends in .png, .svg or .pdf, got 'a.gif'"),
        ("wide.png", "wide.png", "wide.png exists; pass --overwrite to replace it."),
        ("a.pdf", "text.png", "text.png: "),
        ("a.pdf", "none.png", "none.png: "),
    ],
)
def test_the_command_refuses(out: str, image: str, text: str, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = run(photos[0], tmp_path / image, "--out", tmp_path / out)
    assert done.exit_code == 2, done.output
    assert text in done.stderr.replace("\n", "")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before, "nothing is written"
