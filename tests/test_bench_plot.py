"""Test ``python -m bench plot``: it draws the figures in the files, ends curves where they end, and explains errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

import bench.plot
from bench.plot import draw, main, series, table
from bench.plot.results import Malformed, read
from tests.grids import AMD, H100, SIZES, grid, row, save, spread, whole

RESULTS = Path(__file__).resolve().parent.parent / "bench/results"


@pytest.fixture
def file(tmp_path):
    return save(tmp_path / "grid.json", grid())


def panel(path, quantity="warm_ms", at=0):
    (results,) = read(path if isinstance(path, list) else [path])
    return {curve.name: curve for curve in series.panels(results, quantity)[at].curves}


@pytest.mark.slow
def test_files_appear_and_are_the_same_bytes_again(file, tmp_path, capsys):
    for out in ("a", "b"):
        assert main([str(file), "--out", str(tmp_path / out)]) == 0
    assert capsys.readouterr().out == ""
    written = sorted(tmp_path.glob("a/*"))
    assert [path.name for path in written] == ["backbone-cpu.png", "memory-cpu.png", "time-cpu.png"]
    for path in written:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert path.stat().st_size < 200_000
        picture = Image.open(path)
        assert picture.width == 1600
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert set(picture.info) == {"Source", "Data"}
        assert picture.info["Source"] == "grid.json"


def test_pictures_do_not_depend_on_the_users_settings(file):
    (results,) = read([file])
    plain = draw.shares(series.shares(results), results)
    with matplotlib.rc_context({"figure.dpi": 50, "font.size": 30, "axes.facecolor": "black"}):
        assert draw.shares(series.shares(results), results) == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_curves_end_where_the_rows_say(file):
    found = panel(file)
    assert {name: (curve.points[-1].L, curve.end) for name, curve in found.items()} == {
        "ssa_fast": (2**20, ""),
        "dense PCM": (16384, "out of memory at L=65k"),
        "dense PCM compiled": (16384, "out of memory at L=65k"),
        "chunked PCM": (65536, "over 120 s at L=262k"),
        "KeOps": (16384, "wrong at L=65k"),
        "xᵀx alone": (65536, "out of memory at L=262k"),
        "algebra": (2**20, ""),
        "algebra compiled": (2**20, ""),
    }  # FlexAttention never ran
    assert [curve.name for curve in found.values() if curve.ours] == ["ssa_fast"]
    assert [point.L for point in found["ssa_fast"].points] == list(SIZES.values())
    assert found["dense PCM"].points[1] == series.Point(16384, 1500 * 0.97, 1500, 1500 * 1.03)
    assert panel(file, at=1)["ssa_fast"].end == "over 120 s at L=1M"


def test_memory_stands_beside_the_features(file):
    found = panel(file, "peak_extra_mib")
    assert [point.p50 for point in found[series.FEATURES].points] == [L / 1024 for L in SIZES.values()]
    assert found["dense PCM"].points[-1].p50 == 2048
    assert found["dense PCM"].end == "out of memory at L=65k"


def test_the_cross_and_its_words_are_drawn(file, monkeypatch):
    figures = []
    monkeypatch.setattr(draw, "_png", lambda figure, drawn, results: figures.append(figure) or b"")
    (results,) = read([file])
    draw.curves("time", series.panels(results, "warm_ms"), results)
    (figure,) = figures
    for axes, at in zip(figure.axes, (0, 1), strict=True):
        crosses = {tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "x"}
        ended = [curve for curve in panel(file, at=at).values() if curve.end]
        assert crosses == {(curve.points[-1].L, curve.points[-1].p50) for curve in ended}
    words = [text for text in figure.texts if text.get_text()]
    assert [text.get_text() for text in words].count("over 120 s at L=262k") == 2
    boxes = [text.get_window_extent() for text in words]
    assert min(text.get_fontsize() for text in words) * draw.DPI / 72 >= 42
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= draw.WIDTH * draw.DPI
        assert not any(box.overlaps(other) for other in boxes[:number]), words[number].get_text()


def test_a_failure_between_two_points_is_a_gap(tmp_path):
    rows = [row("resnet50/512/layer1", name, 100, warm_ms=spread(1.0)) for name in ("auto", "dense PCM")]
    rows += [row("resnet50/600/layer1", "auto", 200, warm_ms=spread(1.0))]
    rows += [row("resnet50/600/layer1", "dense PCM", 200, status="failed")]
    rows += [row("resnet50/700/layer1", "dense PCM", 300, warm_ms={"p50": 2.0, "p20": None})]
    found = panel(save(tmp_path / "gap.json", rows))["dense PCM"]
    assert [point.L for point in found.points] == [100, 200, 300]
    assert np.isnan(found.points[1].p50)
    assert found.points[2] == series.Point(300, 2.0, 2.0, 2.0)
    assert found.end == ""


def test_the_shifted_cosine_is_drawn_among_signed_features_beside_ours_for_others(file, tmp_path):
    rows = [row(f"resnet50/{L}/layer1/shifted", "auto", L, warm_ms=spread(L / 1e3)) for L in (512, 1024)]
    both = [file, save(tmp_path / "shifted.json", rows)]
    signed = panel(both, at=1)
    assert [point.p50 for point in signed[series.SHIFTED].points] == [0.512, 1.024]
    assert signed[series.NONNEGATIVE].points == panel(file)["ssa_fast"].points
    assert {series.RELU, "dense PCM"} <= signed.keys()
    assert series.SHIFTED not in panel(both)


def test_only_one_series_is_in_a_panel(file):
    (results,) = read([file])
    time = series.panels(results, "warm_ms")
    assert [(panel.title, panel.sizes) for panel in time] == [
        ("features ≥ 0", "C = 256, K = 20, float32"),
        ("signed features", "C = 256, K = 20, float32"),
    ]


def test_a_single_point_is_drawn(tmp_path, capsys):
    one = save(tmp_path / "one.json", [row("resnet50/512/layer1", "auto", 16384, warm_ms={"p50": 8.0})])
    assert main([str(one), "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["time-cpu.png"]
    told = capsys.readouterr().err.splitlines()
    assert told[:2] == [
        "No memory-cpu.png: one.json has no rows with peak memory of layer1 problems of ours; "
        "make them with python -m bench --suite curve.",
        "No backbone-cpu.png: one.json has no rows of 'polish and fuse'; "
        "make them with python -m bench --suite backbone.",
    ]


@pytest.mark.slow
def test_later_files_override_and_devices_stand_apart(file, tmp_path):
    again = row("resnet50/512/layer1", "dense PCM", 16384, warm_ms=spread(1600.0))
    slow = row("resnet50/2048/layer1", "chunked PCM", 262144, status="over budget")
    later = save(tmp_path / "later.json", [again, slow], commit="0123abc", limit_s=60)
    gpu = save(tmp_path / "gpu.json", grid(), H100, device="cuda")
    cpu, cuda = read([file, later, gpu])
    found = {curve.name: curve for curve in series.panels(cpu, "warm_ms")[0].curves}
    assert found["dense PCM"].points[-1].p50 == 1600
    assert found["chunked PCM"].end == "over 60 s at L=262k"
    assert cpu.beside()[-1] == "commits fa3f1c1, 0123abc"
    assert cuda.beside()[:2] == ["NVIDIA H100 80GB HBM3", "79.2 GiB"]
    assert main([str(path) for path in (file, later, gpu)] + ["--out", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{kind}-{device}.png" for kind in ("time", "memory", "backbone") for device in ("cpu", "cuda")}


def test_shares_of_the_backbone(file):
    (results,) = read([file])
    found = series.shares(results)
    assert [share.label for share in found] == [
        "224², K=20", "512², K=20", "1024², K=20", "224², K=1,000", "512², K=1,000", "1024², K=1,000"
    ]  # fmt: skip
    assert (found[0].p20, found[0].p50, found[0].p80) == pytest.approx((0.018, 0.02, 0.022))
    assert found[-1].why == "out of memory"
    assert {share.goal for share in found} == {0.03}


def test_networks_with_signed_stages_have_a_goal_of_their_own(tmp_path):
    names = ("resnet50/512", "swin_t/512")
    share = {"warm_ms": spread(1.0), "share_of_backbone": spread(0.02)}
    rows = [row(name, "polish and fuse", 512**2, H=512, K=20, B=1, **share) for name in names]
    (results,) = read([save(tmp_path / "two.json", rows)])
    assert [(found.label, found.goal) for found in series.shares(results)] == [
        ("resnet50 512², K=20", 0.03), ("swin_t 512², K=20", 0.05)
    ]  # fmt: skip


def test_labels_are_spread_without_overlap():
    assert draw.spread([1.0, 3.0], [1, 1], [1, 1], 0, 10) == [1.0, 3.0]
    assert draw.spread([3.0, 3.0], [1, 1], [1, 1], 0, 10) == [2.5, 3.5]
    assert draw.spread([3.0, 3.0], [1, 1], [3, 1], 0, 10) == [2.75, 3.75]
    assert draw.spread([0.0, 9.0, 20.0], [2, 1, 1], [1, 1, 1], 0, 10) == [1.0, 8.5, 9.5]


TABLE = """\
| problem | ours | best peer | ratio | memory, ours / peer | error, ours / peer | ended |
|---|---|---|---|---|---|---|
| resnet50/512/layer1 | 7.84 ms | chunked PCM, 999 ms | 127× | 5.20 MiB / 53.0 MiB | 3.1e-7 / 2.0e-6 | \
out of memory: dense PCM, algebra; over 120 s: KeOps |
| resnet50/4096/layer1 | 0.400 µs | – | – | – / – | 3.1e-7 / – | – |

