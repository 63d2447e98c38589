"""The reference against SEAM's PCM code, and against sums written out one number at a time."""

from __future__ import annotations

import math

import pytest
import torch

from bench.providers import dense_pcm
from ssa_fast import Affinity, polish, reference


@pytest.mark.parametrize("draw", [torch.rand, torch.randn])
@pytest.mark.parametrize("method", ["auto", "dense", "tiled"])
def test_one_stage_is_seams_pcm(draw, method):
    cam, f = torch.rand(2, 5, 7, 9).double(), draw(2, 16, 13, 11).double()
    expected = dense_pcm(cam, f)
    torch.testing.assert_close(polish(cam, f, method=method), expected, rtol=0, atol=4e-15)
    torch.testing.assert_close(polish(cam, f, backend="reference"), expected, rtol=0, atol=4e-15)


def by_hand(cam, f, a: Affinity):
    """Compute the definition one number at a time."""
    C, L = len(f), len(f[0])
    if a.center:
        f = [[value - sum(row) / L for value in row] for row in f]
    norm = [math.sqrt(sum(f[c][i] ** 2 for c in range(C))) + a.norm_eps for i in range(L)]

    def phi(i, j):
        cosine = sum(f[c][i] * f[c][j] for c in range(C)) / (norm[i] * norm[j])
        if a.phi == "exp":
            return math.exp((cosine - 1) / a.temperature)
        if a.phi == "shifted":
            return ((cosine + a.shift) / (1 + a.shift)) ** a.power
        return max(cosine, 0.0) ** a.power if cosine >= a.threshold else 0.0

    for _ in range(a.steps):
        cam = [
            [
                sum(row[i] * phi(i, j) for i in range(L)) / (sum(phi(i, j) for i in range(L)) + a.sum_eps)
                for j in range(L)
            ]
            for row in cam
        ]
    return cam


@pytest.mark.parametrize(
    "affinity",
    [
        Affinity(),
        Affinity(power=2.5, threshold=0.3),
        Affinity(center=True, power=2, steps=3),
        Affinity("shifted"),
        Affinity("shifted", shift=0.25, sum_eps=0.3),
        Affinity("shifted", shift=0.25, power=2, center=True, steps=2),
        Affinity("shifted", power=2.5),
        Affinity(phi="exp", temperature=0.2, center=True),
        Affinity(phi="exp", temperature=0.5, steps=2, norm_eps=0.1, sum_eps=0.7),
    ],
    ids=str,
)
def test_the_reference_is_its_formula(affinity):
    cam, f = torch.rand(2, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    expected = torch.tensor(by_hand(cam.tolist(), f.tolist(), affinity), dtype=torch.float64)
    torch.testing.assert_close(reference.polish_stage(cam[None], f[None], affinity)[0], expected, rtol=1e-13, atol=0)


def test_the_reference_is_differentiable():
    cam = torch.rand(1, 2, 6, dtype=torch.float64, requires_grad=True)
    f = torch.randn(1, 3, 6, dtype=torch.float64, requires_grad=True)
    for affinity in (
        Affinity(power=2, center=True),
        Affinity(phi="exp", temperature=0.3, steps=2),
        Affinity("shifted", shift=0.5, center=True, steps=2),
    ):
        assert torch.autograd.gradcheck(lambda c, x, a=affinity: reference.polish_stage(c, x, a), (cam, f))
