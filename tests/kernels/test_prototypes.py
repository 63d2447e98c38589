"""The prototypes kernels in Triton's interpreter, against the reference.

This includes bfloat16, since its features become float16 before ``tl.dot``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

from ssa_fast import Affinity
from ssa_fast.kernels.config import Apply, Gather
from tests.accuracy import assert_as_accurate

prototypes = pytest.importorskip("ssa_fast.kernels.prototypes", reason="needs Triton")

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

GATHER = Gather(block_l=32, rows=16, num_warps=4, num_stages=1, block_c=64)
APPLY = Apply(block_l=64, block_c=32, rows=16, num_warps=4, num_stages=2)
WIDE = dict(gather=Gather(64, 64, 4, 1, 1024), apply=Apply(64, 64, 64, 4, 2))
NO_EPS = Affinity(norm_eps=0.0, sum_eps=0.0)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAN = float("nan")


@pytest.fixture
def polish(guarded: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``prototypes.polish`` into a guarded output, as ``(B, K, H, W)``."""

    def run(cam: Tensor, features: Tensor, affinity: Affinity = Affinity(), **options: Any) -> Tensor:  # noqa: B008
        (B, K, _, _), (_, _, H, W) = cam.shape, features.shape
        out = guarded(B, K, H * W)
        options = dict(align_corners=True, gather=GATHER, apply=APPLY, num_sms=2) | options
        prototypes.polish(cam, features, affinity=affinity, out=out, **options)
        return out.view(B, K, H, W)

    return run


def draw(B: int, K: int, C: int, H: int, W: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.rand(B, K, H, W), torch.rand(B, C, H, W).to(dtype)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(1, 15, 64, 8, 8), (3, 4, 67, 5, 13), (2, 5, 24, 1, 1), (1, 1, 1, 7, 5), (1, 21, 33, 5, 13)],
    ids=["aligned", "ragged", "one-pixel", "one-class", "chunks-of-K"],
)
def test_accuracy(
    polish: Callable[..., Tensor], shape: tuple[int, int, int, int, int], dtype: torch.dtype, steps: int
) -> None:
    cam, features = draw(*shape, dtype)
    affinity = Affinity(steps=steps)
    assert_as_accurate(polish(cam, features, affinity), cam, features, affinity)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 1000, 32, 4, 5), torch.float32),
        ((1, 20, 1280, 5, 7), torch.float32),
        ((1, 20, 1280, 5, 7), torch.float16),
        ((1, 3, 64, 64, 64), torch.float32),
        ((1, 3, 64, 64, 64), torch.float16),
    ],
    ids=["classes", "channels", "channels-half", "pixels", "pixels-half"],
)
def test_large(polish: Callable[..., Tensor], shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    cam, features = draw(*shape, dtype)
    assert_as_accurate(polish(cam, features, **WIDE), cam, features, Affinity())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "view",
    [
        lambda f: f.to(memory_format=torch.channels_last),
        lambda f: f[:, ::2, 1:-1, 2:],
        lambda f: f[..., ::3],
        lambda f: f.transpose(2, 3),
        lambda f: f.flip(1).to(memory_format=torch.channels_last)[:, 3:],
        lambda f: f[:1].expand(3, -1, -1, -1),
        lambda f: f[..., :1],
        lambda f: f[..., :1, :],
    ],
    ids=["channels-last", "sliced", "strided", "transposed", "sliced-channels-last", "one-batch", "column", "row"],
)
def test_any_strides(polish: Callable[..., Tensor], view: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    features = view(torch.rand(3, 20, 9, 14).to(dtype))
    cam = torch.rand(3, 4, *features.shape[2:])
    affinity = Affinity(steps=2)
    assert_as_accurate(polish(cam, features, affinity), cam, features, affinity)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(3, 4), (1, 1), (20, 31)])
def test_resized_cam(polish: Callable[..., Tensor], size: tuple[int, int], align_corners: bool) -> None:
    cam, features = torch.rand(2, 3, *size), torch.rand(2, 16, 9, 14)
    affinity = Affinity(steps=2)
    resized = F.interpolate(cam, size=(9, 14), mode="bilinear", align_corners=align_corners)
    assert_as_accurate(polish(cam, features, affinity, align_corners=align_corners), resized, features, affinity)


FEATURES = {
    "nearly constant": lambda f: 100 + f,
    "sparse": lambda f: f * (torch.rand_like(f) < 0.05),
    "tiny": lambda f: f * 1e-12,
    "huge": lambda f: f * 1e12,
    "of many sizes": lambda f: f * 10 ** (24 * torch.rand_like(f[:, :1]) - 12),
}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
@pytest.mark.parametrize("affinity", [Affinity(), NO_EPS], ids=["PCM", "no eps"])
@pytest.mark.parametrize("kind", FEATURES)
def test_range(polish: Callable[..., Tensor], kind: str, affinity: Affinity, scale: float) -> None:
    cam, features = draw(1, 4, 40, 12, 13)
    cam, features = scale * cam, FEATURES[kind](features)
    assert_as_accurate(polish(cam, features, affinity), cam, features, affinity)


