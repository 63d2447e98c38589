"""Heading 16, first half: features of any finite magnitude.

The class: features whose squares leave their dtype's range, above or below: float32 around 1e20 and 1e-30, up to its
largest and down to its subnormal numbers, float64 around 1e200 and 1e-200, bfloat16 around 1e30, float16 at both of its
ends; a whole stage of them, one pixel among usual ones, channels of one pixel that differ by many orders, zeros among
them; centred or not, under every φ, in every method, in tiles that are streamed, and in ``correlation``. They gave maps
that were finite and wrong. The definition stays ``x = f / (‖f‖ + norm_eps)``: an eps that exceeds a tiny norm makes its
affinities negligible. Infinity and NaN come out as NaN. CAMs of extreme magnitude are rescaled and fused like others.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssa_fast import Affinity, correlation, polish, reference
from ssa_fast.ops import features as features_module
from ssa_fast.ops.features import UnitFeatures
from ssa_fast.ops.resize import minmax
from ssa_fast.streaming import FeatureMean, PixelBank, Prototypes
from tests.accuracy import assert_as_accurate
from tests.magnitudes import EXTREME, some_pixels

NO_EPS = dict(norm_eps=0.0, sum_eps=0.0)
METHODS = [
    ("dense", Affinity(**NO_EPS)),
    ("dense", Affinity(power=1.5, threshold=0.3, **NO_EPS)),
    ("prototypes", Affinity(**NO_EPS)),
    ("prototypes", Affinity("shifted", **NO_EPS)),
    ("prototypes", Affinity("shifted", center=True, steps=2, **NO_EPS)),
    ("second_order", Affinity(power=2, **NO_EPS)),
    ("second_order", Affinity("shifted", power=2, shift=0.5, **NO_EPS)),
    ("tiled", Affinity("exp", temperature=0.3, **NO_EPS)),
    ("tiled", Affinity(center=True, **NO_EPS)),
]
LAYOUTS = {
    "nchw": lambda f: f,
    "channels_last": lambda f: f.to(memory_format=torch.channels_last),
    "rows with gaps": lambda f: torch.nn.functional.pad(f, (0, 3))[..., :-3],
}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Several tiles and several parts of channels in a stage of 1,000 pixels."""
    monkeypatch.setattr(features_module, "TILE_ELEMENTS", 1 << 13)
    monkeypatch.setattr(features_module, "NORM_CHUNK", 1 << 11)


ILL_CONDITIONED = "with one pixel a million times the others the centred others are parallel, and float32 sums cancel"
SUBNORMAL_MEAN = "the mean is rounded to a subnormal number of few bits"


def skip_reason(affinity, kind):
    if affinity.center and affinity.any_sign and kind == "of some pixels":
        return ILL_CONDITIONED
    return SUBNORMAL_MEAN if affinity.center and kind == "subnormal" else ""


def draw(affinity, C=24, H=17, W=23):
    f = torch.rand(1, C, H, W)
    return torch.rand(1, 3, H, W), f if affinity.degree and not affinity.any_sign else f - 0.4


@pytest.mark.parametrize("kind", EXTREME)
@pytest.mark.parametrize(("method", "affinity"), METHODS, ids=str)
def test_every_method(method, affinity, kind):
    if reason := skip_reason(affinity, kind):
        pytest.skip(reason)
    cam, f = draw(affinity)
    f = EXTREME[kind](f)
    out = polish(cam, f, affinity=affinity, method=method)
    assert_as_accurate(out, cam, f, affinity)


def test_a_mean_at_the_other_end_of_the_range():
    """Subtracting it would overflow, though both numbers are finite."""
    largest = torch.finfo(torch.float32).max
    cam, f = torch.rand(1, 3, 4, 5), torch.rand(1, 6, 4, 5) * largest
    f[0, 2] = -largest
    f[0, 2, 1, 1:3] = largest
    for method, affinity in METHODS:
        if affinity.center:
            assert_as_accurate(polish(cam, f, affinity=affinity, method=method), cam, f, affinity)


