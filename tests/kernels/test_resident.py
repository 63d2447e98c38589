"""The resident kernel against the reference.

The interpreter multiplies float32 operands in float32, without TF32's rounding, so results are compared with the
reference in float32 for any dtype of the features. It multiplies bfloat16 wrongly by orders of magnitude, which is
left to a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

from ssa_fast import Affinity
from ssa_fast.kernels.config import Resident
from tests.accuracy import assert_as_accurate
from tests.magnitudes import EXTREME

resident = pytest.importorskip("ssa_fast.kernels.resident", reason="needs Triton")

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

CONFIG = Resident(block_i=64, block_j=32, block_c=32, rows=16, num_warps=4, num_stages=2)
AFFINITIES = [
    "phi=relu",
    "power=2",
    "power=1.5,threshold=0.3",
    "phi=shifted,shift=0.5",
    "phi=shifted,shift=2,power=1.5,center,steps=2",
    "phi=exp,temperature=0.1",
    "center,power=2,steps=3",
]


@pytest.fixture
def polish(guarded: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``resident.polish`` into a guarded output, as ``(B, K, H, W)``."""

    def run(cam: Tensor, features: Tensor, affinity: Affinity, **options: Any) -> Tensor:
        (B, K, _, _), (_, _, H, W) = cam.shape, features.shape
        out = guarded(B, K, H * W)
        options = dict(align_corners=True, precision="high", config=CONFIG) | options
        resident.polish(cam, features, affinity=affinity, out=out, **options)
        return out.view(B, K, H, W)

    return run


def draw(B: int, K: int, C: int, H: int, W: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.rand(B, K, H, W), torch.randn(B, C, H, W).to(dtype)


@pytest.mark.parametrize("text", AFFINITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [(1, 15, 64, 8, 8), (3, 4, 37, 7, 13), (1, 1, 1, 1, 1), (1, 21, 33, 5, 13)],
    ids=["aligned", "ragged", "one-of-each", "chunks-of-K"],
)
def test_accuracy(
    polish: Callable[..., Tensor],
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    text: str,
    device: torch.device,
) -> None:
    affinity = Affinity.parse(text)
    if dtype == torch.bfloat16 and device.type == "cpu" and not affinity.center:
        pytest.skip("Triton's interpreter multiplies bfloat16 wrongly: run it with --device cuda")
    cam, f = draw(*shape, dtype)
    before = cam.clone()
    assert_as_accurate(polish(cam, f, affinity), cam, f, affinity, dtype=torch.float32)
    assert torch.equal(cam, before)


@pytest.mark.parametrize("text", AFFINITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_default_precision(polish: Callable[..., Tensor], dtype: torch.dtype, text: str) -> None:
    """Require the accuracy of float16, which keeps as many bits as TF32."""
    cam, f = draw(2, 5, 37, 7, 13, dtype)
    affinity = Affinity.parse(text)
    assert_as_accurate(polish(cam, f, affinity, precision="default"), cam, f, affinity, dtype=torch.float16)


def test_default_precision_rounds_to_the_nearest(polish: Callable[..., Tensor]) -> None:
    """Polish a constant: truncating v would lower every class but not the row of ones."""
    cam = torch.full((1, 3, 6, 7), 0.9999)
    out = polish(cam, torch.randn(1, 16, 6, 7), Affinity(sum_eps=0.0), precision="default")
    assert (out - 0.9999).abs().max() <= 0.9999 * 2.0**-12


@pytest.mark.parametrize("config", [Resident(16, 64, 16, 64, 4, 1), Resident(128, 16, 128, 32, 8, 3)])
def test_any_tiles(polish: Callable[..., Tensor], config: Resident) -> None:
    affinity = Affinity(power=2)
    cam, f = draw(2, 40, 40, 9, 11)
    assert_as_accurate(polish(cam, f, affinity, config=config), cam, f, affinity)


LAYOUTS = {
    "channels_last": lambda f: f.contiguous(memory_format=torch.channels_last),
    "transposed": lambda f: f.mT.contiguous().mT,
    "sliced": lambda f: F.pad(f, (1, 2, 3, 4))[:, :, 3:-4, 1:-2],
    "every_second_channel": lambda f: f.repeat_interleave(2, dim=1)[:, ::2],
    "one_image_for_all": lambda f: f[:1].expand_as(f),
    "one_row": lambda f: f[:, :, :1],
    "one_column": lambda f: f[:, :, :, 3:4],
}


@pytest.mark.parametrize("text", ["phi=relu", "center"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(polish: Callable[..., Tensor], layout: str, text: str) -> None:
    f = LAYOUTS[layout](torch.randn(2, 20, 7, 10))
    cam = torch.rand(2, 3, *f.shape[2:])
    assert_as_accurate(polish(cam, f, Affinity.parse(text)), cam, f, Affinity.parse(text))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(4, 5), (20, 11), (1, 1), (7, 3)])
def test_the_cam_is_resized(polish: Callable[..., Tensor], size: tuple[int, int], align_corners: bool) -> None:
    cam, f = torch.rand(2, 17, *size), torch.randn(2, 16, 7, 9)
    resized = F.interpolate(cam, (7, 9), mode="bilinear", align_corners=align_corners)
    for affinity in (Affinity(), Affinity(steps=2)):
        assert_as_accurate(polish(cam, f, affinity, align_corners=align_corners), resized, f, affinity)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_steps(polish: Callable[..., Tensor], steps: int) -> None:
    affinity = Affinity(power=3, steps=steps)
    cam, f = draw(2, 5, 24, 6, 7)
    assert_as_accurate(polish(cam, f, affinity), cam, f, affinity)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, s) for s in (1e-17, 1e-12, 1e12, 1e17)] + [(torch.float16, s) for s in (3e-6, 1e-3, 1e4)],
)
def test_any_scale_of_features(polish: Callable[..., Tensor], dtype: torch.dtype, scale: float, eps: float) -> None:
    affinity = Affinity(power=2, norm_eps=eps, sum_eps=eps)
    cam, f = torch.rand(1, 3, 7, 8), (torch.randn(1, 24, 7, 8) * scale).to(dtype)
    assert_as_accurate(polish(cam, f, affinity), cam, f, affinity, dtype=torch.float32)


