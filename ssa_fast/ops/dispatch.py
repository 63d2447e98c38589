"""Choose how to polish a stage and how to fuse the stages: a pure function of shapes, dtypes, device and φ.

A ``Candidate`` is a *method* (which algebra) on a *backend* (whose code). ``not_supported_reasons`` is the one list of
what cannot be done, for the dispatcher, error messages, tests and benchmarks alike; ``ssa_fast.ops.cost_model`` counts
what each candidate does.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ssa_fast.ops import tile_tables
from ssa_fast.ops.cost_model import RATES, Cost, FusionProblem, Problem, cost, fusion_cost, seconds, tile_config

TORCH_METHODS = ("prototypes", "second_order", "tiled", "dense")
TRITON_METHODS = ("prototypes", "tiled", "resident")
DENSE_LIMIT = 256 << 20  # bytes of affinity above which "auto" does not take the dense method
HALF_USED = 0.5  # share of the multiprocessors below which a reason names the programs
RESIDENT_LIMIT = 2 << 20  # bytes of an image's features above which "auto" does not take the resident method


class Candidate(NamedTuple):
    """A method on a backend."""

    method: str
    backend: str


@dataclass(frozen=True)
class Choice:
    """Decision for one stage or for the fusion, with its predicted cost and the reason.

    ``config`` holds the tiles of a Triton method's main kernel. ``fallback`` is the method of images that turn out to
    have a negative feature, where the GPU itself reads the sign.
    """

    method: str
    backend: str
    cost: Cost
    why: str
    config: Any = None
    fallback: str | None = None


def not_supported_reasons(method: str, backend: str, problem: Problem) -> list[str]:
    """Return why ``method`` on ``backend`` cannot polish ``problem`` exactly; empty if it can."""
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
    """Return why the Triton kernels cannot take this problem, whatever its φ."""
    if method not in TRITON_METHODS:
        return [f"{method!r} has no Triton kernel; use backend='torch'"]
    reasons = [problem.no_gpu] if problem.gpu is None else tile_tables.not_supported_reasons(problem.gpu)
    if problem.itemsize == 8:
        reasons.append("float64 is computed by PyTorch only; use backend='torch'")
    return reasons


def _algebraic_reasons(method: str, problem: Problem) -> list[str]:
    """Return why φ is not the polynomial that ``method`` sums, or why the ReLU may act."""
    affinity, degree = problem.affinity, {"prototypes": 1, "second_order": 2}[method]
    if affinity.phi == "exp":
        return ["φ must be the ReLU or the shifted form, it is 'exp'"]
    reasons = []
    if affinity.power != degree:
        reasons.append(f"power must be {degree}, it is {affinity.power:g}")
    if affinity.threshold > 0:
        reasons.append(f"threshold must be 0, it is {affinity.threshold:g}")
    if affinity.any_sign:
        return reasons
    if affinity.center:
        reasons.append("centred features are signed, so the ReLU acts; phi='shifted' has none")
    elif problem.nonnegative is False:
        reasons.append(
            "the features are not all known to be >= 0 (a negative value, NaN, or nonnegative=False); phi='shifted' "
            "takes any sign"
        )
    elif problem.nonnegative is None and not reasons:
        reasons.append("it is not known whether all features are >= 0; pass nonnegative=True or use method='auto'")
    return reasons


@functools.lru_cache(maxsize=4096)  # a small stage on a GPU takes less time than a decision
def plan(problem: Problem, method: str = "auto", backend: str = "auto") -> Choice:
    """Choose how to polish ``problem``; a named ``method`` or ``backend`` is taken or refused, never replaced.

    Raises:
        ValueError: No candidate can polish the stage exactly, with the reasons.
    """
    candidates = _candidates(problem, method, backend)
    named = method != "auto" or backend == "reference"
    return _first_supported(problem, candidates) if named else _cheapest_supported(problem, candidates)


def _candidates(problem: Problem, method: str, backend: str) -> list[Candidate]:
    """Return the candidates that the caller's names allow; on the CPU "auto" never means Triton's interpreter."""
    methods = {"triton": TRITON_METHODS, "torch": TORCH_METHODS, "reference": ("dense",)}
    backends = [backend] if backend != "auto" else ["torch"] if problem.device == "cpu" else ["triton", "torch"]
    allowed = [Candidate(each, b) for b in backends for each in methods[b] if method in ("auto", each)]
    return allowed or [Candidate(method, backends[-1])]


def _first_supported(problem: Problem, candidates: list[Candidate]) -> Choice:
    """Return the named method on the first backend that can do it exactly."""
    refusals = []
    for candidate in candidates:
        method, backend = candidate
        reasons = not_supported_reasons(method, backend, problem)
        if not reasons:
            return _choice(candidate, problem, "asked for")
        refusals.append(f"method={method!r}, backend={backend!r} cannot polish this stage: {'; '.join(reasons)}")
    raise ValueError(". ".join(refusals))


def _cheapest_supported(problem: Problem, candidates: list[Candidate]) -> Choice:
    """Return the supported candidate of least estimated time; the reason compares it with the others."""
    costs: dict[Candidate, Cost] = {}
    ruled_out: dict[Candidate, str] = {}
    for candidate in candidates:
        known = replace(problem, nonnegative=True) if _finds_sign_on_gpu(candidate, problem) else problem
        reasons = not_supported_reasons(*candidate, known)
        if not reasons:
            costs[candidate] = _cost_of(candidate, problem)
            reasons = _not_for_auto_reasons(candidate.method, problem, costs[candidate])
        if reasons:
            costs.pop(candidate, None)
            ruled_out[candidate] = "; ".join(reasons)
    if not costs:
        why = ". ".join(dict.fromkeys(ruled_out.values()))
        raise ValueError(f"backend={candidates[0].backend!r} cannot polish this stage: {why}")
    best, why = _cheapest(costs, ruled_out, problem.device)
    return _choice(best, problem, why)


def _cheapest(costs: dict[Candidate, Cost], ruled_out: dict[Candidate, str], device: str) -> tuple[Candidate, str]:
    """Return the candidate of least estimated time, and how the others compare."""
    time = {each: estimate(each.backend, counted, device) for each, counted in costs.items()}
    best = min(time, key=lambda each: time[each])
    several = len({each.backend for each in (*costs, *ruled_out)}) > 1
    names = {each: f"{each.method} on {each.backend}" if several else each.method for each in (*costs, *ruled_out)}
    others = [
        f"{names[each]} {time[each] / time[best]:.1f}× the cost{_bottleneck(costs[each], device)}"
        for each in time
        if each != best
    ]
    others += [f"{names[each]} no: {reasons}" for each, reasons in ruled_out.items()]
    least = "least estimated cost" if device == "cpu" else f"least predicted time, {1e6 * time[best]:.0f} µs"
    return best, "; ".join([least, *others])


def estimate(backend: str, counted: Cost, device: str) -> float:
    """Return the estimated seconds of a cost; on a GPU those in a CUDA graph of an H100, predicted, not measured."""
    kind = "cpu" if device == "cpu" else "gpu"
    return seconds(counted, RATES.get((kind, backend), RATES["gpu", backend]))


def _bottleneck(counted: Cost, device: str) -> str:
    """Return what keeps kernels from using a GPU, in parentheses, or ""."""
    if device == "cpu" or not counted.programs or counted.occupancy > HALF_USED:
        return ""
    return f" ({counted.programs} programs on {counted.programs / counted.occupancy:.0f} multiprocessors)"


def needs_sign(problem: Problem, method: str, backend: str) -> bool:
    """Return whether the host has to read the features' sign before ``plan`` can decide.

    Where only the kernels need it they read it themselves: on a GPU the host would have to wait.
    """
    affinity = problem.affinity
    if problem.nonnegative is not None or affinity.degree is None or affinity.any_sign or backend == "reference":
        return False
    if method != "auto":
        return method in ("prototypes", "second_order")
    kernels = backend == "triton" or (backend == "auto" and problem.device != "cpu" and problem.gpu is not None)
    return not (kernels and not _triton_reasons("tiled", problem))


def _not_for_auto_reasons(method: str, problem: Problem, cost: Cost) -> list[str]:
    """Return why "auto" does not take a method that is available by name."""
    if method == "dense" and cost.extra_memory > DENSE_LIMIT:
        return [f"it would hold {cost.extra_memory / 2**20:,.0f} MiB"]
    image = problem.C * problem.L * (4 if problem.dtype == "float32" else 2)
    if method == "resident" and image > RESIDENT_LIMIT:
        return [f"each of its programs would read an image's {image / 2**20:,.0f} MiB of features"]
    return []


def _choice(candidate: Candidate, problem: Problem, why: str) -> Choice:
    method, backend = candidate
    fallback = "tiled" if _finds_sign_on_gpu(candidate, problem) else None
    if fallback:
        why += f"; the GPU reads the features' sign and does signed images by {fallback!r}"
    config = tile_config(method, problem) if backend == "triton" else None
    return Choice(method, backend, _cost_of(candidate, problem), why, config, fallback)


def _finds_sign_on_gpu(candidate: Candidate, problem: Problem) -> bool:
    """Return whether the kernels determine the features' sign, so that the host need not wait for it."""
    affinity = problem.affinity
    unknown = problem.nonnegative is None and affinity.degree == 1 and not affinity.any_sign
    return unknown and candidate == ("prototypes", "triton")


