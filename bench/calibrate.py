"""``python -m bench calibrate``: fit the dispatcher's rates to this CPU; how often does it pick the fastest then?"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import nnls

from bench.measure import Device, command_line, describe, machine, save, time_interleaved
from ssa_fast import Affinity, polish
from ssa_fast.io.progress import paced
from ssa_fast.ops import cost_model, dispatch

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 3e11  # floating-point operations beyond which a method is not worth waiting for
BUDGET_S = 0.4  # for a method's calls, 3 at least


def problems() -> Iterator[cost_model.Problem]:
    """Yield the problems timed: stages of common backbones, with several numbers of classes, signs and φ."""
    for C, sides in ((64, (7, 28, 56, 112)), (256, (7, 14, 32, 56, 128)), (1024, (14, 32, 64)), (2048, (7, 16, 32))):
        for side in sides:
            for B, K in ((1, 1), (1, 20), (1, 1000), (16, 20)):
                yield cost_model.Problem(B, K, C, side * side, Affinity(), True)
                if K < 1000:
                    yield cost_model.Problem(B, K, C, side * side, Affinity(), False)
                    yield cost_model.Problem(B, K, C, side * side, Affinity(power=2), True)


def methods_of(problem: cost_model.Problem) -> Iterator[tuple[str, cost_model.Cost]]:
    """Yield the methods timed, each with its cost as the dispatcher counts it."""
    for method in dispatch.TORCH_METHODS:
        cost = cost_model.cost(method, problem)
        if dispatch.not_supported_reasons(method, "torch", problem) or cost.flops > MOST:
            continue
        if method != "dense" or cost.extra_memory <= dispatch.DENSE_LIMIT:
            yield method, cost


def expected_seconds(problem: cost_model.Problem) -> float:
    """Return about how long a problem's timing takes by the rates in the package: its share of the progress."""
    calls = (cost_model.seconds(cost, cost_model.RATES["cpu", "torch"]) for _, cost in methods_of(problem))
    return sum(max(7 * one, min(BUDGET_S, 31 * one)) for one in calls)


def timings(problem: cost_model.Problem) -> list[dict[str, Any]]:
    """Return a row per supported method: its cost and the median time."""
    B, K, C, affinity, sign = problem.B, problem.K, problem.C, problem.affinity, problem.nonnegative
    side = round(problem.L**0.5)
    cam, f = torch.rand(B, K, side, side), (torch.rand if sign else torch.randn)(B, C, side, side)
    costs = dict(methods_of(problem))
    calls = {each: partial(polish, cam, f, affinity=affinity, method=each, nonnegative=sign) for each in costs}  # type: ignore[arg-type]
    times = time_interleaved(Device(), calls, cold=0, warm=15, least=3, budget=BUDGET_S * len(calls))
    name = f"B={B} K={K} C={C} L={problem.L} power={affinity.power:g} {'f>=0' if sign else 'signed'}"
    return [
        {"problem": name, "method": each, "cost": costs[each], "ms": 1e3 * float(np.median(times[each].warm))}
        for each in calls
    ]


def fit(rows: list[dict[str, Any]]) -> cost_model.Rates:
    """Return rates whose predicted times have the least squared relative error, all times ≥ 0."""
    terms = np.array([[row["cost"].flops, row["cost"].bytes_moved, row["cost"].launches] for row in rows], float)
    times = np.array([row["ms"] / 1e3 for row in rows])
    scale = terms.max(axis=0)
    per_unit, _ = nnls(terms / scale / times[:, None], np.ones(len(rows)))
    with np.errstate(divide="ignore"):
        return cost_model.Rates(*(float(rate) for rate in scale / per_unit))


def regrets(rows: list[dict[str, Any]], rates: cost_model.Rates) -> list[tuple[float, str, str, str]]:
    """Return per problem how much longer the method that ``rates`` pick took than the fastest, and both."""
    found = []
    for name in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == name]
        picked = min(mine, key=lambda row: cost_model.seconds(row["cost"], rates))
        fastest = min(mine, key=lambda row: row["ms"])
        found.append((picked["ms"] / fastest["ms"], name, picked["method"], fastest["method"]))
    return sorted(found, reverse=True)


def main(arguments: list[str]) -> int:
    """Time, fit, print; return 0."""
    parser = argparse.ArgumentParser(prog="python -m bench calibrate", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the figures and the machine to a JSON file")
    options = parser.parse_args(arguments)
    costs = [expected_seconds(problem) for problem in problems()]
    rows = [row for problem in paced(problems(), "calibrate", costs=costs) for row in timings(problem)]
    rates = fit(rows)
    print(f"fitted to this machine: {rates}")
    for label, used in (("fitted", rates), ("cost_model.RATES['cpu', 'torch']", cost_model.RATES["cpu", "torch"])):
        found = regrets(rows, used)
        misses = [each for each in found if each[0] > 1.1]
        print(f"{label}: the pick is within 10 % of the fastest in {len(found) - len(misses)} of {len(found)} problems")
        for ratio, name, picked, fastest in misses[:12]:
            print(f"    {name}: {picked} takes {ratio:.2f}× the time of {fastest}")
    print(describe(machine()))
    if options.save:
        told = [row | {"cost": row["cost"]._asdict(), "ms": round(row["ms"], 4)} for row in rows]
        save(options.save, told, command=command_line(["calibrate", *arguments]))
    return 0
