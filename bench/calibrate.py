"""``python -m bench calibrate``: fit the dispatcher's rates to a CPU; how often does it pick the fastest method then?

The times are those of a file that ``python -m bench --suite rates`` with ``--provider`` for each method has saved.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

import numpy as np
from scipy.optimize import nnls

from bench import plot
from bench.measure import Device
from bench.problems import named
from bench.providers import counted
from ssa_fast.ops import cost_model, dispatch

Timings: TypeAlias = "dict[str, dict[str, tuple[cost_model.Cost, float]]]"


def timings(file: Path) -> Timings:
    """Return of each problem and method of ours that was timed its cost, as the dispatcher counts it, and seconds."""
    found: Timings = {}
    for (problem, method), row in plot.read(file).rows.items():
        if method in dispatch.TORCH_METHODS and row["status"] == "ok":
            cost = cost_model.cost(method, counted(named(problem), Device()))
            found.setdefault(problem, {})[method] = cost, row["warm_ms"]["p50"] / 1e3
    return found


def fit(found: Timings) -> cost_model.Rates:
    """Return rates whose predicted times have the least squared relative error, all times ≥ 0."""
    costs, times = zip(*(each for methods in found.values() for each in methods.values()), strict=True)
    terms = np.array([[cost.flops, cost.bytes_moved, cost.launches] for cost in costs], float)
    scale = terms.max(axis=0)
    per_unit, _ = nnls(terms / scale / np.array(times)[:, None], np.ones(len(times)))
    with np.errstate(divide="ignore"):
        return cost_model.Rates(*(float(rate) for rate in scale / per_unit))


def main(arguments: list[str]) -> int:
    """Fit and print; return 0, or 2 where the file has no times of ours."""
    parser = argparse.ArgumentParser(prog="python -m bench calibrate", description=__doc__)
    parser.add_argument("results", type=Path, help="file of python -m bench")
    file = parser.parse_args(arguments).results
    try:
        found = timings(file)
    except plot.Malformed as error:
        parser.error(str(error))
    if not found:
        parser.error(f"results: expected times of {', '.join(dispatch.TORCH_METHODS)}, got none in {file}")
    for label, rates in ("fitted", fit(found)), ("cost_model", cost_model.RATES["cpu", "torch"]):
        misses = []
        for problem, methods in found.items():
            picked = min(methods, key=lambda name: cost_model.seconds(methods[name][0], rates))
            fastest = min(methods, key=lambda name: methods[name][1])
            ratio = methods[picked][1] / methods[fastest][1]
            if ratio > 1.1:
                misses.append((ratio, f"    {problem}: {picked} takes {ratio:.2f}× the time of {fastest}"))
        print(f"{label}: the pick is within 10 % of the fastest in {len(found) - len(misses)} of {len(found)} problems")
        print(f"    {rates}", *(text for _, text in sorted(misses, reverse=True)), sep="\n")
    return 0
