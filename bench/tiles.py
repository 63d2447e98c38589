"""Tiles of a kernel for a problem: what the tables name, what a tuner could try instead, and the call that takes them.

Candidates come from the fields of the kernels' dataclasses, so a field that is added there is tried as well. A rough
count of registers and shared memory drops what cannot run; the rest is for the compiler and the clock to judge.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import asdict, replace
from itertools import combinations, product, zip_longest
from typing import TYPE_CHECKING, Any

from bench.aot_targets import TARGETS
from ssa_fast.kernels.config import Full, Symmetric
from ssa_fast.ops import tile_tables, triton_backend

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from bench.problems import Problem
    from ssa_fast.ops.gpu_info import Gpu

# The host function through which each kernel's tiles are tried.
MODULES = {"gather": "prototypes", "apply": "prototypes", "prepare": "tiled", "tiled": "tiled", "resident": "resident"}
# Where no table of the GPU has the form: small enough for every architecture.
SPARE = {
    "full": Full(block_i=64, block_j=64, block_c=64, rows=32, num_warps=4, num_stages=2),
    "symmetric": Symmetric(block=64, block_c=64, bands=2, chunk=4, rows=32, num_warps=4, num_stages=2),
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


def tiles(method: str, gpu: Gpu, problem: Problem) -> dict[str, Any]:
    """Return the tiles that a method's host function takes: the package's, or the nearest of the form asked for."""

    def of(kernel: str) -> Any:
        return tile_tables.config(kernel, gpu=gpu, B=problem.B, center=problem.phi.center, **_served(problem))

    if method == "prototypes":
        return {"gather": of("gather"), "apply": of("apply")}
    if method == "resident":
        return {"config": of("resident")}
    config = of("tiled")
    if method in tile_tables.FORMS and not isinstance(config, tile_tables.FORMS[method]):
        config = of_form(method, gpu, problem)
    return {"config": config, "prepare": of("prepare")}


def of_form(form: str, gpu: Gpu, problem: Problem) -> Any:
    """Return the nearest tiles of a form of "tiled" in any table that serves the GPU."""
    for stem in (tile_tables.slug(gpu.name), tile_tables.TABLES[gpu.arch]):
        for directory in (tile_tables.user_directory(), tile_tables.SHIPPED):
            path = directory / f"{stem}.json"
            table = tile_tables.entries(tile_tables.read(path), path) if path.is_file() else []
            table = [entry for entry in table if isinstance(entry.config, tile_tables.FORMS[form])]
            if found := tile_tables.nearest(table, "tiled", **_served(problem)):
                return found.config
    return SPARE[form]


def _served(problem: Problem) -> dict[str, Any]:
    """Return what an entry of a table is chosen by."""
    sizes = {"C": problem.C, "L": problem.L, "K": problem.K}
    return sizes | {"dtype": problem.dtype, "precision": problem.precision, "phi": problem.phi.phi}


def polish(method: str, gpu: Gpu, problem: Problem, cam: Tensor, f: Tensor, out: Tensor, given: dict[str, Any]) -> None:
    """Call a method's host function: ``out`` ``(B, K, L)``, ``given`` its tiles."""
    module = "tiled" if method in tile_tables.FORMS else method
    arguments = given | {"affinity": problem.phi, "align_corners": problem.align_corners, "out": out}
    arguments |= {"num_sms": gpu.num_sms} if method == "prototypes" else {"precision": problem.precision}
    importlib.import_module(f"ssa_fast.kernels.{module}").polish(cam, f, **arguments)


def launch(method: str, problem: Problem, cam: Tensor, f: Tensor, fallback: str | None = None) -> Tensor:
    """Return ``(B, K, H, W)`` as the package launches it."""
    stage = triton_backend.Stage(f, problem.phi, method, fallback, problem.precision, problem.align_corners)
    return triton_backend.polish_stages(cam, [stage])[0]


