"""The prototypes kernels against the reference.

This includes bfloat16, since its features become float16 before ``tl.dot``.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

from ssa_fast import Affinity
from ssa_fast.kernels.config import Apply, Gather
from tests.accuracy import assert_as_accurate
from tests.magnitudes import EXTREME

gather_pass = pytest.importorskip("ssa_fast.kernels.gather", reason="needs Triton")
norms = pytest.importorskip("ssa_fast.kernels.norms", reason="needs Triton")
primitives = pytest.importorskip("ssa_fast.kernels.primitives", reason="needs Triton")
prototypes = pytest.importorskip("ssa_fast.kernels.prototypes", reason="needs Triton")

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

GATHER = Gather(block_l=32, rows=16, num_warps=4, num_stages=1, block_c=64)
APPLY = Apply(block_l=64, block_c=32, rows=16, num_warps=4, num_stages=2)
ONE_PART = Gather(block_l=32, rows=16, num_warps=4, num_stages=1, block_c=128)
WIDE = dict(gather=Gather(64, 64, 4, 1, 1024), apply=Apply(64, 64, 64, 4, 2))
NO_EPS = Affinity(norm_eps=0.0, sum_eps=0.0)
SHIFTED = Affinity(phi="shifted")
SHIFTED_NO_EPS = Affinity(phi="shifted", shift=0.5, norm_eps=0.0, sum_eps=0.0)
CENTERED = Affinity(phi="shifted", center=True, steps=2)
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


def draw(
    B: int, K: int, C: int, H: int, W: int, dtype: torch.dtype = torch.float32, affinity: Affinity = NO_EPS
) -> tuple[Tensor, Tensor]:
    """Return a CAM and features, of any sign where the affinity takes them."""
    random = torch.randn if affinity.any_sign else torch.rand
    return torch.rand(B, K, H, W), random(B, C, H, W).to(dtype)


@pytest.mark.parametrize(
    "affinity",
    [Affinity(), Affinity(steps=3), SHIFTED, Affinity(phi="shifted", shift=0.5, steps=2, sum_eps=3.0), CENTERED],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(1, 15, 64, 8, 8), (3, 4, 67, 5, 13), (2, 5, 24, 1, 1), (1, 1, 1, 7, 5), (1, 21, 33, 5, 13), (1, 3, 130, 7, 9)],
    ids=["aligned", "ragged", "one-pixel", "one-class", "chunks-of-K", "parts-of-C"],
)
def test_accuracy(
    polish: Callable[..., Tensor], shape: tuple[int, int, int, int, int], dtype: torch.dtype, affinity: Affinity
) -> None:
    cam, features = draw(*shape, dtype, affinity)
    assert_as_accurate(polish(cam, features, affinity), cam, features, affinity)


@pytest.mark.parametrize(
    ("shape", "dtype", "affinity"),
    [
        ((1, 1000, 32, 4, 5), torch.float32, Affinity()),
        ((1, 1000, 32, 4, 5), torch.float16, SHIFTED),
        ((1, 20, 1280, 5, 7), torch.float32, Affinity()),
        ((1, 20, 1280, 5, 7), torch.float16, Affinity()),
        ((1, 20, 1280, 5, 7), torch.float16, CENTERED),
        ((1, 3, 64, 64, 64), torch.float32, Affinity()),
        ((1, 3, 64, 64, 64), torch.float16, Affinity()),
        ((1, 3, 64, 64, 64), torch.float32, SHIFTED),
    ],
    ids=str,
)
def test_large(
    polish: Callable[..., Tensor], shape: tuple[int, int, int, int, int], dtype: torch.dtype, affinity: Affinity
) -> None:
    cam, features = draw(*shape, dtype, affinity)
    assert_as_accurate(polish(cam, features, affinity, **WIDE), cam, features, affinity)


@pytest.mark.parametrize(
    ("dtype", "affinity"),
    [(torch.float32, Affinity(steps=2)), (torch.float16, Affinity(steps=2)), (torch.float16, CENTERED)],
    ids=str,
)
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
def test_any_strides(
    polish: Callable[..., Tensor], view: Callable[[Tensor], Tensor], dtype: torch.dtype, affinity: Affinity
) -> None:
    features = view(draw(3, 4, 20, 9, 14, dtype, affinity)[1])
    cam = torch.rand(3, 4, *features.shape[2:])
    assert_as_accurate(polish(cam, features, affinity), cam, features, affinity)


@pytest.mark.parametrize("affinity", [Affinity(steps=2), SHIFTED], ids=str)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(3, 4), (1, 1), (20, 31)])
def test_resized_cam(
    polish: Callable[..., Tensor], size: tuple[int, int], align_corners: bool, affinity: Affinity
) -> None:
    cam, features = torch.rand(2, 3, *size), torch.rand(2, 16, 9, 14)
    resized = F.interpolate(cam, size=(9, 14), mode="bilinear", align_corners=align_corners)
    assert_as_accurate(polish(cam, features, affinity, align_corners=align_corners), resized, features, affinity)


FEATURES = {
    "nearly constant": lambda f: 100 + f,
    "sparse": lambda f: f * (torch.rand_like(f) < 0.05),
    "tiny": lambda f: f * 1e-12,
    "huge": lambda f: f * 1e12,
    "of many sizes": lambda f: f * 10 ** (24 * torch.rand_like(f[:, :1]) - 12),
}


@pytest.mark.parametrize(
    ("affinity", "scale"),
    [
        *product([Affinity(), NO_EPS], [1e-6, 1.0, 1e5]),
        (SHIFTED, 1e-6),
        (SHIFTED_NO_EPS, 1e5),
        (CENTERED, 1.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", FEATURES)
def test_range(polish: Callable[..., Tensor], kind: str, affinity: Affinity, scale: float) -> None:
    cam, features = draw(1, 4, 40, 12, 13, affinity=affinity)
    cam, features = scale * cam, FEATURES[kind](features)
    assert_as_accurate(polish(cam, features, affinity), cam, features, affinity)


@pytest.mark.parametrize("gather", [GATHER, ONE_PART], ids=["two-parts", "one-part"])
@pytest.mark.parametrize("affinity", [NO_EPS, SHIFTED_NO_EPS], ids=str)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in EXTREME),
        *((kind, torch.bfloat16) for kind in ("1e-30", "1e30", "of some pixels")),
        # The interpreter does not convert bfloat16's subnormal numbers as they are.
        pytest.param("1e-38", torch.bfloat16, marks=pytest.mark.cuda),
    ],
    ids=str,
)
def test_squares_beyond_float32(
    polish: Callable[..., Tensor], kind: str, dtype: torch.dtype, affinity: Affinity, gather: Gather
) -> None:
    cam, features = draw(1, 4, 100, 8, 9, affinity=affinity)
    features = EXTREME[kind](features).to(dtype)
    assert_as_accurate(polish(cam, features, affinity, gather=gather), cam, features, affinity)


@pytest.mark.parametrize("affinity", [Affinity(steps=2), Affinity(phi="shifted", steps=2)], ids=str)
def test_later_steps_read_the_norms_of_extreme_features(polish: Callable[..., Tensor], affinity: Affinity) -> None:
    cam, features = draw(1, 4, 40, 8, 9, affinity=affinity)
    features = EXTREME["of some pixels"](features)
    assert_as_accurate(polish(cam, features, affinity), cam, features, affinity)


@pytest.mark.parametrize("gather", [GATHER, ONE_PART], ids=["two-parts", "one-part"])
def test_an_eps_is_scaled_with_its_pixel(polish: Callable[..., Tensor], gather: Gather) -> None:
    """Polish among pixels beside whose norms, scaled to be squared, an eps as it is would be small."""
    cam, features = draw(1, 4, 100, 8, 9)
    features[..., ::2] *= 1e-22
    assert_as_accurate(polish(cam, features, Affinity(), gather=gather), cam, features, Affinity())


@pytest.mark.parametrize("affinity", [NO_EPS, SHIFTED_NO_EPS], ids=str)
@pytest.mark.parametrize("exponent", [-120, 127])
def test_a_cam_of_any_magnitude(polish: Callable[..., Tensor], exponent: int, affinity: Affinity) -> None:
    """Polish a CAM near float32's limits bit by bit as one near 1; the reference's own sums would overflow."""
    cam, features = draw(1, 4, 40, 8, 9, affinity=affinity)
    cam = 0.5 + cam  # whose peak times 2¹²⁷ is between 2¹²⁷ and 2¹²⁸
    scaled = polish(cam * 2.0**exponent, features, affinity)
    assert torch.equal(scaled, polish(cam, features, affinity) * 2.0**exponent)


@pytest.mark.parametrize("norm", [0.0, 1e-45, 3e-39, 2.0**-60, 1.0, 2.0**60, 1e38, float("inf"), NAN])
def test_norms_are_packed_without_loss(norm: float) -> None:
    """A norm is unpacked with the scale of its features, both normal numbers."""
    features = torch.full((1, 16, 1, 16), norm / 4)
    stored = torch.empty(1, 16)
    read = dict(features_ptr=features, mean_ptr=None, norms_ptr=stored, signed_ptr=None, C=16, L=16)
    norms.write_norms(read | primitives.layout_arguments(features), 1, 1)
    packed = stored.double()
    scale = torch.where(packed < 0, torch.where(packed < -(2.0**-8), 2.0**-64, 2.0**50), 1.0)
    expected = features.double().square().sum(dim=1).sqrt()[0]
    torch.testing.assert_close(packed.abs() / scale, expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("affinity", [Affinity(), NO_EPS, SHIFTED, SHIFTED_NO_EPS], ids=str)
@pytest.mark.parametrize("scale", [2.0**-24, 1e-5, 6e4])
def test_range_of_float16(polish: Callable[..., Tensor], scale: float, affinity: Affinity) -> None:
    """Polish features down to float16's subnormal numbers, whose norm float16 cannot hold."""
    cam, features = draw(1, 4, 40, 8, 9)
    features = (1.0 + 0.09 * features).mul(scale).half() if scale > 1 else features.mul(8 * scale).half()
    assert features.any()
    assert_as_accurate(polish(cam, features, affinity), cam, features, affinity, torch.float16)
    assert_as_accurate(polish(cam, features.float(), affinity), cam, features.float(), affinity)