@pytest.mark.parametrize("affinity", [Affinity(), NO_EPS], ids=["PCM", "no eps"])
@pytest.mark.parametrize("scale", [2.0**-24, 1e-5, 6e4])
def test_range_of_float16(polish: Callable[..., Tensor], scale: float, affinity: Affinity) -> None:
    """Polish features down to float16's subnormal numbers, whose norm float16 cannot hold."""
    cam, features = draw(1, 4, 40, 8, 9)
    features = (1.0 + 0.09 * features).mul(scale).half() if scale > 1 else features.mul(8 * scale).half()
    assert features.any()
    assert_as_accurate(polish(cam, features, affinity), cam, features, affinity, torch.float16)
    assert_as_accurate(polish(cam, features.float(), affinity), cam, features.float(), affinity)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_features_give_zero(polish: Callable[..., Tensor], dtype: torch.dtype) -> None:
    cam, features = draw(2, 3, 20, 5, 7, dtype)
    features[:, :, 2] = 0
    features[1] = 0
    out = polish(cam, features, NO_EPS)
    assert (out[:, :, 2] == 0).all()
    assert (out[1] == 0).all()
    assert_as_accurate(out, cam, features, NO_EPS)


def test_zero_cam_stays_zero(polish: Callable[..., Tensor]) -> None:
    cam, features = draw(1, 3, 20, 5, 7)
    cam[:, 1] = 0
    assert (polish(cam, features)[:, 1] == 0).all()


def test_negative_cam(polish: Callable[..., Tensor]) -> None:
    cam, features = draw(2, 3, 20, 9, 7)
    assert_as_accurate(polish(cam - 0.5, features), cam - 0.5, features, Affinity())


@pytest.mark.parametrize("bad", [NAN, float("inf"), -1e-6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_signed_images_are_marked_and_not_written(
    polish: Callable[..., Tensor], dtype: torch.dtype, bad: float
) -> None:
    cam, features = draw(4, 3, 100, 5, 7, dtype)
    features[1, 99, 4, 6] = bad
    features[2, 3, 2, 2] = -0.0
    features[3, 2, 0, 0] = -1.0
    signed = torch.zeros(4, dtype=torch.int32)
    out = polish(cam, features, Affinity(steps=2), signed=signed)
    assert signed.tolist() == [0, 0 if bad > 0 else 1, 0, 1]
    assert out[1].isnan().all()  # infinity is not signed and gives NaN
    assert out[3].isnan().all()
    assert_as_accurate(out[::2], cam[::2], features[::2], Affinity(steps=2))


def test_out_is_not_written_where_signed(guarded: Callable[..., Tensor]) -> None:
    cam, features = draw(2, 3, 20, 5, 7)
    features[0] -= 0.5
    out = guarded(2, 3, 35).fill_(7.0)
    options = dict(affinity=Affinity(), align_corners=True, gather=GATHER, apply=APPLY, num_sms=2)
    prototypes.polish(cam, features, out=out, signed=torch.zeros(2, dtype=torch.int32), **options)
    assert (out[0] == 7.0).all()
    assert (out[1] < 1.0).all()


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_nan_stays_in_its_class(polish: Callable[..., Tensor], bad: float) -> None:
    cam, features = draw(2, 3, 20, 5, 7)
    cam[1, 2, 3, 3] = bad
    out = polish(cam, features, Affinity(steps=2))
    assert out[1, 2].isnan().all()
    out[1, 2] = cam[1, 2] = 0
    assert_as_accurate(out, cam, features, Affinity(steps=2))


@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_image(polish: Callable[..., Tensor], dtype: torch.dtype, bad: float) -> None:
    cam, features = draw(2, 3, 20, 5, 7, dtype)
    features[1, 4, 3, 3] = bad
    out = polish(cam, features)
    assert out[1].isnan().all()
    assert_as_accurate(out[:1], cam[:1], features[:1], Affinity())


@pytest.mark.parametrize("num_sms", [1, 3, 1000])
def test_any_number_of_programs(polish: Callable[..., Tensor], num_sms: int) -> None:
    cam, features = draw(1, 5, 20, 23, 29)
    out = polish(cam, features, num_sms=num_sms)
    assert_as_accurate(out, cam, features, Affinity())
    assert torch.equal(out, polish(cam, features, num_sms=num_sms))


def test_one_slab_where_memory_is_short(polish: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prototypes, "SLAB_BYTES", 1)
    cam, features = draw(1, 5, 20, 9, 14)
    assert_as_accurate(polish(cam, features), cam, features, Affinity())


def test_constant_cam_is_a_fixed_point(polish: Callable[..., Tensor]) -> None:
    features = torch.rand(1, 30, 9, 14)
    out = polish(torch.full((1, 2, 9, 14), 0.7), features, NO_EPS)
    torch.testing.assert_close(out, torch.full_like(out, 0.7), rtol=4 * torch.finfo(torch.float32).eps, atol=0)
