"""Test ``python -m bench plot``: it draws the figures in the files, ends curves where they end, and explains errors."""

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


def curves(file, quantity="warm_ms", at=0):
    return {curve.name: curve for curve in list(plot.panels(plot.read(file), quantity).values())[at]}


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
        assert picture.width == 1600
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert picture.info["Source"] == "grid.json"


def test_curves_end_where_the_rows_say(file):
    found = curves(file)
    assert {name: (curve.L[-1], curve.end) for name, curve in found.items()} == {
        "ssa_fast": (2**20, ""),
        "dense PCM": (16384, "out of memory at L=65k"),
        "dense PCM compiled": (16384, "out of memory at L=65k"),
        "chunked PCM": (65536, "over 120 s at L=262k"),
        "xᵀx alone": (65536, "out of memory at L=262k"),
        "algebra": (2**20, ""),
        "algebra compiled": (2**20, ""),
    }  # FlexAttention never ran
    assert [curve.name for curve in found.values() if curve.ours] == ["ssa_fast"]
    assert list(SIZES.values()) == found["ssa_fast"].L  # one series: neither K1000 nor centred nor layer3
    assert found["dense PCM"].values[1] == pytest.approx([1500 * 0.97, 1500, 1500 * 1.03])
    assert curves(file, at=1)["ssa_fast"].end == "over 120 s at L=1M"


def test_memory_stands_beside_the_features(file):
    found = curves(file, "peak_extra_mib")
    assert found[plot.FEATURES].values[:, 1].tolist() == [L / 1024 for L in SIZES.values()]
    assert found["dense PCM"].values[-1, 1] == 2048
    assert found["dense PCM"].end == "out of memory at L=65k"


def test_the_band_of_ours_spans_its_second_measurement(tmp_path):
    rows = [row("resnet50/512/layer1", "auto", 100, warm_ms=spread(1.0))]
    rows += [row("resnet50/512/layer1", "auto again", 100, warm_ms=spread(1.2, 0.3))]
    assert curves(save(tmp_path / "one.json", rows))["ssa_fast"].values[0] == pytest.approx([0.84, 1.0, 1.56])


def test_a_failure_between_two_points_is_a_gap(tmp_path):
    rows = [row("resnet50/512/layer1", name, 100, warm_ms=spread(1.0)) for name in ("auto", "dense PCM")]
    rows += [row("resnet50/600/layer1", "dense PCM", 200, status="failed")]
    rows += [row("resnet50/700/layer1", "dense PCM", 300, warm_ms={"p50": 2.0, "p20": None})]
    found = curves(save(tmp_path / "gap.json", rows))["dense PCM"]
    assert found.L == [100, 200, 300]
    assert np.isnan(found.values[1]).all()
    assert found.values[2].tolist() == [2.0, 2.0, 2.0]
    assert found.end == ""


def test_the_shifted_cosine_is_drawn_among_signed_features_beside_ours_for_others(file, tmp_path):
    rows = [row(f"resnet50/{L}/layer1/shifted", "auto", L, warm_ms=spread(L / 1e3)) for L in (512, 1024)]
    both = save(tmp_path / "shifted.json", [*grid(), *rows])
    signed = curves(both, at=1)
    assert signed[plot.SHIFTED].values[:, 1].tolist() == [0.512, 1.024]
    assert (signed[plot.NONNEGATIVE].values == curves(file)["ssa_fast"].values).all()
    assert {plot.RELU, "dense PCM"} <= signed.keys()
    assert plot.SHIFTED not in curves(both)


def test_crosses_and_words_say_where_curves_end_and_no_text_lies_on_another(file):
    results = plot.read(file)
    found = plot.panels(results, "warm_ms")
    with matplotlib.style.context(["default", plot.STYLE]):
        figure = plot.draw_curves("Time", found, results)
        figure.draw_without_rendering()
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Time, features ≥ 0, C=256, K=20", "Time, signed features, C=256, K=20"
    ]  # fmt: skip
    texts = [figure._supxlabel]
    for axes, drawn in zip(figure.axes, found.values(), strict=True):
        crosses = {tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "x"}
        ended = [curve for curve in drawn if curve.end]
        assert crosses == {(curve.L[-1], curve.values[-1, 1] * 1e-3) for curve in ended}
        names = axes.get_legend().get_texts()
        assert {text.get_text() for text in names} == {f"{curve.name}\n{curve.end}".strip() for curve in drawn}
        texts += [*names, *axes.texts, axes.xaxis.label, *axes.get_yticklabels()[2:5]]
    boxes = [text.get_window_extent() for text in texts]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert not any(box.overlaps(other) for other in boxes[:number]), texts[number].get_text()


@pytest.mark.slow
def test_a_gpus_pictures_say_so(tmp_path):
    gpu = save(tmp_path / "gpu.json", grid(), H100, device="cuda")
    assert plot.read(gpu).caption() == "NVIDIA H100 80GB HBM3, 79.2 GiB, torch 2.15.0, commit fa3f1c1"
    assert plot.main([str(gpu), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{kind}-cuda.png" for kind in plot.KINDS}


def test_shares_of_the_backbone_have_goals(file, tmp_path):
    rows = [*whole(512, 1, 0.02), *whole(512, 20, 0.04), *whole(512, 1000, 0.2, lost=True)]
    other = {"H": 512, "B": 2, "warm_ms": spread(1.0), "share_of_backbone": spread(0.02)}
    results = plot.read(save(tmp_path / "shares.json", [*rows, row("swin_t/512", plot.WHOLE, 512**2, **other)]))
    assert [(label, goal, why) for label, goal, _, why in plot.shares(results)] == [
        ("resnet50 512², K=1", 0.03, ""),
        ("resnet50 512², K=20", 0.05, ""),
        ("resnet50 512², K=1,000", 0.05, "out of memory"),
        ("swin_t 512², K=20, B=2", 0.05, ""),
    ]
    assert plot.shares(results)[1][2] == pytest.approx((0.036, 0.04, 0.044))


def test_nothing_to_draw(tmp_path, capsys):
    one = save(tmp_path / "one.json", [row("resnet50/512/layer1", "auto", 16384, warm_ms={"p50": 8.0})])
    assert plot.main([str(one), "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["time-cpu.png"]
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"No {kind}-cpu.png: no row of one.json is for it." for kind in ("backbone", "memory")
    ]
    empty = save(tmp_path / "empty.json", [])
    assert plot.main([str(empty), "--out", str(tmp_path / "none")]) == 2
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
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
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
def test_all_pictures_are_drawn_before_one_is_written(file, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").touch()
    assert plot.main([str(file), "--out", str(tmp_path / "taken")]) == 2
    assert "taken" in capsys.readouterr().err
    monkeypatch.setattr(plot, "draw_shares", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plot.main([str(file), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_committed_pictures_show_the_committed_data():
    pictures = [each for kind in plot.KINDS for each in (ROOT / "bench" / "results").rglob(f"{kind}-*.png")]
    assert pictures
    for path in pictures:
        said = Image.open(path).info
        source = (path.parent / said["Source"]).read_bytes()
        assert said["Data"] == hashlib.sha256(source).hexdigest(), f"{path}: draw it again: bench plot"