def _cost_of(candidate: Candidate, problem: Problem) -> Cost:
    """Return a candidate's cost; where the GPU reads the sign, with the fallback's launches and memory."""
    counted = cost(candidate.method, problem, candidate.backend)
    if not _finds_sign_on_gpu(candidate, problem):
        return counted
    fallback = cost("tiled", problem, "triton")
    return counted._replace(
        extra_memory=counted.extra_memory + fallback.extra_memory,
        launches=counted.launches + fallback.launches - 1,  # the CAM's moments are found once
    )


@functools.lru_cache(maxsize=4096)
def plan_fusion(problem: FusionProblem, backend: str = "auto") -> Choice:
    """Choose the backend that rescales, resizes and fuses the stages' maps; a named one is taken or refused.

    Raises:
        ValueError: ``backend="triton"`` cannot fuse these maps, with the reasons.
    """
    kernels, pytorch = Candidate("fuse", "triton"), Candidate("fuse", "torch")
    reasons = [each for each in (problem.unsuitable, "" if problem.gpu else problem.no_gpu) if each]
    if backend == "triton" and reasons:
        raise ValueError(f"backend='triton' cannot fuse these stages: {'; '.join(reasons)}")
    if backend != "auto":
        named = kernels if backend == "triton" else pytorch
        return Choice(*named, fusion_cost(problem, named.backend), "asked for")
    if problem.device == "cpu":
        return Choice(*pytorch, fusion_cost(problem, "torch"), "the maps are on the CPU")
    ruled_out = {kernels: "; ".join(reasons)} if reasons else {}
    costs = {each: fusion_cost(problem, each.backend) for each in (kernels, pytorch) if each not in ruled_out}
    best, why = _cheapest(costs, ruled_out, problem.device)
    return Choice(*best, costs[best], why)
