"""Every method against the float64 reference: shapes, layouts, dtypes, options."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ssa_fast import Affinity, explain, polish, reference
from ssa_fast.ops import features as features_module
from ssa_fast.ops import prototypes as prototypes_module
from ssa_fast.ops import tiled
from ssa_fast.ops.features import NORM_CHUNK, TILE_ELEMENTS
from ssa_fast.ops.resize import minmax
from ssa_fast.ops.tiled import BLOCK_I, BLOCK_J
from tests.accuracy import ROUNDINGS, assert_as_accurate

LINEAR, SQUARE = Affinity(), Affinity(power=2)
SHIFTED, SHIFTED_SQUARE = Affinity("shifted"), Affinity("shifted", shift=0.5, power=2)
RELU_METHODS = [
    ("dense", LINEAR),
    ("prototypes", LINEAR),
    ("second_order", SQUARE),
    ("tiled", LINEAR),
    ("tiled", SQUARE),
]
SHIFTED_METHODS = [("prototypes", SHIFTED), ("second_order", SHIFTED_SQUARE), ("tiled", SHIFTED)]
METHODS = RELU_METHODS + SHIFTED_METHODS
ANY_SIGN = [
    ("prototypes", SHIFTED),
    ("prototypes", Affinity("shifted", center=True)),
    ("prototypes", Affinity("shifted", shift=2.5, steps=3)),
    ("second_order", Affinity("shifted", power=2)),
    ("second_order", SHIFTED_SQUARE),
    ("second_order", Affinity("shifted", power=2, center=True, steps=2)),
]
SHAPES = {  # B, K, C, H, W
    "aligned": (1, 16, 64, 16, 16),
    "ragged": (1, 21, 67, 13, 19),
    "one pixel": (1, 3, 8, 1, 1),
    "one class": (3, 1, 130, 9, 5),
    "one channel": (1, 2, 1, 6, 7),
    "1000 classes": (1, 1000, 32, 7, 7),
    "several tiles": (1, 2, 33, 61, 47),
    "batch of tiles": (3, 2, 300, 40, 31),
    "row": (2, 4, 12, 1, 90),
    "column": (2, 4, 12, 90, 1),
}


@contextmanager
def shipped_tiles():
    """Restore the shipped tiles, against ``_small_tiles`` below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_module, "TILE_ELEMENTS", TILE_ELEMENTS)
        patch.setattr(features_module, "NORM_CHUNK", NORM_CHUNK)
        patch.setattr(tiled, "BLOCK_I", BLOCK_I)
        patch.setattr(tiled, "BLOCK_J", BLOCK_J)
        yield


def test_the_shipped_tiles_fit_each_other_and_are_crossed():
    assert BLOCK_I % BLOCK_J == 0, "a tile must not straddle the end of the sources held"
    cam, f = torch.rand(1, 2, 61, 71), torch.randn(1, 8, 61, 71)
    assert cam[0, 0].numel() > BLOCK_I
    with shipped_tiles():
        assert_as_accurate(polish(cam, f, method="tiled"), cam, f, LINEAR)


