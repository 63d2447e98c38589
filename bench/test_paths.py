"""The exact paths on a CPU: float32, K = 20 unless said, random features; ratios are goals of the project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from bench.measure import peak_extra_memory
from bench.peers import dense_pcm
from ssa_fast import Affinity, polish

if TYPE_CHECKING:
    from bench.conftest import Versus

K = 20


@pytest.mark.parametrize(("side", "goal"), [(128, 100), (56, 15)])
def test_prototypes_against_dense(versus: Versus, side: int, goal: float) -> None:
    cam, f = torch.rand(1, K, side, side), torch.rand(1, 256, side, side)
    label = f"prototypes vs dense PCM, L={side * side:,}, C=256"
    versus(lambda: polish(cam, f, path="prototypes"), lambda: dense_pcm(cam, f), label=label, at_least=goal)


@pytest.mark.parametrize(("side", "goal"), [(128, 1.5), (64, 1.0)])
def test_tiled_against_dense(versus: Versus, side: int, goal: float) -> None:
    cam, f = torch.rand(1, K, side, side), torch.randn(1, 256, side, side)
    label = f"tiled vs dense PCM, signed, L={side * side:,}, C=256"
    versus(lambda: polish(cam, f, path="tiled"), lambda: dense_pcm(cam, f), label=label, at_least=goal)


def test_second_order_against_tiled(versus: Versus) -> None:
    cam, f, affinity = torch.rand(1, 3, 128, 128), torch.rand(1, 256, 128, 128), Affinity(power=2)
    versus(
        lambda: polish(cam, f, affinity=affinity, path="second_order"),
        lambda: polish(cam, f, affinity=affinity, path="tiled"),
        label="second-order vs tiled, power 2, L=16,384, C=256, K=3",
        at_least=1.0,
    )


@pytest.mark.parametrize(
    ("path", "draw", "side"), [("prototypes", "rand", 128), ("prototypes", "rand", 256), ("tiled", "randn", 256)]
)
def test_peak_extra_memory(rows: list[dict[str, Any]], path: str, draw: str, side: int) -> None:
    setup = f"cam, f = torch.rand(1, {K}, {side}, {side}), torch.{draw}(1, 256, {side}, {side})"
    found = peak_extra_memory(setup, f"polish(cam, f, path={path!r})")
    cam_and_output = 2 * K * side * side * 4
    limit = 256 << 20 if path == "tiled" else 2 * cam_and_output + (16 << 20)
    what = f"{path}, peak extra memory, L={side * side:,}, C=256 (features {side * side * 1024 / 2**20:.0f} MiB)"
    rows.append({"what": what, "mib": round(found / 2**20, 1), "goal": f"<= {limit / 2**20:.0f}"})
    assert found <= limit, f"{what}: {found:,} bytes, the limit is {limit:,}"