def candidates(
    kernel: str,
    problem: Problem,
    gpu: Gpu,
    around: Sequence[tile_tables.Config],
    tried: Iterable[tile_tables.Config],
    most: int,
) -> list[tile_tables.Config]:
    """Return at most ``most`` tiles not yet tried: those of ``around``, leads, then what is near.

    Near are tiles that differ in one field by one step, then in two; the neighbours of each start take turns. Of
    "tiled", the form that ``around`` does not have is a start, too.
    """
    seen = set(tried)
    starts = [*around, *(_leads(kernel, problem, gpu, around[0]) if not seen else ())]
    found: dict[tile_tables.Config, None] = {}
    for config in [*starts, *_neighbours(starts, 1), *_neighbours(starts, 2)]:
        if len(found) < most and config not in seen and (config in around or fits(config, problem, gpu, around[0])):
            found[config] = None
    return list(found)


def as_tiles(config: tile_tables.Config) -> dict[str, Any]:
    """Return a config as a table has it."""
    form = next(({"form": name} for name, kind in tile_tables.FORMS.items() if isinstance(config, kind)), {})
    return form | {"config": asdict(config)}


def _leads(kernel: str, problem: Problem, gpu: Gpu, start: Any) -> Iterator[tile_tables.Config]:
    """Yield the known good tiles, with what they leave open as ``start`` has it."""
    bases = {kernel: start}
    if kernel == "tiled":
        bases = {
            form: start if isinstance(start, kind) else replace(of_form(form, gpu, problem), rows=start.rows)
            for form, kind in tile_tables.FORMS.items()
        }
    for name, base in bases.items():
        for lead in LEADS.get(name, ()):
            yield replace(base, **{name: value for name, value in lead.items() if hasattr(base, name)})


def _neighbours(starts: Sequence[tile_tables.Config], fields: int) -> Iterator[tile_tables.Config]:
    """Yield the tiles that differ from a start in ``fields`` fields by a step each, the starts in turns."""
    for turn in zip_longest(*(_steps(start, fields) for start in starts)):
        yield from filter(None, turn)


def _steps(start: Any, fields: int) -> Iterator[tile_tables.Config]:
    beside = {name: _beside(name, value) for name, value in asdict(start).items()}
    for names in combinations(beside, fields):
        for values in product(*(beside[name] for name in names)):
            try:
                yield replace(start, **dict(zip(names, values, strict=True)))
            except ValueError:  # the dataclass refuses the combination
                continue


def _beside(name: str, value: int) -> list[int]:
    """Return the values next to a field's value, the larger first."""
    known = VALUES.get(name, (value // 2, 2 * value))
    return [*[each for each in known if each > value][:1], *[each for each in known if 0 < each < value][-1:]]


def fits(config: Any, problem: Problem, gpu: Gpu, start: Any) -> bool:
    """Return whether tiles can run, by a rough count, and exceed the problem no more than ``start``."""
    given = asdict(config)
    rows, block_c = given.get("rows", 16), given["block_c"]
    enough = {"rows": 1 << problem.K.bit_length(), "block_c": 1 << (problem.C - 1).bit_length()}  # K classes, the ones
    if any(given[name] > max(16, most, getattr(start, name)) for name, most in enough.items() if name in given):
        return False
    size = problem.torch_dtype.itemsize
    if isinstance(config, (Full, Symmetric)):
        size = 4 if problem.precision == "high" else 2
    sides = [given[name] for name in ("block_i", "block_j", "block_l") if name in given]
    sides += [config.block] * 2 if isinstance(config, Symmetric) else []
    staged = sum(sides) * block_c * size * (given.get("num_stages", 1) - 1)
    if len(sides) == 2:  # a tile of affinities, and the sums beside it
        held = math.prod(sides) + max(sides) * rows * given.get("bands", 1)
    else:  # a tile of features, and its share of G or of the result
        held = min(sides) * block_c * size / 4 + rows * (block_c if type(config).__name__ == "Gather" else min(sides))
    return bool(staged <= TARGETS[gpu.arch].shared << 10 and held / (32 * given["num_warps"]) <= REGISTERS)
