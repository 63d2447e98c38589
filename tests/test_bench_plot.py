"""Test ``python -m bench plot``: it draws the figures in the files, ends lines where they end, and explains errors."""

from __future__ import annotations

import hashlib
import json
import sys

import matplotlib.style
import numpy as np
import pytest
from PIL import Image

from bench import plot
from bench.measure import ROOT
from tests.grids import H100, SIZES, grid, row, save, spread, whole


@pytest.fixture
def file(tmp_path):
    return save(tmp_path / "grid.json", grid())


def lines(file, title="features ≥ 0", quantity="warm_ms"):
    return plot.panels(plot.read(file), quantity)[title]


def drawn(figure, at=0):
    """Return the lines of a panel that are named, by their name and how they end."""
    return {line.get_label(): line for line in figure.axes[at].lines if not line.get_label().startswith("_")}


@pytest.mark.slow
def test_pictures_are_the_same_bytes_whatever_the_users_settings(file, tmp_path):
    with matplotlib.rc_context({"figure.dpi": 50, "font.size": 30, "axes.facecolor": "black"}):
        assert plot.main([str(file), "--out", str(tmp_path / "a")]) == 0
    assert plot.main([str(file), "--out", str(tmp_path / "b")]) == 0
    written = sorted(tmp_path.glob("a/*"))
    assert [path.name for path in written] == ["backbone-cpu.png", "memory-cpu.png", "time-cpu.png"]
    for path in written:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert path.stat().st_size < 200_000
        picture = Image.open(path)
        assert picture.width == 1200
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert picture.info["Source"] == "grid.json"


def test_a_panel_has_ours_and_the_peers_of_one_series(file):
    assert list(lines(file)) == [
        "ssa_fast", "dense PCM", "dense PCM compiled", "chunked PCM", "xᵀx", "algebra", "algebra compiled"
    ]  # FlexAttention never ran  # fmt: skip
    assert [each["L"] for each in lines(file)["ssa_fast"]] == [*SIZES.values()]  # neither K1000 nor centred nor layer3


def test_the_shifted_cosine_is_drawn_among_signed_features_beside_ours_for_others(file, tmp_path):
    assert plot.REFERENCE not in lines(file)
    rows = [row(f"resnet50/{size}/layer1/shifted", "auto", SIZES[size], warm_ms=spread(1.0)) for size in (2048, 512)]
    both = save(tmp_path / "shifted.json", [*grid(), *rows])
    signed = lines(both, "signed features")
    assert list(signed)[:4] == ["ssa_fast, ReLU", "ssa_fast, shifted", plot.REFERENCE, "dense PCM"]
    assert [each["L"] for each in signed["ssa_fast, shifted"]] == [16384, 262144]
    assert signed[plot.REFERENCE] == lines(both)["ssa_fast"]


@pytest.mark.parametrize(("kind", "scale"), [("time", 1e-3), ("memory", 2**20)])
def test_lines_say_why_they_end_and_no_text_lies_on_another(file, kind, scale):
    results = plot.read(file)
    with matplotlib.style.context(["default", plot.STYLE]):
        figure = plot.draw_curves(kind, results)
        figure.draw_without_rendering()
    what, quantity, *_ = plot.QUANTITIES[kind]
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        f"{what}, features ≥ 0, C=256, K=20", f"{what}, signed features, C=256, K=20"
    ]  # fmt: skip
    found = drawn(figure)
    beside = "input features" if kind == "memory" else "∝ L, ∝ L²"
    assert {*found} == {
        "ssa_fast", "dense PCM\nout of memory", "dense PCM compiled\nout of memory", "chunked PCM\nover 120 s",
        "xᵀx\nout of memory", "algebra", "algebra compiled", beside,
    }  # fmt: skip
    for name, line in found.items():
        if name != beside:
            rows = lines(file, quantity=quantity)[name.partition("\n")[0]]
            np.testing.assert_array_equal(line.get_xdata(), [each["L"] for each in rows])
            expected = [scale * plot.figure_of(each, quantity)[1] for each in rows]
            np.testing.assert_array_equal(line.get_ydata(), expected)  # NaN where it has ended
    if kind == "memory":
        np.testing.assert_array_equal(found[beside].get_ydata(), [4 * 256 * L for L in SIZES.values()])
    texts = [text for axes in figure.axes for text in (*axes.get_legend().get_texts(), axes.xaxis.label)]
    texts += [text for axes in figure.axes for text in (*axes.get_xticklabels(), *axes.get_yticklabels()[2:5])]
    boxes = [text.get_window_extent() for text in texts]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert not any(box.overlaps(other) for other in boxes[:number]), texts[number].get_text()


