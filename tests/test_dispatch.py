"""The dispatcher: a pure function whose choices follow from its formulas."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch

from ssa_fast import Affinity, polish
from ssa_fast.ops.cost_model import FusionProblem, Problem, Rates, cost, fusion_cost, seconds
from ssa_fast.ops.dispatch import TORCH_METHODS, estimate, needs_sign, not_supported_reasons, plan, plan_fusion
from ssa_fast.ops.gpu_info import Gpu
from ssa_fast.ops.torch_backend import PROPAGATE
from ssa_fast.validation import METHODS

RELU, SQUARE, CENTERED = Affinity(), Affinity(power=2), Affinity(center=True)
SHIFTED, SHIFTED_SQUARE = Affinity("shifted"), Affinity("shifted", power=2, center=True)


def problem(L=16_384, C=256, K=20, B=1, affinity=RELU, nonnegative=True, **rest):
    return Problem(B, K, C, L, affinity, nonnegative, **rest)


@pytest.mark.parametrize(
    ("given", "method"),
    [
        (problem(), "prototypes"),
        (problem(L=1_048_576), "prototypes"),
        (problem(nonnegative=False), "tiled"),
        (problem(affinity=CENTERED), "tiled"),
        (problem(affinity=Affinity(power=3)), "tiled"),
        (problem(affinity=Affinity("exp", temperature=0.1)), "tiled"),
        (problem(affinity=SQUARE, K=3), "second_order"),
        (problem(affinity=SQUARE, nonnegative=False), "tiled"),
        # the shifted cosine takes linear time whatever the sign, even if it is not known
        (problem(affinity=SHIFTED, nonnegative=False), "prototypes"),
        (problem(affinity=SHIFTED, nonnegative=None), "prototypes"),
        (problem(affinity=Affinity("shifted", shift=0.5, center=True), nonnegative=None), "prototypes"),
        (problem(affinity=SHIFTED_SQUARE, nonnegative=None, K=3), "second_order"),
        (problem(affinity=Affinity("shifted", power=3), nonnegative=None), "tiled"),
        # K + 1 prototypes of C channels cost more than the affinity of so few pixels, although f >= 0
        (problem(L=196, K=1000), "dense"),
        (problem(L=49, C=2048, affinity=SQUARE), "dense"),
        # M_k of 2048 × 2048 per class cost more than half the affinity
        (problem(L=4096, C=2048, K=20, affinity=SQUARE), "tiled"),
        (problem(L=49, C=2048, B=16, nonnegative=False), "dense"),
    ],
)
def test_auto_compares_cost_not_only_signs(given, method):
    choice = plan(given)
    assert (choice.method, choice.backend) == (method, "torch")
    assert choice.cost == cost(method, given)
    for other in TORCH_METHODS:
        assert other == method or other in choice.why


def test_the_reason_names_what_ruled_a_method_out():
    why = plan(problem(affinity=Affinity(power=3, threshold=0.2), nonnegative=False, L=65_536)).why
    assert "prototypes no: power must be 1, it is 3; threshold must be 0, it is 0.2; the features are not all" in why
    assert "dense no: it would hold" in why


def test_the_shifted_cosine_needs_no_sign():
    for affinity, method in ((SHIFTED, "prototypes"), (SHIFTED_SQUARE, "second_order")):
        for nonnegative in (None, False, True):
            assert not_supported_reasons(method, "torch", problem(affinity=affinity, nonnegative=nonnegative)) == []
        assert not needs_sign(problem(affinity=affinity, nonnegative=None), "auto", "auto")
        assert not needs_sign(problem(affinity=affinity, nonnegative=None), method, "torch")
    assert not_supported_reasons("prototypes", "torch", problem(affinity=SHIFTED_SQUARE)) == [
        "power must be 1, it is 2"
    ]
    assert "phi='shifted' takes any sign" in plan(problem(nonnegative=False)).why
    assert "phi='shifted' has none" in plan(problem(affinity=CENTERED)).why


def test_centring_reads_the_features_once_more():
    plain, centred = (cost("prototypes", problem(affinity=Affinity("shifted", center=c))) for c in (False, True))
    assert centred.bytes_moved - plain.bytes_moved == 16_384 * 256 * 4


def test_an_unknown_sign_is_not_a_non_negative_one():
    assert plan(problem(nonnegative=None)).method == "tiled"
    assert not_supported_reasons("prototypes", "torch", problem(nonnegative=None)) == [
        "it is not known whether all features are >= 0; pass nonnegative=True or use method='auto'"
    ]


@pytest.mark.parametrize("method", TORCH_METHODS)
def test_a_named_method_is_taken_or_refused(method):
    affinity = SQUARE if method == "second_order" else RELU
    assert plan(problem(affinity=affinity), method=method).method == method
    if method in ("prototypes", "second_order"):
        with pytest.raises(ValueError, match=f"method='{method}', backend='torch' cannot polish this stage: .*signed"):
            plan(problem(affinity=Affinity(power=affinity.power, center=True)), method=method)


def test_the_reference_is_dense():
    assert (plan(problem(), backend="reference").method, plan(problem(), backend="reference").backend) == (
        "dense",
        "reference",
    )


def test_every_method_can_be_named():
    assert set(PROPAGATE) == set(TORCH_METHODS) == set(METHODS) - {"auto", "resident"}


def test_costs_are_the_formulas_of_the_design():
    given = problem(L=10_000, C=100, K=9)
    L, C, rows = 10_000, 100, 10
    assert cost("prototypes", given).flops == 4 * L * C * rows
    assert cost("second_order", given).flops == 4 * L * C * C * rows
    assert cost("dense", given).flops == 2 * L * L * (C + rows)
    assert cost("tiled", given).flops == pytest.approx(L * L * (C + 2 * rows), rel=0.03)
    for method in TORCH_METHODS:
        assert cost(method, problem(B=3, L=10_000, C=100, K=9)).flops == 3 * cost(method, given).flops
        steps = cost(method, problem(L=10_000, C=100, K=9, affinity=Affinity(steps=3)))
        assert steps.flops > (1.1 if method == "dense" else 2.9) * cost(method, given).flops
    assert cost("dense", problem(L=65_536)).extra_memory > 1 << 34
    assert cost("tiled", problem(L=65_536)).extra_memory < 256 << 20
    assert cost("prototypes", problem(L=1 << 20)).extra_memory < 256 << 20


def test_the_cam_and_the_result_are_held_without_a_row_of_ones():
    small, large = (cost("prototypes", problem(L=L, K=9)).extra_memory for L in (1 << 19, 1 << 20))
    assert large - small == 2 * 9 * (1 << 19) * 4


def test_seconds_weigh_the_three_terms():
    counted = cost("dense", problem(L=100))
    rates = Rates(flops=1e9, bytes_moved=1e8, launches=1e4)
    assert seconds(counted, rates) == pytest.approx(
        counted.flops / 1e9 + counted.bytes_moved / 1e8 + counted.launches / 1e4, rel=1e-12
    )


def test_a_broken_promise_is_the_callers_own(monkeypatch):
    """``nonnegative=True`` is trusted: the features' sign is not read."""
    f = torch.rand(1, 4, 40, 40)
    monkeypatch.setattr("ssa_fast.ops.features.UnitFeatures.nonnegative", lambda self: pytest.fail("the sign was read"))
    polish(torch.rand(1, 2, 40, 40), f, nonnegative=True)
    polish(torch.rand(1, 2, 40, 40), f, nonnegative=False)
    polish(torch.rand(1, 2, 40, 40), f, affinity=CENTERED)


