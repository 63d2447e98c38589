"""Maps are resized as PyTorch interpolates, whatever computes it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssa_fast.ops import resize as resize_module
from ssa_fast.ops.resize import PRODUCT_SIDE, resize


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("old", [(1, 1), (1, 7), (7, 7), (14, 9), (48, 20), (49, 20)])
@pytest.mark.parametrize("new", [(7, 7), (56, 56), (61, 48)])
def test_resize_is_bilinear_interpolation(old, new, dtype, align_corners):
    maps = torch.randn(2, 3, *old, dtype=dtype)
    expected = maps if old == new else F.interpolate(maps, new, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(
        resize(maps, new, align_corners), expected, rtol=0, atol=16 * torch.finfo(dtype).eps, check_stride=False
    )


def test_small_maps_are_enlarged_by_products_and_others_are_interpolated(monkeypatch):
    small, large = torch.rand(1, 2, PRODUCT_SIDE, 8), torch.rand(1, 2, PRODUCT_SIDE + 1, 8)
    with monkeypatch.context() as patch:
        resize(small, (64, 64))
        patch.setattr(resize_module.F, "interpolate", lambda *_, **__: pytest.fail("interpolated"))
        resize(small, (64, 64))
    monkeypatch.setattr(resize_module, "weights", lambda *_: pytest.fail("by products"))
    resize(large, (64, 64))
    resize(small, (40, 64))
    resize(small.half(), (64, 64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_stay_where_they_are(bad):
    maps = torch.rand(1, 2, 7, 7)
    maps[0, 1, 3, 4] = bad
    expected = F.interpolate(maps, (29, 30), mode="bilinear", align_corners=True)
    assert torch.equal(resize(maps, (29, 30)).isfinite(), expected.isfinite())


def test_the_weights_can_be_used_inside_and_outside_inference_mode():
    resize_module.weights.cache_clear()
    maps = torch.rand(1, 2, 5, 5)
    with torch.inference_mode():
        resize(maps, (11, 13))
    maps.requires_grad_()
    resize(maps, (11, 13)).sum().backward()
    torch.testing.assert_close(maps.grad.sum(), torch.tensor(2.0 * 11 * 13))
