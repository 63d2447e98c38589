"""Heading 18, long commands: what takes over a minute says beforehand about how long, and then how far it is.

The class: everything that works through a list (images, files, networks, problems, cases, suites), on a terminal and
elsewhere, with items that take the same time or not, and operations that are short and say nothing. The clock is the
tests' own. The suite of ``bench paths``, which did not end in a quarter of an hour, is held to a number of operations:
those of five minutes on two cores at 25 GFLOP/s each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ssa_fast.io import progress
from ssa_fast.io.progress import Pace, format_duration, paced

ROOT = Path(__file__).parents[2]
MOST = 300 * 2 * 25e9


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (59.6, "60 s"), (89, "89 s"), (90, "2 min"), (600, "10 min"), (5399, "90 min"), (9000, "2.5 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def told(clock: Clock, each: float, count: int, expected: float | None = None) -> list[str]:
    """The lines of an operation of ``count`` parts that take ``each`` seconds."""
    lines: list[str] = []
    pace = Pace("work", expected, say=lines.append, clock=clock)
    for done in range(1, count + 1):
        clock.now += each
        pace.update(done, count)
    return lines


def test_what_is_short_says_nothing(clock: Clock) -> None:
    assert told(clock, 0.59, 100) == told(clock, 59.0, 1) == told(clock, 1.0, 50, expected=59.0) == []


def test_what_is_long_says_so_after_its_first_part_and_then_every_half_minute(clock: Clock) -> None:
    lines = told(clock, 1.0, 120)
    assert lines[0] == "work: about 2 min in all"
    assert lines[1:] == [
        "work: 26 % done, about 89 s left",
        "work: 51 % done, about 59 s left",
        "work: 76 % done, about 29 s left",
    ]


def test_what_is_counted_says_so_beforehand(clock: Clock) -> None:
    lines: list[str] = []
    Pace("work", 300.0, say=lines.append, clock=clock)
    assert lines == ["work: about 5 min"]


def test_items_of_unlike_costs(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A tenth of the work takes 40 s: all of it, 400 s, whatever the number of items."""
    for item in paced([1, 2, 7], "work", costs=[1.0, 2.0, 7.0]):
        clock.now += 40.0 * item
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["work: about 7 min in all", "work: 30 % done, about 5 min left"]
    assert captured.out == ""


def test_a_terminal_shows_a_bar_instead(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(stderr=True, force_terminal=True, width=80)
    for _ in paced(range(3), "work", costs=[1.0] * 3, console=console):
        clock.now += 100.0
    assert "in all" not in capsys.readouterr().err


def test_a_command_on_many_items(clock: Clock, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """``ssa-fast run``, ``models`` and ``convert``: as their loops use it."""
    from ssa_fast.cli.run import progress_lines
    from ssa_fast.io.progress import Progress

    show = progress_lines()
    show(Progress(10, 110, resumed=10))
    clock.now += 5.0
    show(Progress(15, 110, resumed=10))
    assert capsys.readouterr().err == "polishing: about 2 min in all\n", "resumed images took no time"


def test_models_is_paced(clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from ssa_fast.cli import models

    def describe(name: str, check: Any) -> models.NetworkRow:
        clock.now += 60.0
        return models.NetworkRow(name, None, "ValueError: none", 60.0)

    monkeypatch.setattr(models, "describe_network", describe)
    with pytest.raises(typer.Exit):
        models.list_networks(["a", "b", "c"])
    assert "inspecting networks: about 3 min in all" in capsys.readouterr().err


class _Items:
    def __init__(self) -> None:
        self.work: dict[str, float] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.work = {item.name: marker.args[0] for item in session.items if (marker := item.get_closest_marker("work"))}


@pytest.fixture(scope="module")
def work() -> dict[str, float]:
    items = _Items()
    assert pytest.main(["--collect-only", "-q", str(ROOT / "bench/test_paths.py")], plugins=[items]) == 0
    return items.work


def test_bench_paths_ends_within_five_minutes(work: dict[str, float]) -> None:
    assert sum(work.values()) <= MOST, json.dumps(work, indent=1)


def test_every_comparison_with_a_square_product_is_counted(work: dict[str, float]) -> None:
    """What is not counted is linear in the pixels, which all of these are not."""
    from bench.test_paths import RATIOS

    assert sum(name.startswith("test_ratio[") for name in work) == len(RATIOS)
    for kind in ("test_growth[tiled", "test_peak_extra_memory[tiled"):
        assert any(name.startswith(kind) for name in work)
