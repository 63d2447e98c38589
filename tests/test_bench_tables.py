"""Test ``python -m bench tables``: figures come from files, a changed one is found, and so is one without a file."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

import bench.__main__
from bench import figures, tables
from tests import grids
from tests.grids import row, spread, whole

if TYPE_CHECKING:
    from pathlib import Path

MACHINE = {"cpu": "A CPU", "threads": 1, "torch": "2.6.0", "commit": "abc1234", "date": "2026-11-26"}
SEEDS = [
    {"network": "one", "K": 1, "seed": "cam", "share": 0.013},
    {"network": "one", "K": 1, "seed": "layercam", "share": 0.97},
    {"network": "one", "K": 2, "seed": "grad-cam", "share": None},
    {
        "network": "two",
        "K": 1,
        "seed": "layercam",
        "share": 0.61,
        "ahead": [{"of": "cam", "difference": -2.0, "interval": [-3, 1]}],
    },
]
PAGE = """\
# Costs

LayerCAM takes <!--= seeds {share:.0%} seed=layercam -->?<!--/--> of a forward pass, on
`one` <!--= seeds {share:.1%} network=one seed=layercam -->?<!--/-->,
ahead by <!--= seeds {ahead/cam} network=two -->?<!--/-->.

<!-- tables: seeds K=1
| network   | {seed}      |
| {network} | {share:.0%} |
-->
<!-- /tables -->
"""
FILLED = """\
| network | cam | layercam |
| --- | --- | --- |
| one | 1 % | 97 % |
| two | – | 61 % |

`bench/results/seeds.json`: A CPU, 1 thread, torch 2.6.0, commit abc1234, 2026-11-26; `python -m bench seeds`
"""


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the repository, with a file, a page and the command that made the file."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Nothing measured\n", "utf-8")
    (tmp_path / "docs" / "costs.md").write_text(PAGE, "utf-8")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "FILES", {"seeds": "seeds"})
    monkeypatch.setattr(tables, "NOT_MEASURED", ())
    save(tmp_path, SEEDS)
    return tmp_path


def save(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "seeds.json").write_text(json.dumps({"machine": MACHINE, "rows": rows}), "utf-8")


def run(*words: str) -> int:
    return bench.__main__.main(["tables", *words])


def test_the_pages_of_this_repository_say_what_the_files_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--check") == 0, capsys.readouterr().out


def test_pages_are_filled_in_and_a_changed_figure_is_found(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--check") == 1
    assert run() == 0
    filled = (results / "docs" / "costs.md").read_text("utf-8")
    assert "takes <!--= seeds {share:.0%} seed=layercam -->61 to 97 %<!--/--> of" in filled
    assert "`one` <!--= seeds {share:.1%} network=one seed=layercam -->97.0 %<!--/-->" in filled
    assert "by <!--= seeds {ahead/cam} network=two -->−2.0 [−3.0, +1.0]<!--/-->." in filled
    assert FILLED in filled
    capsys.readouterr()
    assert run("--check") == 0
    save(results, [row | {"share": (row["share"] or 0) + 0.1} for row in SEEDS])
    assert run("--check") == 1
    printed = capsys.readouterr().out
    assert "-| two | – | 61 % |" in printed
    assert "+| two | – | 71 % |" in printed
    assert (results / "docs" / "costs.md").read_text("utf-8") == filled
    (results / "docs" / "costs.md").write_text(filled.replace("61 to 97 %", "60 to 97 %"), "utf-8")
    save(results, SEEDS)
    assert run("--check") == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It takes 15.5 ms", "15.5 ms"),
        ("at 226× the speed", "226×"),
        ("scores 66.1 and", "66.1"),
        ("5 images/s, 3,100 MiB", "5 images/s"),
        ("16 % of it", "16 %"),
        ("an image of 224 × 224 and 512×512 pixels, torch 2.14.1, 0.5", ""),
        ("`--sleep 12 ms`, [a](b-12 s.png), <!-- 3 ms -->", ""),
        ("```sh\nsleep 12 s\n```", ""),
        ("the goal is 250× here", ""),
    ],
)
def test_figures_without_a_file_are_found(text: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "NOT_MEASURED", ("the goal is 250×",))
    loose = tables.loose(f"Before.\n\n{text}.\n")
    assert (found in loose[0]) if found else not loose


def test_what_is_checked_beside_the_figures(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "NOT_MEASURED", ("9 % of nothing",))
    (results / "other.json").write_text('{"rows": []}', "utf-8")
    run()
    (results / "README.md").write_text("It takes 12 ms.\n<!--= seeds {K} K=1 -->1<!--/-->\n", "utf-8")
    assert run("--check") == 1
    assert capsys.readouterr().out.splitlines() == [
        "README.md: no file has this figure: …It takes 12 ms.…",
        "README.md: a marker that begins a line would end the paragraph: <!--= seeds {K} K=1 -->1<!--/-->",
        "NOT_MEASURED: no page has '9 % of nothing'",
        "FILES: no command makes other.json; add it, or delete the file",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <!--= other {share} -->?<!--/-->", "page.md: other {share}: [Errno 2]"),
        ("a <!--= seeds {shares} -->?<!--/-->", "all of ['{shares}'], got none"),
        ("a <!--= seeds {share} K=2 -->?<!--/-->", "expected rows that agree with ['K=2']"),
        ("a <!--= seeds {share} seed=none -->?<!--/-->", "expected rows that agree with ['seed=none']"),
        ("<!-- tables: other -->\n<!-- /tables -->", "expected one of quality, grid, or a file and two rows"),
        ("<!-- tables: seeds\n| a |\n| {b} |\n-->\n<!-- /tables -->", "all of ['a', '{b}'], got none"),
    ],
)
def test_a_marker_that_names_nothing_is_an_error(results: Path, text: str, message: str) -> None:
    with pytest.raises(LookupError, match=re.escape(message)):
        tables.fill(text, "page.md")


def test_no_page_is_written_where_a_marker_is_wrong(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "docs" / "wrong.md").write_text("a <!--= seeds {shares} -->?<!--/-->", "utf-8")
    with pytest.raises(SystemExit):
        run()
    assert "wrong.md: seeds {shares}: expected rows" in capsys.readouterr().err
    assert (results / "docs" / "costs.md").read_text("utf-8") == PAGE


@pytest.mark.parametrize(
    ("row", "missed"),
    [
        ({"ratio": 202.4, "goal": ">= 250"}, True),
        ({"ratio": 260.0, "goal": ">= 250"}, False),
        ({"exponent": 1.2, "goal": "<= 1.1"}, True),
        ({"exponent": 1.2, "goal": "none"}, False),
        ({"mib": 9.0, "goal": "<= 21"}, False),
        ({"share": 0.06, "goal": "<= 0.05"}, True),
        ({"ratio": 0.845, "goal": 0.9}, True),
        ({"us": 41.0, "goal_us": 40}, True),
        ({"seconds": 3.0}, False),
    ],
)
def test_missed_goals(row: dict[str, Any], missed: bool) -> None:
    assert tables.misses(row) == missed


def test_figures_inside_sentences_survive_markdown(results: Path) -> None:
    markdown = pytest.importorskip("markdown")
    html = markdown.markdown(tables.fill(PAGE, "page.md"), extensions=["tables"])
    paragraph = html.split("<p>")[1].split("</p>")[0]
    assert "61 to 97 %" in paragraph
    assert "&lt;!--" not in html
    assert "<td>61 %</td>" in html


STAGES = """\
| problem | ours | best peer | ratio | memory, ours / peer | error, ours / peer | ended |
| --- | --- | --- | --- | --- | --- | --- |
| resnet50/512/layer1 | 7.84 ms | chunked PCM, 999 ms | 127× | 5.20 MiB / 53.0 MiB | 3.1e-7 / 2.0e-6 | \
out of memory: dense PCM, algebra; over 120 s: FlexAttention |
| resnet50/4096/layer1 | 0.400 µs | – | – | – / – | 3.1e-7 / – | – |

