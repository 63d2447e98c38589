"""Properties that hold for any CAM, any features and every method (hypothesis)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssa_fast import Affinity, polish

settings.register_profile("repeatable", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("repeatable")

METHODS = {
    "dense": Affinity(sum_eps=0),
    "prototypes": Affinity(sum_eps=0),
    "second_order": Affinity(power=2, sum_eps=0),
    "tiled": Affinity(power=1.5, threshold=0.1, sum_eps=0),
    "tiled, exp": Affinity(phi="exp", temperature=0.3, sum_eps=0),
    "prototypes, shifted": Affinity("shifted", sum_eps=0),
    "prototypes, centred": Affinity("shifted", shift=1.5, center=True, sum_eps=0),
    "second_order, shifted": Affinity("shifted", shift=0.5, power=2, sum_eps=0),
    "tiled, shifted": Affinity("shifted", power=1.5, sum_eps=0),
}
methods = pytest.mark.parametrize(
    ("method", "affinity"), [(name.split(",")[0], a) for name, a in METHODS.items()], ids=METHODS
)
shapes = st.tuples(*(st.integers(1, n) for n in (2, 4, 40, 12, 12)), st.integers(0, 10_000))


def draw(shape: tuple[int, ...], signed: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw float64 inputs, so that rounding does not hide the mathematics; no pixel's feature is zero.

    ``signed`` draws features of both signs.
    """
    B, K, C, H, W, seed = shape
    generator = torch.Generator().manual_seed(seed)
    cam = torch.randn(B, K, H, W, generator=generator, dtype=torch.float64)
    f = torch.rand(B, C, H, W, generator=generator, dtype=torch.float64) + 1e-3
    return cam, f * (torch.randint(2, f.shape, generator=generator) * 2 - 1) if signed else f


@methods
@given(shape=shapes)
def test_a_constant_cam_is_a_fixed_point_and_others_stay_in_their_range(method, affinity, shape):
    cam, f = draw(shape, affinity.any_sign)
    constant = torch.full_like(cam, 0.7)
    torch.testing.assert_close(polish(constant, f, affinity=affinity, method=method), constant, rtol=1e-12, atol=0)
    out = polish(cam, f, affinity=affinity, method=method)
    slack = 1e-12 * cam.abs().max()
    assert (out <= cam.amax((2, 3), keepdim=True) + slack).all()
    assert (out >= cam.amin((2, 3), keepdim=True) - slack).all()


@methods
@given(shape=shapes)
def test_pixels_have_no_order(method, affinity, shape):
    cam, f = draw(shape, affinity.any_sign)
    out = polish(cam, f, affinity=affinity, method=method)
    order = torch.randperm(cam[0, 0].numel(), generator=torch.Generator().manual_seed(1))

    def permuted(x):
        return x.flatten(2)[:, :, order].unflatten(2, x.shape[2:])

    torch.testing.assert_close(polish(permuted(cam), permuted(f), affinity=affinity, method=method), permuted(out))
    mirrored = polish(cam.flip(3), f.flip(3), affinity=affinity, method=method)
    torch.testing.assert_close(mirrored, out.flip(3))


@methods
@given(shape=shapes, factor=st.floats(0.25, 8.0))
def test_a_features_scale_does_not_matter_and_the_cam_enters_linearly(method, affinity, shape, factor):
    affinity = Affinity(**{**vars(affinity), "norm_eps": 0.0})
    cam, f = draw(shape, affinity.any_sign)
    out = polish(cam, f, affinity=affinity, method=method)
    scaled = f * factor  # and each pixel by its own, unless they are centred first
    if not affinity.center:
        scaled = f * (torch.linspace(1, factor, f[0, 0].numel(), dtype=f.dtype).view(f.shape[2:]))
    torch.testing.assert_close(polish(cam, scaled, affinity=affinity, method=method), out)
    other = cam.flip(0, 1) + 1
    mixed = polish(2 * cam - factor * other, f, affinity=affinity, method=method)
    torch.testing.assert_close(mixed, 2 * out - factor * polish(other, f, affinity=affinity, method=method))


@given(shape=shapes, power=st.sampled_from([1, 2]), steps=st.integers(1, 3), phi=st.sampled_from(["relu", "shifted"]))
def test_the_methods_agree(shape, power, steps, phi):
    cam, f = draw(shape, signed=phi == "shifted")
    affinity = Affinity(phi, power=power, steps=steps)
    expected = polish(cam, f, affinity=affinity, backend="reference")
    for method in ("auto", "dense", "tiled", {1: "prototypes", 2: "second_order"}[power]):
        torch.testing.assert_close(polish(cam, f, affinity=affinity, method=method), expected)


@given(shape=shapes)
def test_images_and_classes_do_not_see_each_other(shape):
    cam, f = draw(shape)
    f = f - f.mean()
    out = polish(cam, f)
    for b in range(cam.shape[0]):
        for k in range(cam.shape[1]):
            torch.testing.assert_close(polish(cam[b, k], f[b]), out[b, k])
