"""Fixtures of the gated suites: ``gate`` holds a figure against its goal, ``versus`` times ours beside a peer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
import torch

from bench import measure
from bench.providers import dense_pcm
from ssa_fast import Affinity
from ssa_fast.io.progress import Pace
from ssa_fast.ops import cost_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

    Gate: TypeAlias = Callable[..., None]
    Versus: TypeAlias = Callable[..., None]

ROWS = pytest.StashKey[list[dict[str, Any]]]()
PACE = pytest.StashKey[tuple[Pace, dict[str, float], list[float]]]()  # the work of each test, and of those done
UNITS = {"ratio": "×", "mib": " MiB", "exponent": "", "share": " of the forward"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--save", type=Path, default=None, help="write the figures and the machine to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    config.addinivalue_line("markers", "work(flops): floating-point operations of all of a test's calls, as counted")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say about how long the tests take: the work that they count, at the rate of a short product of the same kind."""
    work = {item.nodeid: marker.args[0] for item in session.items if (marker := item.get_closest_marker("work"))}
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not work or reporter is None or session.config.option.collectonly:
        return
    cam, f = torch.rand(1, 20, 56, 56), torch.rand(1, 256, 56, 56)
    flops = cost_model.cost("dense", cost_model.Problem(1, 20, 256, 56 * 56, Affinity(), None)).flops
    seconds = sum(work.values()) * measure.median_seconds(lambda: dense_pcm(cam, f)) / flops
    session.config.stash[PACE] = Pace("paths", seconds, say=reporter.write_line), work, []


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Say how far the tests are."""
    if PACE in item.config.stash:
        pace, work, done = item.config.stash[PACE]
        done.append(work.get(item.nodeid, 0.0))
        pace.update(sum(done), sum(work.values()))


@pytest.fixture
def gate(request: pytest.FixtureRequest) -> Gate:
    """Keep a figure with its goal, ``at_least`` or ``at_most``; the test fails where it is missed."""
    rows = request.config.stash[ROWS]

    def judge(
        what: str, figure: str, value: float, *, at_least: float = -np.inf, at_most: float = np.inf, **more: Any
    ) -> None:
        goal = f">= {at_least:.4g}" if at_least > -np.inf else f"<= {at_most:.4g}" if at_most < np.inf else "none"
        rows.append({"what": what, **more, figure: round(value, 4), "goal": goal})
        assert at_least <= value <= at_most, f"{what}: {value:.4g}{UNITS[figure]}, the goal is {goal}"

    return judge


@pytest.fixture
def versus(benchmark: BenchmarkFixture, gate: Gate) -> Versus:
    """Time ``ours`` with pytest-benchmark and ``peer`` in turn; the ratio is the median of the rounds' ratios.

    Both are warm: the second of two calls counts, since what the peer does to caches and allocator is not ours. What a
    cold call takes, ``python -m bench`` says. ``same`` is False for a peer that computes only a part, whose result is
    another.
    """

    def run(
        ours: Callable[[], Any],
        peer: Callable[[], Any],
        *,
        label: str,
        at_least: float,
        same: bool = True,
        rounds: int = 7,
    ) -> None:
        mine_first, peers_first = ours(), peer()
        if same:  # speed says nothing while the answer is wrong
            torch.testing.assert_close(mine_first, peers_first, rtol=1e-4, atol=1e-5)
        del mine_first, peers_first
        peers: list[float] = []

        def in_turn() -> None:
            peer()
            peers.append(measure.Device().seconds(peer, cold=False))
            ours()

        benchmark.pedantic(ours, setup=in_turn, rounds=rounds)
        assert benchmark.stats is not None
        mine = np.array(benchmark.stats["data"])
        times = {"ours_ms": round(np.median(mine) * 1e3, 3), "peer_ms": round(np.median(peers) * 1e3, 3)}
        gate(label, "ratio", float(np.median(np.array(peers) / mine)), at_least=at_least, **times)

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not (rows := config.stash[ROWS]):
        return
    terminalreporter.section("figures of this run")
    for row in rows:
        figure = next(each for each in UNITS if each in row)
        times = f"{row['ours_ms']:.2f} ms, peer {row['peer_ms']:.2f} ms" if "peer_ms" in row else ""
        terminalreporter.write_line(
            f"{row[figure]:>9.4g}{UNITS[figure]}  (goal {row['goal']:>9})  {row['what']}  {times}"
        )
    terminalreporter.write_line(measure.describe(measure.machine()))
    if path := config.getoption("--save"):
        measure.save(path, rows, command="python -m bench paths")
        terminalreporter.write_line(f"saved to {path}")
