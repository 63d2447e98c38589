"""``python -m bench calibrate``: fit the dispatcher's rates to a CPU; how often does it pick the fastest method then?

The times are those of a file that ``python -m bench --suite rates`` with ``--provider`` for each method has saved.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from bench import plot
from bench.measure import Device
from bench.problems import named
from bench.providers import counted
from ssa_fast.ops import cost_model, dispatch


def timings(file: Path) -> list[dict[str, Any]]:
    """Return a row per problem and method of ours that was timed: its cost as the dispatcher counts it, and its ms."""
    found = []
    for (problem, method), row in plot.read(file).rows.items():
        if method in dispatch.TORCH_METHODS and row["status"] == "ok":
            cost = cost_model.cost(method, counted(named(problem), Device()))
            found.append({"problem": problem, "method": method, "cost": cost, "ms": row["warm_ms"]["p50"]})
    return found


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
    """Fit and print; return 0, or 2 where the file has no times of ours."""
    parser = argparse.ArgumentParser(prog="python -m bench calibrate", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("results", type=Path, help="file of python -m bench")
    options = parser.parse_args(arguments)
    try:
        rows = timings(options.results)
    except plot.Malformed as error:
        parser.error(str(error))
    if not rows:
        parser.error(f"results: expected times of {', '.join(dispatch.TORCH_METHODS)}, got none in {options.results}")
    rates = fit(rows)
    print(f"fitted: {rates}")
    for label, used in (("fitted", rates), ("cost_model.RATES['cpu', 'torch']", cost_model.RATES["cpu", "torch"])):
        found = regrets(rows, used)
        misses = [each for each in found if each[0] > 1.1]
        print(f"{label}: the pick is within 10 % of the fastest in {len(found) - len(misses)} of {len(found)} problems")
        for ratio, name, picked, fastest in misses[:12]:
            print(f"    {name}: {picked} takes {ratio:.2f}× the time of {fastest}")
    return 0
