"""The operands that the prepare kernels write for the quadratic kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

from ssa_fast import Affinity, reference
from ssa_fast.kernels.config import Prepare
from ssa_fast.kernels.moments import find_moments

prepare = pytest.importorskip("ssa_fast.kernels.prepare", reason="needs Triton")
primitives = pytest.importorskip("ssa_fast.kernels.primitives", reason="needs Triton")

if TYPE_CHECKING:
    from torch import Tensor

HELD, LOOPED = Prepare(block_l=16, block_c=64, num_warps=4), Prepare(block_l=64, block_c=16, num_warps=4)
both_configs = pytest.mark.parametrize("config", [HELD, LOOPED], ids=["held", "looped"])


def operands_of(cam: Tensor, features: Tensor, *, high: bool = True, wide: bool = False) -> Any:
    peak = find_moments(cam, mean=False).peak
    return prepare.Operands.empty(cam, features, peak, rows=16, align_l=32, block_c=16, high=high, wide=wide)


def units(features: Tensor, affinity: Affinity, config: Prepare, scale: float = 1.0) -> tuple[Tensor, Any]:
    """Return the sum of both halves in float64, ``(B, C, L)``, after checking that the padding is zero.

    Padded channels of a NaN pixel may be NaN.
    """
    operands = operands_of(torch.rand(len(features), 1, 2, 2), features)
    prepare.write_units(features, operands, affinity, scale, config, None)
    both = operands.unit.double() + operands.unit_low.double()
    _, C, H, W = features.shape
    assert (both[:, H * W :] == 0).all()
    assert ((both[:, :, C:] == 0) | both.isnan().any(dim=2, keepdim=True)).all()
    return both[:, : H * W, :C].mT, operands


@both_configs
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_unit_features(dtype: torch.dtype, center: bool, config: Prepare) -> None:
    affinity = Affinity(center=center)
    for layout in (torch.contiguous_format, torch.channels_last):
        features = torch.randn(2, 37, 5, 9).add(0.5).to(dtype).contiguous(memory_format=layout)
        found, operands = units(features, affinity, config, scale=128.0)
        expected = 128 * reference.unit_features(features.flatten(2).double(), affinity)
        assert (found - expected).abs().max() <= 2.0**-21 * expected.abs().max()
        high = operands.unit[:, :45, :37].mT.double()
        assert ((high - expected).abs() <= 2.0**-11 * expected.abs() + 2.0**-20).all()


@both_configs
@pytest.mark.parametrize("peak", [1e-45, 1e-38, 1e-20, 1e20, 3.4e38])
def test_extreme_ranges(peak: float, config: Prepare) -> None:
    features = torch.zeros(1, 37, 2, 3)
    features[0, 3], features[0, 30] = peak, -peak
    features[0, 20, 1, 1] = peak / 2 if peak > 1e-44 else 0
    expected = reference.unit_features(features.flatten(2).double(), Affinity(norm_eps=0.0))
    found, _ = units(features, Affinity(norm_eps=0.0), config)
    assert (found - expected).abs().max() <= 2.0**-21


@both_configs
@pytest.mark.parametrize("value", [2.0**-24, 65504.0])
def test_squares_of_half_precision_are_summed_in_single(value: float, config: Prepare) -> None:
    features = torch.full((1, 37, 2, 3), value, dtype=torch.float16)
    found, _ = units(features, Affinity(norm_eps=0.0), config)
    assert (found - 37**-0.5).abs().max() <= 2.0**-21


@both_configs
def test_a_later_tile_may_be_larger_or_nan(config: Prepare) -> None:
    features = torch.randn(1, 37, 1, 4) * torch.logspace(-18, 18, 37).view(37, 1, 1)
    features[0, 0, 0, 1], features[0, 36, 0, 2] = float("nan"), float("inf")
    found, _ = units(features, Affinity(), config)
    assert found[0, :, 1].isnan().all()
    assert found[0, 36, 2].isnan()
    expected = reference.unit_features(features.flatten(2).double(), Affinity())
    assert (found - expected)[:, :, ::3].abs().max() <= 2.0**-21


@both_configs
@pytest.mark.parametrize("wide", [False, True])
def test_rows(wide: bool, config: Prepare) -> None:
    """Write three row chunks (15, 15 and 4 classes): ones, classes over their peaks, zero padding."""
    cam = torch.randn(2, 34, 3, 4) * torch.logspace(-6, 5, 34).view(34, 1, 1)
    cam[1, 7] = 0
    features = torch.empty(2, 1, 5, 7)
    operands = operands_of(cam, features, wide=wide)
    resize = dict(W=7) | primitives.resize_arguments(cam, 5, 7, True)
    prepare.write_rows(cam, operands, resize, config, None)
    v = operands.v.double() + (0 if wide else operands.v_low.double())
    assert (v[:, 35:] == 0).all()
    v = v[:, :35].view(2, 3, 35, 16)
    assert (v[..., 0] == 1).all()
    classes = v[..., 1:].transpose(2, 3).reshape(2, 45, 35)
    assert (classes[:, 34:] == 0).all()
    peak = cam.double().abs().amax(dim=(2, 3), keepdim=True).clamp_min(1e-30)
    expected = F.interpolate(cam.double() / peak, (5, 7), mode="bilinear", align_corners=True).flatten(2)
    assert (classes[:, :34] - expected).abs().max() <= (2.0**-11 if wide and not operands.high else 2.0**-21)


@both_configs
def test_unsigned_images_are_not_written(config: Prepare) -> None:
    cam, features = torch.rand(2, 3, 4, 4), torch.rand(2, 20, 4, 4)
    operands = operands_of(cam, features, high=False)
    signed = torch.tensor([0, 1], dtype=torch.int32)
    prepare.write_units(features, operands, Affinity(), 1.0, config, signed)
    prepare.write_rows(cam, operands, dict(W=4) | primitives.resize_arguments(cam, 4, 4, True), config, signed)
    for written in (operands.unit, operands.v):
        assert written[0].isnan().all()
        assert not written[1].isnan().any()
