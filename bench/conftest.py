"""Hold the figures of the gated suites against their goals, and save what they found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import measure
from bench.figures import table

if TYPE_CHECKING:
    import pytest

ROWS: list[dict[str, Any]] = []
FIGURES = ("ours_ms", "peer_ms", "ratio", "exponent", "mib", "share")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--save", type=Path, default=None, help="write the figures and the machine to this JSON file")


def gate(
    what: str, *, at_least: float = -np.inf, at_most: float = np.inf, ours: Any = (), peer: Any = (), **figure: float
) -> None:
    """Keep a figure, named as in ``FIGURES``, with its goal, and fail where that is missed.

    ``ours`` and ``peer`` are seconds, whose medians are kept beside it.
    """
    ((name, value),) = figure.items()
    seconds = {"ours_ms": ours, "peer_ms": peer} if len(ours) else {}
    medians = {key: round(float(np.median(each)) * 1e3, 3) for key, each in seconds.items()}
    goal = f">= {at_least:.4g}" if at_least > -np.inf else f"<= {at_most:.4g}" if at_most < np.inf else "none"
    ROWS.append({"what": what, **medians, name: round(value, 4), "goal": goal})
    assert at_least <= value <= at_most, f"{what}: {name} {value:.4g}, the goal is {goal}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the figures and the machine, and save them if asked to."""
    if not ROWS:
        return
    terminalreporter.section("figures of this run")
    heads = (*FIGURES, "goal", "what")
    lines = table(heads, [[str(row.get(head, "")) for head in heads] for row in ROWS], aligned=True)
    terminalreporter.write_line("\n".join([*lines, measure.describe(measure.machine())]))
    if path := config.getoption("--save"):
        measure.save(path, ROWS, command="python -m bench paths")