| network | backbone | polish and fuse | share of the backbone, p50 (p20–p80) |
|---|---|---|---|
| resnet50/512 | 524 ms | 10.5 ms | 2.00 % (1.80–2.20) |
| resnet50/1024/K1000 | 2.10 s | out of memory | – |

Ratios are medians of interleaved rounds; ours against itself: 0.980 to 1.02. AMD EPYC (family 25, model 17), \
2 threads, 23.5 GiB, torch 2.15.0, commit fa3f1c1.
"""


def test_the_table(tmp_path, capsys):
    name, L = "resnet50/512/layer1", 16384
    rows = [
        row(name, "auto", L, warm_ms=spread(7.8412), peak_extra_mib=5.2),
        row(name, "auto again", L, warm_ms=spread(7.9), ratio=spread(1.0, 0.02)),
        row(name, "dense PCM", L, status="out of memory"),
        row(name, "algebra", L, status="out of memory"),
        row(name, "chunked PCM", L, warm_ms=spread(999.4), ratio=spread(127.46), peak_extra_mib=53.0, error=2e-6),
        row(name, "FlexAttention", L, warm_ms=spread(2000.0), ratio=spread(255.0)),
        row(name, "KeOps", L, status="over budget", error=None),
        row(name, "xᵀx", L, warm_ms=spread(1.0), ratio=spread(0.1)),  # does not give the result
        row("resnet50/4096/layer1", "auto", 2**20, warm_ms={"p50": 4e-4}),
        *whole(512, 20, 0.02),
        *whole(1024, 1000, 0.2, lost=True),
    ]
    path = save(tmp_path / "table.json", rows)
    assert main([str(path), "--markdown"]) == 0
    assert capsys.readouterr().out == TABLE
    assert main([str(path), "--markdown", "--only", "512/layer1"]) == 0
    assert capsys.readouterr().out.splitlines()[2:4] == [TABLE.splitlines()[2], ""]
    assert main([str(path), "--markdown", "--only", "layer9"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (2.1, "2.10"),
        (0.01234, "0.0123"),
        (999.6, "1,000"),
        (1654.3, "1,650"),
        (115_432, "115,000"),
        (100, "100"),
    ],
)
def test_three_significant_digits(value, text):
    assert table.number(value) == text


def test_nothing_to_draw(tmp_path, capsys):
    empty = save(tmp_path / "empty.json", [])
    assert main([str(empty), "--out", str(tmp_path / "out"), "--markdown"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line.partition(":")[0] for line in printed.err.splitlines()] == [
        "No time-cpu.png", "No memory-cpu.png", "No backbone-cpu.png", "No the tables"
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="2"):
        main([str(empty)])


def change(path, where, value):
    found = json.loads(path.read_text())
    at = found
    for part in where[:-1]:
        at = at[part]
    at[where[-1]] = value
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (["rows"], {}, "rows: expected a list, got {}"),
        (["machine"], None, "machine: expected an object, got null"),
        (["settings", "device"], "tpu", "settings.device: expected 'cpu' or 'cuda', got \"tpu\""),
        (["settings", "limit_s"], "2 min", "settings.limit_s: expected a number of seconds, got \"2 min\""),
        (["machine", "threads"], None, "machine.threads: expected its name or number, got null"),
        (["rows", 3], 7, "rows[3]: expected an object, got 7"),
        (["rows", 3, "L"], 0, "rows[3].L: expected an integer above 0, got 0"),
        (["rows", 3, "problem"], None, "rows[3].problem: expected a text, got null"),
        (["rows", 3, "ours"], 1, "rows[3].ours: expected true or false, got 1"),
        (["rows", 3, "dtype"], 8, "rows[3].dtype: expected one of float64, float32, float16, bfloat16, got 8"),
        (["rows", 3, "warm_ms"], 3.0, "rows[3].warm_ms: expected null or positive p50, p20 and p80, got 3.0"),
        (["rows", 3, "ratio"], {"p50": 0}, 'rows[3].ratio: expected null or positive p50, p20 and p80, got {"p50": 0}'),
        (["rows", 3, "error"], "small", 'rows[3].error: expected null or a number, got "small"'),
    ],
)  # fmt: skip
def test_malformed_files_are_told_in_one_sentence(file, tmp_path, capsys, where, value, told):
    change(file, where, value)
    assert main([str(file), "--out", str(tmp_path / "out"), "--markdown"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"{file}: {told}; make the file with python -m bench.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "told"), [(b"{", "expected JSON"), (b"\xff\xfe", "expected JSON"), (None, "No such")]
)
def test_unreadable_files(tmp_path, capsys, content, told):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path), "--markdown"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}: ")
    assert told in line


def test_one_picture_shows_one_machine(file, tmp_path):
    other = save(tmp_path / "other.json", grid(), AMD | {"cpu": "Intel Xeon"})
    with pytest.raises(Malformed, match=r"other.json: expected .*AMD EPYC.*, got .*Intel Xeon.* plot them apart"):
        read([file, other])


def test_without_matplotlib_the_tables_still_come(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "bench.plot.draw")
    monkeypatch.delattr(bench.plot, "draw")
    assert main([str(file), "--markdown"]) == 0
    assert main([str(file), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "Pictures need matplotlib, which is not here: pip install 'ssa_fast[bench]'.\n"


@pytest.mark.slow
def test_all_pictures_are_drawn_before_one_is_written(file, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").touch()
    assert main([str(file), "--out", str(tmp_path / "taken")]) == 2
    assert capsys.readouterr().err == f"--out: expected a folder to write to, got {tmp_path / 'taken'}: File exists.\n"
    monkeypatch.setattr(draw, "shares", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([str(file), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_committed_pictures_show_the_committed_data(tmp_path):
    """Compare the drawings, not the bytes, which depend on Matplotlib's version."""
    for path in [each for kind in ("time", "memory", "backbone") for each in RESULTS.rglob(f"{kind}-*.png")]:
        said = Image.open(path).info
        main([*(str(path.parent / name) for name in said["Source"].split("\n")), "--out", str(tmp_path)])
        assert Image.open(tmp_path / path.name).info == said, f"{path.name}: draw it again with python -m bench plot"
