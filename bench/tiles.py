"""Tiles of the kernels for a problem, and the calls that take them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ssa_fast.kernels.config import Full, Symmetric
from ssa_fast.ops import tile_tables, triton_backend

if TYPE_CHECKING:
    from torch import Tensor

    from bench.problems import Problem
    from ssa_fast.ops.gpu_info import Gpu

# What a form of "tiled" has where the package takes the other: small enough for every architecture.
SPARE = {
    "full": Full(block_i=64, block_j=64, block_c=64, rows=32, num_warps=4, num_stages=2),
    "symmetric": Symmetric(block=64, block_c=64, bands=2, chunk=4, rows=32, num_warps=4, num_stages=2),
}


def tiles(method: str, gpu: Gpu, problem: Problem) -> dict[str, Any]:
    """Return the tiles that a method's host function takes: the package's, or others of the form that is asked for."""

    given: dict[str, Any] = {name: getattr(problem, name) for name in ("B", "C", "L", "K", "dtype", "precision")}
    given |= {"gpu": gpu, "phi": problem.phi.phi, "center": problem.phi.center}

    def of(kernel: str) -> Any:
        return tile_tables.config(kernel, **given)

    if method == "prototypes":
        return {"gather": of("gather"), "apply": of("apply")}
    if method == "resident":
        return {"config": of("resident")}
    config = of("tiled")
    if method in SPARE and not isinstance(config, tile_tables.FORMS[method]):
        config = SPARE[method]
    return {"config": config, "prepare": of("prepare")}


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
