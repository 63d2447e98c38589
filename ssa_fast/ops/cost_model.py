"""What each way to polish a stage costs: operations, traffic, memory and calls, counted from the shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ssa_fast.kernels.config import Full
from ssa_fast.ops import tile_tables
from ssa_fast.ops.features import NORM_CHUNK, TILE_ELEMENTS
from ssa_fast.ops.tiled import BLOCK_I, BLOCK_J

if TYPE_CHECKING:
    from ssa_fast.affinity import Affinity
    from ssa_fast.ops.gpu_info import Gpu

METHODS = ("dense", "prototypes", "second_order", "tiled", "resident")
WORKSPACE = 256 << 20  # bytes of partial sums that the tiled kernels may hold


@dataclass(frozen=True)
class Problem:
    """One stage to polish.

    ``B`` images, ``K`` CAM classes, ``C`` channels, ``L`` pixels; ``itemsize`` bytes of a number of the computation (4
    or 8); ``device`` a torch device type; ``nonnegative`` whether every feature is known to be ≥ 0 (None: not known);
    ``dtype`` of the features; ``precision`` of the kernels' matrix products; ``gpu`` whose kernels can be launched, or
    None and ``no_gpu`` says why.
    """

    B: int
    K: int
    C: int
    L: int
    affinity: Affinity
    nonnegative: bool | None = None
    itemsize: int = 4
    device: str = "cpu"
    dtype: str = "float32"
    precision: str = "default"
    gpu: Gpu | None = None
    no_gpu: str = "no GPU was named"


class Cost(NamedTuple):
    """What one method does: floating-point operations, bytes moved through memory, extra bytes held, library calls.

    ``busy`` is the share of the device's processors that have work: a few large tiles leave a GPU idle.
    """

    flops: int
    traffic: int
    extra_memory: int
    calls: int
    busy: float = 1.0


class Rates(NamedTuple):
    """How fast a kind of device does what ``Cost`` counts; only the ratios between them decide anything."""

    flops: float
    traffic: float
    calls: float


# The CPU's rates were fitted on 2 cores by `python -m bench calibrate`. Those of GPUs are unchecked estimates
# for a large one: PyTorch in float32, and the kernels with half-precision operands.
RATES = {
    ("cpu", "torch"): Rates(flops=304e9, traffic=26e9, calls=92e3),
    ("gpu", "torch"): Rates(flops=50e12, traffic=3e12, calls=100e3),
    ("gpu", "triton"): Rates(flops=400e12, traffic=3e12, calls=200e3),
}


def cost(method: str, problem: Problem, backend: str = "torch") -> Cost:
    """Operations, traffic and extra memory of one method; the formulas of the table in the README.

    ``flops`` counts a multiply and an add as two. ``extra_memory`` is what is held beyond the features, the CAM at the
    stage's size and the result: the affinity or its tile, the CAM's row of ones and its sums, the state.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    return _triton_cost(method, problem) if backend == "triton" else _torch_cost(method, problem)


