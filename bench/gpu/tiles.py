"""Candidate tiles of each kernel for a problem: what fits the GPU's registers and shared memory, by rough count."""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import product
from typing import TYPE_CHECKING, Any

from ssa_fast.ops import tile_tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.problem import Problem
    from ssa_fast.ops.gpu_info import Gpu

# The host function through which each kernel's tiles are tried.
MODULES = {"gather": "prototypes", "apply": "prototypes", "prepare": "tiled", "tiled": "tiled", "resident": "resident"}
# Bytes of shared memory that a program can have; 64 KiB where nothing is listed.
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
REGISTERS = 200  # of a thread that the accumulators and the tiles held may take

Numbers = dict[str, int]


def candidates(kernel: str, problem: Problem, gpu: Gpu, present: Any, most: int) -> list[dict[str, Any]]:
    """At most ``most`` tiles as a table has them (``config``, and ``form`` of "tiled"), the present ones first.

    The others are ordered by how far they are from the present ones, in log2 of their numbers. Of "tiled", those of the
    other form than the present one make up a third.
    """
    shared = 1024 * SHARED.get(gpu.arch, 64)
    first = [] if present is None else [as_tiles(present)]
    found = [each for each in GENERATORS[kernel](problem, shared) if each not in first]
    if present is not None:
        found.sort(key=lambda each: _distance(each["config"], asdict(present)))
    if kernel != "tiled" or not first:
        return (first + found)[:most]
    same = [each for each in found if each["form"] == first[0]["form"]]
    other = [each for each in found if each["form"] != first[0]["form"]]
    return first + same[: most - 1 - most // 3] + other[: most // 3]


def as_tiles(config: tile_tables.Config) -> dict[str, Any]:
    """A config as a table has it."""
    form = next(({"form": name} for name, kind in tile_tables.FORMS.items() if isinstance(config, kind)), {})
    return form | {"config": asdict(config)}


def as_config(kernel: str, tiles: dict[str, Any]) -> Any:
    """The dataclass of tiles as a table has them."""
    kind = tile_tables.FORMS[tiles["form"]] if kernel == "tiled" else tile_tables.KINDS[kernel]
    return kind(**tiles["config"])


def _distance(numbers: Numbers, present: Numbers) -> float:
    return sum(abs(math.log2(numbers[name] / present[name])) for name in numbers if name in present)


def _rows(problem: Problem) -> list[int]:
    """Rows per program worth trying: no more than the smallest power of two that holds all."""
    enough = max(16, 1 << problem.K.bit_length())  # K classes and the ones
    return [rows for rows in (16, 32, 64) if rows <= enough]


def _padded(C: int) -> int:
    return max(16, 1 << (C - 1).bit_length())


def _gather(problem: Problem, shared: int) -> Iterator[dict[str, Any]]:
    widest, size = min(_padded(problem.C), 1024), problem.torch_dtype.itemsize
    widths = [block_c for block_c in (16, 32, 64, 128, 256, 512, 1024) if widest // 4 <= block_c <= widest]
    for block_l, rows, warps, stages, block_c in product((16, 32, 64, 128), _rows(problem), (4, 8, 16), (1, 2), widths):
        held = block_c * (rows + block_l * (2 if size == 4 else 1)) / (32 * warps)
        if held <= REGISTERS and block_c * block_l * size * stages <= shared:
            yield _tiles(block_l=block_l, rows=rows, num_warps=warps, num_stages=stages, block_c=block_c)


def _apply(problem: Problem, shared: int) -> Iterator[dict[str, Any]]:
    size = problem.torch_dtype.itemsize
    for block_l, block_c, rows, warps, stages in product(
        (32, 64, 128, 256), (32, 64, 128), _rows(problem), (4, 8), (1, 2, 3, 4)
    ):
        used = stages * (block_l * block_c * size + 4 * block_c * rows)
        if block_c <= _padded(problem.C) and used <= shared and block_l * (block_c + rows) / (32 * warps) <= REGISTERS:
            yield _tiles(block_l=block_l, block_c=block_c, rows=rows, num_warps=warps, num_stages=stages)


def _prepare(problem: Problem, shared: int) -> Iterator[dict[str, Any]]:
    widths = sorted({32, 64, 128, 256, min(_padded(problem.C), 2048)})
    for block_l, block_c, warps in product((8, 16, 32, 64, 128), widths, (4, 8)):
        if 4 <= block_l * block_c / (32 * warps) <= 64:
            yield _tiles(block_l=block_l, block_c=block_c, num_warps=warps)


def _tiled(problem: Problem, shared: int) -> Iterator[dict[str, Any]]:
    operand = 4 if problem.precision == "high" else 2
    channels = [block_c for block_c in (32, 64, 128) if block_c <= _padded(problem.C)]
    for block_i, block_j, block_c, rows, warps, stages in product(
        (64, 128), (64, 128, 256), channels, _rows(problem), (4, 8), (2, 3, 4)
    ):
        used = stages * (block_i + block_j) * block_c * operand + block_i * rows * operand
        if used <= shared and (block_i + rows) * block_j / (32 * warps) <= 160:
            numbers = {"block_i": block_i, "block_j": block_j, "block_c": block_c, "rows": rows}
            yield {"form": "full"} | _tiles(**numbers, num_warps=warps, num_stages=stages)
    for block, block_c, bands, chunk, rows, warps, stages in product(
        (64, 128), channels, (1, 2), (4, 8, 16), _rows(problem), (4, 8), (2, 3, 4)
    ):
        used = stages * 2 * block * block_c * operand + 2 * block * rows * operand
        if used <= shared and block * (block + (bands + 1) * rows) / (32 * warps) <= 160:
            numbers = {"block": block, "block_c": block_c, "bands": bands, "chunk": chunk, "rows": rows}
            yield {"form": "symmetric"} | _tiles(**numbers, num_warps=warps, num_stages=stages)


def _resident(problem: Problem, shared: int) -> Iterator[dict[str, Any]]:
    size = problem.torch_dtype.itemsize
    for block_i, block_j, block_c, rows, warps, stages in product(
        (32, 64, 128), (16, 32, 64, 128), (32, 64, 128), _rows(problem), (4, 8), (2, 3, 4)
    ):
        used = stages * (block_i + block_j) * block_c * size + block_i * (block_j + rows) * 4
        if used <= shared and (block_i + rows) * block_j / (32 * warps) <= 128:
            numbers = {"block_i": block_i, "block_j": block_j, "block_c": block_c, "rows": rows}
            yield _tiles(**numbers, num_warps=warps, num_stages=stages)


def _tiles(**numbers: int) -> dict[str, Any]:
    return {"config": numbers}


GENERATORS = {"gather": _gather, "apply": _apply, "prepare": _prepare, "tiled": _tiled, "resident": _resident}
