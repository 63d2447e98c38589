"""Volumes: every method in three dimensions, streaming by slabs, fusion, SSA of a 3-D network, refusals."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ssa_fast
from ssa_fast import SSA, Affinity, FeatureMean, InputWarning, Prototypes, correlation, explain, polish, reference
from ssa_fast.large import LargeImageSSA
from ssa_fast.ops import launch_plan
from ssa_fast.ops.dispatch import plan_fusion
from ssa_fast.ops.features import UnitFeatures
from ssa_fast.ops.fusion import fusion_problem
from ssa_fast.ops.gpu_info import DEFAULT_GPU
from ssa_fast.validation import FusionOptions
from tests.accuracy import assert_as_accurate

if TYPE_CHECKING:
    from torch import Tensor

B, K, C = 2, 3, 12
SIZE, SMALL = (5, 7, 9), (3, 4, 5)
SHIFTED, CENTRED = Affinity(phi="shifted"), Affinity(phi="shifted", center=True)
CASES = {
    "dense": ("dense", Affinity()),
    "prototypes": ("prototypes", Affinity()),
    "second order": ("second_order", Affinity(power=2.0)),
    "tiled": ("tiled", Affinity()),
    "shifted": ("prototypes", SHIFTED),
    "shifted, centred": ("prototypes", CENTRED),
    "shifted square": ("second_order", Affinity(phi="shifted", power=2.0)),
    "centred": ("tiled", Affinity(center=True)),
    "exp, two steps": ("tiled", Affinity(phi="exp", temperature=0.2, steps=2)),
}
ROUNDING: dict[str, Any] = dict(rtol=0, atol=2e-6)


def draw(size: tuple[int, ...] = SIZE, *, seed: int = 0, signed: bool = False, channels: int = C) -> Tensor:
    features = torch.randn(B, channels, *size, generator=torch.Generator().manual_seed(seed))
    return features if signed else features.abs()


def draw_cam(size: tuple[int, ...] = SIZE, seed: int = 1) -> Tensor:
    return torch.rand(B, K, *size, generator=torch.Generator().manual_seed(seed))


def needs_sign(affinity: Affinity) -> bool:
    return not affinity.any_sign and not affinity.center


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("method", "affinity"), CASES.values(), ids=CASES)
def test_every_method_is_as_accurate_as_the_reference(method: str, affinity: Affinity, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and affinity.phi == "exp":
        pytest.skip("the reference in extended precision has no exponential")
    cam, f = draw_cam().to(dtype), draw(signed=not needs_sign(affinity)).to(dtype)
    out = polish(cam, f, affinity=affinity, method=method)
    assert out.shape == (B, K, *SIZE)
    assert out.dtype == dtype
    assert_as_accurate(out, cam, f, affinity)


def test_a_smaller_cam_is_resized_trilinearly() -> None:
    cam, f = draw_cam(SMALL), draw()
    for align_corners in (True, False):
        resized = F.interpolate(cam, SIZE, mode="trilinear", align_corners=align_corners)
        expected = reference.polish_stage(resized.double().flatten(2), f.double().flatten(2), Affinity())
        for backend in ("torch", "reference"):
            out = polish(cam, f, backend=backend, align_corners=align_corners)
            torch.testing.assert_close(out.double(), expected.unflatten(2, SIZE), **ROUNDING)


def test_many_classes_on_few_voxels_are_resized_by_voxels() -> None:
    cam, f = torch.rand(1, 300, 2, 1, 2), draw((3, 2, 3))[:1]
    torch.testing.assert_close(polish(cam, f), polish(cam, f, backend="reference"), **ROUNDING)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 7, 9), (5, 1, 9), (5, 7, 1), (13, 2, 3)], ids=str)
@pytest.mark.parametrize("affinity", [Affinity(), CENTRED, Affinity(center=True)], ids=["relu", "shifted", "centred"])
def test_odd_sizes(size: tuple[int, ...], affinity: Affinity) -> None:
    cam, f = draw_cam(size), draw(size, signed=not needs_sign(affinity))
    assert_as_accurate(polish(cam, f, affinity=affinity), cam, f, affinity)


@pytest.mark.parametrize(("method", "affinity"), CASES.values(), ids=CASES)
def test_a_volume_of_one_plane_is_its_image(method: str, affinity: Affinity) -> None:
    cam, f = draw_cam((4, 5)), draw((7, 9), signed=not needs_sign(affinity))
    volume = polish(cam[:, :, None], f[:, :, None], affinity=affinity, method=method)[:, :, 0]
    torch.testing.assert_close(volume, polish(cam, f, affinity=affinity, method=method), **ROUNDING)


@pytest.mark.parametrize("affinity", [Affinity(), CENTRED, Affinity(power=3.0)], ids=["relu", "shifted", "cube"])
def test_permuted_axes_give_the_permuted_result(affinity: Affinity) -> None:
    cam, f = draw_cam(SMALL), draw(signed=affinity.any_sign)
    out = polish(cam, f, affinity=affinity)
    for axes in permutations((2, 3, 4)):
        order = (0, 1, *axes)
        torch.testing.assert_close(
            polish(cam.permute(order), f.permute(order), affinity=affinity), out.permute(order), **ROUNDING
        )


def test_any_strides_are_read_in_place() -> None:
    whole, cam = draw((8, 9, 12)), draw_cam()
    f = whole[:, :, 1:6, 1:8, 2:11]
    expected = polish(cam, f.contiguous(), method="prototypes")
    views = {
        "sliced": f,
        "channels last": f.to(memory_format=torch.channels_last_3d),
        "permuted": f.permute(0, 1, 4, 3, 2).contiguous().permute(0, 1, 4, 3, 2),
        "planes apart": whole.new_zeros(B, C, 10, 7, 9)[:, :, ::2].copy_(f),
    }
    for name, view in views.items():
        torch.testing.assert_close(polish(cam, view, method="prototypes"), expected, **ROUNDING, msg=name)
    torch.testing.assert_close(polish(cam, f[:1].expand(2, -1, -1, -1, -1))[0], expected[0], **ROUNDING)


def test_tiles_of_a_sliced_volume_are_its_pixels() -> None:
    f = draw((6, 5, 8))[:, :, 1:, :-1, 1:]
    pixels, flat = UnitFeatures(f, Affinity(), torch.float32), f.flatten(2)
    L = flat.shape[2]
    for lo, hi in ((0, 3), (5, 9), (0, L), (20, 61), (27, 29), (L - 1, L)):
        assert torch.equal(pixels.raw(lo, hi), flat[:, :, lo:hi])
    for view in (f, draw((6, 5, 8))[:, :, ::2], draw((6, 5, 8)).transpose(3, 4)):  # not copied as a whole
        assert UnitFeatures(view, Affinity(), torch.float32)._flat is None
    whole = draw((6, 5, 8)).to(memory_format=torch.channels_last_3d)
    assert UnitFeatures(whole, Affinity(), torch.float32).raw(0, 240).data_ptr() == whole.data_ptr()


def test_numpy_and_channels_last_and_tokens() -> None:
    cam, f = draw_cam(SMALL), draw()
    expected = polish(cam, f)
    out = polish(cam.numpy(), f.numpy())
    assert isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, expected)
    assert polish(cam.double().numpy(), f.numpy()).dtype == np.float64
    last = f.movedim(1, -1)
    torch.testing.assert_close(polish(cam, last, layout="nhwc"), expected, **ROUNDING)
    tokens = torch.cat([torch.rand(B, 1, C), last.flatten(1, 3)], dim=1)
    torch.testing.assert_close(polish(cam, tokens, layout="tokens", grid=SIZE), expected, **ROUNDING)
    mixed = polish(cam, [f, tokens], layout=["nchw", "tokens"], grid=SIZE)
    torch.testing.assert_close(mixed, polish(cam, [f, f]), rtol=0, atol=1e-4)  # rescaling magnifies rounding


@pytest.mark.parametrize("fuse", ["mean", "max", "sum", "product"])
def test_stages_are_rescaled_resized_and_fused(fuse: Any) -> None:
    stages, cam = {"fine": draw(), "coarse": draw((2, 4, 4), seed=3, channels=20)}, draw_cam(SMALL)

    def by_hand(size: tuple[int, ...]) -> Tensor:
        maps = []
        for f in stages.values():
            p = polish(cam, f)
            low, high = p.amin((2, 3, 4), keepdim=True), p.amax((2, 3, 4), keepdim=True)
            maps.append(F.interpolate((p - low) / (high - low), size, mode="trilinear", align_corners=True))
        a, b = maps
        return {"mean": (3 * a + b) / 4, "sum": 3 * a + b, "max": torch.maximum(3 * a, b), "product": a**3 * b}[fuse]

    for size in (None, (6, 5, 4)):
        out = polish(cam, stages, fuse=fuse, weights=(3.0, 1.0), size=size)
        torch.testing.assert_close(out, by_hand(size or SIZE), rtol=0, atol=1e-4)  # rescaling magnifies rounding


def test_the_largest_stage_has_the_most_voxels() -> None:
    deep, wide = draw((9, 4, 4)), draw((1, 8, 8))
    assert polish(draw_cam(SMALL), [wide, deep]).shape == (B, K, 9, 4, 4)


def test_a_second_call_replays_the_first() -> None:
    launch_plan.PLANS.clear()
    stages, cam = [draw(), draw((2, 4, 4), signed=True)], draw_cam(SMALL)
    polish(cam, stages, affinity=(Affinity(), SHIFTED))
    assert len(launch_plan.PLANS) == 1
    others, other = [draw(seed=7), draw((2, 4, 4), seed=8, signed=True)], draw_cam(SMALL, seed=9)
    replayed = polish(other, others, affinity=(Affinity(), SHIFTED))
    assert len(launch_plan.PLANS) == 1
    launch_plan.PLANS.clear()
    assert torch.equal(replayed, polish(other, others, affinity=(Affinity(), SHIFTED)))


def test_gradients_reach_the_inputs_of_the_reference() -> None:
    cam, f = draw_cam(SMALL).requires_grad_(), draw().requires_grad_()
    polish(cam, [f, f[:, :, :2]], backend="reference").sum().backward()
    for tensor in (cam, f):
        assert tensor.grad is not None
        assert bool(tensor.grad.isfinite().all())
        assert bool(tensor.grad.any())


def test_one_cam_per_stage() -> None:
    stages = [draw(), draw((2, 4, 4))]
    cams = [draw_cam(SMALL), draw_cam((2, 2, 2), seed=4)]
    both = polish(cams, stages, rescale=False, weights=(1.0, 1e-30))
    torch.testing.assert_close(both, polish(cams[0], stages[0]), **ROUNDING)


@pytest.mark.slow
def test_the_custom_operator_takes_volumes() -> None:
    def call(cam: Tensor, f: Tensor, g: Tensor) -> Tensor:
        return polish(cam, [f, g])

    cam, f, g = draw_cam(SMALL), draw(), draw((2, 4, 4))
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(cam, f, g), call(cam, f, g), **ROUNDING)


def test_explain_counts_voxels_and_says_why_volumes_are_fused_by_pytorch(capsys: pytest.CaptureFixture[str]) -> None:
    stages = [draw(), draw((2, 4, 4))]
    found = explain(draw_cam(SMALL), stages)
    assert [problem.L for problem in found.problems.values()] == [5 * 7 * 9, 2 * 4 * 4]
    assert f"{5 * 7 * 9:,}" in capsys.readouterr().out
    options = FusionOptions("mean", (1.0, 1.0), rescale=True, size=None)
    problem = fusion_problem([torch.empty(B, K, *each.shape[2:]) for each in stages], SIZE, options)
    assert "volumes" in problem.unsuitable
    chosen = plan_fusion(replace(problem, device="cuda", gpu=DEFAULT_GPU))
    assert (chosen.backend, "these are volumes" in chosen.why) == ("torch", True)
    with pytest.raises(ValueError, match=r"^backend='triton' cannot fuse these stages: .*these are volumes"):
        plan_fusion(replace(problem, device="cuda", gpu=DEFAULT_GPU), "triton")


@pytest.mark.parametrize("affinity", [Affinity(), CENTRED], ids=["relu", "centred"])
def test_correlation_with_a_voxel(affinity: Affinity) -> None:
    stages = {"fine": draw(signed=True), "coarse": draw((2, 4, 4), signed=True)}
    found = correlation(stages, (3, 6, 0), size=SIZE, affinity=affinity)
    assert {name: maps.shape for name, maps in found.items()} == {"fine": (B, *SIZE), "coarse": (B, 2, 4, 4)}
    x = reference.unit_features(stages["fine"].double().flatten(2), affinity)
    index = (3 * 7 + 6) * 9 + 0
    expected = reference.phi(x[:, :, index, None].mT @ x, affinity)[:, 0].unflatten(1, SIZE)
    torch.testing.assert_close(found["fine"].double(), expected, **ROUNDING)
    x = reference.unit_features(stages["coarse"].double().flatten(2), affinity)
    expected = reference.phi(x[:, :, (1 * 4 + 3) * 4, None].mT @ x, affinity)[:, 0].unflatten(1, (2, 4, 4))
    torch.testing.assert_close(found["coarse"].double(), expected, **ROUNDING)
    again = correlation(stages["fine"].numpy(), (3.5 / 5, 6.5 / 7, 0.5 / 9), affinity=affinity)
    np.testing.assert_array_equal(again, found["fine"])


V, F4 = torch.rand(2, 3, 3, 4, 5), torch.rand(2, 12, 6, 7)
F5 = torch.rand(2, 12, 5, 7, 9)
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "one map per volume": (lambda: polish(V[:, 0], F5), ValueError, r"^cam: .*\(B, K, d, h, w\).*cam\[:, None\]"),
    "maps of one volume": (lambda: polish(V[0], F5[:1]), ValueError, r"^cam: expected shape .*cam\[None\] for K maps"),
    "an image's CAM": (lambda: polish(V[0, 0], F5), ValueError, r"^cam: expected shape .*got \(3, 4, 5\)"),
    "unbatched volume": (lambda: polish(V, F5[0]), ValueError, r"^cam: .*got \(2, 3, 3, 4, 5\) of volumes;.*\[None\]"),
    "an image's stage": (lambda: polish(V, F4), ValueError, r"^cam: expected shape \(B, K, h, w\) beside"),
    "second stage": (lambda: polish(V, [F5, F4]), ValueError, r"^cam: .*beside features \(2, 12, 6, 7\)"),
    "two kinds": (
        lambda: correlation([F5, F4], (0, 0, 0)),
        ValueError,
        r"^feats\[1\]: expected volumes like the first",
    ),
    "rank 6": (lambda: polish(V[None], F5), ValueError, r"^cam: .*\(B, K, d, h, w\) of volumes, got \(1, 2, 3, 3, 4,"),
    "rank 6 stage": (lambda: polish(V, F5[None]), ValueError, r"^(cam|feats): expected .*\(1, 2, 12, 5, 7, 9\)"),
    "other batch": (lambda: polish(V, F5[:1]), ValueError, r"^feats: expected the CAM's batch of 2, got 1"),
    "empty": (lambda: polish(V, F5[:, :, :0]), ValueError, r"^feats: expected at least one channel and one pixel"),
    "empty CAM": (lambda: polish(V[..., :0], F5), ValueError, r"^cam: expected at least one class and one pixel"),
    "size": (lambda: polish(V, F5, size=(4, 4)), TypeError, r"^size: expected \(D, H, W\), three ints, got \(4, 4\)"),
    "empty size": (lambda: polish(V, F5, size=(0, 4, 4)), ValueError, r"^size: expected \(D, H, W\) of at least 1"),
    "image's size": (lambda: polish(V[:, 0], F4, size=(1, 4, 4)), TypeError, r"^size: expected \(H, W\), two ints"),
    "point": (lambda: correlation(F5, (0.5, 0.5)), ValueError, r"^point: expected \(z, y, x\) for volumes"),
    "voxel": (lambda: correlation(F4, (0, 0, 0)), ValueError, r"^point: expected \(y, x\) for images"),
    "outside": (lambda: correlation(F5, (5, 0, 0), size=(5, 7, 9)), ValueError, r"inside the 5×7×9 volume, got"),
    "fractions": (lambda: correlation(F5, (0, 0, 2)), ValueError, r"give size=\(D, H, W\) for pixels"),
    "no grid": (lambda: polish(V, F5.flatten(2).mT, layout="tokens"), ValueError, r"^grid: .*pass grid=\(D, H, W\)"),
    "grid": (lambda: polish(V, F5.flatten(2).mT, layout="tokens", grid=(5, 7, 8)), ValueError, r"5 × 7 × 8 = 280"),
    "flat grid": (lambda: polish(V, F5.flatten(2).mT, layout="tokens", grid=(5, 63)), ValueError, r"^cam: expected"),
    "grid of images": (lambda: polish(F4, F4.flatten(2).mT, layout="tokens", grid=(1, 6, 7)), ValueError, r"^cam: "),
    "no grid wanted": (lambda: polish(V, F5, grid=(5, 7, 9)), ValueError, r"^grid: expected None where no stage"),
    "channels last": (lambda: polish(torch.rand(1, 2, 3, 6, 15), torch.rand(1, 9, 12, 30, 16)), ValueError, "nhwc"),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_are_one_clear_sentence(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_may_be_meant_otherwise_is_noted() -> None:
    with pytest.warns(
        InputWarning, match=r"read as 3 maps of 5 × 7 × 2, though 2 maps of 3 × 5 × 7 .*movedim\(-1, -4\)"
    ):
        polish(torch.rand(1, 3, 5, 7, 2), torch.rand(1, 8, 6, 10, 14))
    with pytest.warns(InputWarning, match=r"looks like \(B, C, D, H, W\)"):
        polish(torch.rand(1, 2, 3, 4, 9), torch.rand(1, 8, 30, 8, 18), layout="nhwc")


LINEAR = [Affinity(), SHIFTED, CENTRED, Affinity(phi="shifted", shift=0.5, center=True)]


@pytest.mark.parametrize("affinity", LINEAR, ids=["relu", "shifted", "centred", "half"])
def test_slabs_in_any_order_and_process_give_the_whole_volume(affinity: Affinity) -> None:
    cam, f = draw_cam()[:1], draw(signed=affinity.any_sign)[:1]
    bounds = [(3, 5), (0, 1), (1, 3)]
    means = [FeatureMean(C) for _ in range(2)]
    for i, (lo, hi) in enumerate(bounds):
        means[i % 2].add(f[:, :, lo:hi])
    means[0].merge(means[1])
    torch.testing.assert_close(means[0].value, f.double().mean((0, 2, 3, 4)), rtol=1e-12, atol=1e-12)
    mean = means[0].value if affinity.center else None
    parts = [Prototypes(K, C, affinity=affinity, mean=mean) for _ in range(2)]
    for i, (lo, hi) in enumerate(bounds):
        parts[i % 2].add(cam[:, :, lo:hi], f[:, :, lo:hi])
    parts[0].merge(parts[1])
    assert parts[0].pixels == 5 * 7 * 9
    slabs = [parts[0].apply(f[:, :, lo:hi]) for lo, hi in sorted(bounds)]
    assert_as_accurate(torch.cat(slabs, dim=2), cam, f, affinity)
    sub = parts[0].apply(f[:, :, 1:4, 2:6, 3:])
    torch.testing.assert_close(sub, torch.cat(slabs, dim=2)[:, :, 1:4, 2:6, 3:], **ROUNDING)


def test_slabs_of_several_volumes_count_as_one_image_and_layouts_are_read() -> None:
    cam, f = draw_cam(), draw()
    together, last, tokens = Prototypes(K, C), Prototypes(K, C, layout="nhwc"), Prototypes(K, C, layout="tokens")
    together.add(cam, f)
    last.add(cam, f.movedim(1, -1))
    tokens.add(cam, f.flatten(2).mT)
    torch.testing.assert_close(together.sums, last.sums, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(together.sums, tokens.sums, rtol=1e-6, atol=1e-6)
    for bad, message in (
        (lambda: Prototypes(K, C).add(cam[0], f[0]), r"^cam: expected \(n, 3, h, w\).*slab pass \[None\]"),
        (lambda: Prototypes(K, C).add(cam[0], f), r"^cam: expected \(n, 3, d, h, w\), got"),
        (lambda: Prototypes(K, C).add(cam[:, :, 1:], f), r"^cam: expected the tile's own pixels, \(5, 7, 9\)"),
        (lambda: Prototypes(K, C).add(cam, f[:, :8]), r"^feats: expected \(n, 12, d, h, w\), got \(2, 8, 5, 7, 9\)"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("method", "affinity"),
    [("prototypes", CENTRED), ("tiled", Affinity(center=True)), ("resident", Affinity())],
    ids=["prototypes", "tiled", "resident"],
)
def test_kernels_read_volumes_as_rows(method: str, affinity: Affinity) -> None:
    pytest.importorskip("ssa_fast.kernels.prototypes", reason="needs Triton")
    launch_plan.PLANS.clear()
    f, cam = draw((3, 5, 6), signed=True)[:1, :, 1:, :4, 1:], draw_cam((2, 3, 2))[:1]
    expected = polish(cam, f, affinity=affinity, backend="reference")
    for _ in range(2):  # the second is a replay
        out = polish(cam, f, affinity=affinity, method=method, backend="triton", precision="high")
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    assert len(launch_plan.PLANS) == 1
    launch_plan.PLANS.clear()


class Small(nn.Module):
    """Two 3-D stages, the mean over all voxels, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv3d(2, 8, 3, stride=(1, 2, 2), padding=1), nn.BatchNorm3d(8), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv3d(8, 16, 3, stride=2, padding=1), nn.BatchNorm3d(16), nn.ReLU())
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3, 4)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def small() -> SSA:
    torch.manual_seed(0)
    return SSA(Small(), input_shape=(2, 6, 32, 32))