| network | backbone | polish and fuse | share of the backbone, p50 (p20–p80) |
| --- | --- | --- | --- |
| resnet50/512 | 524 ms | 10.5 ms | 2.00 % (1.80–2.20) |
| resnet50/1024/K1000 | 2.10 s | out of memory | – |

Ratios are medians of interleaved rounds; ours against itself: 0.980 to 1.02.
"""


def test_the_tables_of_the_grid(results: Path) -> None:
    name, L = "resnet50/512/layer1", 16384
    rows = [
        row(name, "auto", L, warm_ms=spread(7.8412), peak_extra_mib=5.2),
        row(name, "auto again", L, warm_ms=spread(7.9), ratio=spread(1.0, 0.02)),
        row(name, "dense PCM", L, status="out of memory"),
        row(name, "algebra", L, status="out of memory"),
        row(name, "chunked PCM", L, warm_ms=spread(999.4), ratio=spread(127.46), peak_extra_mib=53.0, error=2e-6),
        row(name, "algebra compiled", L, warm_ms=spread(2000.0), ratio=spread(255.0)),
        row(name, "FlexAttention", L, status="over budget", error=None),
        row(name, "xᵀx", L, warm_ms=spread(1.0), ratio=spread(0.1)),  # does not give the result
        row("resnet50/4096/layer1", "auto", 2**20, warm_ms=spread(4e-4)),
        *whole(512, 20, 0.02),
        *whole(1024, 1000, 0.2, lost=True),
    ]
    grids.save(results / "grid.json", rows)
    filled = tables.fill("<!-- tables: grid grid -->\n<!-- /tables -->", "page.md")
    assert STAGES + "\n`bench/results/grid.json`: AMD EPYC" in filled


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (2.1, "2.10"), (0.01234, "0.0123"), (999.6, "1,000"), (115_432, "115,000"), (None, "–")],
)
def test_three_significant_digits(value: float | None, text: str) -> None:
    assert figures.number(value) == text
