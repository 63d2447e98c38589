"""What is compiled ahead of time: the launches that each method makes for a ResNet-50's stages, and for every tile."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.affinity import Affinity
from ssa_fast.kernels import fusion
from ssa_fast.ops import tile_tables
from ssa_fast.ops.dispatch import RESIDENT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

STAGES = ((256, 56), (256, 128), (512, 28), (512, 64), (1024, 14), (1024, 32), (2048, 7), (2048, 16))
"""Channels and side of a ResNet-50's stages, for images of 224 and 512 pixels."""
PARTS = {"prototypes": ("gather", "apply"), "tiled": ("tiled", "prepare"), "resident": ("resident",)}


@dataclass(frozen=True)
class Form:
    """φ, the precision, and whether the kernels have to find the features' sign."""

    affinity: Affinity
    unknown: bool = False
    precision: str = "default"

    def __str__(self) -> str:
        affinity = self.affinity
        words = ["centered"] if affinity.center and affinity.any_sign else []
        words += [affinity.phi + (f"^{affinity.power:g}" if affinity.power != 1 else "")]
        words += ["two steps"] if affinity.steps > 1 else []
        words += ["sign unknown"] if self.unknown else []
        return " ".join(words + (["high"] if self.precision == "high" else []))


RELU, CUBED = Form(Affinity()), Form(Affinity(phi="shifted", power=3.0))
EXP = Form(Affinity(phi="exp", temperature=0.1, center=True))
UNKNOWN = replace(RELU, unknown=True)
SHIFTED = Form(Affinity(phi="shifted"))
# What ``SSA`` takes for most stages, other forms, and those that differ from them in few kernels.
MAIN = {"prototypes": (RELU, UNKNOWN), "tiled": (RELU,), "resident": (RELU,)}
FORMS = {"prototypes": (RELU, UNKNOWN, SHIFTED), "tiled": (RELU, UNKNOWN, EXP, CUBED), "resident": (RELU, EXP, CUBED)}
RARE = {
    "prototypes": (Form(Affinity(steps=2), True), Form(Affinity(phi="shifted", center=True, steps=2))),
    "tiled": (Form(Affinity(steps=2)), replace(RELU, precision="high"), replace(EXP, precision="high")),
    "resident": (replace(RELU, precision="high"), replace(EXP, precision="high")),
}


@dataclass(frozen=True)
class Case:
    """One call of a method's host function for one stage."""

    method: str
    form: Form
    C: int
    H: int
    W: int
    K: int = 20
    dtype: str = "float16"
    channels_last: bool = False
    B: int = 1

    def __str__(self) -> str:
        layout = "nhwc" if self.channels_last else "nchw"
        return f"{self.method} {self.form}, {self.B}×{self.C}×{self.H}×{self.W} {self.dtype} {layout} K={self.K}"

    @property
    def features_bytes(self) -> int:
        """Return the bytes of the features."""
        return self.B * self.C * self.H * self.W * tile_tables.ITEMSIZES[self.dtype]


def cases() -> Iterator[Case]:
    """Yield calls for each stage in both layouts, then the forms and dtypes for two stages of odd sides."""
    for (C, side), last in product(STAGES, (False, True)):
        for method, form in _forms(MAIN):
            for B in (1, 32) if (method, form) == ("prototypes", RELU) else (1,):
                yield from taken(Case(method, form, C, side, side, channels_last=last, B=B))
    for (C, side), dtype in product(((256, 127), (2048, 7)), tile_tables.ITEMSIZES):
        forms = MAIN if dtype == "bfloat16" else FORMS
        for method, form in (*_forms(forms), *(_forms(RARE) if dtype == "float16" else ())):
            yield from taken(Case(method, form, C, side, side, dtype=dtype))
    for K in (1, 200):  # few rows, and several chunks of them
        yield from (Case(method, form, 256, 127, 127, K) for method, form in _forms(MAIN) if method != "resident")


def entry_cases(table: list[tile_tables.Entry], cases: Iterable[Case]) -> Iterator[Case]:
    """Yield a case for each entry of a table that none of ``cases`` uses, at the entry's own sizes."""
    used = {id(config) for case in cases for config in find_tiles(case, table).values()}
    for entry in (entry for entry in table if id(entry.config) not in used):
        method = next(method for method, parts in PARTS.items() if entry.kernel in parts)
        shifted = SHIFTED if method == "prototypes" else CUBED
        form = {"shifted": shifted, "exp": EXP}.get(entry.phi or "relu", RELU)
        side = math.isqrt(entry.L)
        form = replace(form, precision=entry.precision or "default")
        yield Case(method, form, entry.C, side, side, entry.K, entry.dtype or "float16")


def _forms(table: dict[str, tuple[Form, ...]]) -> Iterator[tuple[str, Form]]:
    return ((method, form) for method, forms in table.items() for form in forms)


def taken(case: Case) -> Iterator[Case]:
    """Yield the case unless "auto" would never choose its method."""
    if case.method != "resident" or case.features_bytes <= RESIDENT_LIMIT:
        yield case


def find_tiles(case: Case, table: list[tile_tables.Entry]) -> dict[str, tile_tables.Config]:
    """Return the tiles of each of the case's kernels that have any.

    Raises:
        ValueError: The table has none for the case.
    """
    affinity, tiles = case.form.affinity, {}
    sizes: Any = dict(C=case.C, K=case.K, phi=affinity.phi, precision=case.form.precision)
    for part in PARTS[case.method]:
        dtype = "float32" if affinity.center and case.method == "prototypes" else case.dtype
        pixels = case.H * case.W * (case.B if part in tile_tables.LINEAR else 1)
        entry = tile_tables.nearest(table, part, dtype=dtype, L=pixels, **sizes)
        if entry is None:
            raise ValueError(f"entries: expected one of {part!r} that serves {case}, got none; add one")
        tiles[part] = entry.config
    return tiles


def call(case: Case, table: list[tile_tables.Entry], num_sms: int) -> Callable[[], None]:
    """Return a call of the case's host function on meta tensors, with the tiles of ``table``."""
    affinity, method, tiles = case.form.affinity, case.method, find_tiles(case, table)
    meta = partial(torch.empty, device="meta")
    features = meta(case.B, case.C, case.H, case.W, dtype=getattr(torch, case.dtype))
    if case.channels_last:
        features = features.to(memory_format=torch.channels_last)
    arguments: dict[str, Any] = dict(affinity=affinity, align_corners=True, out=meta(case.B, case.K, case.H * case.W))
    if method == "prototypes":
        arguments |= dict(num_sms=num_sms, **tiles)
    else:
        arguments |= dict(precision=case.form.precision, config=tiles[method])
    if method == "tiled":
        arguments |= dict(prepare=tiles["prepare"])
    if case.form.unknown:
        arguments |= dict(signed=meta(case.B, dtype=torch.int32))
    host = importlib.import_module(f"ssa_fast.kernels.{method}")
    cam = meta(case.B, case.K, max(1, case.H // 4), max(1, case.W // 4))
    return partial(host.polish, cam, features, **arguments)


def fusion_calls() -> Iterator[Callable[[], None]]:
    """Yield a call of each representative fusion."""
    maps = [torch.empty(2, 20, side, side, device="meta") for side in (64, 32, 16, 8)]
    options: Any = dict(weights=[1.0, 1.0, 0.5, 1.0], align_corners=True, out=torch.empty(2, 20, 64, 64, device="meta"))
    for fuse, rescale in (("mean", True), ("max", True), ("sum", False), ("product", True)):
        yield partial(fusion.fuse, maps, fuse=fuse, rescale=rescale, **options)
