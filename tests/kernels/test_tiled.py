"""The quadratic kernels against the reference.

This includes bfloat16, since its features become float16 before ``tl.dot``.
"""

from __future__ import annotations

import itertools
import types
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

from ssa_fast import Affinity, reference
from ssa_fast.kernels.config import Full, Prepare, Symmetric
from ssa_fast.ops import tile_tables
from tests.accuracy import assert_as_accurate

tiled = pytest.importorskip("ssa_fast.kernels.tiled", reason="needs Triton")
symmetric = pytest.importorskip("ssa_fast.kernels.symmetric", reason="needs Triton")

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Polish = Callable[..., Tensor]

NAN = float("nan")
FULL = Full(block_i=16, block_j=32, block_c=16, rows=16, num_warps=4, num_stages=2)
FULL_HELD = Full(block_i=32, block_j=16, block_c=64, rows=16, num_warps=4, num_stages=2)
SYMMETRIC = Symmetric(block=16, block_c=16, bands=1, chunk=2, rows=16, num_warps=4, num_stages=2, programs=4)
BANDS = Symmetric(block=16, block_c=64, bands=2, chunk=4, rows=16, num_warps=4, num_stages=2, programs=1)
CONFIGS = [FULL, FULL_HELD, SYMMETRIC, BANDS]
NAMES = ["full", "full-held", "symmetric", "symmetric-held"]
every_kernel = pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
both_forms = pytest.mark.parametrize("config", [FULL, BANDS], ids=["full", "symmetric"])
both_precisions = pytest.mark.parametrize("precision", ["default", "high"])


@pytest.fixture
def polish(guarded: Callable[..., Tensor]) -> Polish:
    """Return ``tiled.polish`` into a guarded output, as ``(B, K, H, W)``."""

    def run(cam: Tensor, features: Tensor, affinity: Affinity = Affinity(), **options: Any) -> Tensor:  # noqa: B008
        (B, K, _, _), (_, _, H, W) = cam.shape, features.shape
        out = guarded(B, K, H * W)
        options = dict(align_corners=True, precision="default", prepare=Prepare(16, 64, 4)) | options
        tiled.polish(cam, features, affinity=affinity, out=out, **options)
        return out.view(B, K, H, W)

    return run


def draw(B: int, K: int, C: int, H: int, W: int) -> tuple[Tensor, Tensor]:
    return torch.rand(B, K, H, W), torch.randn(B, C, H, W)


def check(out: Tensor, cam: Tensor, features: Tensor, affinity: Affinity, precision: str) -> None:
    assert_as_accurate(out, cam, features, affinity, torch.float16 if precision == "default" else None)


@both_precisions
@both_forms
@pytest.mark.parametrize(
    "affinity",
    [
        Affinity(),
        Affinity(power=2),
        Affinity(power=3),
        Affinity(power=8, norm_eps=0.5),
        Affinity(power=0.5),
        Affinity(center=True, steps=3),
        Affinity(norm_eps=0.0, sum_eps=0.0),
        Affinity(sum_eps=3.0, power=2.5),
        Affinity(phi="shifted", shift=0.5, steps=2),
        Affinity(phi="shifted", shift=3.0, power=3, center=True),
        Affinity(phi="shifted", power=2.5, sum_eps=3.0),
        Affinity(phi="exp", temperature=0.07),
        Affinity(phi="exp", temperature=0.5, center=True, steps=2),
    ],
    ids=str,
)
def test_every_affinity(polish: Polish, affinity: Affinity, config: Full | Symmetric, precision: str) -> None:
    cam, features = draw(1, 3, 21, 5, 13)
    out = polish(cam, features, affinity, config=config, precision=precision)
    check(out, cam, features, affinity, precision)


@both_precisions
@both_forms
@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
def test_threshold(polish: Polish, power: float, config: Full | Symmetric, precision: str) -> None:
    """Put the threshold into a gap between cosines, since φ jumps there and rounding could cross it."""
    cam, features = draw(1, 3, 21, 5, 13)
    x = reference.unit_features(features.flatten(2).double(), Affinity())
    cosines = (x.mT @ x).flatten().unique()
    cosines = cosines[(cosines > 0.1) & (cosines < 0.3)]
    widest = int(cosines.diff().argmax())
    threshold = float(cosines[widest : widest + 2].mean())
    affinity = Affinity(power=power, threshold=threshold)
    out = polish(cam, features, affinity, config=config, precision=precision)
    check(out, cam, features, affinity, precision)