DRAWS = {
    "uniform": torch.rand,
    "nearly constant": lambda *shape: 100 + torch.rand(*shape),
    "sparse": lambda *shape: torch.relu(torch.randn(*shape) - 1.5),
    "mixed scales": lambda *shape: torch.rand(*shape) * torch.exp(3 * torch.randn(shape[0], shape[1], 1, 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize(("method", "affinity"), METHODS, ids=lambda p: str(p))
def test_features_of_every_kind_in_the_shipped_tiles(method, affinity, draw):
    with shipped_tiles():
        cam, f = torch.rand(2, 5, 61, 47), draw(2, 32, 61, 47)
        assert_as_accurate(polish(cam, f, affinity=affinity, method=method), cam, f, affinity)


@pytest.mark.parametrize(("method", "affinity"), METHODS, ids=lambda p: str(p))
def test_two_threads(method, affinity):
    """The suite runs on one thread; with two, PyTorch sums in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with shipped_tiles():
            cam, f = torch.rand(2, 5, 61, 47), torch.rand(2, 32, 61, 47)
            assert_as_accurate(polish(cam, f, affinity=affinity, method=method), cam, f, affinity)
    finally:
        torch.set_num_threads(threads)


def one_hot(K, H, W):
    return torch.nn.functional.one_hot(torch.randperm(H * W)[:K], H * W).float().view(1, K, H, W)


CAMS = {
    "one pixel": one_hot,
    "some pixels": lambda *shape: torch.rand(1, *shape) * (torch.rand(1, *shape) > 0.99),
    "a blob": lambda *shape: torch.nn.functional.avg_pool2d(one_hot(*shape), 9, 1, 4) * 9,
    "shifted": lambda *shape: 50 + torch.rand(1, *shape),
}


SIGNED_DRAWS = {
    "signed": torch.randn,
    "an offset": lambda *shape: 3 + torch.randn(*shape),
    "nearly constant": lambda *shape: torch.randn(1, shape[1], 1, 1) + 1e-3 * torch.randn(*shape),
    "two opposite groups": lambda *shape: torch.randn(1, shape[1], 1, 1) * torch.randn(shape[0], 1, *shape[2:]).sign(),
    "mixed scales": lambda *shape: torch.randn(*shape) * torch.exp(3 * torch.randn(shape[0], shape[1], 1, 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("draw", SIGNED_DRAWS.values(), ids=SIGNED_DRAWS)
@pytest.mark.parametrize("cams", CAMS.values(), ids=CAMS)
@pytest.mark.parametrize(("method", "affinity"), ANY_SIGN, ids=lambda p: str(p))
def test_the_shifted_cosine_takes_linear_time_for_features_of_any_sign(method, affinity, cams, draw):
    with shipped_tiles():
        cam, f = cams(5, 48, 37), draw(1, 32, 48, 37)
        assert_as_accurate(polish(cam, f, affinity=affinity, method=method), cam, f, affinity)


@pytest.mark.parametrize(("method", "affinity"), ANY_SIGN[:5], ids=lambda p: str(p))
def test_the_small_spread_of_a_polished_map_survives_its_rescaling(method, affinity):
    """A pixel averages over nearly all others, so rescaling magnifies rounding; the rule holds magnified as much."""
    with shipped_tiles():
        cam, f = 10 + torch.rand(1, 5, 48, 52), torch.randn(1, 96, 48, 52)
        truth = polish(cam.double(), f.double(), affinity=affinity, backend="reference")
        span = (truth.amax((2, 3)) - truth.amin((2, 3))).min()
        assert span < 0.05

        def error(polished):
            return (minmax(polished).double() - minmax(truth)).abs().max()

        own = error(polish(cam, f, affinity=affinity, backend="reference"))
        roundings = affinity.steps * ROUNDINGS * torch.finfo(torch.float32).eps / 2 * truth.abs().max() / span
        assert error(polish(cam, f, affinity=affinity, method=method)) <= 2 * own + roundings


@pytest.mark.parametrize(("method", "shift", "power"), [("prototypes", 0.5, 1), ("tiled", 0.5, 1), ("dense", 0.5, 1)])
@pytest.mark.parametrize("draw", [torch.randn, lambda *shape: 1 + torch.randn(*shape)], ids=["signed", "offset"])
def test_negative_weights_are_summed_as_they_are(method, shift, power, draw):
    affinity = Affinity("shifted", shift=shift, power=power)
    cam, f = torch.rand(2, 5, 17, 21), draw(2, 24, 17, 21)
    assert_as_accurate(polish(cam, f, affinity=affinity, method=method), cam, f, affinity)


@pytest.mark.parametrize("method", ["dense", "prototypes", "tiled"])
def test_a_negative_sum_of_weights_divides_as_it_is(method):
    """One pixel opposes all others, so that its weights sum to less than 0."""
    affinity = Affinity("shifted", shift=0.25)
    cam, f = torch.rand(1, 2, 5, 5, dtype=torch.float64), torch.ones(1, 3, 5, 5, dtype=torch.float64)
    f[..., 2, 2] = -1
    out = polish(cam, f, affinity=affinity, method=method)
    others = cam.sum(dim=(2, 3)) - cam[..., 2, 2]
    expected = (1.25 * cam[..., 2, 2] - 0.75 * others) / (1.25 - 0.75 * 24)
    torch.testing.assert_close(out[..., 2, 2], expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(out, polish(cam, f, affinity=affinity, backend="reference"), rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("cams", CAMS.values(), ids=CAMS)
@pytest.mark.parametrize(("method", "affinity"), RELU_METHODS, ids=lambda p: str(p))
def test_cams_of_every_kind_in_the_shipped_tiles(method, affinity, cams, draw):
    with shipped_tiles():
        cam, f = cams(5, 61, 47), draw(1, 32, 61, 47)
        assert_as_accurate(polish(cam, f, affinity=affinity, method=method), cam, f, affinity)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Make tiles so small that these shapes cross their borders."""
    monkeypatch.setattr(features_module, "TILE_ELEMENTS", 1 << 14)
    monkeypatch.setattr(features_module, "NORM_CHUNK", 1 << 11)
    monkeypatch.setattr(tiled, "BLOCK_I", 256)
    monkeypatch.setattr(tiled, "BLOCK_J", 64)


@pytest.mark.parametrize(("method", "affinity"), METHODS, ids=lambda p: str(p))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(method, affinity, shape):
    B, K, C, H, W = shape
    cam, f = torch.rand(B, K, H, W), torch.rand(B, C, H, W)
    assert_as_accurate(polish(cam, f, affinity=affinity, method=method), cam, f, affinity)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("method", "affinity"), METHODS, ids=lambda p: str(p))
def test_dtypes(method, affinity, dtype):
    cam, f = torch.rand(2, 4, 12, 14).to(dtype), torch.rand(2, 70, 12, 14).to(dtype)
    out = polish(cam, f, affinity=affinity, method=method)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_as_accurate(out, cam, f, affinity)
    if dtype in (torch.float16, torch.bfloat16):  # every step is computed in float32
        torch.testing.assert_close(
            out, polish(cam.float(), f.float(), affinity=affinity, method=method), rtol=0, atol=0
        )


LAYOUTS = {
    "channels_last": lambda f: f.to(memory_format=torch.channels_last),
    "sliced": lambda f: torch.nn.functional.pad(f, (2, 1, 1, 3))[:, :, 1:-3, 2:-1],
    "every other": lambda f: f.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, ::2, ::2],
    "transposed": lambda f: f.mT.contiguous().mT,
    "expanded batch": lambda f: f[:1].expand(f.shape[0], -1, -1, -1),
    "channel slice": lambda f: torch.cat([f, f], 1)[:, : f.shape[1]],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("method", "affinity"), METHODS, ids=lambda p: str(p))
def test_layouts(method, affinity, layout):
    cam, f = torch.rand(2, 3, 22, 26), layout(torch.rand(2, 67, 22, 26))
    before = f.clone()
    assert_as_accurate(polish(cam, f, affinity=affinity, method=method), cam, f, affinity)
    assert torch.equal(f, before)


@pytest.mark.parametrize("method", ["dense", "tiled"])
@pytest.mark.parametrize(
    "affinity",
    [
        Affinity(power=3),
        Affinity(power=0.5),
        Affinity(threshold=0.2, power=2),
        Affinity(center=True),
        Affinity(center=True, steps=3),
        Affinity(phi="exp", temperature=0.07),
        Affinity(phi="exp", temperature=0.5, center=True, steps=2),
        Affinity("shifted", power=3, center=True),
        Affinity("shifted", shift=1.5, power=0.5),
        Affinity(norm_eps=0.5, sum_eps=3.0),
        Affinity(norm_eps=0.0, sum_eps=0.0),
    ],
    ids=str,
)
def test_options_on_signed_features(method, affinity):
    cam, f = torch.rand(2, 5, 17, 21), torch.randn(2, 24, 17, 21)
    assert_as_accurate(polish(cam, f, affinity=affinity, method=method), cam, f, affinity)


@pytest.mark.parametrize(("method", "affinity"), METHODS, ids=lambda p: str(p))
def test_steps_apply_the_same_affinity_again(method, affinity):
    cam, f = torch.rand(2, 3, 15, 20), torch.rand(2, 40, 15, 20)
    three = replace(affinity, steps=3)
    assert_as_accurate(polish(cam, f, affinity=three, method=method), cam, f, three)
    repeated = cam
    for _ in range(3):
        repeated = polish(repeated, f, affinity=affinity, method=method)
    torch.testing.assert_close(polish(cam, f, affinity=three, method=method), repeated, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("method", "affinity"), METHODS, ids=lambda p: str(p))
def test_nan_stays_nan(method, affinity):
    cam, f = torch.rand(2, 2, 6, 6), torch.rand(2, 9, 6, 6)
    cam[0, 1, 2, 3] = float("nan")
    f[1, 4, 5, 0] = float("inf")
    out = polish(cam, f, affinity=affinity, method=method, nonnegative=True)
    assert not out[0, 0].isnan().any()
    assert out[0, 1].isnan().all()
    assert out[1].isnan().all()
    cam[0, 1, 2, 3] = float("inf")
    assert not polish(cam[:1], f[:1], affinity=affinity, method=method).isfinite()[0, 1].any()


@pytest.mark.parametrize(("method", "affinity"), RELU_METHODS, ids=lambda p: str(p))
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_a_zero_feature_gives_zero(method, affinity, eps):
    affinity = replace(affinity, norm_eps=eps, sum_eps=eps)
    cam, f = 100 * torch.rand(1, 2, 6, 6), torch.rand(1, 9, 6, 6)
    f[..., 2, 3] = 0
    out = polish(cam, f, affinity=affinity, method=method)
    assert (out[..., 2, 3] == 0).all()
    assert (out.flatten(2).sum(0).sum(0) > 0).sum() == 35
    assert (polish(cam, torch.zeros_like(f), affinity=affinity, method=method) == 0).all()


@pytest.mark.parametrize(("method", "affinity"), [*SHIFTED_METHODS, ("dense", SHIFTED)], ids=lambda p: str(p))
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_a_zero_feature_gives_the_mean_under_the_shifted_cosine(method, affinity, eps):
    affinity = replace(affinity, norm_eps=eps, sum_eps=eps)
    cam, f = 100 * torch.rand(1, 2, 6, 6), torch.randn(1, 9, 6, 6)
    f[..., 2, 3] = 0
    total = 36 * reference.phi(torch.zeros(()), affinity)
    mean = cam.mean(dim=(2, 3)) * total / (total + eps)
    torch.testing.assert_close(polish(cam, f, affinity=affinity, method=method)[..., 2, 3], mean)
    everywhere = polish(cam, torch.zeros_like(f), affinity=affinity, method=method)
    torch.testing.assert_close(everywhere, mean[..., None, None].expand_as(everywhere))


@pytest.mark.parametrize(("method", "affinity"), [*METHODS, ("dense", SHIFTED)], ids=lambda p: str(p))
def test_many_classes_on_few_pixels(method, affinity):
    """Their CAMs are sums of the polished CAMs of those pixels; NaN stays in its class."""
    cam, f = torch.rand(2, 40, 3, 4), torch.rand(2, 24, 9, 10)
    cam[0, 7, 1, 2] = float("nan")
    found = polish(cam, f, affinity=affinity, method=method)
    apart = torch.cat([polish(cam[:, k : k + 4], f, affinity=affinity, method=method) for k in range(0, 40, 4)], dim=1)
    torch.testing.assert_close(found, apart, rtol=0, atol=1e-6, equal_nan=True)
    assert found.isnan().flatten(2).all(2).sum() == found.isnan().flatten(2).any(2).sum() == 1


class FeatureReads(TorchDispatchMode):
    """Counts the elements of a tensor's memory that each operator reads; views read nothing."""

    def __init__(self, features):
        super().__init__()
        self.memory, self.reads = features.untyped_storage().data_ptr(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        views = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.arguments)
        if not views and not func.name().startswith("aten::new_"):
            self.reads += [(func, t.numel()) for t in tensors if t.untyped_storage().data_ptr() == self.memory]
        return func(*args, **(kwargs or {}))


def reads_of(cam, f, **options):
    with FeatureReads(f) as counted:
        polish(cam, f, **options)
    return counted.reads


UNKNOWN_SIGN = [("prototypes", LINEAR), ("second_order", SQUARE)]


@pytest.mark.parametrize("layout", [lambda f: f, LAYOUTS["channels_last"]], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(("method", "affinity"), UNKNOWN_SIGN, ids=lambda p: str(p))
def test_the_sign_is_read_tile_by_tile_just_before_the_norms(method, affinity, layout):
    cam, f = torch.rand(2, 3, 31, 40), layout(torch.rand(2, 64, 31, 40))
    known = reads_of(cam, f, affinity=affinity, method=method, nonnegative=True)
    found = reads_of(cam, f, affinity=affinity, method=method)
    signs = [(i, count) for i, (func, count) in enumerate(found) if func is torch.ops.aten.amin.default]
    assert sum(count for _, count in signs) == f.numel()
    assert len(signs) > 1
    for (i, count), (following, _) in itertools.pairwise([*signs, (len(found), 0)]):
        assert sum(read for _, read in found[i + 1 : following]) >= count, "each tile is read again at once"
    assert max(count for _, count in found) <= features_module.TILE_ELEMENTS
    assert sum(count for _, count in found) == sum(count for _, count in known) + f.numel()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [-1e-7, float("nan"), -float("inf")])
def test_a_feature_that_is_not_non_negative_is_found_wherever_it_is(value, dtype, layout):
    cam = torch.rand(2, 3, 22, 26)
    for b, c, y, x in ((0, 0, 0, 0), (1, 66, 21, 25), (0, 33, 11, 0)):
        f = torch.rand(2, 67, 22, 26).to(dtype)
        f[b, c, y, x] = value
        f = layout(f)
        if not (f >= 0).all():  # the expanded batch has one image
            found = polish(cam, f)
            assert torch.equal(found.nan_to_num(7), polish(cam, f, nonnegative=False).nan_to_num(7))
            for method, affinity in UNKNOWN_SIGN:
                with pytest.raises(ValueError, match=rf"{method}.*: the features are not all known to be >= 0 \("):
                    polish(cam, f, affinity=affinity, method=method)


def test_a_negative_feature_in_the_first_tile_costs_hardly_anything():
    cam, f = torch.rand(1, 3, 48, 48), torch.rand(1, 64, 48, 48)
    f[0, 5, 0, 0] = -1
    found, known = (reads_of(cam, f, nonnegative=sign) for sign in (None, False))
    assert explain(cam, f)["0"].method != "prototypes" == explain(cam, f.abs())["0"].method
    wasted = sum(count for _, count in found) - sum(count for _, count in known)
    assert 0 < wasted <= features_module.TILE_ELEMENTS < f.numel() / 5


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("threads", "H", "most"), [(2, 32, 2), (3, 24, 3), (5, 32, 4), (64, 32, 6)])
def test_products_are_taken_in_parts_for_the_threads(threads, H, most, layout, monkeypatch):
    cam, f, parts = torch.rand(1, 3, H, 48), layout(torch.rand(1, 24, H, 48))[:1], []
    split = prototypes_module.split_pixels
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(features_module, "TILE_ELEMENTS", 24 * 48 * H)
    monkeypatch.setattr(prototypes_module, "split_pixels", lambda rows, n: parts.append(n) or split(rows, n))
    assert_as_accurate(polish(cam, f, method="prototypes"), cam, f, LINEAR)
    assert set(parts) == {most}


def test_no_sign_is_read_for_a_stage_so_small_that_it_does_not_matter():
    cam, f = torch.rand(1, 3, 7, 7), torch.rand(1, 64, 7, 7)
    assert reads_of(cam, f) == reads_of(cam, f, nonnegative=True)
    assert torch.equal(polish(cam, f), polish(cam, f, method="dense"))
