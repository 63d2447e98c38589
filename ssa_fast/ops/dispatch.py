"""Which way to polish a stage: a pure function of shapes, dtype, device and φ.

``Problem`` says what is to be done, ``plan`` answers with a ``Choice`` and its reason. A way is a *method* (which
algebra) on a *backend* (whose code). ``not_supported_reasons`` is the one list of what cannot be done, for the
dispatcher, the error messages, tests and benchmarks alike; ``ssa_fast.ops.cost_model`` counts what each way does.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ssa_fast.ops import tile_tables
from ssa_fast.ops.cost_model import METHODS, RATES, Cost, Problem, cost, seconds, tile_config

Way: TypeAlias = "tuple[str, str]"  # method, backend

METHOD_NAMES = ("auto", *METHODS)
BACKENDS = ("auto", "torch", "triton", "reference")
PRECISIONS = ("default", "high")

TORCH_METHODS = ("prototypes", "second_order", "tiled", "dense")
TRITON_METHODS = ("prototypes", "tiled", "resident")
DENSE_LIMIT = 256 << 20  # bytes of affinity beyond which "auto" leaves the dense method alone
RESIDENT_LIMIT = 2 << 20  # bytes of an image's features beyond which "auto" leaves the resident method alone


@dataclass(frozen=True)
class Choice:
    """How a stage is polished, what that is predicted to take, and why this way.

    ``config`` holds the tiles of a Triton method's main kernel. ``otherwise`` is the method of the images that turn out
    to have a negative feature, where the GPU itself reads the sign.
    """

    method: str
    backend: str
    cost: Cost
    why: str
    config: Any = None
    otherwise: str | None = None


def not_supported_reasons(method: str, backend: str, problem: Problem) -> list[str]:
    """Why ``method`` on ``backend`` cannot polish ``problem`` exactly; empty if it can."""
    if backend == "reference":
        return [] if method == "dense" else [f"the reference is dense by definition, it has no method {method!r}"]
    if backend == "triton":
        reasons = _triton_reasons(method, problem)
    elif method == "resident":
        return ["'resident' is a kernel of backend='triton'; on backend='torch' use method='dense', 'tiled' or 'auto'"]
    else:
        reasons = []
    return reasons if method in ("tiled", "dense", "resident") else reasons + _algebraic_reasons(method, problem)


def _triton_reasons(method: str, problem: Problem) -> list[str]:
    """What keeps Triton's kernels from this problem, whatever its φ."""
    if method not in TRITON_METHODS:
        return [f"{method!r} has no Triton kernel; use backend='torch'"]
    reasons = []
    if problem.gpu is None:
        reasons.append(problem.no_gpu)
    else:
        reasons += tile_tables.not_supported_reasons(problem.gpu)
    if problem.itemsize == 8:
        reasons.append("float64 is computed by PyTorch only; use backend='torch'")
    return reasons


def _algebraic_reasons(method: str, problem: Problem) -> list[str]:
    """What keeps the ReLU from never acting, or φ from being the polynomial that ``method`` sums."""
    affinity, degree = problem.affinity, {"prototypes": 1, "second_order": 2}[method]
    reasons = []
    if affinity.phi != "relu":
        reasons.append(f"φ must be the ReLU form, it is {affinity.phi!r}")
    if affinity.phi == "relu" and affinity.power != degree:
        reasons.append(f"power must be {degree}, it is {affinity.power:g}")
    if affinity.threshold > 0:
        reasons.append(f"threshold must be 0, it is {affinity.threshold:g}")
    if affinity.center:
        reasons.append("centred features are signed, so the ReLU acts")
    elif problem.nonnegative is False:
        reasons.append("the features are not all known to be ≥ 0 (a negative value, NaN, or nonnegative=False)")
    elif problem.nonnegative is None and not reasons:
        reasons.append("nobody has checked that the features are non-negative")
    return reasons


@functools.lru_cache(maxsize=4096)  # a small stage on a GPU takes less time than a decision
def plan(problem: Problem, method: str = "auto", backend: str = "auto") -> Choice:
    """Choose how to polish ``problem``; a ``method`` or ``backend`` that is named is taken or refused, never replaced.

    Raises:
        ValueError: an unknown name, or a way that cannot do this problem exactly, with the reasons.
    """
    for argument, value, known in (
        ("method", method, METHOD_NAMES),
        ("backend", backend, BACKENDS),
        ("precision", problem.precision, PRECISIONS),
    ):
        if value not in known:
            raise ValueError(f"{argument}: expected one of {', '.join(known)}, got {value!r}")
    ways = _ways(problem, method, backend)
    return _cheapest(problem, ways) if method == "auto" and backend != "reference" else _named(problem, ways)