@both_precisions
@every_kernel
@pytest.mark.parametrize(
    "shape",
    [(1, 15, 64, 8, 8), (3, 2, 67, 3, 19), (2, 5, 24, 1, 1), (1, 1, 1, 7, 5), (1, 21, 33, 5, 9), (1, 70, 8, 3, 7)],
    ids=["aligned", "ragged", "one-pixel", "one-channel", "two-chunks", "five-chunks"],
)
def test_every_shape(
    polish: Polish, shape: tuple[int, int, int, int, int], config: Full | Symmetric, precision: str
) -> None:
    cam, features = draw(*shape)
    out = polish(cam, features, config=config, precision=precision)
    check(out, cam, features, Affinity(), precision)


@both_precisions
@every_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 24, 1, 1), (1, 1, 1, 7, 5)], ids=["one-pixel", "one-channel"])
def test_one_of_a_kind_in_half_precision(
    polish: Polish, shape: tuple[int, int, int, int, int], dtype: torch.dtype, config: Full | Symmetric, precision: str
) -> None:
    cam, features = draw(*shape)
    features = features.to(dtype)
    out = polish(cam, features, config=config, precision=precision)
    check(out, cam, features, Affinity(), precision)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed", "expanded"])
def test_features_are_read_in_place(polish: Polish, layout: str, dtype: torch.dtype) -> None:
    cam, features = draw(2, 2, 20, 4, 9)
    features = features.to(dtype)
    if layout == "channels_last":
        features = features.to(memory_format=torch.channels_last)
    elif layout == "sliced":
        features = torch.full((2, 40, 9, 20), NAN, dtype=dtype)[:, ::2, 2:6, 1:18:2].copy_(features)
    elif layout == "transposed":
        features = features.mT.contiguous().mT
    elif layout == "expanded":
        features = features[:1].expand(2, -1, -1, -1)
    for config, precision in ((BANDS, "default"), (FULL, "high")):
        out = polish(cam, features, config=config, precision=precision)
        check(out, cam, features, Affinity(), precision)


@pytest.mark.parametrize("align_corners", [True, False])
@both_forms
def test_the_cam_is_resized(polish: Polish, config: Full | Symmetric, align_corners: bool) -> None:
    cam, features = torch.rand(2, 3, 3, 4), torch.randn(2, 20, 6, 9)
    resized = F.interpolate(cam.double(), (6, 9), mode="bilinear", align_corners=align_corners).float()
    out = polish(cam, features, config=config, precision="high", align_corners=align_corners)
    check(out, resized, features, Affinity(), "high")


@pytest.mark.parametrize("scale", [1e-6, 1e5])
@both_forms
def test_any_scale_of_the_cam(polish: Polish, config: Full | Symmetric, scale: float) -> None:
    cam, features = draw(1, 3, 20, 5, 7)
    cam *= torch.tensor([1.0, -1.0, scale]).view(3, 1, 1)
    out = polish(cam, features, config=config, precision="high")
    for k in range(3):  # each class on its own scale
        check(out[:, k : k + 1], cam[:, k : k + 1], features, Affinity(), "high")


@pytest.mark.parametrize("exponent", [-140, -60, 60, 124])
@both_forms
def test_any_scale_of_the_features(polish: Polish, config: Full | Symmetric, exponent: int) -> None:
    cam, features = draw(1, 2, 20, 5, 7)
    features = (features.clamp(-3, 3) * 256).round() / 256  # few enough bits to be exact as subnormal numbers
    no_eps = Affinity(norm_eps=0.0, sum_eps=0.0)
    scaled = torch.ldexp(features, torch.tensor(exponent)) if exponent > -140 else features.mul(2.0**-100).mul(2.0**-40)
    for precision in ("default", "high"):
        expected = polish(cam, features, no_eps, config=config, precision=precision)
        assert torch.equal(polish(cam, scaled, no_eps, config=config, precision=precision), expected)