H200 = Gpu("NVIDIA H200", "sm_90", num_sms=132)
TURING = dict(gpu=None, no_gpu="Tesla T4 is sm_75; the kernels need the matrix instructions of sm_80 or newer")


@pytest.fixture
def _untimed():
    """Ignore the warning that an H200 has no measured table; another test checks it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def on_gpu(**rest):
    return problem(**{"device": "cuda", "dtype": "float16", "gpu": H200} | rest)


@pytest.mark.usefixtures("_untimed")
@pytest.mark.parametrize(
    ("given", "method", "backend"),
    [
        (on_gpu(), "prototypes", "triton"),
        (on_gpu(L=1_048_576), "prototypes", "triton"),
        (on_gpu(nonnegative=False), "tiled", "triton"),
        (on_gpu(affinity=CENTERED, L=65_536), "tiled", "triton"),
        (on_gpu(affinity=Affinity("exp", temperature=0.1)), "tiled", "triton"),
        (on_gpu(affinity=SHIFTED, nonnegative=None), "prototypes", "triton"),
        (on_gpu(affinity=SHIFTED, nonnegative=None, L=49, C=2048), "prototypes", "triton"),
        (on_gpu(L=49, C=2048), "prototypes", "triton"),
        # so few pixels that the kernels leave the GPU idle, and each program takes many turns
        (on_gpu(affinity=CENTERED, L=196, C=1024), "dense", "torch"),
        (on_gpu(nonnegative=False, L=196, C=1024), "dense", "torch"),
        # no Triton kernel, or no GPU that can run it
        (on_gpu(affinity=SQUARE, K=1, C=64, L=65_536), "second_order", "torch"),
        (on_gpu(itemsize=8, dtype="float64"), "prototypes", "torch"),
        (on_gpu(**TURING), "prototypes", "torch"),
        (on_gpu(**TURING, nonnegative=False), "tiled", "torch"),
    ],
)
def test_auto_on_a_gpu(given, method, backend):
    choice = plan(given)
    assert (choice.method, choice.backend) == (method, backend)
    assert choice.cost == cost(method, given, backend)
    assert (choice.config is not None) == (backend == "triton")


@pytest.mark.usefixtures("_untimed")
def test_an_unknown_sign_is_read_on_the_gpu():
    given = on_gpu(nonnegative=None)
    choice = plan(given)
    assert (choice.method, choice.backend, choice.fallback) == ("prototypes", "triton", "tiled")
    assert "the GPU reads the features' sign" in choice.why
    # both methods are launched, and both hold their memory
    both = [cost(method, given, "triton") for method in ("prototypes", "tiled")]
    assert choice.cost.launches == sum(each.launches for each in both) - 1, "the moments of the CAM are found once"
    assert choice.cost.extra_memory == sum(each.extra_memory for each in both)
    assert choice.cost.flops == both[0].flops
    assert not needs_sign(given, "auto", "auto"), "the host would wait for the GPU"
    assert plan(on_gpu(nonnegative=True)).fallback is None
    shifted = plan(on_gpu(nonnegative=None, affinity=SHIFTED))
    assert shifted.fallback is None
    assert (shifted.cost.launches, choice.cost.launches) == (4, 8)
    assert shifted.cost.extra_memory < choice.cost.extra_memory / 4


def test_when_the_host_reads_the_sign():
    assert needs_sign(problem(nonnegative=None), "auto", "auto")
    assert needs_sign(on_gpu(nonnegative=None), "prototypes", "auto"), "a method that is named is taken or refused"
    assert needs_sign(on_gpu(nonnegative=None, **TURING), "auto", "auto")
    assert needs_sign(on_gpu(nonnegative=None), "auto", "torch")
    for known in (problem(), problem(nonnegative=False)):
        assert not needs_sign(known, "auto", "auto")
    assert not needs_sign(problem(nonnegative=None, affinity=CENTERED), "auto", "auto")
    assert not needs_sign(problem(nonnegative=None), "dense", "auto")
    assert not needs_sign(problem(nonnegative=None), "auto", "reference")


@pytest.mark.usefixtures("_untimed")
def test_the_reasons_against_triton():
    assert not_supported_reasons("tiled", "triton", on_gpu()) == []
    assert not_supported_reasons("dense", "triton", on_gpu()) == ["'dense' has no Triton kernel; use backend='torch'"]
    assert not_supported_reasons("tiled", "triton", on_gpu(**TURING)) == [TURING["no_gpu"]]
    assert "float64 is computed by PyTorch only" in not_supported_reasons("tiled", "triton", on_gpu(itemsize=8))[0]
    assert not_supported_reasons("resident", "torch", on_gpu()) == [
        "'resident' is a kernel of backend='triton'; on backend='torch' use method='dense', 'tiled' or 'auto'"
    ]
    with pytest.raises(ValueError, match=r"backend='triton' cannot polish this stage: Tesla T4 is sm_75"):
        plan(on_gpu(**TURING), backend="triton")
    with pytest.raises(ValueError, match=r"method='tiled', backend='triton' cannot polish this stage: Tesla T4"):
        plan(on_gpu(**TURING), method="tiled", backend="triton")
    with pytest.raises(ValueError, match=r"method='resident'.*Tesla T4 is sm_75"):
        plan(on_gpu(**TURING), method="resident")


@pytest.mark.usefixtures("_untimed")
@pytest.mark.parametrize(
    ("method", "backend", "taken"),
    [
        ("tiled", "auto", ("tiled", "triton")),
        ("dense", "auto", ("dense", "torch")),
        ("prototypes", "torch", ("prototypes", "torch")),
        ("resident", "auto", ("resident", "triton")),
        ("auto", "reference", ("dense", "reference")),
    ],
)
def test_named_candidates_on_a_gpu(method, backend, taken):
    choice = plan(on_gpu(), method=method, backend=backend)
    assert (choice.method, choice.backend, choice.why) == (*taken, "asked for")


@pytest.mark.usefixtures("_untimed")
def test_costs_of_kernels_are_the_formulas_of_the_design():
    given = on_gpu(L=16_384, C=256, K=20)
    L, C = given.L, given.C
    tiled = cost("tiled", given, "triton")
    assert L * L * C < tiled.flops < 2 * L * L * C
    assert cost("tiled", on_gpu(L=16_384, precision="high"), "triton").flops == pytest.approx(3 * tiled.flops, rel=0.5)
    assert cost("prototypes", given, "triton").bytes_moved == 2 * L * C * 2 + 2 * given.K * L * 4
    for L in (4096, 65_536, 1 << 20):
        assert cost("prototypes", on_gpu(L=L), "triton").extra_memory <= 32 << 20
        unit = L * (C + 64) * 2
        assert cost("tiled", on_gpu(L=L), "triton").extra_memory <= (256 << 20) + 2 * unit
    resident = cost("resident", on_gpu(L=196), "triton")
    assert resident.launches == 1
    assert 0 < resident.occupancy < 0.2


SIZES = [(C, side * side) for C, side in ((24, 56), (64, 128), (256, 128), (256, 56), (512, 28), (1024, 14), (2048, 7))]
FORMS = [
    dict(affinity=affinity, nonnegative=nonnegative)
    for affinity in (RELU, CENTERED, SHIFTED, SQUARE, Affinity("exp", temperature=0.1))
    for nonnegative in (True, False, None)
]


@pytest.mark.usefixtures("_untimed")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form['affinity']} {form['nonnegative']}")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_choice_is_what_its_own_model_puts_first(device, form):
    """No candidate that "auto" may take has a lower estimate, whatever the size, dtype and GPU."""
    for (C, L), K, B in itertools.product(SIZES, (1, 20, 200), (1, 16)):
        for gpu in (H200, Gpu("a small GPU", "sm_89", num_sms=20)) if device == "cuda" else (None,):
            given = problem(L, C, K, B, device=device, gpu=gpu, dtype="float16", **form)
            choice = plan(given)
            mine = estimate(choice.backend, choice.cost, device)
            for backend in ("torch", "triton"):
                for method in METHODS[1:]:
                    name = method if device == "cpu" else f"{method} on {backend}"
                    if not not_supported_reasons(method, backend, given) and f"{name} no:" not in choice.why:
                        other = estimate(backend, cost(method, given, backend), device)
                        assert mine <= other, (given, choice, name)


@pytest.mark.usefixtures("_untimed")
def test_the_reasons_on_a_gpu_name_the_numbers():
    given = on_gpu(nonnegative=False, L=196, C=1024)
    choice = plan(given)
    resident = cost("resident", given, "triton")
    assert choice.why.startswith("least predicted time, ")
    assert (
        f"resident on triton {estimate('triton', resident, 'cuda') / estimate('torch', choice.cost, 'cuda'):.1f}×"
        in (choice.why)
    )
    assert f"({resident.programs} programs on 132 multiprocessors)" in choice.why
    assert resident.programs < 132 / 2
    assert resident.occupancy == resident.programs / 132


@pytest.mark.usefixtures("_untimed")
def test_a_last_wave_that_is_not_full_costs_as_much_as_a_full_one():
    def occupancy(B, num_sms):
        full = on_gpu(L=900, B=B, nonnegative=False, gpu=Gpu("some GPU", "sm_90", num_sms=num_sms))
        counted = cost("resident", full, "triton")
        return counted.programs, counted.occupancy

    one, _ = occupancy(1, 1)
    assert occupancy(1, one) == (one, 1.0)
    assert occupancy(1, 2 * one) == (one, 0.5)
    assert occupancy(3, 2 * one) == (3 * one, 0.75)


def fusion(**rest):
    return FusionProblem(**dict(B=2, K=20, pixels=(16_384, 4096), out_pixels=16_384, rescale=True) | rest)


def test_fusion_is_chosen_like_a_stage():
    on_cpu, gpu = plan_fusion(fusion()), fusion(device="cuda", gpu=H200)
    assert (on_cpu.backend, on_cpu.why) == ("torch", "the maps are on the CPU")
    assert on_cpu.cost == fusion_cost(fusion(), "torch")
    choice = plan_fusion(gpu)
    assert choice.backend == "triton"
    assert "fuse on torch" in choice.why
    float64 = plan_fusion(fusion(device="cuda", gpu=H200, itemsize=8, unsuitable="the kernels take float32 maps"))
    assert float64.backend == "torch"
    assert "fuse on triton no: the kernels take float32 maps" in float64.why
    assert "Tesla T4 is sm_75" in plan_fusion(fusion(device="cuda", **TURING)).why
    for backend in ("torch", "reference"):
        assert plan_fusion(gpu, backend).backend == "torch"


def test_a_named_fusion_backend_is_taken_or_refused():
    assert plan_fusion(fusion(gpu=H200), "triton").backend == "triton"
    with pytest.raises(ValueError, match=r"backend='triton' cannot fuse these stages: .*Tesla T4"):
        plan_fusion(fusion(device="cuda", **TURING), "triton")
