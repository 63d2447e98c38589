"""The exact methods on a CPU: float32, K = 20 unless said, random features; ratios are goals of the project."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from bench.measure import Device, Times, ratios, time_interleaved
from bench.problems import FORMATS, Problem, named
from bench.providers import PROVIDERS
from bench.workers import Workers, job
from ssa_fast import polish

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

    from bench.conftest import Gate

CPU, MIB = Device(), 1 << 20
FEW, MANY = 3, 31  # rounds: a dense product of 16,384² takes seconds
RUN_IMAGES = 12


def stage(side: int, values: str = "rand", K: int = 20, affinity: str = "") -> Problem:
    """Return a first stage with a CAM of its own size."""
    return Problem(1, K, 256, side, side, dtype="float32", values=values, affinity=affinity)


@dataclass(frozen=True)
class Call:
    """What a provider makes of a stage; "products" are those of prototypes alone."""

    provider: str
    problem: Problem

    def prepared(self) -> Callable[[], torch.Tensor]:
        """Return the call, its inputs drawn: the same for the same stage."""
        cam, f = self.problem.draw(CPU.device, 0)
        if self.provider == "products":
            v, flat = torch.rand(self.problem.K + 1, self.problem.L), f[0].flatten(1)
            return lambda: (v @ flat.mT) @ flat
        found = PROVIDERS[self.provider]
        return found.build(CPU, self.problem, cam, f, found.names(self.problem, CPU)[-1])

    @property
    def flops(self) -> int:
        """Floating-point operations, as the provider counts them."""
        work = PROVIDERS["prototypes" if self.provider == "products" else self.provider].work(self.problem, CPU)
        assert work is not None
        return work.flops


@dataclass(frozen=True)
class Ratio:
    """``peer / ours`` in time, ``at_least`` so much; ``same`` is False for a peer that computes another result."""

    what: str
    ours: Call
    peer: Call
    at_least: float
    rounds: int = 7
    same: bool = True

    @property
    def label(self) -> str:
        problem = self.ours.problem
        K = f", K={problem.K}" if problem.K != 20 else ""
        return f"{self.what}, L={problem.L:,}, C={problem.C}{K}"

    @property
    def flops(self) -> int:
        """Floating-point operations of all calls: one to compare, and in each round a warm one before the timed one."""
        peers = 1 + self.rounds * (1 if self.rounds == FEW else 2)
        return (1 + 2 * self.rounds) * self.ours.flops + peers * self.peer.flops


POSITIVE, SIGNED, SHIFTED = stage(128), stage(128, "randn"), stage(128, "randn", affinity="phi=shifted")
LINEAR, PROMISED, TILED = Call("auto", POSITIVE), Call("prototypes", POSITIVE), Call("tiled", SIGNED)
DENSE, FOR_SIGN = "dense PCM", "shifted cosine, signed, vs prototypes, features >= 0"
RATIOS = [
    Ratio("prototypes (sign promised) vs dense PCM", PROMISED, Call(DENSE, POSITIVE), 250, FEW),
    Ratio("prototypes vs dense PCM", LINEAR, Call(DENSE, POSITIVE), 250, FEW),
    Ratio("prototypes vs dense PCM", Call("auto", stage(56)), Call(DENSE, stage(56)), 15),
    Ratio(
        "prototypes (sign promised) vs their two matrix products alone",
        PROMISED,
        Call("products", POSITIVE),
        0.5,
        MANY,
        same=False,
    ),
    # Signed features pay nothing for their sign: the goal allows a tenth.
    Ratio(f"{FOR_SIGN} (sign promised)", Call("auto", SHIFTED), PROMISED, 1 / 1.1, MANY, same=False),
    Ratio(f"{FOR_SIGN} (sign read)", Call("auto", SHIFTED), LINEAR, 1 / 1.1, MANY, same=False),
    Ratio(
        "shifted cosine vs dense PCM (the ReLU), signed", Call("auto", SHIFTED), Call(DENSE, SIGNED), 250, FEW, False
    ),
    Ratio("tiled vs dense PCM, signed", TILED, Call(DENSE, SIGNED), 2.5, FEW),
    Ratio("tiled vs dense PCM, signed", Call("tiled", stage(64, "randn")), Call(DENSE, stage(64, "randn")), 1.0),
    Ratio("tiled vs the product xᵀx alone, signed", TILED, Call("xᵀx", SIGNED), 1 / 0.6, FEW, same=False),
    Ratio(
        "second-order vs tiled, power 2",
        Call("second_order", stage(128, K=3, affinity="power=2")),
        Call("tiled", stage(128, K=3, affinity="power=2")),
        1.0,
        FEW,
    ),
]


def milliseconds(ours: list[float], peer: list[float]) -> dict[str, float]:
    """Return the medians of both in ms."""
    return {f"{name}_ms": round(float(np.median(each)) * 1e3, 3) for name, each in (("ours", ours), ("peer", peer))}


def counted(case: Any, *values: Any, flops: float) -> Any:
    """Return a test's parameters, with the operations of all its calls for its progress."""
    return pytest.param(case, *values, marks=pytest.mark.work(flops))