def _ways(problem: Problem, method: str, backend: str) -> list[Way]:
    """``(method, backend)`` pairs that the caller's names allow; on the CPU "auto" never means Triton's interpreter."""
    offered = {
        "triton": [(each, "triton") for each in TRITON_METHODS],
        "torch": [(each, "torch") for each in TORCH_METHODS],
        "reference": [("dense", "reference")],
    }
    backends = [backend] if backend != "auto" else ["torch"] if problem.device == "cpu" else ["triton", "torch"]
    ways = [way for each in backends for way in offered[each] if method in ("auto", way[0])]
    return ways or [(method, backends[-1])]


def _named(problem: Problem, ways: list[Way]) -> Choice:
    """The method asked for, on the first backend that can do it exactly."""
    refusals = []
    for method, backend in ways:
        reasons = not_supported_reasons(method, backend, problem)
        if not reasons:
            return _choice((method, backend), problem, "asked for")
        refusals.append(f"method={method!r}, backend={backend!r} cannot polish this stage: {'; '.join(reasons)}")
    raise ValueError(". ".join(refusals))


def _cheapest(problem: Problem, ways: list[Way]) -> Choice:
    """The supported way of least estimated time, and what it was compared with."""
    costs: dict[Way, Cost] = {}
    ruled_out: dict[Way, str] = {}
    for way in ways:
        known = replace(problem, nonnegative=True) if _reads_sign_itself(way, problem) else problem
        reasons = not_supported_reasons(*way, known)
        if not reasons:
            costs[way] = _cost_of(way, problem)
            reasons = _beyond_auto(way[0], problem, costs[way])
        if reasons:
            costs.pop(way, None)
            ruled_out[way] = "; ".join(reasons)
    several = len({backend for _, backend in ways}) > 1
    names = {way: f"{way[0]} on {way[1]}" if several else way[0] for way in ways}
    if not costs:
        why = ". ".join(dict.fromkeys(ruled_out.values()))
        raise ValueError(f"backend={ways[0][1]!r} cannot polish this stage: {why}")
    device = "cpu" if problem.device == "cpu" else "gpu"
    estimates = {
        way: seconds(counted, RATES.get((device, way[1]), RATES["gpu", way[1]])) for way, counted in costs.items()
    }
    best = min(estimates, key=lambda way: estimates[way])
    others = [f"{names[way]} {estimates[way] / estimates[best]:.1f}× the cost" for way in estimates if way != best]
    others += [f"{names[way]} no: {reasons}" for way, reasons in ruled_out.items()]
    return _choice(best, problem, "; ".join(["least estimated cost", *others]))


def reads_sign(problem: Problem, method: str, backend: str) -> bool:
    """Whether the host has to read the features' sign before ``plan`` can say all it could.

    Not where only the kernels would care, which read it themselves: on a GPU that would make the host wait.
    """
    if problem.nonnegative is not None or problem.affinity.degree is None or backend == "reference":
        return False
    if method != "auto":
        return method in ("prototypes", "second_order")
    kernels = backend == "triton" or (backend == "auto" and problem.device != "cpu" and problem.gpu is not None)
    return not (kernels and not _triton_reasons("tiled", problem))


def _beyond_auto(method: str, problem: Problem, cost: Cost) -> list[str]:
    """Why "auto" leaves a method alone that could be had by its name."""
    if method == "dense" and cost.extra_memory > DENSE_LIMIT:
        return [f"it would hold {cost.extra_memory / 2**20:,.0f} MiB"]
    image = problem.C * problem.L * (4 if problem.dtype == "float32" else 2)
    if method == "resident" and image > RESIDENT_LIMIT:
        return [f"each of its programs would read an image's {image / 2**20:,.0f} MiB of features"]
    return []


def _choice(way: Way, problem: Problem, why: str) -> Choice:
    method, backend = way
    otherwise = "tiled" if _reads_sign_itself(way, problem) else None
    if otherwise:
        why += f"; the GPU reads the features' sign and does signed images by {otherwise!r}"
    config = tile_config(method, problem) if backend == "triton" else None
    return Choice(method, backend, _cost_of(way, problem), why, config, otherwise)


def _reads_sign_itself(way: Way, problem: Problem) -> bool:
    """Whether the kernels find out the sign, so that the host need not wait for it."""
    return way == ("prototypes", "triton") and problem.nonnegative is None and problem.affinity.degree == 1


def _cost_of(way: Way, problem: Problem) -> Cost:
    """The cost of a way; where the sign is read on the GPU, with the launches and the memory of the way not taken."""
    counted = cost(way[0], problem, way[1])
    if not _reads_sign_itself(way, problem):
        return counted
    idle = cost("tiled", problem, "triton")
    return counted._replace(extra_memory=counted.extra_memory + idle.extra_memory, calls=counted.calls + idle.calls)
