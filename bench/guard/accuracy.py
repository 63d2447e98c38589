"""Right before fast: each case's result in each tree against float64, by the project's one rule.

A result passes if its error is at most twice that of the plain formula in the computation's own dtype, plus one
rounding of the largest number in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bench.guard.worker import Failed, Worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from bench.guard.cases import Case
    from bench.guard.worker import Device

OPERANDS = {"cuda": torch.float16}  # what a device's matrix units round to by default


@dataclass(frozen=True)
class Check:
    """A case's error in one tree, that of the plain formula and one rounding, relative to the largest true number."""

    case: str
    error: float = float("nan")
    own: float = float("nan")
    rounding: float = float("nan")
    failure: str = ""

    @property
    def right(self) -> bool:
        return not self.failure and self.error <= 2 * self.own + self.rounding

    def __str__(self) -> str:
        if self.failure:
            return f"{self.case}: {self.failure}"
        return (
            f"{self.case}: error {self.error:.3g}, of the plain formula {self.own:.3g}, one rounding "
            f"{self.rounding:.3g}; expected at most twice the second plus the third"
        )


def checks(tree: Path, cases: Sequence[Case], stand: Device) -> list[Check]:
    """Every case in a tree; a worker that a case cost is replaced."""
    found = []
    worker = Worker(tree, stand)
    try:
        for case in cases:
            try:
                found.append(checked(case, worker.answer(case), stand.device))
            except Failed as error:
                found.append(Check(case.name, failure=str(error)))
                if not worker.process.is_alive():
                    worker = Worker(tree, stand)
    finally:
        worker.end()
    return found


def checked(case: Case, answer: dict[str, Any], device: str) -> Check:
    """One answer, held against the truth."""
    out = torch.from_numpy(answer["out"])
    truth = case.expected(answer, torch.float64)
    if out.flatten(2).shape[:2] != truth.flatten(2).shape[:2] or out.dtype != torch.float32:
        return Check(
            case.name, failure=f"expected float32 like {tuple(truth.shape)}, got {out.dtype} {tuple(out.shape)}"
        )
    own = case.expected(answer, torch.float32, OPERANDS.get(device))
    largest = float(truth.abs().max())

    def error(of: Tensor) -> float:
        return float((of.double() - truth).abs().max()) / largest

    return Check(case.name, error(case.compared(out)), error(own), torch.finfo(torch.float32).eps)
