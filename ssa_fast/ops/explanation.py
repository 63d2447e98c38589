"""The table of a planned call of ``polish``: a row per stage and one for the fusion, with reasons."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from ssa_fast.io.sizes import format_bytes
from ssa_fast.ops.dispatch import Choice
from ssa_fast.ops.fusion import explain_fusion
from ssa_fast.ops.launch_plan import jit_reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ssa_fast.ops.stage import StagePlan
    from ssa_fast.validation import FusionOptions

WIDTH = 80
COLUMNS = ("stage", "C", "L", "method", "GFLOP", "moved", "extra")


class Explanation(dict[str, Choice]):
    """Choices by stage name, and that of the fusion in ``fusion``; ``str()`` is a table."""

    def __init__(self, plans: Mapping[str, StagePlan], options: FusionOptions) -> None:
        super().__init__({name: plan.choice for name, plan in plans.items()})
        self.problems = {name: plan.problem for name, plan in plans.items()}
        self.fusion = explain_fusion([_polished(plan) for plan in plans.values()], options)

    def __str__(self) -> str:
        first = next(iter(self.problems.values()))
        lines = [f"B={first.B}, K={first.K}, {first.precision} precision, {first.device}"]
        rows: list[tuple[str, ...]] = [COLUMNS]
        reasons = []
        for name, choice in self.items():
            problem = self.problems[name]
            rows.append((name, str(problem.C), f"{problem.L:,}", *_cells(choice)))
            config = f"; {choice.config}" if choice.config else ""
            reasons.append(f"{name}: {choice.why}{config}")
        if self.fusion is not None:
            rows.append(("fusion", "", "", *_cells(self.fusion)))
            reasons.append(f"fusion: {self.fusion.why}")
        kernels = any(choice.backend == "triton" for choice in self.values())
        if kernels and (why := jit_reason()):
            reasons.append(f"launches: {why}")
        lines += _aligned(rows)
        lines += [line for reason in reasons for line in _wrapped(reason)]
        return "\n".join(lines)


def _polished(plan: StagePlan) -> torch.Tensor:
    """Return an empty tensor of the shape, dtype and device type that the stage's polished CAM will have."""
    B, _, *sides = plan.request.features.shape
    return plan.request.features.new_empty((), dtype=plan.request.dtype).expand(B, plan.request.K, *sides)


def _cells(choice: Choice) -> tuple[str, str, str, str]:
    cost = choice.cost
    moved, extra = format_bytes(cost.bytes_moved), format_bytes(cost.extra_memory)
    return f"{choice.method}/{choice.backend}", f"{cost.flops / 1e9:,.3g}", moved, extra


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return the rows as lines of aligned columns; a stage's long name stands on a line of its own."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    room = WIDTH - sum(widths[1:]) - 2 * (len(COLUMNS) - 1)
    widths[0] = min(widths[0], max(room, len("fusion")))
    lines = []
    for row in rows:
        if len(row[0]) > widths[0]:
            lines.append(row[0])
            row = ("", *row[1:])
        texts = [row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]), row[3].ljust(widths[3])]
        texts += [cell.rjust(width) for cell, width in zip(row[4:], widths[4:], strict=True)]
        lines.append("  ".join(texts).rstrip())
    return lines


def _wrapped(reason: str) -> list[str]:
    return textwrap.wrap(reason, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