def test_features_far_below_norm_eps_give_zero(polish: Polish) -> None:
    cam, features = draw(1, 2, 20, 5, 7)
    out = polish(cam, features * 1e-12, config=BANDS)
    assert out.abs().max() < 1e-5


@both_precisions
@every_kernel
def test_zero_features(polish: Polish, config: Full | Symmetric, precision: str) -> None:
    cam, features = draw(1, 2, 20, 5, 7)
    features[0, :, 1:3, 2:5] = 0
    out = polish(cam, features, Affinity(norm_eps=0.0, sum_eps=0.0), config=config, precision=precision)
    assert (out[0, :, 1:3, 2:5] == 0).all()
    check(out, cam, features, Affinity(norm_eps=0.0, sum_eps=0.0), precision)
    out = polish(cam, features * 0, Affinity(norm_eps=0.0, sum_eps=0.0), config=config, precision=precision)
    assert (out == 0).all()


@both_forms
def test_zero_features_under_a_sharp_softmax(polish: Polish, config: Full | Symmetric) -> None:
    """Polish a zero feature, whose affinities are all exp(−1/0.03), below float16: it gets the CAM's mean."""
    cam, features = draw(1, 2, 20, 5, 7)
    features[0, :, 1, 2] = 0
    out = polish(cam, features, Affinity(phi="exp", temperature=0.03, sum_eps=0.0), config=config)
    # v has the 11 bits of TF32 here.
    torch.testing.assert_close(out[0, :, 1, 2], cam.mean(dim=(2, 3))[0], rtol=2.0**-12, atol=0)


@every_kernel
@pytest.mark.parametrize(
    "affinity", [Affinity(), Affinity(phi="shifted", power=3), Affinity(phi="exp", temperature=0.1)], ids=str
)
@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_bad_features_affect_their_image_only(
    polish: Polish, bad: float, affinity: Affinity, config: Full | Symmetric
) -> None:
    cam, features = draw(2, 2, 20, 5, 7)
    features[0, 3, 4, 6] = bad
    out = polish(cam, features, affinity, config=config)
    assert out[0].isnan().all()
    check(out[1:], cam[1:], features[1:], affinity, "default")


@both_forms
@both_precisions
def test_a_bad_cam_affects_its_class_only(polish: Polish, config: Full | Symmetric, precision: str) -> None:
    cam, features = draw(1, 3, 20, 5, 7)
    cam[0, 0, 2, 3], cam[0, 1, 0, 0] = NAN, float("inf")
    out = polish(cam, features, Affinity(phi="exp", temperature=0.3), config=config, precision=precision)
    assert out[0, :2].isnan().all()
    check(out[:, 2:], cam[:, 2:], features, Affinity(phi="exp", temperature=0.3), precision)


@both_forms
@pytest.mark.parametrize("workspace", [1, 1 << 30])
def test_unsigned_images_are_skipped(polish: Polish, config: Full | Symmetric, workspace: int) -> None:
    cam, features = draw(3, 16, 9, 3, 7)
    signed = torch.tensor([1, 0, 1], dtype=torch.int32)
    options = dict(config=config, workspace=workspace)
    out = polish(cam, features, Affinity(steps=2), signed=signed, **options)
    expected = polish(cam, features, Affinity(steps=2), **options)
    assert out[1].isnan().all()
    assert torch.equal(out[::2], expected[::2])


@pytest.mark.parametrize("workspace", [1, 50_000, 1 << 30])
@pytest.mark.parametrize("bands", [1, 2, 4])
def test_any_workspace(polish: Polish, bands: int, workspace: int) -> None:
    cam, features = draw(1, 17, 9, 7, 13)
    tiles = dict(block=16, block_c=16, bands=bands, chunk=max(2, bands), rows=16, num_warps=4, num_stages=2)
    config = Symmetric(**tiles, programs=4)
    out = polish(cam, features, Affinity(power=2), config=config, workspace=workspace)
    check(out, cam, features, Affinity(power=2), "default")


