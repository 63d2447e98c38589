"""What the kernels' tests share: memory that nobody wrote is NaN, and nobody writes beyond his output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

GUARD = 64
BAND = -12345.0


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """``torch.empty`` and its kin come filled with NaN: an element that no program wrote cannot pass."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def guarded() -> Iterator[Callable[..., Tensor]]:
    """Makes a contiguous float32 output, NaN inside, between two bands that must be the same afterwards."""
    buffers = []

    def make(*shape: int) -> Tensor:
        numel = torch.Size(shape).numel()
        buffer = torch.full((numel + 2 * GUARD,), BAND)
        buffers.append(buffer)
        return buffer[GUARD : GUARD + numel].view(shape).fill_(float("nan"))

    yield make
    for buffer in buffers:
        assert (buffer[:GUARD] == BAND).all(), "written before the output's beginning"
        assert (buffer[-GUARD:] == BAND).all(), "written beyond the output's end"
