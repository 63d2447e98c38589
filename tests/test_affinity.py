"""Affinity: checked at construction, parsed from text and printed."""

from __future__ import annotations

import pytest
import torch

from ssa_fast import Affinity, reference

BAD = [
    (dict(phi="cos"), ValueError, "phi: expected 'relu', 'shifted' or 'exp', got 'cos'"),
    (dict(power=0), ValueError, "power: expected a number finite and > 0, got 0"),
    (dict(power="2"), TypeError, "power: expected a number, got '2'"),
    (dict(power=float("nan")), ValueError, "power: expected"),
    (dict(power=float("inf")), ValueError, "power: expected"),
    (dict(threshold=1.5), ValueError, r"threshold: expected a number in \[0, 1\], got 1.5"),
    (dict(threshold=-0.1), ValueError, "threshold: expected"),
    (dict(steps=0), ValueError, "steps: expected at least 1, got 0"),
    (dict(steps=1.5), TypeError, "steps: expected an int, got 1.5"),
    (dict(steps=True), TypeError, "steps: expected an int"),
    (dict(center=1), TypeError, "center: expected True or False, got 1"),
    (dict(norm_eps=-1e-5), ValueError, "norm_eps: expected a number finite and >= 0"),
    (dict(sum_eps=-1), ValueError, "sum_eps: expected"),
    (dict(temperature=0.1), ValueError, "temperature: belongs to phi='exp'"),
    (dict(phi="exp"), ValueError, "temperature: phi='exp' needs one > 0, got None"),
    (dict(phi="exp", temperature=0), ValueError, "temperature: expected a number finite and > 0"),
    (dict(phi="exp", temperature=0.1, power=2), ValueError, "power: belongs to phi='relu' or phi='shifted', got 2"),
    (dict(phi="exp", temperature=0.1, shift=2), ValueError, "shift: belongs to phi='shifted', got 2 with phi='exp'"),
    (dict(shift=0.5), ValueError, "shift: belongs to phi='shifted', got 0.5 with phi='relu'"),
    (dict(phi="shifted", shift=-0.1), ValueError, "shift: expected a number finite and >= 0, got -0.1"),
    (dict(phi="shifted", shift="1"), TypeError, "shift: expected a number, got '1'"),
    (dict(phi="shifted", threshold=0.1), ValueError, "threshold: belongs to phi='relu', got 0.1 with phi='shifted'"),
    (dict(phi="shifted", temperature=0.1), ValueError, "temperature: belongs to phi='exp', got 0.1"),
    (dict(phi="shifted", shift=0.5, power=3), ValueError, "shift: expected at least 1 with power=3, got 0.5"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_parameters(given, error, message):
    with pytest.raises(error, match=message):
        Affinity(**given)


def test_it_is_frozen_and_hashable():
    with pytest.raises(AttributeError):
        Affinity().power = 2
    assert {Affinity(), Affinity(power=1.0)} == {Affinity()}


@pytest.mark.parametrize(
    ("text", "affinity"),
    [
        ("", Affinity()),
        ("phi=relu", Affinity()),
        ("power=2, center", Affinity(power=2, center=True)),
        ("center=false,steps=3,threshold=0.25", Affinity(steps=3, threshold=0.25)),
        ("phi=shifted", Affinity("shifted")),
        ("phi=shifted, shift=0.25, power=2, center", Affinity("shifted", power=2, shift=0.25, center=True)),
        ("phi=exp,temperature=0.1,norm_eps=0,sum_eps=1e-6", Affinity("exp", temperature=0.1, norm_eps=0, sum_eps=1e-6)),
    ],
)
def test_text_and_back(text, affinity):
    assert Affinity.parse(text) == affinity
    assert Affinity.parse(str(affinity)) == affinity


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sharp=2", "affinity: expected one of phi, power.*got 'sharp'"),
        ("power=two", "affinity: power expects a number, got 'two'"),
        ("power=2,power=3", "affinity: expected each parameter once, got power twice"),
        ("steps=1.5", "affinity: steps expects an integer, got '1.5'"),
        ("center=maybe", "affinity: center expects true or false, got 'maybe'"),
        ("threshold=2", "threshold: expected"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(ValueError, match=message):
        Affinity.parse(text)


@pytest.mark.parametrize(
    "affinity",
    [
        Affinity(),
        Affinity(power=2),
        Affinity(power=0.5, threshold=0.3),
        Affinity("exp", temperature=0.2),
        Affinity("shifted"),
        Affinity("shifted", shift=0.25),
        Affinity("shifted", shift=0.25, power=2),
        Affinity("shifted", power=0.5),
        Affinity("shifted", shift=1.5, power=3),
    ],
    ids=str,
)
def test_in_place_phi_is_the_references(affinity):
    cosines = torch.cat([torch.linspace(-1, 1, 101, dtype=torch.float64), torch.tensor([float("nan")])])
    torch.testing.assert_close(affinity.apply_(cosines.clone()), reference.phi(cosines, affinity), equal_nan=True)


def test_degree_is_that_of_the_polynomial():
    assert Affinity().degree == 1
    assert Affinity(power=2).degree == 2
    for none in (Affinity(power=3), Affinity(threshold=0.1), Affinity(center=True), Affinity("exp", temperature=1)):
        assert none.degree is None
    for center in (False, True):
        assert Affinity("shifted", center=center).degree == 1
        assert Affinity("shifted", shift=0.5, power=2, center=center).degree == 2
        assert Affinity("shifted", power=3, center=center).degree is None
    assert Affinity("shifted").any_sign
    assert not Affinity().any_sign


def test_the_shifted_cosine_is_a_distance_and_not_negative_from_shift_one_on():
    x = torch.nn.functional.normalize(torch.randn(2, 5, 100, dtype=torch.float64), dim=1)
    cosines, squares = (x[0] * x[1]).sum(dim=0), (x[0] - x[1]).square().sum(dim=0)
    torch.testing.assert_close(Affinity("shifted").apply_(cosines.clone()), 1 - squares / 4)
    for shift in (1.0, 1.5):
        assert (Affinity("shifted", shift=shift).apply_(cosines.clone()) >= 0).all()
    assert Affinity("shifted", shift=0.25).apply_(torch.tensor([-1.0])).item() == pytest.approx(-0.6)
    just_below = torch.tensor([-1.0 - 1e-6])
    assert Affinity("shifted", power=0.5).apply_(just_below).item() == 0
