"""Predict a kernel's time on an H100 from its compiled code: a model, not a measurement.

Everything is counted in clocks of the busiest multiprocessor (SM), from ``cost_model.H100``'s rates; programs are taken
in order, each by the first SM that is free:

- *memory*: each tensor's bytes once, or what is asked of it if that is less, over the whole GPU's bandwidth;
- *L2*: bytes asked for; a program that asks for more of a tensor than the tensor has finds the rest in its L1;
- *issue*: instructions × warps / 4 schedulers, loop by loop (trip counts: ``aot_ir``);
- *matrix*: FLOPs of the products as the kernel pads them;
- *latency*: a program's start, and for each turn of a loop a round trip to the L2, shared by the loop's asynchronous
  stages, or its own instructions if they take longer; both where no load is asynchronous.

The largest of the first four takes all of its time; of the others, 1/depth does not overlap with it, depth being the
programs on an SM × the stages in flight. A kernel takes the longer of that and of the latency, and a launch. PyTorch's
own kernels between launches count as a launch and their start.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, NamedTuple

from ssa_fast.ops.cost_model import H100

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.aot_ir import Block, Kernel, Loop

SAMPLED = 32  # programs whose trip counts are evaluated
SIMULATED = 8192  # programs up to which each is given to a multiprocessor


class Numbers(NamedTuple):
    """What one launch does; ``clocks`` names each term of the model."""

    programs: int
    per_sm: int
    waves: float
    loaded: int
    stored: int
    flops: int
    instructions: int  # of one turn of the inner loop
    matrix: int
    clocks: dict[str, float]
    seconds: float

    @property
    def bound(self) -> str:
        """Return the name of the largest term."""
        return max(self.clocks, key=lambda name: self.clocks[name])


def match_loops(kernel: Kernel, loops: list[Loop], warps: int) -> list[tuple[Loop | None, int]]:
    """Return the machine code's loop of each of the kernel's blocks, and how many turns one of its turns makes.

    The root and what is not found have no loop. Where there are more loops than in the source, compilers have unrolled
    some and added a remainder: the longest of a depth count, and the bytes that a turn loads tell its turns.
    """
    blocks = list(kernel.root.walk())
    matched: list[tuple[Loop | None, int]] = [(None, 1)] * len(blocks)
    for depth in {depth for _, depth in blocks if depth}:
        wanted = [at for at, (_, each) in enumerate(blocks) if each == depth]
        found = [loop for loop in loops if loop.depth == depth - 1]
        longest = sorted(found, key=lambda loop: -loop.instructions)[: len(wanted)]
        for at, loop in zip(wanted, [loop for loop in found if loop in longest], strict=False):
            turn = sum(size for _, size in blocks[at][0].loaded)
            unrolled = loop.loaded * 32 * warps // turn if turn and len(found) > len(wanted) else 1
            matched[at] = loop, max(1, unrolled)
    return matched


def predict(
    kernel: Kernel,
    outside: int,
    loops: list[Loop],
    occupancy: int,
    warps: int,
    stages: int,
    num_sms: int,
    grid: tuple[int, ...],
    arguments: Mapping[str, int],
    tensors: Mapping[str, int],
) -> Numbers:
    """Predict one launch: ``arguments`` are its integers, ``tensors`` the bytes of its tensors, by name."""
    blocks = [block for block, _ in kernel.root.walk()]
    matched = match_loops(kernel, loops, warps)
    programs = math.prod(grid)
    sample = [(programs - 1) * n // (SAMPLED - 1) for n in range(SAMPLED)] if programs > SAMPLED else range(programs)
    counted = [kernel.trips(arguments, grid, (at % grid[0], at // grid[0] % (*grid, 1)[1])) for at in sample]
    mean = [sum(times) / len(counted) for times in zip(*counted, strict=True)]
    waves = programs / (num_sms * occupancy)
    async_stages = max(1, stages if any(loop.asynchronous for loop in loops) else 1)
    issue, matrix, chains = [], [], []  # of each sampled program, in clocks
    for times in counted:
        inside = (n * loop.instructions / m for n, (loop, m) in zip(times, matched, strict=True) if loop)
        issue.append((outside + sum(inside)) * warps / H100.schedulers)
        matrix.append(sum(n * block.flops for n, block in zip(times, blocks, strict=True)) / H100.flops_per_clock)
        turns = sum(n / m for n, block, (_, m) in list(zip(times, blocks, matched, strict=True))[1:] if block.loaded)
        waiting = turns * H100.latency / max(1, async_stages - 1)
        chains.append(H100.start + (max(waiting, issue[-1]) if async_stages > 1 else waiting + issue[-1]))
    loaded, memory = _traffic(blocks, mean, programs, tensors, "loaded")
    stored, written = _traffic(blocks, mean, programs, tensors, "stored")
    clocks = {
        "memory": (memory + written) / H100.bytes_per_clock / H100.num_sms,
        "L2": (loaded + stored) / H100.l2_bytes_per_clock / H100.num_sms,
        "issue": most_loaded(issue, programs, num_sms),
        "matrix": most_loaded(matrix, programs, num_sms),
    }
    most, depth = max(clocks.values()), min(occupancy, -(-programs // num_sms)) * async_stages
    busy = most + (sum(clocks.values()) - most) / depth
    clocks["latency"] = most_loaded(chains, programs, num_sms * occupancy)
    seconds = max(busy, clocks["latency"]) / H100.clock + H100.launch
    flops = sum(n * block.flops for n, block in zip(mean, blocks, strict=True))
    inner = max((loop for loop in loops), key=lambda loop: (loop.matrix, loop.instructions), default=None)
    return Numbers(
        programs,
        occupancy,
        waves,
        int(loaded),
        int(stored),
        int(flops * programs),
        inner.instructions if inner else 0,
        inner.matrix if inner else 0,
        clocks,
        seconds,
    )


def most_loaded(sampled: list[float], programs: int, servers: int) -> float:
    """Return the load of the busiest of ``servers`` that take ``programs`` in order, each when it is free.

    ``sampled`` are the loads of evenly spaced programs, the first and the last among them.
    """
    if programs > SIMULATED:  # more than so many that the last ones matter little
        return sum(sampled) / len(sampled) * programs / servers
    loads = [0.0] * servers
    for at in range(programs):
        nearest = round(at * (len(sampled) - 1) / max(1, programs - 1))
        heapq.heapreplace(loads, loads[0] + sampled[nearest])
    return max(loads)


def _traffic(
    blocks: list[Block], times: list[float], programs: int, tensors: Mapping[str, int], what: str
) -> tuple[float, float]:
    """Return the bytes that programs ask the L2 for, and those that go through the memory."""
    asked: dict[str, float] = {}
    for n, block in zip(times, blocks, strict=True):
        for name, size in getattr(block, what):
            asked[name] = asked.get(name, 0.0) + n * size
    once = {name: min(size, tensors.get(name, size)) for name, size in asked.items()}
    l2 = sum(size * programs for size in once.values())
    return l2, sum(min(size * programs, tensors.get(name, size * programs)) for name, size in asked.items())
