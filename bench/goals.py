"""What the kernels are to reach on a GPU, on problems of the suite "gpu": a missed goal is a finding, no error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from bench.measure import ratios

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.measure import Times
    from bench.workers import Row


class Goal(NamedTuple):
    """A figure of one of our providers on problems: at least ``must``, or at most that where ``stretch`` is less.

    Attributes:
        problems: A regular expression that is found in their names.
        figure: A key of the provider's row, or a peer: by how much that is slower, at least; in which part of its time
            ours is done, at most. Both on a cold cache.
    """

    provider: str
    problems: str
    figure: str
    must: float
    stretch: float

    @property
    def at_most(self) -> bool:
        return self.stretch < self.must

    def judged(self, value: float | None) -> Row:
        """Return the goal and the figure with "stretch", "met", "missed", or "unknown" where there is no figure."""
        sign, verdict = -1 if self.at_most else 1, "missed"
        if value is None or value != value:
            verdict = "unknown"
        elif sign * value >= sign * self.stretch:
            verdict = "stretch"
        elif sign * value >= sign * self.must:
            verdict = "met"
        given = {"figure": self.figure, "value": value, "must": self.must, "stretch": self.stretch}
        return given | {"direction": "<=" if self.at_most else ">=", "verdict": verdict}


def words(goal: Row) -> str:
    """Return a judged goal for people."""
    value = "no figure" if goal["value"] is None else f"{goal['value']:.3g}"
    return f"{goal['figure']} {value}: {goal['verdict']} ({goal['direction']} {goal['must']:g}, {goal['stretch']:g})"


SMALL = (
    ("prototypes", "(224/layer[234]|512/layer3)/float16"),
    ("resident", "224/layer[234]/signed"),
    ("auto", "(224|512)/layer3/signed"),
)
SIGNED = SMALL[1:]
GOALS = [
    Goal("tiled", "(1024/layer2|2048/layer3|4096/layer4)/signed", "xᵀx", 0.80, 0.58),  # cuBLAS's product alone
    Goal("tiled", "(512|1024)/layer1/signed/b?float16$", "xᵀx", 0.90, 0.65),
    Goal("tiled", "512/layer1/signed/b?float16$", "dense PCM", 4, 7),
    Goal("tiled", "512/layer1/signed/float16$", "dense PCM float32", 12, 20),
    Goal("tiled", "512/layer1/signed/float16$", "FlexAttention", 2, 3),
    Goal("tiled", "2048/layer3/signed", "FlexAttention", 5, 10),
    Goal("tiled", "(512|1024)/layer1/signed/float16$", "chunked PCM", 2.5, 4),
    Goal("tiled", "4096/layer4/signed", "chunked PCM", 1.7, 2.5),
    Goal("prototypes", "512/layer1/float16", "dense PCM", 60, 100),
    Goal("prototypes", "1024/layer1/float16", "dense PCM", 400, 600),
    Goal("prototypes", "(512|1024|2048)/layer1/float16|layer1/B32(/nhwc)?(/float16)?$|/B2/float16", "algebra", 2.5, 3),
    Goal("prototypes", "512/layer1(/B32)?/float16", "algebra compiled", 1.5, 2),
    Goal("prototypes", "layer1/B32|/B2/|(2048|4096)/layer1/float16", "share", 0.80, 0.90),  # of a copy, at two reads
    *(Goal(*each, "graph_ms", 0.012, 0.006) for each in SMALL),
    *(Goal(*each, "eager_ms", 0.025, 0.015) for each in SMALL),
    *(Goal(*each, peer, 1, 1) for each in SIGNED for peer in ("dense PCM", "dense PCM compiled")),
    *(Goal("polish and fuse", "", f"{how}share_of_backbone", 0.05, 0.02) for how in ("", "graph_")),
    Goal("prototypes", "^(?!.*/signed).*/layer", "error", 1e-6, 5e-8),
    Goal("tiled", "/signed/b?float16$", "error", 1e-4, 3e-5),
    Goal("tiled", "/high", "error", 1e-6, 5e-8),
    Goal("resident", "224/layer[234]/signed", "error", 1e-4, 3e-5),
]


def of(problem: str) -> list[Goal]:
    """Return the goals on the problem of a name."""
    return [goal for goal in GOALS if re.search(goal.problems, problem)]


def needed(problem: str) -> list[str]:
    """Return the providers that the goals on a problem are about, and those that every problem is timed with."""
    return ["auto", "auto again", "dense PCM", *(name for goal in of(problem) for name in (goal.provider, goal.figure))]


def judge(problem: str, rows: Mapping[str, Row], times: Mapping[str, Times]) -> None:
    """Add to each of our rows its ``goals`` on the problem, with figures and verdicts."""
    for goal in of(problem):
        if row := rows.get(goal.provider):
            value = row.get(goal.figure)
            if goal.figure in rows:
                pair = [times[name].cold if name in times else [] for name in (goal.figure, goal.provider)]
                value = ratios(*(reversed(pair) if goal.at_most else pair))
            row.setdefault("goals", []).append(goal.judged(value["p50"] if isinstance(value, dict) else value))
