"""Call the kernels under test through their host functions, with the tiles that the tables name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.kernels.config import Full, Symmetric
from ssa_fast.ops import tile_tables, triton_backend

if TYPE_CHECKING:
    from torch import Tensor

    from bench.problem import Problem
    from bench.stand import Device
    from ssa_fast.ops.gpu_info import Gpu

METHODS = ("prototypes", "tiled", "full", "symmetric", "resident", "auto")
FORMS = {"full": Full, "symmetric": Symmetric}
GUARD = 256
BAND = -12345.0
# Where no table of the GPU has the form: small enough for every architecture.
SPARE = {
    "full": Full(block_i=64, block_j=64, block_c=64, rows=32, num_warps=4, num_stages=2),
    "symmetric": Symmetric(block=64, block_c=64, bands=2, chunk=4, rows=32, num_warps=4, num_stages=2),
}


class OutOfBounds(AssertionError):
    """Raised when a kernel wrote beside its output."""


def tiles(method: str, gpu: Gpu, problem: Problem) -> dict[str, Any]:
    """Return the tiles of a method's host function: the package's, or the nearest of the form asked for."""

    def of(kernel: str) -> Any:
        return tile_tables.config(kernel, gpu=gpu, B=problem.B, center=problem.phi.center, **_served(problem))

    if method == "prototypes":
        return {"gather": of("gather"), "apply": of("apply")}
    if method == "resident":
        return {"config": of("resident")}
    config = of("tiled")
    if method in FORMS and not isinstance(config, FORMS[method]):
        config = of_form(method, gpu, problem)
    return {"config": config, "prepare": of("prepare")}


def _served(problem: Problem) -> dict[str, Any]:
    """Return what an entry of a table is chosen by."""
    sizes = {"C": problem.C, "L": problem.L, "K": problem.K}
    return sizes | {"dtype": problem.dtype, "precision": problem.precision, "phi": problem.phi.phi}


def of_form(form: str, gpu: Gpu, problem: Problem) -> Any:
    for stem in (tile_tables.slug(gpu.name), tile_tables.TABLES[gpu.arch]):
        for directory in (tile_tables.user_directory(), tile_tables.SHIPPED):
            path = directory / f"{stem}.json"
            table = tile_tables.entries(tile_tables.read(path), path) if path.is_file() else []
            table = [entry for entry in table if isinstance(entry.config, FORMS[form])]
            if found := tile_tables.nearest(table, "tiled", **_served(problem)):
                return found.config
    return SPARE[form]


def write(method: str, gpu: Gpu, problem: Problem, cam: Tensor, f: Tensor, out: Tensor, given: dict[str, Any]) -> None:
    """Call the host function of a method other than "auto": ``out`` ``(B, K, L)``, ``given`` its tiles."""
    module = "tiled" if method in FORMS else method
    arguments = given | {"affinity": problem.phi, "align_corners": problem.align_corners, "out": out}
    arguments |= {"num_sms": gpu.num_sms} if method == "prototypes" else {"precision": problem.precision}
    importlib.import_module(f"ssa_fast.kernels.{module}").polish(cam, f, **arguments)


def polish(method: str, device: Device, problem: Problem, cam: Tensor, f: Tensor) -> Tensor:
    """Return ``(B, K, L)`` between two guard bands, or through the package's own launch for "auto"."""
    if method == "auto":
        return launched("prototypes", problem, cam, f, fallback="tiled").flatten(2)
    given = tiles(method, device.gpu, problem)
    numel = problem.B * problem.K * problem.L
    buffer = torch.full((numel + 2 * GUARD,), BAND, device=device.device)
    out = buffer[GUARD:-GUARD].view(problem.B, problem.K, problem.L).fill_(float("nan"))
    write(method, device.gpu, problem, cam, f, out, given)
    if not bool((buffer[:GUARD] == BAND).all() & (buffer[-GUARD:] == BAND).all()):
        raise OutOfBounds("the kernel wrote beyond its output")
    return out


def launched(method: str, problem: Problem, cam: Tensor, f: Tensor, fallback: str | None = None) -> Tensor:
    """Return ``(B, K, H, W)`` as the package launches it."""
    stage = triton_backend.Stage(f, problem.phi, method, fallback, problem.precision, problem.align_corners)
    return triton_backend.polish_stages(cam, [stage])[0]
