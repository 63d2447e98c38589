"""What holds of every call: the same bits every time, CUDA graphs, no host synchronisation, bounded memory.

``test_watched`` is what compute-sanitizer watches in ``bench/gpu-check.sh``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bench.problems import Problem, relative_error, truth
from ssa_fast import polish
from ssa_fast.ops import fusion, gpu_info, triton_backend
from ssa_fast.validation import FusionOptions

tiles = pytest.importorskip("bench.tiles", reason="needs Triton")

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore:no tiles were measured")
BASE = Problem(B=3, K=20, C=256, H=40, W=40, h=10, w=10, values="randn")
RAGGED = Problem(B=3, K=21, C=100, H=13, W=19, h=5, w=4, values="randn")
ONE = Problem(B=1, K=20, C=256, H=128, W=128, h=16, w=16)
RESNET = ((256, 56), (512, 28), (1024, 14), (2048, 7))  # (C, side) of ResNet-50's stages for an input of 224
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _on_device() -> None:
    """Make no device the default, so that a call that forgets its inputs' device fails."""


def sized(problem: Problem, device: torch.device) -> Problem:
    return problem if device.type == "cuda" else problem.tiny()


def launch(method: str, problem: Problem, cam: Tensor, f: Tensor) -> Tensor:
    """Return ``(B, K, L)``; "auto": prototypes, and for images of any sign what stands by."""
    if method == "auto":
        return tiles.launch("prototypes", problem, cam, f, fallback="tiled").flatten(2)
    gpu, why = gpu_info.query(cam.device)
    assert gpu is not None, why
    out = torch.full((problem.B, problem.K, problem.L), float("nan")).to(cam.device)
    tiles.polish(method, gpu, problem, cam, f, out, tiles.tiles(method, gpu, problem))
    return out


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        ("prototypes", replace(BASE, values="rand", H=64, W=64)),
        ("full", BASE),
        ("symmetric", BASE),
        ("resident", replace(BASE, H=20, W=20)),
        ("auto", replace(BASE, values="mixed")),
    ],
    ids=["prototypes", "full", "symmetric", "resident", "auto"],
)
def test_three_runs_give_the_same_bits(method: str, problem: Problem, device: torch.device) -> None:
    problem = sized(problem, device)
    cam, f = problem.draw(device, 1)
    runs = [launch(method, problem, cam, f) for _ in range(3)]
    assert runs[0].isfinite().all()
    assert all(torch.equal(run, runs[0]) for run in runs[1:])


WATCHED = {
    "prototypes": ("prototypes", replace(RAGGED, values="relu")),
    "prototypes-sliced": ("prototypes", replace(RAGGED, values="relu", layout="sliced", dtype="float32")),
    "prototypes-shifted": ("prototypes", replace(RAGGED, affinity="phi=shifted,center")),
    "full": ("full", RAGGED),
    "symmetric": ("symmetric", RAGGED),
    "symmetric-high": ("symmetric", replace(RAGGED, precision="high", layout="nhwc")),
    "resident": ("resident", RAGGED),
    "auto": ("auto", replace(RAGGED, values="mixed")),
    "fusion": ("fusion", RAGGED),
}


