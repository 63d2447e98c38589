"""Offsets beyond 2³¹: features whose images, channels or rows are far apart in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssa_fast import Affinity, polish
from tests.accuracy import assert_as_accurate

FAR = (1 << 31) + 64  # elements between neighbors


@pytest.fixture(scope="module")
def memory(device):
    """Reserve 8 GiB; on a CPU only pages that a test writes take memory."""
    if device.type == "cpu":
        return torch.from_numpy(np.empty(2 * FAR, dtype=np.float16))
    return torch.empty(2 * FAR, dtype=torch.float16, device=device)


@pytest.mark.parametrize("far", ["image", "channel", "row"])
@pytest.mark.parametrize("method", ["prototypes", "tiled", "resident"])
def test_far_apart(memory, method, far):
    shape = {"image": (2, 16, 3, 4), "channel": (1, 2, 3, 4), "row": (1, 16, 2, 4)}[far]
    strides = torch.empty(shape, device="meta").stride()
    strides = tuple(
        FAR if name == far else s for name, s in zip(("image", "channel", "row", "column"), strides, strict=True)
    )
    f = memory.as_strided(shape, strides)
    f.copy_(torch.rand(shape))
    cam = torch.rand(shape[0], 2, *shape[2:])
    out = polish(cam, f, method=method, backend="triton")
    assert_as_accurate(out, cam, f.contiguous(), Affinity(), torch.float16)
