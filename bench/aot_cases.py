"""What is compiled ahead of time: the launches that each method makes for a ResNet-50's stages, and for every tile."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from bench import tiles
from bench.problems import Problem
from ssa_fast.kernels import fusion
from ssa_fast.ops.dispatch import RESIDENT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ssa_fast.ops.gpu_info import Gpu
    from ssa_fast.ops.tile_tables import Entry

    Form: TypeAlias = tuple[str, dict[str, Any]]
    Case: TypeAlias = tuple[str, Problem]

STAGES = ((256, 56), (256, 128), (512, 28), (512, 64), (1024, 14), (1024, 32), (2048, 7), (2048, 16))
"""Channels and side of a ResNet-50's stages, for images of 224 and 512 pixels."""
METHODS = {"gather": "prototypes", "apply": "prototypes", "tiled": "tiled", "prepare": "tiled", "resident": "resident"}

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
FORMS_OF_DTYPE = {"float16": FORMS + RARE, "bfloat16": MAIN, "float32": FORMS}


def in_forms(stage: Problem, forms: Iterable[Form]) -> list[Case]:
    """Return a stage in each of several forms, but those whose method "auto" would never choose there."""
    found = [(method, replace(stage, **form)) for method, form in forms]
    return [(method, each) for method, each in found if method != "resident" or each.feature_bytes <= RESIDENT_LIMIT]


def cases() -> list[Case]:
    """Return each stage in both layouts, two stages of odd sides in all forms and dtypes, and few and many classes."""
    found = []
    for (C, side), layout in product(STAGES, ("nchw", "nhwc")):
        stage = Problem(1, 20, C, side, side, layout=layout)
        found += in_forms(stage, MAIN) + in_forms(replace(stage, B=32), MAIN[:1])
    for (C, side), (dtype, forms) in product(((256, 127), (2048, 7)), FORMS_OF_DTYPE.items()):
        found += in_forms(Problem(1, 20, C, side, side, dtype=dtype), forms)
    for K in (1, 200):  # few rows, and several chunks of them
        found += in_forms(Problem(1, K, 256, 127, 127), MAIN)
    return found


def entry_case(entry: Entry) -> Case:
    """Return a case of a table's entry, at the entry's own sizes."""
    method, side = METHODS[entry.kernel], math.isqrt(entry.L)
    form = {"shifted": SHIFTED if method == "prototypes" else CUBED, "exp": EXP}.get(entry.phi or "relu", RELU)
    given: dict[str, Any] = {"dtype": entry.dtype or "float16", "precision": entry.precision or "default"}
    return method, Problem(1, entry.K, entry.C, side, side, **form, **given)


def calls(gpu: Gpu, table: Iterable[Entry]) -> Iterator[Callable[[], None]]:
    """Yield a call of each case, of each entry of the table that no case takes its tiles from, and of fusions."""
    found = cases()
    taken = {id(config) for method, problem in found for config in tiles.tiles(method, gpu, problem).values()}
    found += [entry_case(entry) for entry in table if id(entry.config) not in taken]
    yield from (partial(call, gpu, method, problem) for method, problem in found)
    maps = [torch.empty(2, 20, side, side, device="meta") for side in (64, 32, 16, 8)]
    options: Any = {"weights": [1.0, 1.0, 0.5, 1.0], "align_corners": True, "out": torch.empty_like(maps[0])}
    for fuse, rescale in (("mean", True), ("max", True), ("sum", False), ("product", True)):
        yield partial(fusion.fuse, maps, fuse=fuse, rescale=rescale, **options)


def call(gpu: Gpu, method: str, problem: Problem) -> None:
    """Call a method's host function on meta tensors, with the package's tiles."""
    B, K, H, W = problem.B, problem.K, problem.H, problem.W
    meta = partial(torch.empty, device="meta")
    features = meta(B, problem.C, H, W, dtype=problem.torch_dtype)
    if problem.layout == "nhwc":
        features = features.to(memory_format=torch.channels_last)
    given = tiles.tiles(method, gpu, problem)
    if problem.values == "mixed":
        given["signed"] = meta(B, dtype=torch.int32)
    cam = meta(B, K, max(1, H // 4), max(1, W // 4))
    tiles.polish(method, gpu, problem, cam, features, meta(B, K, H * W), given)