@pytest.mark.parametrize("affinity", [Affinity(), NO_EPS, SHIFTED, SHIFTED_NO_EPS], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_range_of_half_precision_pixels(polish: Callable[..., Tensor], dtype: torch.dtype, affinity: Affinity) -> None:
    """Polish tiles with pixels of usual norms, of tiny and huge ones, and of none: most need a scale of their own."""
    cam, features = draw(1, 4, 40, 12, 13, affinity=affinity)
    pixels = features.flatten(2)
    pixels[..., ::3] *= 2.0 ** torch.linspace(-20, 8, 52)
    pixels[..., 1::9] = 0.0
    features = features.to(dtype)
    assert_as_accurate(polish(cam, features, affinity), cam, features, affinity)
    assert_as_accurate(polish(cam, features, affinity, gather=ONE_PART), cam, features, affinity)


@pytest.mark.parametrize("affinity", [NO_EPS, SHIFTED_NO_EPS], ids=str)
def test_half_precision_features_are_as_accurate_as_float32(polish: Callable[..., Tensor], affinity: Affinity) -> None:
    """Polish features whose norms span more than the range in which they enter the matrix unit without a scale."""
    cam, features = draw(1, 4, 16, 12, 13, affinity=affinity)
    features *= 2.0 ** torch.linspace(-8, 13.5, 156).view(12, 13)
    features = features.half()
    assert_as_accurate(polish(cam, features, affinity), cam, features, affinity, torch.float32)


@pytest.mark.parametrize("norm", [2.0**-9, 2.0**18], ids=["small", "large"])
def test_no_bit_of_a_weight_is_lost_beyond_the_norms_that_need_no_scale(
    polish: Callable[..., Tensor], norm: float
) -> None:
    """The sum over a CAM of few pixels averages no rounding of their weights away."""
    f = torch.nn.functional.normalize(torch.rand(1, 256, 6, 8), dim=1)
    f = (f * norm * (1 + torch.rand(1, 1, 6, 8))).half()
    cam = torch.zeros(1, 3, 6, 8)
    cam[0, 0, 1, 2], cam[0, 1, 4, 4], cam[0, 2, 5, 7] = 0.7, 1.3, 2.9
    assert_as_accurate(polish(cam, f, NO_EPS), cam, f, NO_EPS, torch.float32)


@pytest.mark.parametrize("affinity", [NO_EPS, SHIFTED_NO_EPS], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_features_give_zero_or_the_mean(
    polish: Callable[..., Tensor], dtype: torch.dtype, affinity: Affinity
) -> None:
    cam, features = draw(2, 3, 20, 5, 7, dtype, affinity)
    features[:, :, 2] = 0
    features[1] = 0
    out = polish(cam, features, affinity)
    expected = cam.mean(dim=(2, 3), keepdim=True) if affinity.any_sign else torch.zeros(2, 3, 1, 1)
    torch.testing.assert_close(out[:, :, 2:3], expected.expand(-1, -1, 1, 7), rtol=1e-6, atol=0)
    torch.testing.assert_close(out[1], expected[1].expand(-1, 5, 7), rtol=1e-6, atol=0)
    assert_as_accurate(out, cam, features, affinity)


@pytest.mark.parametrize("affinity", [Affinity(), CENTERED], ids=str)
def test_zero_cam_stays_zero(polish: Callable[..., Tensor], affinity: Affinity) -> None:
    cam, features = draw(1, 3, 20, 5, 7)
    cam[:, 1] = 0
    assert (polish(cam, features, affinity)[:, 1] == 0).all()


CAMS = {
    "of any sign": lambda cam: cam - 0.5,
    "nearly constant": lambda cam: 0.7 + 1e-5 * cam,
    "one-hot": lambda cam: F.one_hot(cam.flatten(2).argmax(2), cam[0, 0].numel()).float().view_as(cam),
}


@pytest.mark.parametrize("affinity", [Affinity(), SHIFTED, SHIFTED_NO_EPS, CENTERED], ids=str)
@pytest.mark.parametrize("kind", CAMS)
def test_any_cam(polish: Callable[..., Tensor], kind: str, affinity: Affinity) -> None:
    cam, features = draw(2, 3, 20, 9, 7, affinity=affinity)
    cam = CAMS[kind](cam)
    assert_as_accurate(polish(cam, features, affinity), cam, features, affinity)


def test_a_mean_does_not_cost_bits_of_zeros(polish: Callable[..., Tensor]) -> None:
    """Polish one pixel of many in half precision with the accuracy of float32, as features in it are exact."""
    cam, features = torch.zeros(1, 1, 48, 64), torch.full((1, 16, 48, 64), 1.9).half()
    cam[0, 0, 3, 4] = 1.0
    assert_as_accurate(polish(cam, features, SHIFTED, **WIDE), cam, features, SHIFTED, torch.float32)


def test_a_cam_that_grows_keeps_its_peak(polish: Callable[..., Tensor]) -> None:
    """Polish where negative affinities almost cancel the others, 10 pixels against 28 opposite ones."""
    features = torch.ones(1, 1, 2, 19)
    features.view(-1)[:28] = -1.0
    affinity = Affinity(phi="shifted", shift=0.5, steps=2)
    out = polish(features, features, affinity)
    assert out.max() > 100
    assert_as_accurate(out, features, features, affinity)


def test_the_largest_weights_fit_float16(polish: Callable[..., Tensor]) -> None:
    """Polish a CAM whose mean is the negative of its peak, along float16's smallest features."""
    cam, features = torch.full((1, 1, 48, 48), -1.9999), torch.full((1, 1, 48, 48), 2.0**-24).half()
    cam[0, 0, 3, 4] = 1.9999
    assert_as_accurate(polish(cam, features, SHIFTED_NO_EPS, **WIDE), cam, features, SHIFTED_NO_EPS)


@pytest.mark.parametrize("gather", [GATHER, ONE_PART], ids=["two-parts", "one-part"])
@pytest.mark.parametrize("bad", [NAN, float("inf"), -1e-6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_signed_images_are_marked_and_not_written(
    polish: Callable[..., Tensor], dtype: torch.dtype, bad: float, gather: Gather
) -> None:
    cam, features = draw(4, 3, 100, 5, 7, dtype)
    features[1, 99, 4, 6] = bad
    features[2, 3, 2, 2] = -0.0
    features[3, 2, 0, 0] = -1.0
    signed = torch.zeros(4, dtype=torch.int32)
    out = polish(cam, features, Affinity(steps=2), signed=signed, gather=gather)
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


@pytest.mark.parametrize("affinity", [Affinity(steps=2), CENTERED], ids=str)
@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_nan_stays_in_its_class(polish: Callable[..., Tensor], bad: float, affinity: Affinity) -> None:
    cam, features = draw(2, 3, 20, 5, 7, affinity=affinity)
    cam[1, 2, 3, 3] = bad
    out = polish(cam, features, affinity)
    assert out[1, 2].isnan().all()
    out[1, 2] = cam[1, 2] = 0
    assert_as_accurate(out, cam, features, affinity)


@pytest.mark.parametrize("affinity", [Affinity(), SHIFTED, CENTERED], ids=str)
@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_image(
    polish: Callable[..., Tensor], dtype: torch.dtype, bad: float, affinity: Affinity
) -> None:
    cam, features = draw(2, 3, 20, 5, 7, dtype, affinity)
    features[1, 4, 3, 3] = bad
    out = polish(cam, features, affinity)
    assert out[1].isnan().all()
    assert_as_accurate(out[:1], cam[:1], features[:1], affinity)


@pytest.mark.parametrize(
    ("num_sms", "affinity"), [(1, Affinity()), (3, Affinity()), (1000, Affinity()), (1000, SHIFTED)], ids=str
)
def test_any_number_of_programs(polish: Callable[..., Tensor], num_sms: int, affinity: Affinity) -> None:
    cam, features = draw(1, 5, 20, 23, 29, affinity=affinity)
    out = polish(cam, features, affinity, num_sms=num_sms)
    assert_as_accurate(out, cam, features, affinity)
    assert torch.equal(out, polish(cam, features, affinity, num_sms=num_sms))


@pytest.mark.parametrize(
    ("features", "pixels"),
    [
        (torch.empty(1, 32, 8, 6), 64),
        (torch.empty(1, 32, 7, 5), 32),
        (torch.empty(1, 32, 8, 8)[..., :6], 32),
        (torch.empty(1, 32, 8, 6).flatten()[1:1489].view(1, 31, 8, 6), 32),
        (torch.empty(1, 32, 7, 5).to(memory_format=torch.channels_last), 64),
        (torch.empty(1, 24, 7, 5).to(memory_format=torch.channels_last), 16),
    ],
    ids=["aligned", "odd", "rows-with-gaps", "shifted-memory", "channels-last", "odd-channels-last"],
)
def test_tiles_are_halved_where_no_loads_are_vectors(features: Tensor, pixels: int) -> None:
    _, C, H, W = features.shape
    read = dict(features_ptr=features, C=C, L=H * W, **primitives.layout_arguments(features))
    assert norms.pixels_per_tile(64, read) == pixels
    assert norms.pixels_per_tile(16, read) == 16


def test_one_slab_where_memory_is_short(polish: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_pass, "SLAB_BYTES", 1)
    cam, features = draw(1, 5, 20, 9, 14)
    assert_as_accurate(polish(cam, features), cam, features, Affinity())


@pytest.mark.parametrize("affinity", [NO_EPS, SHIFTED_NO_EPS], ids=str)
def test_constant_cam_is_a_fixed_point(polish: Callable[..., Tensor], affinity: Affinity) -> None:
    _, features = draw(1, 2, 30, 9, 14, affinity=affinity)
    out = polish(torch.full((1, 2, 9, 14), 0.7), features, affinity)
    torch.testing.assert_close(out, torch.full_like(out, 0.7), rtol=4 * torch.finfo(torch.float32).eps, atol=0)