@pytest.mark.parametrize("case", [counted(each, flops=each.flops) for each in RATIOS], ids=lambda each: each.label)
def test_ratio(benchmark: BenchmarkFixture, gate: Gate, case: Ratio) -> None:
    """Time ours with pytest-benchmark and the peer in turn; the ratio is the median of the rounds' ratios.

    Both are warm: the second of two calls counts, since what the other does to caches and allocator is not its own.
    """
    ours, peer, peers = case.ours.prepared(), case.peer.prepared(), list[float]()
    if case.same:  # speed says nothing while the answer is wrong
        torch.testing.assert_close(ours(), peer(), rtol=1e-4, atol=1e-5)

    def in_turn() -> None:
        if case.rounds > FEW:  # what takes seconds is as fast the first time
            peer()
        peers.append(CPU.seconds(peer, cold=False))
        ours()

    benchmark.pedantic(ours, setup=in_turn, rounds=case.rounds)
    assert benchmark.stats is not None
    mine = list(benchmark.stats["data"])
    ratio = float(np.median(np.array(peers) / mine))
    gate(case.label, "ratio", ratio, at_least=case.at_least, **milliseconds(mine, peers))


# Exponents e of time = L^e from 16,384 pixels on; tiled takes minutes at 262,144 pixels, and seconds at 65,536.
@pytest.mark.parametrize(
    ("name", "call", "last", "goal", "times"),
    [
        counted("prototypes", LINEAR, 512, 1.1, 5, flops=6e11),  # memory counts
        counted("prototypes (shifted cosine, signed)", Call("auto", SHIFTED), 1024, 1.1, 5, flops=12e11),
        counted("tiled", TILED, 256, 2.05, 1, flops=(10 + 16) * TILED.flops),
    ],
)
def test_growth(gate: Gate, name: str, call: Call, last: int, goal: float, times: int) -> None:
    exponent, first = exponent_of(call, last, times)
    if name != "tiled":  # what memory costs beyond the caches is not the method's: its products alone
        found, _ = exponent_of(Call("products", call.problem), last, times)
        gate(f"the products of prototypes alone, exponent, to {last**2:,}", "exponent", found)
    what = f"{name}, exponent of time in L, C=256, from 16,384 pixels ({first * 1e3:.3g} ms) to {last**2:,}"
    gate(what, "exponent", exponent, at_most=goal)


def exponent_of(call: Call, last: int, times: int) -> tuple[float, float]:
    """Return e of time = L^e from 128² pixels to ``last``², and the seconds of the former."""
    found = []
    for side, count in ((128, 9), (last, times)):
        made = replace(call, problem=replace(call.problem, H=side, W=side)).prepared()
        if count > 1:
            made()
        found.append(float(np.median([CPU.seconds(made, cold=False) for _ in range(count)])))
    return float(np.log(found[1] / found[0]) / np.log(last**2 / 128**2)), found[0]


def peak(device: Device, *, call: Call) -> list[dict[str, Any]]:
    """Return the bytes that a call takes beyond its inputs, its result included, in a process that is fresh."""
    torch.relu(torch.rand(512, 512) @ torch.rand(512, 512))  # thread pool and library code are there beforehand
    polish(torch.rand(1, 2, 8, 8), torch.rand(1, 4, 8, 8))
    return [{"status": "ok", "bytes": device.peak_bytes(call.prepared())[1]}]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        counted("prototypes", LINEAR, flops=LINEAR.flops),
        counted("prototypes", Call("auto", stage(256)), flops=4 * LINEAR.flops),
        counted("tiled", Call("tiled", stage(256, "randn")), flops=16 * TILED.flops),
    ],
)
def test_peak_extra_memory(gate: Gate, name: str, call: Call) -> None:
    with Workers(fresh=True) as workers:
        (row,) = workers.do(job("bench.test_paths:peak", "peak", 300, call=call))
    assert row["status"] == "ok", row
    L, maps = call.problem.L, 2 * call.problem.K * call.problem.L * 4  # CAM and output
    limit = 256 << 20 if name == "tiled" else 2 * maps + (16 << 20)
    what = f"{name}, peak extra memory, L={L:,}, C=256 (features {call.problem.feature_bytes / MIB:.0f} MiB)"
    gate(what, "mib", row["bytes"] / MIB, at_most=limit / MIB)


