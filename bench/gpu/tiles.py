"""Propose tiles of a kernel for a problem: the present ones, known good ones, and what is near.

Candidates come from the fields of the kernels' dataclasses, so a field that is added there is tried as well. A rough
count of registers and shared memory drops what cannot run; the rest is for the compiler and the clock to judge.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias

from bench.gpu import ours
from ssa_fast.kernels.config import Full, Symmetric
from ssa_fast.ops import tile_tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bench.problem import Problem
    from ssa_fast.ops.gpu_info import Gpu

Config: TypeAlias = "tile_tables.Config"

# The host function through which each kernel's tiles are tried.
MODULES = {"gather": "prototypes", "apply": "prototypes", "prepare": "tiled", "tiled": "tiled", "resident": "resident"}
# KiB of shared memory that a program can have; 64 where nothing is listed.
SHARED = {
    "sm_80": 163,
    "sm_90": 227,
    "sm_100": 227,
    "sm_103": 227,
    "sm_86": 99,
    "sm_89": 99,
    "sm_120": 99,
    "sm_121": 99,
}
REGISTERS = 255  # of a thread, beyond which the tiles that must be held spill for certain
# Values of a field by its name; of a field not named here: half, the present value and twice it.
VALUES: dict[str, tuple[int, ...]] = {
    "block": (32, 64, 128),
    "block_i": (16, 32, 64, 128),
    "block_j": (16, 32, 64, 128, 256),
    "block_l": (8, 16, 32, 64, 128, 256),
    "block_c": (16, 32, 64, 128, 256, 512, 1024, 2048),
    "rows": (16, 32, 64),
    "bands": (1, 2, 4),
    "chunk": (1, 2, 4, 8, 16),
    "num_warps": (4, 8, 16),
    "num_stages": (1, 2, 3, 4),
}
# Tiles that the compiled code of sm_90 speaks for: no spill, and more programs per multiprocessor or a fuller pipeline.
LEADS: dict[str, tuple[dict[str, int], ...]] = {
    "gather": (
        {"block_l": 32, "num_warps": 4},
        {"block_l": 16, "block_c": 256, "num_stages": 1},
        {"block_c": 256, "num_stages": 1},
        {"num_stages": 2},
    ),
    "apply": ({"block_l": 16, "block_c": 256, "num_warps": 4, "num_stages": 2},),
    "symmetric": (
        {"block": 128, "block_c": 64, "bands": 2, "chunk": 4, "num_warps": 8, "num_stages": 3},
        {"block": 64, "block_c": 64, "bands": 1, "chunk": 1, "num_warps": 4, "num_stages": 3},
    ),
    "full": ({"block_i": 64, "block_j": 64, "block_c": 64, "num_warps": 4, "num_stages": 3},),
}


def candidates(
    kernel: str, problem: Problem, gpu: Gpu, around: Sequence[Config], tried: Iterable[Config], most: int
) -> list[Config]:
    """Return at most ``most`` tiles not yet tried: those of ``around``, leads, then what is near.

    Near are tiles that differ in one field by one step, then in two; the neighbours of each start take turns. Of
    "tiled", the form that ``around`` does not have is a start, too.
    """
    seen, found = set(tried), []
    starts = [*around, *(_leads(kernel, problem, gpu, around) if not seen else ())]
    for config in [*starts, *_neighbours(starts, 1), *_neighbours(starts, 2)]:
        if config not in seen and (config in around or fits(config, problem, gpu, around[0])):
            seen.add(config)
            found.append(config)
            if len(found) == most:
                break
    return found


def as_tiles(config: Config) -> dict[str, Any]:
    """Return a config as a table has it."""
    form = next(({"form": name} for name, kind in tile_tables.FORMS.items() if isinstance(config, kind)), {})
    return form | {"config": asdict(config)}


def _leads(kernel: str, problem: Problem, gpu: Gpu, around: Sequence[Config]) -> Iterator[Config]:
    """Yield the known good tiles, with what they leave open as ``around`` has it."""
    for start in around[:1]:
        if kernel != "tiled":
            yield from _filled(start, LEADS.get(kernel, ()))
            continue
        for form, kind in tile_tables.FORMS.items():
            base = start if isinstance(start, kind) else replace(ours.of_form(form, gpu, problem), rows=start.rows)
            yield from _filled(base, LEADS[form])


def _filled(start: Any, leads: Iterable[dict[str, int]]) -> Iterator[Config]:
    for lead in leads:
        yield replace(start, **{name: value for name, value in lead.items() if hasattr(start, name)})


def _neighbours(starts: Sequence[Config], fields: int) -> Iterator[Config]:
    """Yield the tiles that differ from a start in ``fields`` fields by a step each, start by start."""
    turns = [list(_steps(start, fields)) for start in starts]
    for number in range(max(map(len, turns), default=0)):
        yield from (turn[number] for turn in turns if number < len(turn))


def _steps(start: Any, fields: int) -> Iterator[Config]:
    steps = {name: _beside(name, value) for name, value in asdict(start).items()}
    for names in combinations(steps, fields):
        changes: list[dict[str, int]] = [{}]
        for name in names:
            changes = [change | {name: value} for change in changes for value in steps[name]]
        for change in changes:
            try:
                yield replace(start, **change)
            except ValueError:  # the dataclass refuses the combination
                continue


def _beside(name: str, value: int) -> list[int]:
    """Return the values next to a field's value, the larger first."""
    if isinstance(value, bool):
        return [not value]
    known = VALUES.get(name, tuple(each for each in (value // 2, 2 * value) if each))
    larger, smaller = [each for each in known if each > value], [each for each in known if each < value]
    return [*larger[:1], *smaller[-1:]]


def fits(config: Any, problem: Problem, gpu: Gpu, start: Config) -> bool:
    """Return whether tiles can run, by a rough count, and exceed the problem no more than ``start``."""
    size = problem.torch_dtype.itemsize
    given = asdict(config)
    rows, block_c = given.get("rows", 16), given["block_c"]
    enough = {
        "rows": 1 << problem.K.bit_length(),
        "block_c": 1 << (problem.C - 1).bit_length(),
    }  # K classes and the ones
    if any(given[name] > max(16, most, getattr(start, name)) for name, most in enough.items() if name in given):
        return False
    if isinstance(config, (Full, Symmetric)):
        size = 4 if problem.precision == "high" else 2
    sides = [given[name] for name in ("block_i", "block_j", "block_l") if name in given]
    sides += [config.block] * 2 if isinstance(config, Symmetric) else []
    staged = sum(sides) * block_c * size * (given.get("num_stages", 1) - 1)
    if len(sides) == 2:  # a tile of affinities, and the sums beside it
        held = math.prod(sides) + max(sides) * rows * given.get("bands", 1)
    else:  # a tile of features, and its share of G or of the result
        held = min(sides) * block_c * size / 4 + rows * (block_c if type(config).__name__ == "Gather" else min(sides))
    fit: bool = staged <= 1024 * SHARED.get(gpu.arch, 64) and held / (32 * given["num_warps"]) <= REGISTERS
    return fit
