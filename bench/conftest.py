"""Hold the figures of the gated suites against their goals, show how far the tests are, and save what they found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
import torch

from bench import measure
from ssa_fast.io.progress import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    Gate: TypeAlias = Callable[..., None]

ROWS = pytest.StashKey[list[dict[str, Any]]]()
PACE = pytest.StashKey[tuple[Pace, dict[str, float], list[float]]]()  # the work of each test, and of those done
UNITS = {"ratio": "×", "mib": " MiB", "exponent": "", "share": " of the forward"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--save", type=Path, default=None, help="write the figures and the machine to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    config.addinivalue_line("markers", "work(flops): floating-point operations of all of a test's calls, as counted")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say about how long the tests take: the operations that they count, at the rate of a short product and ReLU."""
    work = {item.nodeid: marker.args[0] for item in session.items if (marker := item.get_closest_marker("work"))}
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not work or reporter is None or session.config.option.collectonly:
        return
    f = torch.rand(256, 3136)
    call, cpu = lambda: torch.relu(f.mT @ f), measure.Device()
    rate = 2 * 256 * 3136**2 / min(cpu.seconds(call, cold=False) for _ in range(4))
    session.config.stash[PACE] = Pace("paths", sum(work.values()) / rate, say=reporter.write_line), work, []


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


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the figures and the machine, and save them if asked to."""
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("figures of this run")
    for row in rows:
        figure = next(each for each in UNITS if each in row)
        times = f"{row['ours_ms']:.2f} ms, peer {row['peer_ms']:.2f} ms" if "peer_ms" in row else ""
        value = f"{row[figure]:>9.4g}{UNITS[figure]}"
        terminalreporter.write_line(f"{value}  (goal {row['goal']:>9})  {row['what']}  {times}")
    terminalreporter.write_line(measure.describe(measure.machine()))
    if path := config.getoption("--save"):
        measure.save(path, rows, command="python -m bench paths")
        terminalreporter.write_line(f"saved to {path}")
