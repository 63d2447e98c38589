"""The kernels with the tiles that the package ships, against float64: large on a GPU, tiny in the interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from bench.problems import Problem, relative_error, resized, truth
from ssa_fast import reference
from ssa_fast.ops import gpu_info

tiles = pytest.importorskip("bench.tiles", reason="needs Triton")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

FLOATS = ("float16", "bfloat16", "float32")
QUADRATIC = ("full", "symmetric", "resident")
PHIS = (
    "power=2",
    "power=3.5",
    "threshold=0.3",
    "threshold=0.2,power=2",
    "phi=exp,temperature=0.1",
    "center",
    "center,power=2",
    "steps=3",
    "norm_eps=0,sum_eps=0",
    "phi=shifted,power=3",
    "phi=shifted,shift=0.5",
)
EXACT, ROUNDED = 1e-6, 1e-4  # relative errors that pass: of prototypes and high precision, and of rounded operands
BASE = Problem(B=1, K=20, C=256, H=56, W=56, h=7, w=7, values="relu")
SMALL = replace(BASE, H=28, W=28)
RAGGED = Problem(B=3, K=21, C=100, H=13, W=19, h=5, w=4, values="randn")
ODD = replace(BASE, B=3, C=512, H=64, W=64, h=16, w=16)


def prototypes_problems() -> Iterator[Problem]:
    for dtype in FLOATS:
        yield replace(BASE, dtype=dtype)
        yield replace(BASE, dtype=dtype, values="randn", affinity="phi=shifted")
        yield from (replace(BASE, dtype=dtype, layout=layout) for layout in ("nhwc", "sliced"))
    yield replace(RAGGED, values="relu")
    yield replace(RAGGED, affinity="phi=shifted")
    for dtype in ("float16", "float32"):
        yield from (replace(SMALL, K=K, dtype=dtype) for K in (1, 70, 1000))
        yield from (replace(SMALL, C=C, dtype=dtype) for C in (64, 512, 2048))
        yield replace(SMALL, C=1024, dtype=dtype, layout="nhwc")
    yield from (replace(SMALL, affinity=text, values="zeros") for text in ("steps=3", "norm_eps=0,sum_eps=0"))
    for text in ("center", "shift=0.5,steps=3", "center,steps=2", "norm_eps=0,sum_eps=0"):
        for C in (64, 256, 2048):
            for dtype in FLOATS:
                yield replace(SMALL, C=C, dtype=dtype, values="randn", affinity=f"phi=shifted,{text}")
    for scale, cam_scale in ((1e-12, 1e-6), (1e12, 1e5)):
        scaled = replace(SMALL, dtype="float32", scale=scale, cam_scale=cam_scale)
        yield replace(scaled, affinity="norm_eps=0,sum_eps=0")
    yield replace(SMALL, B=3, layout="repeated", h=0, w=0)
    yield replace(SMALL, align_corners=False, scale=1e-6)
    yield replace(SMALL, H=1, W=1, h=1, w=1)
    yield ODD


def quadratic_problems(method: str) -> Iterator[Problem]:
    base = replace(SMALL, values="randn")
    for dtype in FLOATS:
        yield replace(base if method == "resident" else BASE, dtype=dtype, values="randn")
        yield from (replace(base, layout=layout, dtype=dtype) for layout in ("nhwc", "sliced"))
    yield replace(base, precision="high")
    yield RAGGED
    for text in PHIS:
        yield replace(base, affinity=text, values="relu" if "center" in text else "randn")
    for text in ("power=2", "phi=exp,temperature=0.1", "center", "steps=3"):
        yield replace(base, affinity=text, precision="high")
    yield from (replace(base, K=K) for K in (1, 70, 1000))
    yield from (replace(base, C=C) for C in (64, 1024, 2048))
    yield replace(base, dtype="float32", precision="high")
    yield replace(base, values="zeros", affinity="norm_eps=0,sum_eps=0")
    yield replace(base, dtype="float32", scale=1e12, cam_scale=1e5)
    yield replace(base, B=3, layout="repeated", h=0, w=0, align_corners=False)
    yield replace(base, H=1, W=1, h=1, w=1)
    if method != "resident":
        yield replace(ODD, values="randn")


def cases() -> list[tuple[str, Problem]]:
    """Return ``(method, problem)``; "auto" finds each image's sign and launches what its sign asks for."""
    found = [("auto", replace(SMALL, B=3, values=values)) for values in ("mixed", "nan", "relu")]
    found += [("prototypes", problem) for problem in prototypes_problems()]
    return found + [(method, problem) for method in QUADRATIC for problem in quadratic_problems(method)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"method", "problem"} <= set(metafunc.fixturenames):
        on_gpu = metafunc.config.getoption("--device") == "cuda"
        chosen = dict.fromkeys((method, problem if on_gpu else problem.tiny()) for method, problem in cases())
        metafunc.parametrize(("method", "problem"), chosen, ids=[f"{each[0]} {each[1].label()}" for each in chosen])


@pytest.fixture(autouse=True)
def _on_device() -> None:
    """Make no device the default, so that a kernel's host function that forgets its inputs' device fails."""


def allowed(method: str, problem: Problem, cam: Tensor, f: Tensor, right: Tensor) -> float:
    """Return the relative error that passes: a fixed one, or twice the reference's own in the operands' dtype.

    Rounded operands are float16 and scaled: the range of features and CAM does not count.
    """
    exact = method == "prototypes" or problem.precision == "high"
    dtype = f.dtype if exact else torch.float16
    scale, cam_scale = (1.0, 1.0) if exact else (max(problem.scale, 1.0), problem.cam_scale)
    rows = (resized(problem, cam) / cam_scale).to(dtype)
    images = zip(rows, f, strict=True)
    each = [reference.polish_stage(v[None], (x[None] / scale).to(dtype).flatten(2), problem.phi) for v, x in images]
    own = relative_error(torch.cat(each).double() * cam_scale, right)
    own = own if own < 0.1 else 0.0  # the reference fails
    return max(EXACT if exact else ROUNDED, 2 * own + torch.finfo(torch.float32).eps)


@pytest.mark.filterwarnings("ignore:no tiles were measured")
def test_accuracy(method: str, problem: Problem, device: torch.device, guarded: Callable[..., Tensor]) -> None:
    if method == "resident" and problem.dtype == "bfloat16" and device.type == "cpu" and not problem.phi.center:
        pytest.skip("Triton's interpreter multiplies bfloat16 wrongly: run it with --device cuda")
    gpu, why = gpu_info.query(device)
    assert gpu is not None, why
    cam, f = problem.draw(device, 0)
    if method == "auto":
        out = tiles.launch("prototypes", problem, cam, f, fallback="tiled").flatten(2)
    else:
        out = guarded(problem.B, problem.K, problem.L)
        tiles.polish(method, gpu, problem, cam, f, out, tiles.tiles(method, gpu, problem))
    right = truth(problem, cam, f)
    assert relative_error(out, right) <= allowed(method, problem, cam, f, right)
