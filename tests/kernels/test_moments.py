"""Peaks and means of CAM planes, in one part and in several."""

from __future__ import annotations

import pytest
import torch

moments = pytest.importorskip("ssa_fast.kernels.moments", reason="needs Triton")


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 30), (130, 257)], ids=str)
def test_peaks_are_exact_and_means_are_near(monkeypatch, size):
    monkeypatch.setattr(moments, "PART", 2048)  # so that the largest plane has parts of several blocks
    cam = torch.randn(2, 3, *size)
    cam[1, 2] = 0.0
    signed = torch.full((4, 2), 7, dtype=torch.int32)
    found = moments.find_moments(cam, mean=True, signed=signed)
    assert torch.equal(found.peak, cam.abs().amax((2, 3)))
    bound = torch.finfo(torch.float32).eps * cam.double().abs().mean((2, 3)) * 32
    assert ((found.mean - cam.double().mean((2, 3))).abs() <= bound).all()
    assert (signed == 0).all()


def test_nan_and_infinity_stay():
    cam = torch.zeros(1, 3, 40, 60)
    cam[0, 0, 39, 59], cam[0, 1, 0, 0] = float("nan"), -float("inf")
    peak, mean = moments.find_moments(cam, mean=True)
    assert peak[0, 0].isnan()
    assert mean[0, 0].isnan()
    assert peak[0, 1] == float("inf")
    assert peak[0, 2] == 0


def test_without_means():
    assert moments.find_moments(torch.rand(1, 2, 3, 3), mean=False).mean is None