def _torch_cost(method: str, problem: Problem) -> Cost:
    B, K, C, L, s = problem.B, problem.K, problem.C, problem.L, problem.itemsize
    rows, steps, features = K + 1, problem.affinity.steps, B * C * L * s
    sums = 2 * B * rows * L * s
    if method == "dense":
        flops = 2 * B * L * L * (C + rows * steps)
        square = B * L * L * s
        mask = B * L * L if problem.affinity.threshold > 0 else 0
        return Cost(flops, 3 * features + (2 + steps) * square, square + mask + 2 * features + sums, 6 + 2 * steps)
    tile_elements = min(B * C * L, max(TILE_ELEMENTS, 64 * B * C))
    tiles, parts = -(-B * C * L // tile_elements), -(-B * C * L // NORM_CHUNK)
    tile, measuring = (tile_elements + NORM_CHUNK) * s, 8 * tiles + parts
    state = {"prototypes": B * rows * C * s, "second_order": B * rows * C * C * s}.get(method, 0)
    if method == "prototypes":
        calls = measuring + (9 + 6 * tiles) * steps
        return Cost(4 * B * L * C * rows * steps, (1 + 2 * steps) * features, state + tile + sums, calls)
    if method == "second_order":
        calls = measuring + (9 + 6 * tiles * rows) * steps
        traffic = features + 6 * steps * rows * features
        return Cost(4 * B * L * C * C * rows * steps, traffic, state + tile + sums, calls)
    block_i, block_j = min(L, BLOCK_I), min(L, BLOCK_J)
    columns = -(-L // block_j) * (-(-L // block_i) + 1) // 2
    flops = B * steps * (L * L + L * block_j) * (C + 2 * rows)
    traffic = B * steps * (3 * L * L * s // 2 + columns * block_j * C * s)
    held = (block_i * block_j + C * (block_i + block_j)) * s
    return Cost(flops, traffic, held + sums, B * steps * (4 + 7 * columns))


def _triton_cost(method: str, problem: Problem) -> Cost:
    """As ``cost``, of the kernels: traffic is that of the device's memory, whatever its caches serve again."""
    B, K, C, L, steps = problem.B, problem.K, problem.C, problem.L, problem.affinity.steps
    itemsize = 4 if problem.dtype == "float32" else 2
    products = 3 if problem.precision == "high" or (method == "prototypes" and itemsize == 4) else 1
    features, maps = B * C * L * itemsize, 2 * B * K * L * 4
    if method == "prototypes":
        rows = tile_config(method, problem).rows
        chunks = -(-(K + 1) // rows)
        slabs = min(16 << 20, B * chunks * rows * C * 4 * -(-L // 64))
        flops = 4 * B * L * C * chunks * rows * max(products, 2) * steps
        return Cost(flops, steps * (2 * features + maps), slabs + 2 * B * L * 4, 1 + 3 * steps)
    config = tile_config(method, problem)
    chunks = -(-K // (config.rows - 1))
    rows = chunks * config.rows
    if method == "resident":
        busy = min(1.0, B * chunks * -(-L // config.block_j) / _processors(problem))
        flops = 2 * B * L * L * (chunks * C + rows) * products * steps * (2 if itemsize == 4 else 1)
        return Cost(flops, steps * (features + maps), 0 if steps == 1 else B * (K + 1) * L * 4, steps, busy)
    halves = 2 if problem.precision == "high" else 1
    unit = B * L * (C + rows) * 2 * halves
    if isinstance(config, Full):
        busy = min(1.0, B * chunks * -(-L // config.block_j) / _processors(problem))
        flops = 2 * B * L * L * (chunks * C + rows) * products * steps
        return Cost(flops, features + unit + steps * maps, unit + B * L * 4, 2 + 2 * steps, busy)
    blocks = -(-L // config.block)
    slabs = B * blocks * (blocks // config.bands + 1) // 2 * config.block * rows * 4
    busy = min(1.0, B * chunks * blocks * blocks / (2 * config.bands * config.chunk) / _processors(problem))
    flops = B * L * (L + config.block) * (chunks * C + 2 * rows) * products * steps
    launches = 2 + steps * (1 + 2 * -(-slabs // WORKSPACE))
    return Cost(
        flops, features + unit + steps * (2 * slabs + maps), unit + min(slabs, WORKSPACE) + B * L * 4, launches, busy
    )


def tile_config(method: str, problem: Problem) -> Any:
    """The tiles of a Triton method's main kernel, from the table of the problem's GPU."""
    assert problem.gpu is not None
    return tile_tables.config(
        "gather" if method == "prototypes" else method,
        gpu=problem.gpu,
        C=problem.C,
        L=problem.L,
        K=problem.K,
        dtype=problem.dtype,
        precision=problem.precision,
        phi=problem.affinity.phi,
    )


def _processors(problem: Problem) -> int:
    assert problem.gpu is not None
    return problem.gpu.processors


def seconds(cost: Cost, rates: Rates) -> float:
    """The dispatcher's own estimate of a cost, good for comparing methods on one device and for nothing else."""
    return cost.flops / (rates.flops * cost.busy) + cost.traffic / rates.traffic + cost.calls / rates.calls
