"""Cost of every method, counted from the shapes alone: operations, bytes moved, memory and launches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ssa_fast.kernels.config import Full, Symmetric
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
    """Numbers of a stage to polish.

    Attributes:
        B, K, C, L: Images, CAM classes, channels, pixels.
        affinity: φ and its parameters.
        nonnegative: Whether every feature is ≥ 0; None if it is not known.
        itemsize: Bytes of a number of the computation, 4 or 8.
        device: A torch device type.
        dtype: Of the features, for example ``"float16"``.
        precision: Of the kernels' matrix products.
        gpu: The GPU whose kernels can be launched; None if there is none, and then ``no_gpu`` is the reason.
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


@dataclass(frozen=True)
class FusionProblem:
    """Numbers of a fusion of several stages' maps.

    Attributes:
        B, K: Images and CAM classes.
        pixels: Pixels of each stage's maps.
        out_pixels: Pixels of the fused map.
        rescale: Whether each map is min–max rescaled first.
        itemsize, device, gpu, no_gpu: As in ``Problem``.
        unsuitable: Why the fusion kernels cannot read these tensors, or "" if they can.
    """

    B: int
    K: int
    pixels: tuple[int, ...]
    out_pixels: int
    rescale: bool
    itemsize: int = 4
    device: str = "cpu"
    gpu: Gpu | None = None
    no_gpu: str = "no GPU was named"
    unsuitable: str = ""


class Cost(NamedTuple):
    """Cost of one method on one problem.

    ``flops`` counts a multiply and an add as two. ``bytes_moved`` goes through the device's memory. ``extra_memory`` is
    held beyond the features, the CAM at the stage's size and the result, in bytes. ``launches`` are library calls or
    kernel launches. Of the kernels: ``programs`` of the main one; ``chain``, the clocks that those of a multiprocessor
    take for their loops' turns, one after the other; and ``occupancy``, the share of the multiprocessors that have
    work: few or uneven programs leave a GPU idle.
    """

    flops: int
    bytes_moved: int
    extra_memory: int
    launches: int
    occupancy: float = 1.0
    programs: int = 0
    chain: int = 0


class Rates(NamedTuple):
    """Speed of a kind of device, per second of each term of ``Cost``."""

    flops: float
    bytes_moved: float
    launches: float
    clocks: float = math.inf


class Machine(NamedTuple):
    """Rates of a GPU, from which kernels' times are predicted; clocks are those of one multiprocessor (SM).

    ``latency`` is a round trip to the L2 and a barrier, ``start`` from a program's launch to its first loads' arrival.
    ``turn`` is what a program takes to issue the instructions of one turn of a loop: the report counts 300 to 800.
    """

    num_sms: int
    clock: float  # Hz
    bytes_per_clock: float  # of the memory, per SM
    flops_per_clock: float  # of matrix products of float16, per SM
    latency: float  # clocks
    start: float  # clocks
    turn: float  # clocks
    launch: float  # seconds from one kernel to the next in a CUDA graph


# An H100: 3.0 TB/s copied, 730 TFLOP/s of products. No kernel of this package has been timed: what is computed from
# these numbers is a prediction.
H100 = Machine(
    num_sms=132,
    clock=1.755e9,
    bytes_per_clock=3.0e12 / 132 / 1.755e9,
    flops_per_clock=730e12 / 132 / 1.755e9,
    latency=700,
    start=1500,
    turn=600,
    launch=1.5e-6,
)

LAUNCH = H100.launch + H100.start / H100.clock  # seconds of a kernel that does little
MEMORY = H100.bytes_per_clock * H100.num_sms * H100.clock  # bytes per second

# The CPU's rates were fitted on 2 cores by `python -m bench calibrate`; of them only the ratios matter. Those of GPUs
# predict an H100's time in a CUDA graph: PyTorch in float32, and the kernels, whose products of float16 take about 60 %
# of the matrix units' rate, as their other instructions are as many as a tile's products last (`bench aot` counts).
RATES = {
    ("cpu", "torch"): Rates(flops=304e9, bytes_moved=26e9, launches=92e3),
    ("gpu", "torch"): Rates(flops=50e12, bytes_moved=MEMORY, launches=1 / LAUNCH),
    ("gpu", "triton"): Rates(
        flops=0.6 * H100.flops_per_clock * H100.num_sms * H100.clock,
        bytes_moved=MEMORY,
        launches=1 / LAUNCH,
        clocks=H100.clock,
    ),
}


