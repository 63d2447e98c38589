"""The exact methods on a CPU: float32, K = 20 unless said, random features; ratios are goals of the project."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch

from bench import throughput
from bench.conftest import gate
from bench.measure import Device, ratios, time_interleaved
from bench.problems import FORMATS, Problem, named
from bench.providers import PROVIDERS, Provider, algebra_work
from bench.workers import Workers, job
from ssa_fast import polish

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture
    from torch import Tensor

CPU, MIB = Device(), 1 << 20
FEW, MANY = 3, 31  # rounds: a dense product of 16,384² takes seconds
RUN_IMAGES, RUNS = 12, functools.cache(throughput.rows)  # one run for both numbers of classes


class Call(NamedTuple):
    """The name of a provider, and a stage."""

    provider: str
    problem: Problem


def stage(side: int, values: str = "rand", K: int = 20, affinity: str = "") -> Problem:
    """Return a first stage with a CAM of its own size."""
    return Problem(1, K, 256, side, side, dtype="float32", values=values, affinity=affinity)


def products(device: Device, problem: Problem, cam: Tensor, f: Tensor, variant: str) -> Callable[[], Tensor]:
    """Make the two matrix products of prototypes alone."""
    v, flat = torch.rand(problem.K + 1, problem.L), f[0].flatten(1)
    return lambda: (v @ flat.mT) @ flat


CALLS = PROVIDERS | {"products": Provider("products", products, algebra_work, answer="products")}
POSITIVE, SIGNED, SHIFTED = stage(128), stage(128, "randn"), stage(128, "randn", affinity="phi=shifted")
SQUARED, DENSE = stage(128, K=3, affinity="power=2"), "dense PCM"
LINEAR, PROMISED = Call("auto", POSITIVE), Call("prototypes", POSITIVE)
TILED, ANY_SIGN = Call("tiled", SIGNED), Call("auto", SHIFTED)
FOR_SIGN = "shifted cosine, signed, vs prototypes, features >= 0"  # nothing is paid for it: the goal allows a tenth
RATIOS: list[tuple[str, Call, Call, float, int]] = [  # what, ours, the peer, peer / ours in time at least, rounds
    ("prototypes (sign promised) vs dense PCM", PROMISED, Call(DENSE, POSITIVE), 250, FEW),
    ("prototypes vs dense PCM", LINEAR, Call(DENSE, POSITIVE), 250, FEW),
    ("prototypes vs dense PCM", Call("auto", stage(56)), Call(DENSE, stage(56)), 15, 7),
    ("prototypes (sign promised) vs their two matrix products alone", PROMISED, Call("products", POSITIVE), 0.5, MANY),
    (f"{FOR_SIGN} (sign promised)", ANY_SIGN, PROMISED, 1 / 1.1, MANY),
    (f"{FOR_SIGN} (sign read)", ANY_SIGN, LINEAR, 1 / 1.1, MANY),
    ("shifted cosine vs dense PCM (the ReLU), signed", ANY_SIGN, Call(DENSE, SIGNED), 250, FEW),
    ("tiled vs dense PCM, signed", TILED, Call(DENSE, SIGNED), 2.5, FEW),
    ("tiled vs dense PCM, signed", Call("tiled", stage(64, "randn")), Call(DENSE, stage(64, "randn")), 1.0, 7),
    ("tiled vs the product xᵀx alone, signed", TILED, Call("xᵀx", SIGNED), 1 / 0.6, FEW),
    ("second-order vs tiled, power 2", Call("second_order", SQUARED), Call("tiled", SQUARED), 1.0, FEW),
]
GROWTH: list[tuple[str, Call, int, float, int]] = [  # what, ours, the last side, the exponent at most, calls there
    ("prototypes", LINEAR, 512, 1.1, 5),  # memory counts
    ("prototypes (shifted cosine, signed)", ANY_SIGN, 1024, 1.1, 5),
    ("tiled", TILED, 256, 2.05, 1),  # takes minutes at 262,144 pixels, and seconds at 65,536
]
MEMORY = [
    ("prototypes", LINEAR),
    ("prototypes", Call("auto", stage(256))),
    ("tiled", Call("tiled", stage(256, "randn"))),
]


def prepared(call: Call) -> Callable[[], Tensor]:
    """Return the call, its inputs drawn: the same for the same stage."""
    provider, problem = CALLS[call.provider], call.problem
    return provider.build(CPU, problem, *problem.draw(CPU.device, 0), provider.names(problem, CPU)[-1])


def label(what: str, problem: Problem) -> str:
    """Return what a figure is called."""
    return f"{what}, L={problem.L:,}, C={problem.C}" + (f", K={problem.K}" if problem.K != 20 else "")


@pytest.mark.parametrize(
    ("what", "ours", "peer", "at_least", "rounds"), RATIOS, ids=[label(what, ours.problem) for what, ours, *_ in RATIOS]
)
def test_ratio(benchmark: BenchmarkFixture, what: str, ours: Call, peer: Call, at_least: float, rounds: int) -> None:
    """Time ours with pytest-benchmark and the peer in turn; the ratio is the median of the rounds' ratios.

    Both are warm: the second of two calls counts, since what the other does to caches and allocator is not its own.
    """
    mine, theirs, seconds = prepared(ours), prepared(peer), list[float]()
    # Speed says nothing while the answer is wrong.
    if ours.problem == peer.problem and CALLS[peer.provider].answer == "polished":
        torch.testing.assert_close(mine(), theirs(), rtol=1e-4, atol=1e-5)

    def in_turn() -> None:
        if rounds > FEW:  # what takes seconds is as fast the first time
            theirs()
        seconds.append(CPU.seconds(theirs, cold=False))
        mine()

    benchmark.pedantic(mine, setup=in_turn, rounds=rounds)
    assert benchmark.stats, "pytest-benchmark is disabled"
    times = benchmark.stats["data"]
    ratio = float(np.median(np.array(seconds) / times))
    gate(label(what, ours.problem), ratio=ratio, at_least=at_least, ours=times, peer=seconds)


@pytest.mark.parametrize(("what", "call", "last", "at_most", "count"), GROWTH, ids=[what for what, *_ in GROWTH])
def test_growth(what: str, call: Call, last: int, at_most: float, count: int) -> None:
    """Find e of time = L^e from 128² to ``last``² pixels."""
    seconds = []
    for side, calls in ((128, 9), (last, count)):
        made = prepared(Call(call.provider, replace(call.problem, H=side, W=side)))
        if calls > 1:
            made()
        seconds.append(float(np.median([CPU.seconds(made, cold=False) for _ in range(calls)])))
    first, exponent = 1e3 * seconds[0], math.log(seconds[1] / seconds[0]) / math.log(last**2 / 128**2)
    what = f"{what}, exponent of time in L, C=256, from 16,384 pixels ({first:.3g} ms) to {last**2:,}"
    gate(what, exponent=exponent, at_most=at_most)


def peak(device: Device, *, call: Call) -> list[dict[str, Any]]:
    """Return the bytes that a call takes beyond its inputs, its result included, in a process that is fresh."""
    torch.relu(torch.rand(512, 512) @ torch.rand(512, 512))  # thread pool and library code are there beforehand
    polish(torch.rand(1, 2, 8, 8), torch.rand(1, 4, 8, 8))
    return [{"status": "ok", "bytes": device.peak_bytes(prepared(call))[1]}]


@pytest.mark.parametrize(("what", "call"), MEMORY, ids=[label(what, call.problem) for what, call in MEMORY])
def test_peak_extra_memory(what: str, call: Call) -> None:
    with Workers(fresh=True) as workers:
        (row,) = workers.do(job("bench.test_paths:peak", "peak", 300, call=call))
    assert row["status"] == "ok", row
    problem, maps = call.problem, 2 * call.problem.K * call.problem.L * 4  # CAM and output
    limit = 256 << 20 if what == "tiled" else 2 * maps + (16 << 20)
    features = f"C={problem.C} (features {problem.feature_bytes / MIB:.0f} MiB)"
    gate(f"{what}, peak extra memory, L={problem.L:,}, {features}", mib=row["bytes"] / MIB, at_most=limit / MIB)


@pytest.mark.parametrize(("k", "goal"), [(1, 0.03), (20, 0.05)])
@pytest.mark.parametrize("size", [224, 512, 1024])
def test_share_of_the_backbone(size: int, k: int, goal: float) -> None:
    """Polish and fuse the four stages of a ResNet-50, at the largest stage's size and at the image's."""
    cam, net = named(f"resnet50/{size}/K{k}").draw(CPU.device, 0)
    layout = min(FORMATS, key=lambda each: CPU.seconds(net.run(each), cold=False))
    maps, nonnegative = net.stages(layout)
    fused = partial(polish, cam, maps, affinity=net.affinities, nonnegative=nonnegative)
    calls = {"forward": net.run(layout), "": fused, ", resized to the image": partial(fused, size=(size, size))}
    times = time_interleaved(CPU, calls, cold=0, warm=15, least=3, budget=5.0)
    for end, most in ((", resized to the image", np.inf), ("", goal)):
        found = ratios(times[end].warm, times["forward"].warm)
        assert found, times
        what = f"polish and fuse of four stages at {size}, K={k}, share of ResNet-50's forward{end}"
        gate(what, share=found["p50"], at_most=most, ours=times[end].warm, peer=times["forward"].warm)


@pytest.mark.parametrize("size", [224, 512])
def test_prototypes_against_their_compiled_algebra(size: int) -> None:
    """Never behind, beyond what two runs of ours differ by."""
    problem, compiled = named(f"resnet50/{size}/layer1"), "algebra compiled"
    if reasons := PROVIDERS[compiled].reasons(problem, CPU):
        pytest.skip("; ".join(reasons))
    calls = {name: prepared(Call(name, problem)) for name in ("auto", "auto again", compiled)}
    torch.testing.assert_close(calls["auto"](), calls[compiled](), rtol=1e-4, atol=1e-5)
    times = time_interleaved(CPU, calls, cold=0, warm=101, least=31, budget=9.0)
    again, found = (ratios(times[name].warm, times["auto"].warm) for name in ("auto again", compiled))
    assert again
    assert found
    band = min(max(1 - again["p20"], again["p80"] - 1, 0), 0.1)
    what = f"ours vs the algebra compiled, resnet50/{size}/layer1, A/A ±{band:.1%}"
    gate(what, ratio=found["p50"], at_least=1 - band, ours=times["auto"].warm, peer=times[compiled].warm)


@pytest.mark.parametrize("index", [0, 1], ids=throughput.CLASSES)
def test_runs_against_the_backbone(index: int) -> None:
    row = RUNS("resnet50", RUN_IMAGES, 2)[index]
    what = f"a run over {RUN_IMAGES} images, classes={row['classes']}, vs the backbone alone"
    gate(what, ratio=row["ratio"], at_least=throughput.GOAL)
