"""Launches of the kernels: large batches, NumPy numbers, a sign determined on the device, fusion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssa_fast import Affinity, polish
from ssa_fast.ops import fusion, triton_backend
from ssa_fast.validation import FusionOptions
from tests.accuracy import assert_as_accurate

GridExecutor = pytest.importorskip("triton.runtime.interpreter", reason="needs Triton").GridExecutor
pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize("method", ["prototypes", "tiled", "resident"])
def test_a_batch_beyond_the_grid_is_done_in_parts(monkeypatch, method):
    cam, f = torch.rand(5, 2, 4, 4), torch.rand(5, 16, 4, 5)
    whole = polish(cam, f, method=method, backend="triton")
    monkeypatch.setattr(triton_backend, "MAX_GRID_Y", 2)
    torch.testing.assert_close(polish(cam, f, method=method, backend="triton"), whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", [{}, {"phi": "shifted", "shift": 0.5}], ids=str)
@pytest.mark.parametrize("method", ["prototypes", "tiled", "resident"])
def test_numpy_numbers_in_an_affinity(method, options):
    cam, f = torch.rand(1, 2, 4, 4), torch.rand(1, 16, 4, 5)
    odd = {"norm_eps": 1e-5, "sum_eps": 1e-5} | options
    odd = {name: value if name == "phi" else np.float32(value) for name, value in odd.items()}
    out, expected = (
        polish(cam, f, affinity=Affinity(**given), method=method, backend="triton") for given in (odd, options)
    )
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("steps", [1, 3])
def test_signed_and_non_negative_images_in_one_batch(steps):
    """The kernels determine each image's sign and polish it as its own method does alone."""
    affinity = Affinity(steps=steps)
    cam, f = torch.rand(3, 4, 9, 11), torch.rand(3, 24, 9, 11)
    f[1, 5, 3, 2] = -0.5
    (out,) = triton_backend.polish_stages(cam, [triton_backend.Stage(f, affinity, "prototypes", "tiled")])
    for image, method in enumerate(("prototypes", "tiled", "prototypes")):
        one = slice(image, image + 1)
        alone = polish(
            cam[one], f[one], affinity=affinity, method=method, backend="triton", nonnegative=method != "tiled"
        )
        torch.testing.assert_close(out[one], alone, rtol=1e-6, atol=1e-7)


PASSES = ["plane_kernel", "gather_kernel", "finish_kernel", "apply_kernel"]


@pytest.mark.parametrize(
    ("affinity", "fallback", "expected"),
    [
        (Affinity(), "tiled", [*PASSES, "unit_kernel", "rows_kernel", "full_kernel"]),
        (Affinity("shifted"), None, PASSES),
        (Affinity("shifted", shift=0.5, center=True), None, PASSES),
    ],
    ids=str,
)
def test_signed_features_under_the_shifted_cosine_launch_nothing_quadratic(monkeypatch, affinity, fallback, expected):
    launched, launch = [], GridExecutor.__call__

    def recorded(self, *args, **options):
        launched.append(self.fn.__name__)
        return launch(self, *args, **options)

    monkeypatch.setattr(GridExecutor, "__call__", recorded)
    cam, f = torch.rand(1, 3, 8, 8), torch.randn(1, 32, 8, 8)
    stage = triton_backend.Stage(f, affinity, "prototypes", fallback, precision="high")
    (out,) = triton_backend.polish_stages(cam, [stage])
    assert launched == expected
    assert_as_accurate(out, cam, f, affinity)


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