def test_a_huge_constant_channel_does_not_hide_the_others():
    """Centred it is 0; scaled like the others, which are tiny, it would overflow."""
    affinity, f = Affinity(center=True, norm_eps=0.0), torch.rand(1, 5, 8, 8) * 1e-30
    f[0, 2] = 2.0**66
    found = UnitFeatures(f, affinity, torch.float32).unit(0, 64)
    expected = reference.unit_features(f.double().flatten(2), affinity)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)  # of float32's mean


def test_images_share_the_scales_found_so_far():
    f = torch.rand(2, 6, 9, 9) * torch.tensor([1e25, 1.0]).view(2, 1, 1, 1)
    features = UnitFeatures(f, Affinity(), torch.float32)
    x = features.unit(0, 81)
    assert torch.equal(torch.cat([image.unit(0, 81) for image in features.images]), x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["1e-30", "1e20", "of all pixels", "of some pixels"])
def test_every_layout(kind, layout):
    cam, f = draw(METHODS[2][1])
    f = LAYOUTS[layout](EXTREME[kind](f))
    assert_as_accurate(polish(cam, f, affinity=METHODS[2][1]), cam, f, METHODS[2][1])


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float64, s) for s in (1e-310, 1e-200, 1e200, 1.7e308)]
    + [(torch.bfloat16, s) for s in (1e-39, 1e-30, 1e30, 3e38)]
    + [(torch.float16, s) for s in (1e-6, 65504.0)],
    ids=str,
)
@pytest.mark.parametrize(("method", "affinity"), METHODS[:6], ids=str)
def test_every_dtype(method, affinity, dtype, scale):
    if affinity.center and scale == 1e-310:
        pytest.skip(SUBNORMAL_MEAN)
    cam, f = draw(affinity)
    f = (f.double() * scale).to(dtype)
    cam = cam.double() if dtype == torch.float64 else cam
    if affinity.threshold or (dtype == torch.float64 and affinity.power == 1.5):
        affinity = Affinity(**NO_EPS)  # φ jumps at the threshold
    out = polish(cam, f, affinity=affinity, method=method)
    assert_as_accurate(out, cam, f, affinity)


@pytest.mark.parametrize("exponent", [-140, -100, -30, 30, 100])
@pytest.mark.parametrize(("method", "affinity"), METHODS, ids=str)
def test_a_power_of_two_changes_nothing_without_an_eps(method, affinity, exponent):
    if affinity.center and exponent == -140:
        pytest.skip(SUBNORMAL_MEAN)
    cam, f = draw(affinity)
    f = torch.round(256 * f) / 256 if exponent == -140 else f  # the bits that subnormal numbers have
    out = polish(cam, f * 2.0**exponent, affinity=affinity, method=method)
    assert_as_accurate(out, cam, f, affinity)


@pytest.mark.parametrize("kind", ["1e20", "1e30", "largest"])
def test_the_default_eps_is_nothing_beside_huge_norms(kind):
    cam, f = draw(Affinity())
    assert_as_accurate(polish(cam, EXTREME[kind](f)), cam, EXTREME[kind](f), Affinity())
    without = Affinity(norm_eps=0.0)
    assert_as_accurate(polish(cam, EXTREME[kind](f)), cam, f, without)


@pytest.mark.parametrize("method", ["dense", "prototypes", "tiled"])
def test_the_default_eps_makes_tiny_features_negligible(method):
    cam, f = draw(Affinity())
    assert polish(cam, f * 1e-30, method=method).abs().max() < 1e-20
    f[..., 5, 6] *= 1e-30
    out = polish(cam, f, method=method)
    assert out[..., 5, 6].abs().max() < 1e-15
    assert_as_accurate(out, cam, f, Affinity())


