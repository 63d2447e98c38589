"""Fit the dispatcher's rates to this CPU, and say how often it then picks the fastest method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import nnls

from bench import measure
from ssa_fast import Affinity, polish
from ssa_fast.io.progress import paced
from ssa_fast.ops import cost_model, dispatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUDGET = 3e11  # floating-point operations beyond which a method is not worth waiting for


def problems() -> Iterator[tuple[tuple[int, int, int, int], Affinity, bool]]:
    """``(B, K, C, side)``, φ and sign of the problems timed: stages of common backbones."""
    for C, sides in ((64, (7, 28, 56, 112)), (256, (7, 14, 32, 56, 128)), (1024, (14, 32, 64)), (2048, (7, 16, 32))):
        for side in sides:
            for B, K in ((1, 1), (1, 20), (1, 1000), (16, 20)):
                yield (B, K, C, side), Affinity(), True
                if K < 1000:
                    yield (B, K, C, side), Affinity(), False
                    yield (B, K, C, side), Affinity(power=2), True


def methods_of(problem: cost_model.Problem) -> Iterator[tuple[str, cost_model.Cost]]:
    """The methods timed, each with its cost as the dispatcher counts it."""
    for method in dispatch.TORCH_METHODS:
        cost = cost_model.cost(method, problem)
        if dispatch.not_supported_reasons(method, "torch", problem) or cost.flops > BUDGET:
            continue
        if method != "dense" or cost.extra_memory <= dispatch.DENSE_LIMIT:
            yield method, cost


def expected_seconds() -> list[float]:
    """About how long each problem's timing takes: by the rates in the package, and by how fast this machine is."""
    listed = [
        cost_model.Problem(B, K, C, side * side, affinity, sign) for (B, K, C, side), affinity, sign in problems()
    ]
    known = cost_model.RATES["cpu", "torch"]
    cam, f, sample = torch.rand(1, 20, 56, 56), torch.rand(1, 256, 56, 56), ("prototypes", "tiled")
    one = cost_model.Problem(1, 20, 256, 56 * 56, Affinity(), True)
    spent = [measure.median_seconds(lambda m=m: polish(cam, f, method=m, nonnegative=True)) for m in sample]  # type: ignore[misc]
    slower = sum(spent) / sum(cost_model.seconds(cost_model.cost(method, one), known) for method in sample)

    def timed(cost: cost_model.Cost) -> float:
        one_call = slower * cost_model.seconds(cost, known)
        return max(4 * one_call, min(0.4, 17 * one_call))  # as ``measure.median_seconds`` does

    return [sum(timed(cost) for _, cost in methods_of(problem)) for problem in listed]


def timings() -> Iterator[dict[str, Any]]:
    """One row per problem and supported method: its cost as the dispatcher counts it and the median time."""
    costs = expected_seconds()
    shown = paced(problems(), "calibrate", costs=costs, seconds=sum(costs))
    for (B, K, C, side), affinity, nonnegative in shown:
        problem = cost_model.Problem(B, K, C, side * side, affinity, nonnegative)
        draw = torch.rand if nonnegative else torch.randn
        cam, f = torch.rand(B, K, side, side), draw(B, C, side, side)
        for method, cost in methods_of(problem):

            def call(
                method: str = method, cam: Any = cam, f: Any = f, affinity: Any = affinity, sign: bool = nonnegative
            ) -> Any:
                return polish(cam, f, affinity=affinity, method=method, nonnegative=sign)

            name = f"B={B} K={K} C={C} L={side * side} power={affinity.power:g} {'f>=0' if nonnegative else 'signed'}"
            yield {"problem": name, "method": method, "cost": cost, "ms": measure.median_seconds(call) * 1e3}


def fit(rows: list[dict[str, Any]]) -> cost_model.Rates:
    """Rates whose predicted times have the least squared relative error, all times ≥ 0."""
    terms = np.array([[row["cost"].flops, row["cost"].bytes_moved, row["cost"].launches] for row in rows], float)
    times = np.array([row["ms"] / 1e3 for row in rows])
    scale = terms.max(axis=0)
    per_unit, _ = nnls(terms / scale / times[:, None], np.ones(len(rows)))
    with np.errstate(divide="ignore"):
        return cost_model.Rates(*(float(rate) for rate in scale / per_unit))


def regrets(rows: list[dict[str, Any]], rates: cost_model.Rates) -> list[tuple[str, str, str, float]]:
    """Per problem: the method that ``rates`` pick, the fastest, and how much longer the pick took."""
    found = []
    for name in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == name]
        picked = min(mine, key=lambda row: cost_model.seconds(row["cost"], rates))
        fastest = min(mine, key=lambda row: row["ms"])
        found.append((name, picked["method"], fastest["method"], picked["ms"] / fastest["ms"]))
    return found


def main(save: Path | None) -> None:
    """Time, fit, print; with ``save`` keep the timings as JSON."""
    rows = list(timings())
    rates = fit(rows)
    print(f"fitted to this machine: {rates}")
    for label, used in (("fitted", rates), ("cost_model.RATES['cpu', 'torch']", cost_model.RATES["cpu", "torch"])):
        found = regrets(rows, used)
        misses = sorted((regret for regret in found if regret[3] > 1.1), key=lambda regret: -regret[3])
        print(f"{label}: the pick is within 10 % of the fastest in {len(found) - len(misses)} of {len(found)} problems")
        for name, picked, fastest, ratio in misses[:12]:
            print(f"    {name}: {picked} takes {ratio:.2f}× the time of {fastest}")
    print(measure.describe(measure.machine()))
    if save:
        measure.save(save, [row | {"cost": row["cost"]._asdict(), "ms": round(row["ms"], 4)} for row in rows])
