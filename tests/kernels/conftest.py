"""Fixtures of the kernel tests: uninitialized memory is NaN, and outputs have guard bands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

GUARD = 64
BAND = -12345.0
HERE = Path(__file__).parent
COMPILED = "test_aot.py"  # compiles in processes of its own; every other test here runs in Triton's interpreter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder ``interpreter``, those that compile ``slow``."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.slow if item.path.name == COMPILED else pytest.mark.interpreter)


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """Fill the memory of ``torch.empty`` with NaN, so that an element that no program wrote cannot pass."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def guarded() -> Iterator[Callable[..., Tensor]]:
    """Return a function that makes a contiguous float32 output of NaN between two guard bands."""
    buffers = []

    def make(*shape: int) -> Tensor:
        numel = torch.Size(shape).numel()
        buffer = torch.full((numel + 2 * GUARD,), BAND)
        buffers.append(buffer)
        return buffer[GUARD : GUARD + numel].view(shape).fill_(float("nan"))

    yield make
    for buffer in buffers:
        assert (buffer[:GUARD] == BAND).all(), "written before the start of the output"
        assert (buffer[-GUARD:] == BAND).all(), "written beyond the end of the output"