def cost(method: str, problem: Problem, backend: str = "torch") -> Cost:
    """Return the cost of one of ``METHODS`` on a backend; the formulas are those of docs/method.md."""
    return _triton_cost(method, problem) if backend == "triton" else _torch_cost(method, problem)


def _torch_cost(method: str, problem: Problem) -> Cost:
    B, K, C, L, s = problem.B, problem.K, problem.C, problem.L, problem.itemsize
    rows, steps, features = K + 1, problem.affinity.steps, B * C * L * s
    sums = 2 * B * K * L * s  # a step's CAM and its result
    if method == "dense":
        flops = 2 * B * L * L * (C + rows * steps)
        square = B * L * L * s
        mask = B * L * L if problem.affinity.threshold > 0 else 0
        copies = 0 if L <= C else 2 * features  # else the norms come from the diagonal of the products
        bytes_moved = features + copies + (2 + steps) * square
        return Cost(flops, bytes_moved, square + mask + copies + sums, 6 + 2 * steps)
    tile_elements = min(B * C * L, max(TILE_ELEMENTS, 64 * B * C))
    tiles, parts = -(-B * C * L // tile_elements), -(-B * C * L // NORM_CHUNK)
    tile, measuring = (tile_elements + NORM_CHUNK) * s, 8 * tiles + parts
    mean = features if problem.affinity.center else 0  # read once more
    state = {"prototypes": B * rows * C * s, "second_order": B * rows * C * C * s}.get(method, 0)
    if method == "prototypes":
        launches = measuring + (4 + 10 * tiles) * steps
        return Cost(4 * B * L * C * rows * steps, mean + (1 + 2 * steps) * features, state + tile + sums, launches)
    if method == "second_order":
        launches = measuring + (9 + 6 * tiles * rows) * steps
        bytes_moved = mean + features + 6 * steps * rows * features
        return Cost(4 * B * L * C * C * rows * steps, bytes_moved, state + tile + sums, launches)
    block_i, block_j = min(L, BLOCK_I), min(L, BLOCK_J)
    columns = -(-L // block_j) * (-(-L // block_i) + 1) // 2
    flops = B * steps * (L * L + L * block_j) * (C + 2 * rows)
    bytes_moved = B * steps * (3 * L * L * s // 2 + columns * block_j * C * s)
    held = (block_i * block_j + C * (block_i + block_j)) * s
    return Cost(flops, bytes_moved, held + sums, B * steps * (4 + 7 * columns))


def _triton_cost(method: str, problem: Problem) -> Cost:
    """Return the cost on the kernels; what the GPU's caches serve again does not count as moved."""
    if method == "prototypes":
        return _prototypes_cost(problem)
    B, K, C, L, steps = problem.B, problem.K, problem.C, problem.L, problem.affinity.steps
    config = tile_config(method, problem)
    itemsize = 4 if problem.dtype == "float32" else 2
    products = 3 if problem.precision == "high" else 1
    chunks = -(-K // (config.rows - 1))
    rows, channels = chunks * config.rows, -(-C // config.block_c)
    features, maps, layers = B * C * L * itemsize, 2 * B * K * L * 4, B * chunks
    if method == "resident":
        # Its loads wait for memory in every turn; the tiles it writes go to the next step.
        turns = -(-L // config.block_i) * channels * steps
        grid = _grid(layers * -(-L // config.block_j), turns, 1, problem)
        flops = 2 * B * L * L * (chunks * C + rows) * products * steps * (2 if itemsize == 4 else 1)
        return Cost(flops, steps * (features + maps), 0 if steps == 1 else B * (K + 1) * L * 4, steps, *grid)
    unit = B * L * (C + rows) * 2 * (2 if problem.precision == "high" else 1)
    in_flight = max(1, config.num_stages - 1)
    if isinstance(config, Full):
        turns = -(-L // config.block_i) * channels * steps
        grid = _grid(layers * -(-L // config.block_j), turns, in_flight, problem)
        flops = 2 * B * L * L * (chunks * C + rows) * products * steps
        return Cost(flops, features + unit + steps * maps, unit + B * L * 4, 2 + 2 * steps, *grid)
    programs, turns, sums = _symmetric_work(config, L, layers)
    grid, slabs = _grid(programs, turns * channels * steps, in_flight, problem), 4 * sums
    flops = B * L * (L + config.block) * (chunks * C + 2 * rows) * products * steps
    launches = 2 + steps * (1 + 2 * -(-slabs // WORKSPACE))
    memory = unit + min(slabs, WORKSPACE) + B * L * 4
    return Cost(flops, features + unit + steps * (2 * slabs + maps), memory, launches, *grid)


def _symmetric_work(config: Symmetric, L: int, layers: int) -> tuple[int, int, int]:
    """Return the symmetric kernel's programs, the blocks that one takes in turn, and the numbers in all their slots."""
    chunk = config.balanced_chunk(L, layers)
    groups = -(-L // (chunk * config.block))
    pairs = layers * groups * (groups + 1) // 2
    programs = max(1, layers * groups * groups // 2)  # those of a group with itself are half the work
    return programs, chunk // config.bands * chunk, pairs * 2 * chunk * config.block * config.rows


def _prototypes_cost(problem: Problem) -> Cost:
    B, K, C, L, steps = problem.B, problem.K, problem.C, problem.L, problem.affinity.steps
    itemsize = 4 if problem.dtype == "float32" else 2
    shifted, center = problem.affinity.phi == "shifted", problem.affinity.center
    config = tile_config("prototypes", problem)
    products = 3 if problem.precision == "high" or itemsize == 4 or center else 2
    features, maps = B * C * L * itemsize, 2 * B * K * L * 4
    chunks = -(-(K + 1) // config.rows)
    parts, tiles, in_flight = -(-C // config.block_c), -(-L // config.block_l), max(1, config.num_stages - 1)
    slabs = min(16 << 20, B * chunks * config.rows * C * 4 * -(-L // 64))
    programs = B * chunks * parts * min(tiles, max(1, 2 * _num_sms(problem) // (B * chunks * parts)))
    grid = _grid(programs, -(-B * chunks * parts * tiles // programs) * steps, in_flight, problem)
    flops = 4 * B * L * C * chunks * config.rows * products * steps
    norms = parts > 1  # in a pass of their own
    bytes_moved = steps * (2 * features + maps) + (norms + center) * features
    # Moments, sums, their total, result; means.
    launches = (4 * steps if shifted else 1 + 3 * steps) + norms + center
    return Cost(flops, bytes_moved, slabs + 2 * B * L * 4, launches, *grid)


def _grid(programs: int, turns: int, in_flight: int, problem: Problem) -> tuple[float, int, int]:
    """Return the occupancy of ``programs``, their number, and the clocks of the turns of a multiprocessor's programs.

    A turn waits for its loads unless they were issued up to ``in_flight`` turns before.
    """
    waves = -(-programs // _num_sms(problem))
    chain = waves * turns * (H100.latency / in_flight + H100.turn)
    return programs / (waves * _num_sms(problem)), programs, int(chain)


def tile_config(method: str, problem: Problem) -> Any:
    """Return the tiles of a Triton method's main kernel, from the table of the problem's GPU."""
    assert problem.gpu is not None
    return tile_tables.config(
        "gather" if method == "prototypes" else method,
        gpu=problem.gpu,
        B=problem.B,
        C=problem.C,
        L=problem.L,
        K=problem.K,
        dtype=problem.dtype,
        precision=problem.precision,
        phi=problem.affinity.phi,
        center=problem.affinity.center,
    )


def _num_sms(problem: Problem) -> int:
    assert problem.gpu is not None
    return problem.gpu.num_sms


def fusion_cost(problem: FusionProblem, backend: str) -> Cost:
    """Return the cost of rescaling, resizing and fusing maps on a backend."""
    maps = problem.B * problem.K * problem.itemsize
    read, written, stages = maps * sum(problem.pixels), maps * problem.out_pixels, len(problem.pixels)
    flops = problem.B * problem.K * (12 * stages * problem.out_pixels + 4 * sum(problem.pixels))
    if backend == "triton":
        return Cost(flops, (1 + problem.rescale) * read + written, 2 * problem.B * problem.K * stages * 4, 2)
    passes = 5 * read if problem.rescale else read
    return Cost(flops, passes + 4 * stages * written, 2 * written, stages * (3 + 6 * problem.rescale))


def seconds(cost: Cost, rates: Rates) -> float:
    """Return the dispatcher's estimate of a cost, good for comparing methods on one device and for nothing else."""
    throughput = cost.flops / (rates.flops * cost.occupancy) + cost.bytes_moved / rates.bytes_moved
    return max(throughput, cost.chain / rates.clocks) + cost.launches / rates.launches
