"""The exact methods on a CPU: float32, K = 20 unless said, random features; ratios are goals of the project."""

from __future__ import annotations

import functools
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from bench import providers
from bench.measure import Device, Times, ratios, time_interleaved
from bench.problems import FORMATS, named
from bench.providers import dense_pcm
from bench.workers import Workers, job
from ssa_fast import Affinity, polish
from ssa_fast.ops import cost_model

if TYPE_CHECKING:
    from bench.conftest import Gate, Versus

K = 20
SHIFTED = Affinity("shifted")
MIB = 1 << 20
RUN_IMAGES = 12
FEW = 3  # rounds of a dense product of 16,384², which takes seconds


def flops(method: str, side: int, *, K: int = K, C: int = 256, affinity: Affinity = Affinity()) -> float:  # noqa: B008 - frozen
    """Operations of one call, as the dispatcher counts them."""
    return cost_model.cost(method, cost_model.Problem(1, K, C, side * side, affinity, None)).flops


def work(*calls: float, rounds: int = 7) -> pytest.MarkDecorator:
    """What a comparison computes in all: each of its calls once, and twice a round; a convolution counts half."""
    return pytest.mark.work((1 + 2 * rounds) * sum(calls))


def milliseconds(ours: Times, peer: Times) -> dict[str, float]:
    return {
        f"{name}_ms": round(float(np.median(each.warm)) * 1e3, 3) for name, each in (("ours", ours), ("peer", peer))
    }


@functools.lru_cache
def times_beside_dense(side: int, rounds: int) -> dict[bool | None, Times]:
    """Time prototypes with the sign promised (True) and not (None), and dense PCM (False)."""
    cam, f = torch.rand(1, K, side, side), torch.rand(1, 256, side, side)
    calls = {str(each): partial(polish, cam, f, method="prototypes", nonnegative=each) for each in (True, None)}
    calls["False"] = partial(dense_pcm, cam, f)
    torch.testing.assert_close(calls["None"](), calls["False"](), rtol=1e-4, atol=1e-5)
    found = time_interleaved(Device(), calls, cold=0, warm=rounds, least=rounds, budget=0.0)
    return {True: found["True"], None: found["None"], False: found["False"]}


@pytest.mark.parametrize(
    ("side", "promised", "goal", "rounds"),
    [
        pytest.param(128, True, 250, FEW, marks=work(flops("dense", 128), rounds=FEW)),  # for both
        pytest.param(128, None, 250, FEW, marks=work(0)),
        pytest.param(56, None, 15, 7, marks=work(flops("dense", 56))),
    ],
)
def test_prototypes_against_dense(gate: Gate, side: int, promised: bool | None, goal: float, rounds: int) -> None:
    times = times_beside_dense(side, rounds)
    label = f"prototypes{' (sign promised)' if promised else ''} vs dense PCM, L={side * side:,}, C=256"
    found = ratios(times[False].warm, times[promised].warm)
    assert found, times
    gate(label, "ratio", found["p50"], at_least=goal, **milliseconds(times[promised], times[False]))


def test_prototypes_against_their_own_products(versus: Versus) -> None:
    cam, f = torch.rand(1, K, 128, 128), torch.rand(1, 256, 128, 128)
    v, flat = torch.rand(K + 1, 128 * 128), f[0].flatten(1)
    versus(
        lambda: polish(cam, f, method="prototypes", nonnegative=True),
        lambda: (v @ flat.mT) @ flat,
        label="prototypes (sign promised) vs their two matrix products alone, L=16,384, C=256",
        at_least=1 / 2,
        same=False,
        rounds=31,
    )


# Signed features pay nothing for their sign: the goal allows a tenth. The peer's features are ≥ 0, its CAM the same.
@pytest.mark.parametrize("promised", [True, None])
def test_the_shifted_cosine_against_prototypes(versus: Versus, promised: bool | None) -> None:
    cam, f, signed = torch.rand(1, K, 128, 128), torch.rand(1, 256, 128, 128), torch.randn(1, 256, 128, 128)
    versus(
        lambda: polish(cam, signed, affinity=SHIFTED),
        lambda: polish(cam, f, nonnegative=promised),
        label="shifted cosine, signed, vs prototypes, features >= 0 "
        f"({'sign promised' if promised else 'sign read'}), L=16,384, C=256",
        at_least=1 / 1.1,
        same=False,
        rounds=31,
    )


@work(flops("dense", 128), rounds=FEW)
def test_the_shifted_cosine_against_dense(versus: Versus) -> None:
    cam, f = torch.rand(1, K, 128, 128), torch.randn(1, 256, 128, 128)
    versus(
        lambda: polish(cam, f, affinity=SHIFTED),
        lambda: dense_pcm(cam, f),
        label="shifted cosine vs dense PCM (the ReLU), signed, L=16,384, C=256",
        at_least=250,
        same=False,
        rounds=FEW,
    )


