"""The exact methods on a CPU: float32, K = 20 unless said, random features; ratios are goals of the project."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from bench.baselines import dense_pcm
from bench.measure import Device
from bench.workers import Workers, job
from ssa_fast import Affinity, polish
from ssa_fast.ops import cost_model

if TYPE_CHECKING:
    from bench.conftest import Versus

K = 20
SHIFTED = Affinity("shifted")
FEW = 3  # rounds of a dense product of 16,384², which takes seconds


def flops(method: str, side: int, *, K: int = K, C: int = 256, affinity: Affinity = Affinity()) -> float:  # noqa: B008 - frozen
    """Operations of one call, as the dispatcher counts them."""
    return cost_model.cost(method, cost_model.Problem(1, K, C, side * side, affinity, None)).flops


def work(*calls: float, rounds: int = 7) -> pytest.MarkDecorator:
    """What ``versus`` computes in all: each of its two calls once, and twice a round."""
    return pytest.mark.work((1 + 2 * rounds) * sum(calls))


@pytest.mark.parametrize(
    ("side", "promised", "goal", "rounds"),
    [
        pytest.param(128, True, 250, FEW, marks=work(flops("dense", 128), rounds=FEW)),
        pytest.param(128, None, 250, FEW, marks=work(flops("dense", 128), rounds=FEW)),
        pytest.param(56, None, 15, 7, marks=work(flops("dense", 56))),
    ],
)
def test_prototypes_against_dense(versus: Versus, side: int, promised: bool | None, goal: float, rounds: int) -> None:
    cam, f = torch.rand(1, K, side, side), torch.rand(1, 256, side, side)
    label = f"prototypes{' (sign promised)' if promised else ''} vs dense PCM, L={side * side:,}, C=256"
    versus(
        lambda: polish(cam, f, method="prototypes", nonnegative=promised),
        lambda: dense_pcm(cam, f),
        label=label,
        at_least=goal,
        rounds=rounds,
    )


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


@work(flops("dense", 128, K=0), flops("tiled", 128), rounds=5)
def test_tiled_against_the_product_alone(versus: Versus) -> None:
    cam, f = torch.rand(1, K, 128, 128), torch.randn(1, 256, 128, 128)
    flat = f[0].flatten(1)
    versus(
        lambda: polish(cam, f, method="tiled"),
        lambda: flat.mT @ flat,
        label="tiled vs the product xᵀx alone, signed, L=16,384, C=256",
        at_least=1 / 0.6,
        same=False,
        rounds=5,
    )


# Exponents e of time = L^e from 16,384 pixels on; tiled takes minutes at 262,144 pixels, and seconds at 65,536.
@pytest.mark.parametrize(
    ("method", "draw", "affinity", "last", "goal", "times"),
    [
        pytest.param("prototypes", "rand", Affinity(), 512, 1.1, 9, marks=pytest.mark.work(1e12)),  # memory counts
        pytest.param("prototypes", "randn", SHIFTED, 1024, 1.1, 9, marks=pytest.mark.work(2e12)),
        pytest.param(
            *("tiled", "randn", Affinity(), 256, 2.05, 1),
            marks=pytest.mark.work(10 * flops("tiled", 128) + flops("tiled", 256)),
        ),
    ],
)
def test_growth(
    rows: list[dict[str, Any]], method: str, draw: str, affinity: Affinity, last: int, goal: float, times: int
) -> None:
    sides, found = (128, last), []
    for side in sides:
        cam, f = torch.rand(1, K, side, side), getattr(torch, draw)(1, 256, side, side)
        call = partial(polish, cam, f, affinity=affinity, method=method)
        if side == sides[0] or times > 1:
            call()
        taken = [Device().seconds(call, cold=False) for _ in range(times if side > sides[0] else 9)]
        found.append(float(np.median(taken)))
    exponent = float(np.log(found[1] / found[0]) / np.log(last**2 / 128**2))
    if (
        method == "prototypes"
    ):  # what memory costs beyond the caches is not the method's: its products alone, for comparison
        rows.append(
            {
                "what": f"the products of prototypes alone, exponent, to {last**2:,}",
                "exponent": _products_exponent(sides),
                "goal": "none",
            }
        )
    name = method if affinity.phi == "relu" else f"{method} ({affinity.phi} cosine, signed)"
    what = f"{name}, exponent of time in L, C=256, from 16,384 pixels ({found[0] * 1e3:.3g} ms) to {last**2:,}"
    rows.append({"what": what, "exponent": round(exponent, 3), "goal": f"<= {goal}"})
    assert exponent <= goal, f"{what}: {exponent:.3f}, the goal is {goal}"


def _products_exponent(sides: tuple[int, int]) -> float:
    found = []
    for side in sides:
        v, flat = torch.rand(K + 1, side * side), torch.rand(256, side * side)
        taken = [Device().seconds(lambda v=v, flat=flat: (v @ flat.mT) @ flat, cold=False) for _ in range(9)]  # type: ignore[misc]
        found.append(float(np.median(taken)))
    return round(float(np.log(found[1] / found[0]) / np.log(sides[1] ** 2 / sides[0] ** 2)), 3)


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
def test_peak_extra_memory(rows: list[dict[str, Any]], method: str, draw: str, side: int) -> None:
    with Workers(fresh=True) as workers:
        (row,) = workers.do(job("bench.test_paths:peak", "peak", 300, method=method, draw=draw, side=side))
    assert row["status"] == "ok", row
    found = row["bytes"]
    cam_and_output = 2 * K * side * side * 4
    limit = 256 << 20 if method == "tiled" else 2 * cam_and_output + (16 << 20)
    what = f"{method}, peak extra memory, L={side * side:,}, C=256 (features {side * side * 1024 / 2**20:.0f} MiB)"
    rows.append({"what": what, "mib": round(found / 2**20, 1), "goal": f"<= {limit / 2**20:.0f}"})
    assert found <= limit, f"{what}: {found:,} bytes, the limit is {limit:,}"
