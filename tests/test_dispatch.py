"""The dispatcher: a pure function whose choices can be read off its formulas."""

from __future__ import annotations

import pytest
import torch

from ssa_fast import Affinity, polish
from ssa_fast.dispatch import PATHS, TORCH_PATHS, Problem, Rates, cost, not_supported_reasons, plan, seconds
from ssa_fast.paths import PROPAGATE

RELU, SQUARE, CENTERED = Affinity(), Affinity(power=2), Affinity(center=True)


def problem(L=16_384, C=256, K=20, B=1, affinity=RELU, nonnegative=True, **rest):
    return Problem(B, K, C, L, affinity, nonnegative, **rest)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        (problem(), "prototypes"),
        (problem(L=1_048_576), "prototypes"),
        (problem(nonnegative=False), "tiled"),
        (problem(affinity=CENTERED), "tiled"),
        (problem(affinity=Affinity(power=3)), "tiled"),
        (problem(affinity=Affinity("exp", temperature=0.1)), "tiled"),
        (problem(affinity=SQUARE, K=3), "second_order"),
        (problem(affinity=SQUARE, nonnegative=False), "tiled"),
        # K + 1 prototypes of C channels cost more than the affinity of so few pixels, although f >= 0
        (problem(L=196, K=1000), "dense"),
        (problem(L=49, C=2048, affinity=SQUARE), "dense"),
        # M_k of 2048 × 2048 per class cost more than half the affinity
        (problem(L=4096, C=2048, K=20, affinity=SQUARE), "tiled"),
        (problem(L=49, C=2048, B=16, nonnegative=False), "dense"),
    ],
)
def test_auto_compares_cost_not_only_signs(given, path):
    choice = plan(given)
    assert (choice.path, choice.backend) == (path, "torch")
    assert choice.cost == cost(path, given)
    for other in TORCH_PATHS:
        assert other == path or other in choice.why


def test_the_reason_names_what_ruled_a_path_out():
    why = plan(problem(affinity=Affinity(power=3, threshold=0.2), nonnegative=False, L=65_536)).why
    assert "prototypes no: power must be 1, it is 3; threshold must be 0, it is 0.2; the features are not all" in why
    assert "dense no: it would hold" in why


def test_an_unknown_sign_is_not_a_non_negative_one():
    assert plan(problem(nonnegative=None)).path == "tiled"
    assert not_supported_reasons("prototypes", "torch", problem(nonnegative=None)) == [
        "nobody has checked that the features are non-negative"
    ]


@pytest.mark.parametrize("path", TORCH_PATHS)
def test_a_named_path_is_taken_or_refused(path):
    affinity = SQUARE if path == "second_order" else RELU
    assert plan(problem(affinity=affinity), path=path).path == path
    if path in ("prototypes", "second_order"):
        with pytest.raises(ValueError, match=f"path='{path}', backend='torch' cannot polish this stage: .*signed"):
            plan(problem(affinity=Affinity(power=affinity.power, center=True)), path=path)


def test_the_reference_is_dense():
    assert (plan(problem(), backend="reference").path, plan(problem(), backend="reference").backend) == (
        "dense",
        "reference",
    )


def test_every_path_there_is_can_be_named():
    assert set(PROPAGATE) == set(TORCH_PATHS) == set(PATHS) - {"auto", "resident"}
    with pytest.raises(ValueError, match="path: expected one of"):
        cost("auto", problem())


def test_costs_are_the_formulas_of_the_design():
    given = problem(L=10_000, C=100, K=9)
    L, C, rows = 10_000, 100, 10
    assert cost("prototypes", given).flops == 4 * L * C * rows
    assert cost("second_order", given).flops == 4 * L * C * C * rows
    assert cost("dense", given).flops == 2 * L * L * (C + rows)
    assert cost("tiled", given).flops == pytest.approx(L * L * (C + 2 * rows), rel=0.03)
    for path in TORCH_PATHS:
        assert cost(path, problem(B=3, L=10_000, C=100, K=9)).flops == 3 * cost(path, given).flops
        steps = cost(path, problem(L=10_000, C=100, K=9, affinity=Affinity(steps=3)))
        assert steps.flops > (1.1 if path == "dense" else 2.9) * cost(path, given).flops
    assert cost("dense", problem(L=65_536)).extra_memory > 1 << 34
    assert cost("tiled", problem(L=65_536)).extra_memory < 256 << 20
    assert cost("prototypes", problem(L=1 << 20)).extra_memory < 256 << 20


def test_seconds_weigh_the_three_terms():
    counted = cost("dense", problem(L=100))
    rates = Rates(flops=1e9, traffic=1e8, calls=1e4)
    assert seconds(counted, rates) == pytest.approx(
        counted.flops / 1e9 + counted.traffic / 1e8 + counted.calls / 1e4, rel=1e-12
    )


def test_a_broken_promise_is_the_callers_own(monkeypatch):
    """``nonnegative=True`` is believed: the features are not read for their sign."""
    f = torch.rand(1, 4, 40, 40)
    monkeypatch.setattr("ssa_fast.paths.Pixels.nonnegative", lambda self: pytest.fail("the sign was read"))
    polish(torch.rand(1, 2, 40, 40), f, nonnegative=True)
    polish(torch.rand(1, 2, 40, 40), f, nonnegative=False)
    polish(torch.rand(1, 2, 40, 40), f, affinity=CENTERED)