@pytest.mark.parametrize(
    ("side", "goal", "rounds"),
    [
        pytest.param(128, 2.5, FEW, marks=work(flops("dense", 128), flops("tiled", 128), rounds=FEW)),
        pytest.param(64, 1.0, 7, marks=work(flops("dense", 64), flops("tiled", 64))),
    ],
)
def test_tiled_against_dense(versus: Versus, side: int, goal: float, rounds: int) -> None:
    cam, f = torch.rand(1, K, side, side), torch.randn(1, 256, side, side)
    label = f"tiled vs dense PCM, signed, L={side * side:,}, C=256"
    ours = partial(polish, cam, f, method="tiled")
    versus(ours, lambda: dense_pcm(cam, f), label=label, at_least=goal, rounds=rounds)


@work(flops("dense", 128, K=0), flops("tiled", 128), rounds=FEW)
def test_tiled_against_the_product_alone(versus: Versus) -> None:
    cam, f = torch.rand(1, K, 128, 128), torch.randn(1, 256, 128, 128)
    flat = f[0].flatten(1)
    versus(
        lambda: polish(cam, f, method="tiled"),
        lambda: flat.mT @ flat,
        label="tiled vs the product xᵀx alone, signed, L=16,384, C=256",
        at_least=1 / 0.6,
        same=False,
        rounds=FEW,
    )


# Exponents e of time = L^e from 16,384 pixels on; tiled takes minutes at 262,144 pixels, and seconds at 65,536.
@pytest.mark.parametrize(
    ("method", "draw", "affinity", "last", "goal", "times"),
    [
        pytest.param("prototypes", "rand", Affinity(), 512, 1.1, 5, marks=pytest.mark.work(6e11)),  # memory counts
        pytest.param("prototypes", "randn", SHIFTED, 1024, 1.1, 5, marks=pytest.mark.work(12e11)),
        pytest.param(
            *("tiled", "randn", Affinity(), 256, 2.05, 1),
            marks=pytest.mark.work(10 * flops("tiled", 128) + flops("tiled", 256)),
        ),
    ],
)
def test_growth(gate: Gate, method: str, draw: str, affinity: Affinity, last: int, goal: float, times: int) -> None:
    def prepared(side: int) -> Any:
        cam, f = torch.rand(1, K, side, side), getattr(torch, draw)(1, 256, side, side)
        return partial(polish, cam, f, affinity=affinity, method=method)

    exponent, first = _exponent(prepared, last, times)
    if method == "prototypes":  # what memory costs beyond the caches is not the method's: its products alone, beside it
        found, _ = _exponent(_products, last, times)
        gate(f"the products of prototypes alone, exponent, to {last**2:,}", "exponent", found)
    name = method if affinity.phi == "relu" else f"{method} ({affinity.phi} cosine, signed)"
    what = f"{name}, exponent of time in L, C=256, from 16,384 pixels ({first * 1e3:.3g} ms) to {last**2:,}"
    gate(what, "exponent", exponent, at_most=goal)


def _products(side: int) -> Any:
    v, flat = torch.rand(K + 1, side * side), torch.rand(256, side * side)
    return lambda: (v @ flat.mT) @ flat


def _exponent(prepared: Any, last: int, times: int) -> tuple[float, float]:
    """Return e of time = L^e from 128² pixels to ``last``², and the seconds of the former."""
    found = []
    for side in (128, last):
        call = prepared(side)
        if side < last or times > 1:
            call()
        taken = [Device().seconds(call, cold=False) for _ in range(times if side == last else 9)]
        found.append(float(np.median(taken)))
    return float(np.log(found[1] / found[0]) / np.log(last**2 / 128**2)), found[0]


@work(flops("second_order", 128, K=3, affinity=Affinity(power=2)), flops("tiled", 128, K=3), rounds=FEW)
def test_second_order_against_tiled(versus: Versus) -> None:
    cam, f, affinity = torch.rand(1, 3, 128, 128), torch.rand(1, 256, 128, 128), Affinity(power=2)
    versus(
        lambda: polish(cam, f, affinity=affinity, method="second_order"),
        lambda: polish(cam, f, affinity=affinity, method="tiled"),
        label="second-order vs tiled, power 2, L=16,384, C=256, K=3",
        at_least=1.0,
        rounds=FEW,
    )


def peak(device: Device, *, method: str, draw: str, side: int) -> list[dict[str, Any]]:
    """Return the bytes that a call takes beyond its inputs, its result included, in a process that is fresh."""
    torch.relu(torch.rand(512, 512) @ torch.rand(512, 512))  # thread pool and library code are there beforehand
    polish(torch.rand(1, 2, 8, 8), torch.rand(1, 4, 8, 8))
    cam, f = torch.rand(1, K, side, side), getattr(torch, draw)(1, 256, side, side)
    _, found = device.peak_bytes(lambda: polish(cam, f, method=method))
    return [{"status": "ok", "bytes": found}]


