"""What is compiled ahead of time: the launches that each method makes for a ResNet-50's stages, and for every tile."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from bench.problems import Problem
from ssa_fast.kernels import fusion
from ssa_fast.ops import tile_tables
from ssa_fast.ops.dispatch import RESIDENT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

STAGES = ((256, 56), (256, 128), (512, 28), (512, 64), (1024, 14), (1024, 32), (2048, 7), (2048, 16))
"""Channels and side of a ResNet-50's stages, for images of 224 and 512 pixels."""
PARTS = {"prototypes": ("gather", "apply"), "tiled": ("tiled", "prepare"), "resident": ("resident",)}


# What a form of a problem has otherwise; "mixed": the kernels have to find the features' sign.
RELU: dict[str, Any] = {}
UNKNOWN = {"values": "mixed"}
SHIFTED, CUBED = {"affinity": "phi=shifted"}, {"affinity": "phi=shifted,power=3"}
EXP = {"affinity": "phi=exp,temperature=0.1,center=True"}
HIGH = {"precision": "high"}
# What ``SSA`` takes for most stages, other forms, and those that differ from them in few kernels.
MAIN = (("prototypes", RELU), ("prototypes", UNKNOWN), ("tiled", RELU), ("resident", RELU))
FORMS = (
    *(("prototypes", form) for form in (RELU, UNKNOWN, SHIFTED)),
    *(("tiled", form) for form in (RELU, UNKNOWN, EXP, CUBED)),
    *(("resident", form) for form in (RELU, EXP, CUBED)),
)
RARE = (
    ("prototypes", UNKNOWN | {"affinity": "steps=2"}),
    ("prototypes", {"affinity": "phi=shifted,center=True,steps=2"}),
    ("tiled", {"affinity": "steps=2"}),
    *((method, form | HIGH) for method in ("tiled", "resident") for form in (RELU, EXP)),
)


@dataclass(frozen=True)
class Case:
    """One call of a method's host function for one stage."""

    method: str
    problem: Problem

    def __str__(self) -> str:
        problem, phi = self.problem, self.problem.phi
        words = ["centered"] if phi.center and phi.any_sign else []
        words += [phi.phi + (f"^{phi.power:g}" if phi.power != 1 else "")]
        words += ["two steps"] if phi.steps > 1 else []
        words += ["sign unknown"] if problem.values == "mixed" else []
        words += ["high"] if problem.precision == "high" else []
        sizes = f"{problem.B}×{problem.C}×{problem.H}×{problem.W} {problem.dtype} {problem.layout} K={problem.K}"
        return f"{self.method} {' '.join(words)}, {sizes}"

    @property
    def is_chosen(self) -> bool:
        """Whether "auto" would ever choose the method."""
        return self.method != "resident" or self.problem.feature_bytes <= RESIDENT_LIMIT


def cases() -> list[Case]:
    """Return calls for each stage in both layouts, then the forms and dtypes for two stages of odd sides."""
    found = []
    for (C, side), layout in product(STAGES, ("nchw", "nhwc")):
        for method, form in MAIN:
            for B in (1, 32) if (method, form) == ("prototypes", RELU) else (1,):
                found.append(Case(method, Problem(B, 20, C, side, side, layout=layout, **form)))
    for (C, side), dtype in product(((256, 127), (2048, 7)), tile_tables.ITEMSIZES):
        for method, form in (*(MAIN if dtype == "bfloat16" else FORMS), *(RARE if dtype == "float16" else ())):
            found.append(Case(method, Problem(1, 20, C, side, side, dtype=dtype, **form)))
    for K in (1, 200):  # few rows, and several chunks of them
        found += [Case(method, Problem(1, K, 256, 127, 127, **form)) for method, form in MAIN if method != "resident"]
    return [case for case in found if case.is_chosen]


def entry_cases(table: list[tile_tables.Entry], cases: Iterable[Case]) -> list[Case]:
    """Return a case for each entry of a table that none of ``cases`` uses, at the entry's own sizes."""
    used, found = {id(config) for case in cases for config in find_tiles(case, table).values()}, []
    for entry in (entry for entry in table if id(entry.config) not in used):
        method = next(method for method, parts in PARTS.items() if entry.kernel in parts)
        shifted = SHIFTED if method == "prototypes" else CUBED
        form = {"shifted": shifted, "exp": EXP}.get(entry.phi or "relu", RELU)
        form = form | {"dtype": entry.dtype or "float16", "precision": entry.precision or "default"}
        side = math.isqrt(entry.L)
        found.append(Case(method, Problem(1, entry.K, entry.C, side, side, **form)))
    return found


def find_tiles(case: Case, table: list[tile_tables.Entry]) -> dict[str, tile_tables.Config]:
    """Return the tiles of each of the case's kernels that have any.

    Raises:
        ValueError: The table has none for the case.
    """
    problem, phi, tiles = case.problem, case.problem.phi, {}
    sizes: Any = dict(C=problem.C, K=problem.K, phi=phi.phi, precision=problem.precision)
    for part in PARTS[case.method]:
        dtype = "float32" if phi.center and case.method == "prototypes" else problem.dtype
        pixels = problem.L * (problem.B if part in tile_tables.LINEAR else 1)
        entry = tile_tables.nearest(table, part, dtype=dtype, L=pixels, **sizes)
        if entry is None:
            raise ValueError(f"entries: expected one of {part!r} that serves {case}, got none; add one")
        tiles[part] = entry.config
    return tiles


def call(case: Case, table: list[tile_tables.Entry], num_sms: int) -> Callable[[], None]:
    """Return a call of the case's host function on meta tensors, with the tiles of ``table``."""
    problem, method, tiles = case.problem, case.method, find_tiles(case, table)
    B, K, H, W = problem.B, problem.K, problem.H, problem.W
    meta = partial(torch.empty, device="meta")
    features = meta(B, problem.C, H, W, dtype=problem.torch_dtype)
    if problem.layout == "nhwc":
        features = features.to(memory_format=torch.channels_last)
    arguments: dict[str, Any] = dict(affinity=problem.phi, align_corners=True, out=meta(B, K, H * W))
    if method == "prototypes":
        arguments |= dict(num_sms=num_sms, **tiles)
    else:
        arguments |= dict(precision=problem.precision, config=tiles[method])
    if method == "tiled":
        arguments |= dict(prepare=tiles["prepare"])
    if problem.values == "mixed":
        arguments |= dict(signed=meta(B, dtype=torch.int32))
    host = importlib.import_module(f"ssa_fast.kernels.{method}")
    return partial(host.polish, meta(B, K, max(1, H // 4), max(1, W // 4)), features, **arguments)


def fusion_calls() -> Iterator[Callable[[], None]]:
    """Yield a call of each representative fusion."""
    maps = [torch.empty(2, 20, side, side, device="meta") for side in (64, 32, 16, 8)]
    options: Any = dict(weights=[1.0, 1.0, 0.5, 1.0], align_corners=True, out=torch.empty(2, 20, 64, 64, device="meta"))
    for fuse, rescale in (("mean", True), ("max", True), ("sum", False), ("product", True)):
        yield partial(fusion.fuse, maps, fuse=fuse, rescale=rescale, **options)