@pytest.mark.parametrize(("method", "affinity"), METHODS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_features_beside_huge_ones_are_nan(method, affinity, bad):
    if bad < 0 and not affinity.any_sign and affinity.degree:
        pytest.skip("negative features are refused")
    cam, f = draw(affinity)
    f = f * 1e25
    f[0, 3, 2, 5] = bad
    nonnegative = True if affinity.degree and not affinity.any_sign else None
    assert polish(cam, f, affinity=affinity, method=method, nonnegative=nonnegative).isnan().all()


def test_zero_features_stay_zero():
    cam, f = draw(METHODS[2][1])
    f *= 1e25
    f[..., 3:6, :] = 0.0
    for method in ("dense", "prototypes", "tiled"):
        out = polish(cam, f, affinity=METHODS[2][1], method=method)
        assert (out[..., 3:6, :] == 0).all()
        assert_as_accurate(out, cam, f, METHODS[2][1])


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, s) for s in (2.0**-141, 1e-38, 1e-30, 1e-20, 1.0, 1e20, 1e30, 3.4e38)]
    + [(torch.float64, s) for s in (1e-310, 1e-200, 1e200, 1.7e308)]
    + [(torch.bfloat16, s) for s in (1e-38, 1e-30, 1e30, 3e38)]
    + [(torch.float16, s) for s in (1e-6, 1e-3, 65504.0)],
    ids=str,
)
def test_the_reference_is_right_in_its_own_dtype(dtype, scale, center):
    """The accuracy rule measures with the reference's own error, so that error has to be small."""
    f = ((torch.rand(1, 24, 60, dtype=torch.float64) - 0.3) * scale).to(dtype)
    exact = f.double().numpy().astype(np.longdouble)
    exact = exact - exact.mean(axis=2, keepdims=True) if center else exact
    expected = exact / np.sqrt((exact**2).sum(axis=1, keepdims=True))
    found = reference.unit_features(f, Affinity(center=center, norm_eps=0.0)).double().numpy()
    assert np.abs(found - expected).max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("center", [False, True])
def test_the_reference_keeps_the_bits_of_usual_numbers(center):
    """Powers of two change no bit of what the formula gives as it is written."""
    affinity, f = Affinity(center=center), 1e4 * (torch.rand(2, 40, 60) - 0.3)
    centered = f - f.mean(dim=2, keepdim=True) if center else f
    expected = centered / (torch.linalg.vector_norm(centered, dim=1, keepdim=True) + affinity.norm_eps)
    assert torch.equal(reference.unit_features(f, affinity), expected)


@pytest.mark.parametrize("scale", [1e-160, 1e160])
@pytest.mark.parametrize("center", [False, True])
def test_the_reference_is_differentiable(center, scale):
    affinity = Affinity("shifted", center=center, norm_eps=0.0)
    f = (torch.rand(1, 3, 4, dtype=torch.float64) + 0.5).requires_grad_()

    def scaled(features):  # by numbers near 1, since a finite difference of 1e160 would overflow
        return reference.unit_features(features * scale, affinity)

    assert torch.autograd.gradcheck(scaled, f)


def test_usual_features_are_read_once_for_their_norms(monkeypatch):
    monkeypatch.setattr(UnitFeatures, "_set_scales", lambda *_: pytest.fail("features were read again"))
    cam, f = draw(Affinity())
    for method, affinity in METHODS:
        polish(cam, f if affinity.degree and not affinity.any_sign else f - 0.5, affinity=affinity, method=method)
        polish(cam, (1e-3 * f).half().float(), affinity=affinity, method=method)