@pytest.mark.parametrize(
    ("method", "draw", "side"),
    [
        ("prototypes", "rand", 128),
        ("prototypes", "rand", 256),
        pytest.param("tiled", "randn", 256, marks=pytest.mark.work(flops("tiled", 256))),
    ],
)
def test_peak_extra_memory(gate: Gate, method: str, draw: str, side: int) -> None:
    with Workers(fresh=True) as workers:
        (row,) = workers.do(job("bench.test_paths:peak", "peak", 300, method=method, draw=draw, side=side))
    assert row["status"] == "ok", row
    found = row["bytes"]
    cam_and_output = 2 * K * side * side * 4
    limit = 256 << 20 if method == "tiled" else 2 * cam_and_output + (16 << 20)
    what = f"{method}, peak extra memory, L={side * side:,}, C=256 (features {side * side * 1024 / 2**20:.0f} MiB)"
    gate(what, "mib", found / MIB, at_most=limit / MIB)


@functools.lru_cache
def times_at(size: int) -> dict[str, Times]:
    """Time ResNet-50's forward, and its four stages polished and fused at the largest stage's and the image's size."""
    cpu = Device()
    cam, net = named(f"resnet50/{size}").draw(cpu.device, 0)
    layout = min(FORMATS, key=lambda each: cpu.seconds(net.run(each), cold=False))
    maps, nonnegative = net.stages(layout)
    given: dict[str, Any] = {"affinity": net.affinities, "nonnegative": nonnegative}
    calls = {"forward": net.run(layout)}
    for k in (K, 1):
        calls[f"K={k}"] = partial(polish, cam[:, :k], maps, **given)
        calls[f"K={k}, image"] = partial(polish, cam[:, :k], maps, size=(size, size), **given)
    return time_interleaved(cpu, calls, cold=0, warm=15, least=3, budget=8.0)


@pytest.mark.parametrize(("k", "goal"), [(1, 0.03), (K, 0.05)])
@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=pytest.mark.work(4e5 * size**2)) for size in (224, 512, 1024)]
)
def test_share_of_the_backbone(gate: Gate, size: int, k: int, goal: float) -> None:
    pytest.importorskip("torchvision", reason="needs torchvision's ResNet-50")
    times = times_at(size)
    what, forward = f"polish and fuse of four stages at {size}, K={k}, share of ResNet-50's forward", times["forward"]
    for end, key, most in ((", resized to the image", f"K={k}, image", np.inf), ("", f"K={k}", goal)):
        found = ratios(times[key].warm, forward.warm)
        assert found, times
        gate(what + end, "share", found["p50"], at_most=most, **milliseconds(times[key], forward))


@pytest.mark.parametrize("size", [224, 512])
def test_prototypes_against_their_compiled_algebra(gate: Gate, size: int) -> None:
    """Never behind, beyond what two runs of ours differ by."""
    cpu, problem = Device(), named(f"resnet50/{size}/layer1")
    peer = providers.PROVIDERS["algebra compiled"]
    if reasons := peer.reasons(problem, cpu):
        pytest.skip("; ".join(reasons))
    cam, f = problem.draw(cpu.device, 0)
    given = cpu, problem, cam, f
    calls = {each: providers.PROVIDERS[each].build(*given, "") for each in ("auto", "auto again")}
    calls["peer"] = peer.build(*given, "compiled")
    torch.testing.assert_close(calls["auto"](), calls["peer"](), rtol=1e-4, atol=1e-5)
    times = time_interleaved(cpu, calls, cold=0, warm=101, least=31, budget=9.0)
    again, found = (ratios(times[each].warm, times["auto"].warm) for each in ("auto again", "peer"))
    assert found, times
    assert again
    band = min(max(1 - again["p20"], again["p80"] - 1, 0), 0.1)
    what = f"ours vs the algebra compiled, resnet50/{size}/layer1, A/A ±{band:.1%}"
    gate(what, "ratio", found["p50"], at_least=1 - band, **milliseconds(times["auto"], times["peer"]))


@pytest.fixture(scope="module")
def runs() -> list[dict[str, Any]]:
    """One row per number of classes, of whole runs beside reading the files and the forward alone."""
    pytest.importorskip("torchvision", reason="needs torchvision's ResNet-50")
    from bench import throughput

    return throughput.rows("resnet50", RUN_IMAGES, 2)


@pytest.mark.parametrize(
    "classes", ["predicted", pytest.param("top5", marks=pytest.mark.work(3 * 3 * RUN_IMAGES * 1.5e10))]
)
def test_runs_against_the_backbone(gate: Gate, runs: list[dict[str, Any]], classes: str) -> None:
    (row,) = (row for row in runs if row["classes"] == classes)
    gate(
        f"a run over {RUN_IMAGES} images, classes={classes}, vs the backbone alone", "ratio", row["ratio"], at_least=0.9
    )
