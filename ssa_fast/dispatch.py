"""Which way to polish a stage: a pure function of shapes, dtype, device and φ.

``Problem`` says what is to be done, ``plan`` answers with a ``Choice`` and its reason. A way is a *path* (which
algebra) on a *backend* (whose code). ``not_supported_reasons`` is the one list of what cannot be done, for the
dispatcher, the error messages, tests and benchmarks alike; ``cost`` counts what each path does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ssa_fast.paths.pixels import TILE_ELEMENTS
from ssa_fast.paths.tiled import BLOCK_I, BLOCK_J

if TYPE_CHECKING:
    from ssa_fast.affinity import Affinity

PATHS = ("auto", "dense", "prototypes", "second_order", "tiled", "resident")
BACKENDS = ("auto", "torch", "triton", "reference")

TORCH_PATHS = ("prototypes", "second_order", "tiled", "dense")
DENSE_LIMIT = 256 << 20  # bytes of affinity beyond which "auto" leaves the dense path alone


@dataclass(frozen=True)
class Problem:
    """One stage to polish.

    ``B`` images, ``K`` CAM classes, ``C`` channels, ``L`` pixels; ``itemsize`` bytes of a number of the computation (4
    or 8); ``device`` a torch device type; ``nonnegative`` whether every feature is known to be ≥ 0 (None: not known).
    """

    B: int
    K: int
    C: int
    L: int
    affinity: Affinity
    nonnegative: bool | None = None
    itemsize: int = 4
    device: str = "cpu"


class Cost(NamedTuple):
    """What one path does: floating-point operations, bytes moved through memory, extra bytes held, library calls."""

    flops: int
    traffic: int
    extra_memory: int
    calls: int


@dataclass(frozen=True)
class Choice:
    """How a stage is polished, what that is predicted to take, and why this way."""

    path: str
    backend: str
    cost: Cost
    why: str


class Rates(NamedTuple):
    """How fast a kind of device does what ``Cost`` counts; only the ratios between them decide anything."""

    flops: float
    traffic: float
    calls: float


# Fitted to the CPU paths on 2 cores by `python -m bench calibrate`; a device without an entry is read as a GPU whose
# library calls are short against its arithmetic.
RATES = {"cpu": Rates(flops=246e9, traffic=22e9, calls=63e3)}
OTHER_RATES = Rates(flops=50e12, traffic=3e12, calls=100e3)


def cost(path: str, problem: Problem) -> Cost:
    """Operations, traffic and extra memory of one path; the formulas of the table in the README.

    ``flops`` counts a multiply and an add as two. ``extra_memory`` is what is held beyond the features, the CAM at the
    stage's size and the result: the affinity or its tile, the CAM's row of ones and its sums, the state.
    """
    B, K, C, L, s = problem.B, problem.K, problem.C, problem.L, problem.itemsize
    rows, steps, features = K + 1, problem.affinity.steps, B * C * L * s
    sums = 2 * B * rows * L * s
    if path == "dense":
        flops = 2 * B * L * L * (C + rows * steps)
        square = B * L * L * s
        mask = B * L * L if problem.affinity.threshold > 0 else 0
        return Cost(flops, 3 * features + (2 + steps) * square, square + mask + 2 * features + sums, 6 + 2 * steps)
    tile_elements = min(B * C * L, max(TILE_ELEMENTS, 64 * B * C))
    tiles, tile = -(-B * C * L // tile_elements), 2 * tile_elements * s
    state = {"prototypes": B * rows * C * s, "second_order": B * rows * C * C * s}.get(path, 0)
    if path == "prototypes":
        calls = 3 + 3 * tiles + 6 * tiles * steps
        return Cost(4 * B * L * C * rows * steps, (1 + 2 * steps) * features, state + tile + sums, calls)
    if path == "second_order":
        calls = 3 + 3 * tiles + 6 * tiles * rows * steps
        traffic = features + 6 * steps * rows * features
        return Cost(4 * B * L * C * C * rows * steps, traffic, state + tile + sums, calls)
    if path in ("tiled", "resident"):
        block_i, block_j = min(L, BLOCK_I), min(L, BLOCK_J)
        columns = -(-L // block_j) * (-(-L // block_i) + 1) // 2
        flops = B * steps * (L * L + L * block_j) * (C + 2 * rows)
        traffic = B * steps * (3 * L * L * s // 2 + columns * block_j * C * s)
        held = (block_i * block_j + C * (block_i + block_j)) * s
        return Cost(flops, traffic, held + sums, B * steps * (4 + 7 * columns))
    raise ValueError(f"path: expected one of {', '.join(PATHS[1:])}, got {path!r}")


def not_supported_reasons(path: str, backend: str, problem: Problem) -> list[str]:
    """Why ``path`` on ``backend`` cannot polish ``problem`` exactly; empty if it can."""
    if backend == "triton":
        return ["this version ships no Triton kernels; use backend='torch' or 'auto'"]
    if path == "resident":
        return ["'resident' is a kernel of backend='triton', and this version ships none; use path='tiled' or 'auto'"]
    if backend == "reference":
        return [] if path == "dense" else [f"the reference is dense by definition, it has no path {path!r}"]
    if path in ("tiled", "dense"):
        return []
    return _algebraic_reasons(path, problem)


def _algebraic_reasons(path: str, problem: Problem) -> list[str]:
    """What keeps the ReLU from never acting, or φ from being the polynomial that ``path`` sums."""
    affinity, degree = problem.affinity, {"prototypes": 1, "second_order": 2}[path]
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


def plan(problem: Problem, path: str = "auto", backend: str = "auto") -> Choice:
    """Choose how to polish ``problem``; a ``path`` or ``backend`` that is named is taken or refused, never replaced.

    Raises:
        ValueError: an unknown name, or a way that cannot do this problem exactly, with the reasons.
    """
    if path not in PATHS:
        raise ValueError(f"path: expected one of {', '.join(PATHS)}, got {path!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "auto":
        backend = "torch"
    if backend == "reference" and path == "auto":
        path = "dense"
    if path != "auto" or backend == "triton":
        reasons = not_supported_reasons(path, backend, problem)
        if reasons:
            raise ValueError(f"path={path!r}, backend={backend!r} cannot polish this stage: {'; '.join(reasons)}")
        return Choice(path, backend, cost(path, problem), "asked for")
    return _cheapest(problem, backend)


def seconds(cost: Cost, rates: Rates) -> float:
    """The dispatcher's own estimate of a cost, good for comparing paths on one device and for nothing else."""
    return cost.flops / rates.flops + cost.traffic / rates.traffic + cost.calls / rates.calls


def _cheapest(problem: Problem, backend: str) -> Choice:
    """The supported path of least estimated time, and what it was compared with."""
    estimates, ruled_out = {}, {}
    for path in TORCH_PATHS:
        reasons = not_supported_reasons(path, backend, problem)
        counted = cost(path, problem)
        if path == "dense" and counted.extra_memory > DENSE_LIMIT:
            reasons.append(f"it would hold {counted.extra_memory / 2**20:,.0f} MiB")
        if reasons:
            ruled_out[path] = "; ".join(reasons)
        else:
            estimates[path] = seconds(counted, RATES.get(problem.device, OTHER_RATES))
    best = min(estimates, key=lambda path: estimates[path])
    others = [f"{path} {estimates[path] / estimates[best]:.1f}× the cost" for path in estimates if path != best]
    others += [f"{path} no: {why}" for path, why in ruled_out.items()]
    return Choice(best, backend, cost(best, problem), "; ".join(["least estimated cost", *others]))