def test_features_are_scaled_pixel_by_pixel_where_a_device_would_have_to_be_waited_for(monkeypatch):
    """Run the branch of accelerators on the CPU: every pixel is scaled, whatever its norm is."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    for kind in ("1e-30", "1e20", "of some pixels", "of all channels"):
        for method, affinity in METHODS:
            if skip_reason(affinity, kind):
                continue
            cam, f = draw(affinity)
            f = EXTREME[kind](f)
            sign = True if affinity.degree and not affinity.any_sign else None
            assert_as_accurate(polish(cam, f, affinity=affinity, method=method, nonnegative=sign), cam, f, affinity)


def test_tiles_with_zero_features_are_not_scaled():
    f = torch.rand(2, 6, 9, 9)
    f[:, :, 2:4, 3] = 0.0
    features = UnitFeatures(f, Affinity(norm_eps=0.0), torch.float32)
    assert (features.unit(0, 81).flatten(2)[:, :, 21] == 0).all()
    assert features.scaled(0, 81).data_ptr() == f.data_ptr()


# Tiles that are streamed


def cut(*tensors):
    for y in range(0, tensors[0].shape[-2], 7):
        for x in range(0, tensors[0].shape[-1], 9):
            yield (y, x), [each[0, :, y : y + 7, x : x + 9] for each in tensors]


@pytest.mark.parametrize("kind", [kind for kind in EXTREME if kind != "subnormal"])
@pytest.mark.parametrize(
    "affinity", [Affinity(**NO_EPS), Affinity("shifted", center=True, **NO_EPS), Affinity("shifted")], ids=str
)
def test_prototypes_of_tiles(affinity, kind):
    if reason := skip_reason(affinity, kind):
        pytest.skip(reason)
    cam, f = draw(affinity)
    f = EXTREME[kind](f)
    mean = FeatureMean(24)
    for _, (tile,) in cut(f):
        mean.add(tile)
    prototypes = Prototypes(3, 24, affinity=affinity, mean=mean.value if affinity.center else None)
    for _, (part, tile) in cut(cam, f):
        prototypes.add(part, tile)
    out = torch.empty_like(cam)
    for (y, x), (tile,) in cut(f):
        out[0, :, y : y + 7, x : x + 9] = prototypes.apply(tile)
    assert_as_accurate(out, cam, f, affinity)


@pytest.mark.parametrize("memory", ["1GB", "4MB"], ids=["memory", "spilled"])
@pytest.mark.parametrize("kind", [kind for kind in EXTREME if kind != "subnormal"])
@pytest.mark.parametrize(
    "affinity", [Affinity(power=3, **NO_EPS), Affinity("exp", temperature=0.2, center=True, **NO_EPS)], ids=str
)
def test_pixel_banks(affinity, kind, memory):
    cam, f = draw(affinity)
    f = EXTREME[kind](f)
    with PixelBank(3, 24, affinity=affinity, memory=memory) as bank:
        for at, (part, tile) in cut(cam, f):
            bank.add(part, tile, at=at)
        out = bank.apply(f[0])[None]
    assert_as_accurate(out, cam, f, affinity)


# One pixel's affinities


@pytest.mark.parametrize("kind", EXTREME)
def test_correlation(kind):
    f = EXTREME[kind](torch.rand(1, 24, 17, 23) - 0.4)
    found = correlation(f, (0.5, 0.2), affinity=Affinity("shifted", norm_eps=0.0))
    x = reference.unit_features(f.double().flatten(2), Affinity(norm_eps=0.0))[0]
    expected = (x[:, 8 * 23 + 4] @ x + 1) / 2
    torch.testing.assert_close(found.double().flatten(), expected, rtol=0, atol=1e-6)
    assert found[0, 8, 4] == pytest.approx(1.0)


# CAMs of extreme magnitude


@pytest.mark.parametrize("exponent", [-100, 100])
@pytest.mark.parametrize("fuse", ["mean", "max", "sum", "product"])
def test_cams_of_any_magnitude_are_rescaled_and_fused_alike(fuse, exponent):
    cam, stages = torch.rand(1, 3, 9, 9) - 0.2, [torch.rand(1, 8, 17, 23), torch.rand(1, 16, 9, 11)]
    usual, scaled = (polish(cam * 2.0**power, stages, fuse=fuse) for power in (0, exponent))
    assert torch.equal(scaled, usual)


@pytest.mark.parametrize(("method", "affinity"), METHODS, ids=str)
def test_a_cam_and_features_of_opposite_magnitudes(method, affinity):
    """Their product leaves float32's range, but enters no result."""
    cam, f = draw(affinity)
    for power in (-95, 95):
        out = polish(cam * 2.0**power, f * 2.0**-power, affinity=affinity, method=method)
        assert_as_accurate(out * 2.0**-power, cam, f, affinity)
        out = polish(cam * 2.0**power, f * 2.0**power, affinity=affinity, method=method)
        assert_as_accurate(out * 2.0**-power, cam, f, affinity)


def test_maps_of_any_magnitude_are_rescaled():
    maps = torch.randn(2, 3, 5, 7)
    for exponent in (-110, 120):
        assert torch.equal(minmax(maps * 2.0**exponent), minmax(maps))


def test_some_pixels_are_extreme():
    norms = torch.linalg.vector_norm(some_pixels(torch.rand(1, 24, 17, 23)).double(), dim=1)
    assert norms.max() > 1e24
    assert norms[norms > 0].min() < 1e-24
    assert (norms == 0).sum() == 1