def minmax(maps: Tensor) -> Tensor:
    low, high = maps.amin((2, 3, 4), keepdim=True), maps.amax((2, 3, 4), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-30)


def test_ssa_of_volumes_has_the_promised_shapes(small: SSA) -> None:
    assert "volumes of 6 × 32 × 32" in repr(small)
    volumes = torch.randn(2, 2, 5, 30, 34)
    result = small(volumes, [[0, 1], [2]])
    assert result.cams.shape == (2, 2, 5, 30, 34)
    assert {name: maps.shape[2:] for name, maps in result.stages.items()} == {
        "layer1": (5, 15, 17),
        "layer2": (3, 8, 9),
    }
    assert result.valid.tolist() == [[True, True], [True, False]]
    assert not result.cams[1, 1].any()
    assert result.masks().shape == (2, 5, 30, 34)
    flat = result.cams.flatten(2, 3)
    assert torch.equal(result.masks(), ssa_fast.localize.masks(flat).unflatten(1, (5, 30)))
    with pytest.raises(ValueError, match=r"^cams: expected shape .*got \(2, 2, 5, 30, 34\).*volumes"):
        result.boxes()


def test_sizes_flips_and_seeds_of_volumes(small: SSA) -> None:
    volumes, model = torch.randn(2, 2, 6, 32, 32), small.model
    expected = small(volumes, "top2")
    with_gradient = SSA(model, input_shape=(2, 6, 32, 32), seed="grad-cam")
    assert with_gradient.seed_kind == "grad-cam"
    torch.testing.assert_close(with_gradient(volumes, "top2").cams, expected.cams, rtol=0, atol=1e-4)
    own = small(volumes, cam=expected.seed, classes=expected.classes.tolist())
    torch.testing.assert_close(own.cams, expected.cams, rtol=0, atol=1e-4)
    flipped = SSA(model, input_shape=(2, 6, 32, 32), flip=True, size=(3, 8, 8))
    there, back = flipped(volumes, [1]), flipped(volumes.flip(-1), [1])
    assert there.cams.shape == (2, 1, 3, 8, 8)
    torch.testing.assert_close(there.cams, back.cams.flip(-1), rtol=0, atol=1e-4)
    layercam = SSA(model, input_shape=(2, 6, 32, 32), seed="layercam", size="stage")
    assert layercam(volumes, [1]).cams.shape == (2, 1, 6, 16, 16)
    named = with_gradient(volumes, targets={"two": lambda logits: logits[2]})
    torch.testing.assert_close(named.seed, with_gradient(volumes, [2]).seed, rtol=0, atol=1e-5)
    stages = small.features(volumes)
    polished = polish(expected.seed, stages, affinity=small.affinities, size=(6, 32, 32), align_corners=False)
    torch.testing.assert_close(minmax(polished), expected.cams, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(scales=(1, 2)), ValueError, r"^scales: expected \(1.0,\) for a model of volumes"),
        (dict(prior="center"), ValueError, r"^prior: expected None for a model of volumes"),
        (dict(geometry="pad"), ValueError, r"^geometry: expected None or 'resize' for a network of volumes"),
        (dict(size=(4, 4)), TypeError, r"^size: expected \(D, H, W\), three ints"),
        (dict(size="half"), ValueError, r"^size: expected"),
        (dict(input_shape=32), TypeError, r"^input_shape: expected \(C, D, H, W\), as all convolutions are 3-D"),
        (dict(input_shape=(3, 6, 32, 32)), ValueError, r"its first convolution takes 2 channels.*\(2, D, H, W\)"),
        (dict(input_shape=(1, 2, 6, 32, 32)), TypeError, r"^input_shape: expected .*\(C, D, H, W\) of volumes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_that_make_no_sense_for_volumes(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SSA(Small(), **dict(input_shape=(2, 6, 32, 32)) | options)


def test_volumes_of_another_shape_are_refused(small: SSA) -> None:
    for images in (torch.rand(2, 6, 32, 32), torch.rand(1, 3, 6, 32, 32)):
        with pytest.raises(ValueError, match=r"^images: expected shape \(B, 2, D, H, W\)"):
            small(images)
    volumes = torch.rand(2, 2, 6, 32, 32)
    with pytest.raises(ValueError, match=r"^cam: expected \(B, K, d, h, w\) of volumes"):
        small(volumes, cam=torch.rand(2, 6, 8, 8))
    with pytest.raises(ValueError, match=r"^model: expected one for images, got one for volumes"):
        LargeImageSSA(small)


class Cropped(Small):
    """Crops volumes to their centred square before the first layer."""

    def forward(self, x: Tensor) -> Tensor:
        side, (height, width) = min(x.shape[-2:]), x.shape[-2:]
        y, x0 = (height - side) // 2, (width - side) // 2
        return super().forward(x[..., y : y + side, x0 : x0 + side])


def test_a_forward_that_crops_volumes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^geometry: expected maps that cover the whole volume"):
        SSA(Cropped(), input_shape=(2, 4, 64, 64))


@pytest.mark.slow
def test_r3d_18_is_its_hooked_features_polished_with_an_exact_cam() -> None:
    video = pytest.importorskip("torchvision").models.video
    torch.manual_seed(0)
    model = video.r3d_18(weights=None, num_classes=7).eval()
    ssa = SSA(model, input_shape=(3, 8, 56, 56))
    names = ["layer1", "layer2", "layer3", "layer4"]
    assert (ssa.stage_names, ssa.seed_kind, ssa.seed_layer) == (names, "cam", "layer4")
    clips, stages = torch.randn(2, 3, 8, 56, 56), {}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: stages.update({name: out}))
    with torch.no_grad():
        result = ssa(clips, [[1, 3], [0, 6]])
        logits = model(clips)
    seed = torch.einsum("bkc,bcdhw->bkdhw", model.fc.weight.detach()[result.classes], stages["layer4"]).relu()
    fused: Any = 0
    for name, f in stages.items():
        rows = F.interpolate(seed, f.shape[2:], mode="trilinear", align_corners=False).double().flatten(2)
        polished = minmax(reference.polish_stage(rows, f.double().flatten(2), Affinity()).unflatten(2, f.shape[2:]))
        torch.testing.assert_close(result.stages[name].double(), polished, rtol=0, atol=1e-3)
        fused = fused + F.interpolate(polished, (8, 56, 56), mode="trilinear", align_corners=False)
    torch.testing.assert_close(result.seed, minmax(seed), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.cams.double(), minmax(fused), rtol=0, atol=1e-3)
    torch.testing.assert_close(result.logits, logits, rtol=0, atol=1e-4)
    assert result.cams.shape == (2, 2, 8, 56, 56)
    torch.testing.assert_close(result.scores, logits.softmax(1).gather(1, result.classes), rtol=0, atol=1e-5)