def test_a_failure_between_two_points_is_a_gap(tmp_path):
    rows = [row("resnet50/512/layer1", "dense PCM", 100, warm_ms=spread(1.0))]
    rows += [row("resnet50/640/layer1", "dense PCM", 200, status="wrong", warm_ms=spread(9.0))]
    rows += [row("resnet50/768/layer1", "dense PCM", 300, warm_ms=spread(2.0))]
    found = drawn(plot.draw_curves("time", plot.read(save(tmp_path / "gap.json", rows))))
    np.testing.assert_array_equal(found["dense PCM"].get_ydata(), [1e-3, np.nan, 2e-3])


@pytest.mark.slow
def test_a_gpus_pictures_say_so(tmp_path):
    gpu = save(tmp_path / "gpu.json", grid(), H100, device="cuda")
    assert plot.read(gpu).caption == "NVIDIA H100 80GB HBM3, 79.2 GiB, torch 2.15.0, commit fa3f1c1"
    assert plot.main([str(gpu), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "time-cuda.png", "memory-cuda.png", "backbone-cuda.png"
    }  # fmt: skip


def test_shares_of_the_backbone_have_goals(tmp_path):
    rows = [*whole(512, 1, 0.02), *whole(512, 20, 0.04), *whole(512, 1000, 0.2, lost=True)]
    (axes,) = plot.draw_shares(plot.read(save(tmp_path / "shares.json", rows))).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "resnet50/512/K1: 2.00 %", "resnet50/512: 4.00 %", "resnet50/512/K1000: out of memory"
    ]  # fmt: skip
    assert [*axes.lines[-1].get_xdata()] == [0.03, 0.05, 0.05]
    assert [bar.get_width() for bar in axes.patches[:2]] == [0.02, 0.04]


def test_nothing_to_draw(tmp_path, capsys):
    one = save(tmp_path / "one.json", [row("resnet50/512/layer1", "auto", 16384, warm_ms=spread(8.0))])
    assert plot.main([str(one), "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["time-cpu.png"]
    assert list(plot.panels(plot.read(one), "warm_ms")) == ["features ≥ 0"]  # ours for f ≥ 0 alone makes no signed one
    empty = save(tmp_path / "empty.json", [])
    assert plot.main([str(empty), "--out", str(tmp_path / "none")]) == 2
    assert "empty.json: expected rows of resnet50's layer1 or of whole networks, got none" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda found: found.pop("rows"), "'rows' is missing"),
        (lambda found: found["settings"].update(limit_s="2 min"), "could not convert string to float: '2 min'"),
        (lambda found: found["machine"].pop("threads"), "'threads' is missing"),
        (lambda found: found["rows"][3].pop("L"), "'L' is missing"),
        (lambda found: found["rows"].append(7), "'int' object is not subscriptable"),
    ],
)
def test_malformed_files_are_told_in_one_sentence(file, tmp_path, capsys, change, told):
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))
    assert plot.main([str(file), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"python -m bench plot: {file}: expected a result file, got {told}; make it with python -m bench.\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("content", "told"), [(b"{", "Expecting"), (b"\xff\xfe", "Expecting"), (None, "No such")])
def test_unreadable_files(tmp_path, capsys, content, told):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    assert plot.main([str(path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: expected a result file, got " in line
    assert told in line


def test_without_matplotlib_a_sentence_says_so(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot.main([str(file), "--out", str(tmp_path / "out")]) == 2
    assert "matplotlib" in capsys.readouterr().err


@pytest.mark.slow
def test_all_pictures_are_written_or_none(file, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").touch()
    assert plot.main([str(file), "--out", str(tmp_path / "taken")]) == 2
    assert "taken" in capsys.readouterr().err
    monkeypatch.setattr(plot, "draw_shares", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plot.main([str(file), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_committed_pictures_show_the_committed_data():
    results = ROOT / "bench" / "results"
    for name, source in (("time", "curve"), ("memory", "curve"), ("backbone", "backbone")):
        said = Image.open(results / f"{name}-cpu.png").info
        data = (results / f"{source}-cpu.json").read_bytes()
        assert said["Source"] == f"{source}-cpu.json"
        assert said["Data"] == hashlib.sha256(data).hexdigest(), f"{name}-cpu.png: draw it again: bench plot"
