"""Launches of the kernels: large batches, NumPy numbers, a sign determined on the device, fusion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssa_fast import Affinity, polish
from ssa_fast.ops import fusion, triton_backend
from ssa_fast.validation import FusionOptions


@pytest.mark.parametrize("method", ["prototypes", "tiled", "resident"])
def test_a_batch_beyond_the_grid_is_done_in_parts(monkeypatch, method):
    cam, f = torch.rand(5, 2, 4, 4), torch.rand(5, 16, 4, 5)
    whole = polish(cam, f, method=method, backend="triton")
    monkeypatch.setattr(triton_backend, "MAX_GRID_Y", 2)
    torch.testing.assert_close(polish(cam, f, method=method, backend="triton"), whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["prototypes", "tiled", "resident"])
def test_numpy_numbers_in_an_affinity(method):
    cam, f = torch.rand(1, 2, 4, 4), torch.rand(1, 16, 4, 5)
    odd = Affinity(norm_eps=np.float32(1e-5), sum_eps=np.float32(1e-5))
    torch.testing.assert_close(
        polish(cam, f, affinity=odd, method=method, backend="triton"), polish(cam, f, method=method, backend="triton")
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_signed_and_non_negative_images_in_one_batch(steps):
    """The kernels determine each image's sign and polish it as its own method does alone."""
    affinity = Affinity(steps=steps)
    cam, f = torch.rand(3, 4, 9, 11), torch.rand(3, 24, 9, 11)
    f[1, 5, 3, 2] = -0.5
    out = triton_backend.polish_stage(
        cam, f, affinity, method="prototypes", fallback="tiled", precision="default", align_corners=True
    )
    for image, method in enumerate(("prototypes", "tiled", "prototypes")):
        one = slice(image, image + 1)
        alone = polish(
            cam[one], f[one], affinity=affinity, method=method, backend="triton", nonnegative=method != "tiled"
        )
        torch.testing.assert_close(out[one], alone, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        FusionOptions("mean", (1.0, 1.0), True, None),
        FusionOptions("product", (2.0, 0.5), True, None),
        FusionOptions("mean", (1.0, 1.0), False, (7, 9)),
    ],
    ids=lambda options: f"{options.fuse}-{options.rescale}",
)
def test_fused_in_kernels_as_in_pytorch(options):
    maps = {"low": torch.rand(2, 3, 12, 10), "high": torch.rand(2, 3, 6, 5)}
    kernels = fusion.fuse(maps, replace(options, backend="triton"))
    torch.testing.assert_close(kernels, fusion.fuse(maps, replace(options, backend="torch")))