@pytest.mark.parametrize("scale", [1e-6, 1e5])
def test_any_scale_of_the_cam(polish: Callable[..., Tensor], scale: float) -> None:
    cam, f = draw(1, 4, 24, 7, 8)
    cam = scale * (cam - 0.3)
    assert_as_accurate(polish(cam, f, Affinity()), cam, f, Affinity())


@pytest.mark.parametrize("text", ["norm_eps=0,sum_eps=0", "sum_eps=0", "phi=shifted,norm_eps=0", "center,norm_eps=0"])
@pytest.mark.parametrize("kind", EXTREME)
def test_squares_beyond_float32(polish: Callable[..., Tensor], kind: str, text: str) -> None:
    """Multiply blocks again, with pixels scaled by powers of two."""
    affinity = Affinity.parse(text)
    if affinity.center and kind in ("subnormal", "largest"):
        pytest.skip("their mean, which is PyTorch's, is rounded to a subnormal number, or overflows and gives NaN")
    cam, f = draw(1, 4, 50, 8, 9)
    f = EXTREME[kind](f)
    assert_as_accurate(polish(cam, f, affinity), cam, f, affinity)


@pytest.mark.interpreter
def test_only_blocks_of_extreme_pixels_are_multiplied_again(
    polish: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    products, dot = 0, InterpreterBuilder.create_dot

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal products
        products += 1
        return dot(self, *arguments)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counted)
    cam, f = draw(1, 4, 32, 8, 16)  # 2 blocks of sources, 4 of targets
    f[..., 3] = 0.0
    counts = {}
    for name, features in (("usual", f), ("sources", f.clone().index_fill_(3, torch.tensor([15]), 1e25))):
        for eps in (1e-5, 0.0):
            products = 0
            polish(cam, features, Affinity(norm_eps=eps))
            counts[name, eps] = products
    # Two products for each pair of blocks, and one more where it is multiplied again: of zeros if an eps is 0.
    assert counts == {("usual", 1e-5): 16, ("usual", 0.0): 24, ("sources", 1e-5): 24, ("sources", 0.0): 24}


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_a_zero_feature_gives_zero(polish: Callable[..., Tensor], eps: float) -> None:
    cam, f = draw(1, 3, 16, 6, 7, torch.float16)
    f[0, :, 2, 3] = 0
    affinity = Affinity(norm_eps=eps, sum_eps=eps)
    out = polish(cam, f, affinity)
    assert (out[0, :, 2, 3] == 0).all()
    assert_as_accurate(out, cam, f, affinity, dtype=torch.float32)
    assert (polish(cam, torch.zeros_like(f), affinity) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("text", ["phi=relu", "center", "threshold=0.2", "phi=shifted", "phi=exp,temperature=1"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_feature_makes_its_image_nan(
    polish: Callable[..., Tensor], bad: float, text: str, dtype: torch.dtype
) -> None:
    cam, f = draw(3, 3, 16, 6, 7, dtype)
    f[1, 4, 2, 3] = bad
    out = polish(cam, f, Affinity.parse(text))
    assert out[1].isnan().all()
    assert not out[[0, 2]].isnan().any()


def test_a_bad_cam_makes_its_class_nan(polish: Callable[..., Tensor]) -> None:
    cam, f = draw(2, 20, 16, 6, 7)
    cam[1, 17, 2, 3] = float("nan")
    nan = polish(cam, f, Affinity(steps=2)).isnan()
    assert nan[1, 17].all()
    assert nan.sum() == nan[1, 17].numel()


@pytest.mark.interpreter
@pytest.mark.parametrize(("precision", "expected"), [("default", "tf32"), ("high", "tf32x3")])
def test_precision_is_that_of_both_products(
    polish: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch, precision: str, expected: str
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    seen = []
    dot = InterpreterBuilder.create_dot

    def recorded(self: Any, a: Any, b: Any, d: Any, input_precision: Any, *rest: Any) -> Any:
        seen.append(input_precision.name.lower())
        return dot(self, a, b, d, input_precision, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", recorded)
    polish(*draw(1, 2, 8, 4, 4), Affinity(), precision=precision)
    assert seen == [expected, expected]


def test_offsets_are_32_bits_only_where_they_fit() -> None:
    small = torch.empty(1, 2**11, 2**10, 2**10, device="meta")
    assert resident.offset_type(small) == resident.tl.int32
    assert resident.offset_type(torch.empty(1, 2**11 + 1, 2**10, 2**10, device="meta")) == resident.tl.int64
    assert resident.offset_type(small[:, :2].as_strided((1, 2, 4, 4), (0, 2**31, 4, 1))) == resident.tl.int64


def test_64_bit_offsets(polish: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "offset_type", lambda _: resident.tl.int64)
    cam, f = draw(2, 3, 20, 7, 8)
    assert_as_accurate(polish(cam, f, Affinity()), cam, f, Affinity())
