"""The fusion kernels against ``ssa_fast.ops.fusion`` in float64."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ssa_fast.ops import fusion as truth
from ssa_fast.validation import FUSES, FusionOptions

fusion = pytest.importorskip("ssa_fast.kernels.fusion", reason="needs Triton")

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

SIZES = [(13, 19), (7, 9), (20, 30), (1, 1), (5, 3), (4, 40)]
WEIGHTS = [0.5, 2.0, 1.0, 0.0, 3.0, 1.3]


@pytest.fixture
def fuse(guarded: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``fusion.fuse`` into a guarded output; default: mean, rescaled, equal weights."""

    def run(maps: Sequence[Tensor], size: tuple[int, int], **options: Any) -> Tensor:
        out = guarded(*maps[0].shape[:2], *size)
        fusion.fuse(maps, **defaults(maps) | options, out=out)
        return out

    return run


def defaults(maps: Sequence[Tensor]) -> dict[str, Any]:
    return dict(weights=[1.0] * len(maps), fuse="mean", rescale=True, align_corners=True)


def expected(maps: Sequence[Tensor], size: tuple[int, int], **options: Any) -> Tensor:
    """Return PyTorch's result for ``maps``, in their dtype."""
    options = defaults(maps) | options
    options["weights"] = tuple(options["weights"])
    return truth.fuse(dict(enumerate(maps)), FusionOptions(**options, size=size, backend="torch"))


def assert_as_accurate(out: Tensor, maps: Sequence[Tensor], **options: Any) -> None:
    """Assert an error of at most twice that of PyTorch in float32, plus one rounding."""
    size = tuple(out.shape[2:])
    exact = expected([p.double() for p in maps], size, **options)
    error, own = ((found.double() - exact).abs().max().item() for found in (out, expected(maps, size, **options)))
    band = torch.finfo(torch.float32).eps * exact.abs().max().item()
    assert error <= 2 * own + band, (
        f"error {error:.3g}, expected at most 2 × {own:.3g} (PyTorch in float32) + {band:.3g}"
    )


def draw(count: int, scale: float = 1.0) -> list[Tensor]:
    return [scale * torch.rand(2, 3, *size) for size in SIZES[:count]]


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("rescale", [True, False], ids=["rescaled", "as-they-are"])
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("how", FUSES)
def test_accuracy(
    fuse: Callable[..., Tensor], how: str, stages: int, rescale: bool, weights: list[float] | None
) -> None:
    maps = draw(stages, scale=30.0)
    options = dict(fuse=how, rescale=rescale, weights=(weights or [1.0] * stages)[:stages])
    assert_as_accurate(fuse(maps, (13, 19), **options), maps, **options)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (9, 7), (40, 50), (1, 60), pytest.param((257, 190), marks=pytest.mark.cuda)])
def test_any_size(fuse: Callable[..., Tensor], size: tuple[int, int], align_corners: bool) -> None:
    maps = draw(4)
    assert_as_accurate(fuse(maps, size, align_corners=align_corners), maps, align_corners=align_corners)


def test_a_map_shared_by_several_programs(fuse: Callable[..., Tensor]) -> None:
    maps = [torch.rand(1, 2, 200, 210), torch.rand(1, 2, 3, 3)]
    maps[0][0, 0, 199, 209], maps[0][0, 1, 0, 0], maps[0][0, 1, 78, 5] = 5.0, -3.0, 7.0
    assert maps[0][0, 0].numel() > 2 * fusion.PART
    assert_as_accurate(fuse(maps, (9, 11)), maps)


def test_small_differences_on_a_large_number(fuse: Callable[..., Tensor]) -> None:
    maps = [1000 + torch.rand(2, 3, *size) for size in SIZES[:2]]
    assert_as_accurate(fuse(maps, (20, 23)), maps)


def test_a_constant_map_becomes_zero(fuse: Callable[..., Tensor]) -> None:
    maps = [torch.full((1, 2, 4, 5), 0.1), torch.full((1, 2, 6, 6), -7.0), torch.zeros(1, 2, 3, 3)]
    maps[0][0, 0, 2, 2] += 1e-7  # the rounding of float32 sums
    assert (fuse(maps, (6, 6), fuse="sum") == 0).all()


@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize("how", FUSES)
def test_a_nan_makes_its_map_nan(fuse: Callable[..., Tensor], how: str, at: int) -> None:
    maps = draw(3)
    maps[2][1, 2].view(-1)[at] = float("nan")
    nan = fuse(maps, (13, 19), fuse=how).isnan()
    assert nan[1, 2].all()
    assert nan.sum() == nan[1, 2].numel()


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("how", FUSES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_propagate_as_in_pytorch(
    fuse: Callable[..., Tensor], bad: float, how: str, rescale: bool
) -> None:
    maps = draw(2)
    maps[1][0, 1, 3, 4] = bad
    options = dict(fuse=how, rescale=rescale)
    out, wanted = fuse(maps, (13, 19), **options), expected(maps, (13, 19), **options)
    torch.testing.assert_close(out, wanted, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_power_is_that_of_pytorch(fuse: Callable[..., Tensor]) -> None:
    numbers = [0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 3.7, 1e-40, 1e-30, 1e30, float("inf"), -float("inf"), float("nan")]
    for weight, number in itertools.product([0.0, 0.375, 1.0, 1.625, 2.0, 3.0, 4.0], numbers):
        p = torch.full((1, 1, 1, 2), number)
        out = fuse([p], (1, 2), fuse="product", rescale=False, weights=[weight])
        torch.testing.assert_close(out, p**weight, equal_nan=True, rtol=5e-7, atol=0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e5, 1e30])
def test_any_scale(fuse: Callable[..., Tensor], scale: float) -> None:
    maps = draw(3, scale)
    assert_as_accurate(fuse(maps, (13, 19)), maps)
    assert_as_accurate(fuse(maps, (13, 19), rescale=False), maps, rescale=False)


def test_the_maps_are_not_modified(fuse: Callable[..., Tensor]) -> None:
    maps = draw(5)
    before = [p.clone() for p in maps]
    fuse(maps, (8, 8))
    assert all(torch.equal(*pair) for pair in zip(maps, before, strict=True))


def test_launches(fuse: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    for name in ("extrema_kernel", "fuse_kernel"):
        kernel = getattr(fusion, name)

        class Recorded:
            def __getitem__(self, grid: Any, kernel: Any = kernel, name: str = name) -> Any:
                launched.append(name)
                return kernel[grid]

        monkeypatch.setattr(fusion, name, Recorded())
    fuse(draw(4), (13, 19))
    assert launched == ["extrema_kernel", "fuse_kernel"]
    launched.clear()
    fuse(draw(4), (13, 19), rescale=False)
    assert launched == ["fuse_kernel"]
