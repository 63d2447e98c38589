"""Heading 18, long commands: what takes over a minute says beforehand about how long, and then how far it is.

The class: everything that works through a list (images, files, networks, problems, cases, suites), on a terminal and
elsewhere, with items that take the same time or not, and operations that are short and say nothing. The clock is the
tests' own. The suite of ``bench paths``, which did not end in a quarter of an hour, is held to a number of operations:
those of five minutes on two cores at 25 GFLOP/s each.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
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


def test_bench_paths_ends_within_five_minutes() -> None:
    """Its rounds are fixed, so the operations of its calls are, but for whole networks', which have budgets of time."""
    from bench import test_paths as paths

    def flops(name: str, problem: Any, **other_size: int) -> int:
        work = paths.CALLS[name].work(replace(problem, **other_size), paths.CPU)
        assert work is not None
        return work.flops

    # Compared once; warmed up and timed in every round.
    found = [(1 + 2 * rounds) * (flops(*ours) + flops(*peer)) for _, ours, peer, _, rounds in paths.RATIOS]
    found += [
        10 * flops(*call) + (1 + count) * flops(*call, H=last, W=last) for _, call, last, _, count in paths.GROWTH
    ]
    found += [flops(*call) for _, call in paths.MEMORY]
    assert sum(found) <= MOST


@pytest.mark.slow
def test_bench_paths_says_how_long_it_takes_and_how_far_it_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "paths", "-k", "peak and 16", "--save", "figures.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("paths: about 3 minutes on two cores"), done.stdout + done.stderr
    assert re.search(r"memory.prototypes, L=16,384, C=256. (PASSED|FAILED) +\[100%\]\n", done.stdout), done.stdout
    (row,) = json.loads((tmp_path / "figures.json").read_text("utf-8"))["rows"]
    assert row["what"] == "prototypes, peak extra memory, L=16,384, C=256 (features 16 MiB)"
    assert row["goal"] == "<= 21"
    assert done.returncode == int(row["mib"] > 21)


def test_a_missed_gate_fails_and_its_figure_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import conftest

    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(conftest, "ROWS", rows)
    with pytest.raises(AssertionError, match=r"tiled: ratio 2, the goal is >= 2\.5"):
        conftest.gate("tiled", ratio=2.0, at_least=2.5, ours=[0.001, 0.003, 0.002], peer=[0.004])
    conftest.gate("tiled", ratio=2.0)
    figures = {"ours_ms": 2.0, "peer_ms": 4.0}
    assert rows == [
        {"what": "tiled", **figures, "ratio": 2.0, "goal": ">= 2.5"},
        {"what": "tiled", "ratio": 2.0, "goal": "none"},
    ]