@functools.lru_cache
def times_at(size: int) -> dict[str, Times]:
    """Time ResNet-50's forward, and its four stages polished and fused at the largest stage's and the image's size."""
    cam, net = named(f"resnet50/{size}").draw(CPU.device, 0)
    layout = min(FORMATS, key=lambda each: CPU.seconds(net.run(each), cold=False))
    maps, nonnegative = net.stages(layout)
    calls = {"forward": net.run(layout)}
    for k in (20, 1):
        given: Any = {"affinity": net.affinities, "nonnegative": nonnegative}
        calls[f"K={k}"] = partial(polish, cam[:, :k], maps, **given)
        calls[f"K={k}, image"] = partial(polish, cam[:, :k], maps, size=(size, size), **given)
    return time_interleaved(CPU, calls, cold=0, warm=15, least=3, budget=8.0)


@pytest.mark.parametrize(("k", "goal"), [(1, 0.03), (20, 0.05)])
@pytest.mark.parametrize("size", [counted(size, flops=4e5 * size**2) for size in (224, 512, 1024)])
def test_share_of_the_backbone(gate: Gate, size: int, k: int, goal: float) -> None:
    pytest.importorskip("torchvision", reason="needs torchvision's ResNet-50")
    times = times_at(size)
    what, forward = f"polish and fuse of four stages at {size}, K={k}, share of ResNet-50's forward", times["forward"]
    for end, key, most in ((", resized to the image", f"K={k}, image", np.inf), ("", f"K={k}", goal)):
        found = ratios(times[key].warm, forward.warm)
        assert found, times
        gate(what + end, "share", found["p50"], at_most=most, **milliseconds(times[key].warm, forward.warm))


@pytest.mark.parametrize("size", [224, 512])
def test_prototypes_against_their_compiled_algebra(gate: Gate, size: int) -> None:
    """Never behind, beyond what two runs of ours differ by."""
    problem, compiled = named(f"resnet50/{size}/layer1"), "algebra compiled"
    if reasons := PROVIDERS[compiled].reasons(problem, CPU):
        pytest.skip("; ".join(reasons))
    cam, f = problem.draw(CPU.device, 0)
    variants = {"auto": "", "auto again": "", compiled: "compiled"}
    calls = {name: PROVIDERS[name].build(CPU, problem, cam, f, variant) for name, variant in variants.items()}
    torch.testing.assert_close(calls["auto"](), calls[compiled](), rtol=1e-4, atol=1e-5)
    times = time_interleaved(CPU, calls, cold=0, warm=101, least=31, budget=9.0)
    again, found = (ratios(times[name].warm, times["auto"].warm) for name in ("auto again", compiled))
    assert found, times
    assert again
    band = min(max(1 - again["p20"], again["p80"] - 1, 0), 0.1)
    what = f"ours vs the algebra compiled, resnet50/{size}/layer1, A/A ±{band:.1%}"
    pair = milliseconds(times["auto"].warm, times[compiled].warm)
    gate(what, "ratio", found["p50"], at_least=1 - band, **pair)


@pytest.fixture(scope="module")
def runs() -> list[dict[str, Any]]:
    """One row per number of classes, of whole runs beside reading the files and the forward alone."""
    pytest.importorskip("torchvision", reason="needs torchvision's ResNet-50")
    from bench import throughput

    return throughput.rows("resnet50", RUN_IMAGES, 2)


@pytest.mark.parametrize("classes", ["predicted", counted("top5", flops=3 * 3 * RUN_IMAGES * 1.5e10)])
def test_runs_against_the_backbone(gate: Gate, runs: list[dict[str, Any]], classes: str) -> None:
    (row,) = (row for row in runs if row["classes"] == classes)
    what = f"a run over {RUN_IMAGES} images, classes={classes}, vs the backbone alone"
    gate(what, "ratio", row["ratio"], at_least=0.9)