@pytest.mark.parametrize("workspace", [1, 20_000, 200_000])
def test_the_workspace_is_not_exceeded(polish: Polish, workspace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cam, features = draw(1, 3, 9, 7, 13)
    seen, launch = [], symmetric._launch_pairs
    monkeypatch.setattr(
        symmetric, "_launch_pairs", lambda *args: (seen.append(args[-1]["slot_ptr"].nbytes), launch(*args))
    )
    polish(cam, features, config=SYMMETRIC, workspace=workspace)
    one_pair = 4 * 2 * 2 * 16 * 16  # bytes · groups · blocks · pixels · rows
    assert max(seen) <= max(workspace, one_pair)


@every_kernel
def test_bitwise_repeatable(polish: Polish, config: Full | Symmetric) -> None:
    cam, features = draw(2, 3, 20, 7, 9)
    first, second = (polish(cam, features, Affinity(steps=2), config=config) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("L", "layers", "chunk"), [(16384, 1, 16), (65536, 1, 32), (2100, 1, 2), (1024, 1, 2), (16384, 16, 32), (9, 1, 2)]
)
def test_groups_keep_all_programs_busy(L: int, layers: int, chunk: int) -> None:
    config = Symmetric(block=64, block_c=64, bands=2, chunk=32, rows=32, num_warps=8, num_stages=2, programs=132)
    assert config.balanced_chunk(L, layers) == chunk


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120", "gfx942"])
def test_shipped_tiles_fill_a_gpu(arch: str) -> None:
    """Count the programs of one image: 100, or most of those that a smaller GPU runs at a time."""
    path = tile_tables.SHIPPED / f"{arch}.json"
    table = tile_tables.entries(tile_tables.read(path), path)
    for L in range(209, 4500, 91):
        for C, phi, precision in itertools.product((64, 512), ("relu", "exp"), ("default", "high")):
            entry = tile_tables.nearest(table, "tiled", C=C, L=L, K=20, dtype="float16", precision=precision, phi=phi)
            assert entry is not None
            assert isinstance(entry.config, Symmetric)
            groups = -(-L // (entry.config.block * entry.config.balanced_chunk(L)))
            assert groups * (groups + 1) // 2 >= min(100, 0.8 * entry.config.programs), (L, C, phi, precision)


@pytest.mark.parametrize("groups", range(1, 8))
def test_regions_cover_each_pair_once(groups: int) -> None:
    wanted = [(g, q) for g in range(groups) for q in range(g, groups)]
    for max_pairs in range(1, len(wanted) + 2):
        found = []
        for part in symmetric.split_regions(groups, max_pairs):
            pairs = [(g, q) for g in range(part.g0, part.g1) for q in range(part.q0, part.q1) if g <= q]
            assert part.pairs == len(pairs) <= max_pairs
            numbers = {_plain(symmetric.rank_pair)(*pair, *part) for pair in pairs}
            assert numbers == set(range(part.pairs))
            unranked = [_plain(symmetric.unrank_pair)(number, *part) for number in range(part.pairs)]
            assert sorted(unranked) == pairs
            assert not any(g == q for g, q in unranked[: part.pairs - (part.g1 - part.g0)]), "half the work comes last"
            found += pairs
        assert sorted(found) == wanted


def _plain(function: Any) -> Callable[..., Any]:
    """Return a ``@triton.jit`` function of integers as a Python function."""

    class Numbers:
        maximum, minimum = max, min

        @staticmethod
        def where(condition: bool, then: int, otherwise: int) -> int:
            return then if condition else otherwise

    return types.FunctionType(function.fn.__code__, {"tl": Numbers})


@pytest.mark.interpreter
def test_symmetric_computes_half_the_cosines(polish: Polish, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the tiles of cosines computed out of 8 × 8: 36 with one block per band, 40 with two."""
    from triton.runtime.interpreter import InterpreterBuilder

    cosines = 0
    create_dot = InterpreterBuilder.create_dot

    def counted(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        nonlocal cosines
        if b.data.shape[0] == 64:  # the inner dimension is C
            cosines += a.data.shape[0] * b.data.shape[1]
        return create_dot(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counted)
    cam, features = draw(1, 2, 64, 8, 16)
    shape = dict(block_c=64, rows=16, num_warps=4, num_stages=1)
    for config, tiles in (
        (Full(16, 16, **shape), 64),
        (Symmetric(16, bands=1, chunk=4, **shape), 36),
        (Symmetric(16, bands=2, chunk=4, **shape), 40),
    ):
        cosines = 0
        polish(cam, features, config=config)
        assert cosines == tiles * 16 * 16