@pytest.mark.parametrize("case", WATCHED)
def test_watched(case: str, device: torch.device) -> None:
    """Run few kernels beside ours, each of which the sanitizer would slow: inputs and checks stay on the CPU."""
    cpu = torch.device("cpu")
    method, problem = WATCHED[case]
    problem = sized(problem, device)
    if method == "fusion":
        maps = [torch.rand(2, 3, H, W) + 0.1 for H, W in ((28, 21), (14, 10), (7, 5), (1, 3))]
        options = FusionOptions("mean", (1.0, 2.0, 0.5, 1.0), True, (29, 23))
        wide = {str(at): each.double() for at, each in enumerate(maps)}
        right = fusion.fuse(wide, replace(options, backend="torch"))
        out = triton_backend.fuse([each.to(device) for each in maps], options, (29, 23))
    else:
        cam, f = problem.draw(cpu, 1)
        right = truth(problem, cam, f)
        moved = torch.empty_strided(f.shape, f.stride(), dtype=f.dtype, device=device).copy_(f)
        out = launch(method, problem, cam.to(device), moved)
    assert relative_error(out.cpu(), right) < 1e-3


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["one stage", "unknown signs", "four stages fused"])
def test_a_cuda_graph_replays_on_new_inputs(kind: str, device: torch.device) -> None:
    call, draw = capturable(kind, device)
    fixed = draw(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call(*fixed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(*fixed)
    for turn in range(1, 4):
        for old, new in zip(fixed, draw(turn), strict=True):
            old.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, call(*fixed))


def capturable(kind: str, device: torch.device) -> tuple[Callable[..., Tensor], Callable[[int], list[Tensor]]]:
    """Return a call and what draws its inputs; of unknown signs, other images' in every draw."""

    def stages(seed: int) -> list[Tensor]:
        drawn = [Problem(2, 20, C, side, side, 7, 7).draw(device, seed + C) for C, side in RESNET]
        return [drawn[0][0], *(f for _, f in drawn)]

    def one(seed: int) -> list[Tensor]:
        cam, f = replace(BASE, values="rand" if kind == "one stage" else "mixed").draw(device, seed)
        return [cam, f.roll(seed, 0)]

    if kind == "four stages fused":
        return lambda cam, *maps: polish(cam, list(maps), nonnegative=True), stages
    return lambda cam, f: polish(cam, f, nonnegative=True if kind == "one stage" else None), one


@pytest.mark.cuda
@pytest.mark.parametrize("options", [{}, {"nonnegative": True}, {"method": "tiled"}], ids=str)
def test_no_call_synchronises_the_host(options: dict[str, Any], device: torch.device) -> None:
    cam, f = replace(BASE, values="rand").draw(device, 1)
    polish(cam, [f, f], **options)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        polish(cam, f, **options)
        polish(cam, [f, f], **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("method", "problem", "most"),
    [
        ("prototypes", ONE, 32 * MIB),
        ("prototypes", replace(ONE, H=512, W=512), 32 * MIB),
        ("prototypes", replace(ONE, H=1024, W=1024), 32 * MIB),
        ("prototypes", replace(ONE, B=32, C=2048, H=16, W=16), 32 * MIB),
        ("tiled", replace(ONE, values="randn"), 256 * MIB),
        ("tiled", replace(ONE, H=256, W=256, values="randn"), 256 * MIB),
        ("tiled", replace(ONE, C=2048, values="randn"), 256 * MIB),
    ],
    ids=str,
)
def test_extra_memory(method: str, problem: Problem, most: int, device: torch.device) -> None:
    """Measure the peak beyond features, CAM and result, and beyond the operands that tiled writes."""
    gpu, why = gpu_info.query(device)
    assert gpu is not None, why
    cam, f = problem.draw(device, 1)
    tiles.launch(method, problem, cam, f)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = tiles.launch(method, problem, cam, f)
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before - out.nbytes
    if method == "tiled":
        extra -= operand_bytes(problem, tiles.tiles(method, gpu, problem)["config"])
    assert extra <= most


def operand_bytes(problem: Problem, config: Any) -> int:
    """Return the bytes of unit features, v, peaks and denominators as the tiled kernels lay them out."""
    align = config.block * config.bands if hasattr(config, "bands") else max(config.block_i, config.block_j)
    L_pad = math.ceil(problem.L / align) * align
    whole = config.block_c >= problem.C
    C_pad = max(16, 1 << (problem.C - 1).bit_length()) if whole else -(-problem.C // config.block_c) * config.block_c
    chunks = math.ceil(problem.K / (config.rows - 1))
    halves = 2 if problem.precision == "high" else 1
    return problem.B * L_pad * (2 * halves * (C_pad + chunks * config.rows) + 4 * chunks)


def test_operands_of_tiled_are_counted_as_they_are_laid_out() -> None:
    from ssa_fast.kernels.prepare import Operands

    problem = Problem(B=2, K=40, C=100, H=13, W=19, values="randn", precision="high")
    cam, f = problem.draw(torch.device("cpu"), 1)
    for config in tiles.SPARE.values():
        align = config.block * config.bands if hasattr(config, "bands") else max(config.block_i, config.block_j)
        found = Operands.empty(
            cam, f, cam.new_empty(0), rows=config.rows, align_l=align, block_c=config.block_c, high=True, wide=False
        )
        held = 2 * 2 * (found.unit.numel() + found.v.numel()) + 4 * problem.B * found.chunks * found.L_pad
        assert operand_bytes(problem, config) == held
