"""The kernels' loads, stores and products, counted exactly in Triton's interpreter."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

from ssa_fast import Affinity
from ssa_fast.kernels.config import Apply, Full, Gather, Prepare, Resident, Symmetric

traffic = pytest.importorskip("bench.traffic", reason="needs Triton")
pytestmark = pytest.mark.interpreter

if TYPE_CHECKING:
    from torch import Tensor

    from bench.traffic import Traffic


def draw(B: int, K: int, C: int, H: int, W: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    tensors = dict(cam=torch.rand(B, K, H, W), features=torch.rand(B, C, H, W).to(dtype), out=torch.empty(B, K, H * W))
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def test_masked_elements_and_other_tensors_do_not_count() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(x_ptr, y_ptr, z_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.arange(0, BLOCK)
        x = tl.load(x_ptr + 2 * at, mask=at < n, other=0.0)
        tl.store(y_ptr + at, x, mask=at < n - 1)
        tl.store(z_ptr, tl.load(y_ptr))
        tl.dot(x[:, None] + tl.zeros([BLOCK, 32], tl.float32), tl.zeros([32, BLOCK], tl.float32))

    x, y, z = torch.rand(16), torch.rand(8, dtype=torch.float64), torch.rand(4, dtype=torch.float16)
    load = traffic.InterpreterBuilder.create_masked_load
    with traffic.count({"x": x[::2], "y": y}) as counted:
        kernel[(3,)](x_ptr=x, y_ptr=y, z_ptr=z, n=5, BLOCK=16)
    assert counted.loaded == {"x": 3 * 5 * 4, "y": 3 * 8, "other": 0}
    assert counted.stored == {"x": 0, "y": 3 * 4 * 8, "other": 3 * 2}
    assert counted.dots == {(16, 16, 32): 3}
    assert counted.dot_flops == 3 * 2 * 16 * 16 * 32
    assert traffic.InterpreterBuilder.create_masked_load is load


def test_resident() -> None:
    from ssa_fast.kernels import resident

    B, K, C = 2, 20, 40
    config = Resident(block_i=64, block_j=32, block_c=32, rows=16, num_warps=4, num_stages=2)
    tensors = draw(B, K, C, 7, 19, torch.float16)
    with traffic.count(tensors) as counted:
        resident.polish(**tensors, affinity=Affinity(), align_corners=True, precision="default", config=config)
    blocks_i, blocks_j, chunks = 3, 5, 2  # of 64 sources, 32 targets and 15 classes
    assert counted.loaded == {
        # Loaded as sources of each target block, and as targets of each source block.
        "features": chunks * (blocks_j + blocks_i) * tensors["features"].nbytes,
        "cam": blocks_j * tensors["cam"].nbytes,
        "out": 0,
        "other": 0,
    }
    assert counted.stored == {"features": 0, "cam": 0, "out": tensors["out"].nbytes, "other": 0}
    assert counted.dots == {
        (32, 64, 32): B * chunks * blocks_j * blocks_i * 2,  # two blocks of channels
        (32, 16, 64): B * chunks * blocks_j * blocks_i,
    }


@pytest.mark.parametrize("rescale", [True, False])
def test_fusion(rescale: bool) -> None:
    from ssa_fast.kernels import fusion

    maps = {f"map{n}": torch.rand(2, 3, side, side) for n, side in enumerate((32, 16, 8))}
    out = torch.empty(2, 3, 32, 32)
    with traffic.count(maps | {"out": out}) as counted:
        fusion.fuse(list(maps.values()), weights=[1.0] * 3, fuse="mean", rescale=rescale, align_corners=True, out=out)
    for name, p in maps.items():
        once = p.nbytes if p.shape == out.shape else 4 * out.nbytes  # four neighbours
        assert counted.loaded[name] == once + rescale * p.nbytes
        assert counted.stored[name] == 0
    assert counted.loaded["out"] == 0
    assert counted.stored["out"] == out.nbytes
    assert counted.stored["other"] == rescale * 2 * len(maps) * 2 * 3 * 4  # extrema of each plane
    assert counted.dot_flops == 0


@pytest.mark.parametrize("affinity", [Affinity(), Affinity(phi="shifted")], ids=str)
@pytest.mark.parametrize(("C", "block_l", "reads"), [(256, 32, 2), (1024, 16, 3)], ids=["one-part", "norms-first"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_prototypes_read_the_features_twice_and_once_for_norms(
    dtype: torch.dtype, C: int, block_l: int, reads: int, affinity: Affinity
) -> None:
    """Count the reads: of each pass, and of norms in a pass of their own where a tile has not all channels."""
    from ssa_fast.kernels import prototypes

    K, H, W = 20, 8, 16
    tensors = draw(1, K, C, H, W, dtype)
    if affinity.any_sign:
        tensors["features"] -= 0.5
    with traffic.count(tensors) as counted:
        prototypes.polish(
            **tensors,
            affinity=affinity,
            align_corners=True,
            gather=Gather(block_l=block_l, rows=32, num_warps=8, block_c=256),
            apply=Apply(block_l=64, block_c=64, rows=32, num_warps=4, num_stages=2),
            num_sms=4,
            signed=None if affinity.any_sign else torch.zeros(1, dtype=torch.int32),
        )
    assert counted.loaded["features"] == reads * tensors["features"].nbytes
    assert counted.stored["out"] == tensors["out"].nbytes
    assert counted.stored["features"] == counted.stored["cam"] == 0
    slabs, blocks = min(8, H * W // block_l), C // 64
    # Sums, bounds and totals in slabs, then halves, with scales and totals from each block of 64 channels; norms; peaks
    # and means of the CAM.
    assert counted.stored["other"] <= 4 * (K + 1) * (slabs * (C + 2) + C + 2 * blocks) + 4 * H * W + 4 * 2 * K


BLOCK, ROWS = 32, 16
FULL = Full(block_i=BLOCK, block_j=BLOCK, block_c=64, rows=ROWS, num_warps=4, num_stages=2)
SYMMETRIC = Symmetric(block=BLOCK, block_c=64, bands=2, chunk=4, rows=ROWS, num_warps=4, num_stages=2, programs=8)


def count_tiled(config: Full | Symmetric, C: int = 64) -> Traffic:
    """Count the traffic of the tiled method on 16 × 16 tiles."""
    from ssa_fast.kernels import tiled

    tensors = draw(1, 15, C, BLOCK // 2, BLOCK)
    prepare = Prepare(block_l=BLOCK, block_c=64, num_warps=4)
    polish = partial(tiled.polish, affinity=Affinity(), align_corners=True, precision="default")
    with traffic.count(tensors) as counted:
        polish(**tensors, config=config, prepare=prepare)
    assert counted.stored["out"] == tensors["out"].nbytes
    return counted


def test_tiled_stores_no_affinity() -> None:
    L, C = BLOCK**2 // 2, 64
    counted = count_tiled(FULL)
    operands = L * (C + ROWS) * 2
    assert counted.stored["other"] <= operands + 4 * L * 4  # and a few numbers per pixel
    # Slots of the symmetric kernel, of 4 blocks: one for the rows of each of 10 pairs of groups; for the columns, which
    # each of two bands stores, two of each of 6 pairs, and half of one within each of 4 groups.
    slots = (10 + 2 * 6 + 4 // 2) * 4 * BLOCK * ROWS * 4
    assert count_tiled(SYMMETRIC).stored["other"] <= operands + 4 * L * 4 + slots


def test_symmetric_does_half_the_products() -> None:
    main = (BLOCK, BLOCK, 64)
    full, symmetric = count_tiled(FULL), count_tiled(SYMMETRIC)
    assert full.dots[main] == 16 * 16
    assert symmetric.dots[main] <= 0.55 * full.dots[main]
