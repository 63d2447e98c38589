"""Fixtures of the kernel tests: uninitialized memory is NaN, and outputs have guard bands.

With ``--device cuda`` every tensor that a test makes is on the GPU, and the kernels are compiled.
"""

from __future__ import annotations

import os
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of this folder ``slow`` if they compile, else ``interpreter`` where no GPU runs them."""
    for item in items:
        if item.path.parent == HERE:
            if item.path.name == COMPILED:
                item.add_marker(pytest.mark.slow)
            elif config.getoption("--device") == "cpu":
                item.add_marker(pytest.mark.interpreter)


@pytest.fixture(autouse=True)
def _on_device(device: torch.device) -> Iterator[None]:
    """Make the device the one where tensors are made."""
    torch.set_default_device(device if device.type != "cpu" else None)
    yield
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def _usable(device: torch.device) -> Iterator[None]:
    """End a process of pytest-xdist whose GPU answers every later call with an error; it starts another."""
    yield
    if device.type == "cuda" and "PYTEST_XDIST_WORKER" in os.environ:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)


@pytest.fixture(autouse=True)
def _poisoned(device: torch.device) -> Iterator[None]:
    """Fill the memory of ``torch.empty`` with NaN, so that an element that no program wrote cannot pass."""
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")  # cuBLAS would ask for a setting
    assert torch.empty(3, device=device).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def guarded(device: torch.device) -> Iterator[Callable[..., Tensor]]:
    """Return a function that makes a contiguous float32 output of NaN between two guard bands."""
    buffers = []

    def make(*shape: int) -> Tensor:
        numel = torch.Size(shape).numel()
        buffer = torch.full((numel + 2 * GUARD,), BAND, device=device)
        buffers.append(buffer)
        return buffer[GUARD : GUARD + numel].view(shape).fill_(float("nan"))

    yield make
    for buffer in buffers:
        assert (buffer[:GUARD] == BAND).all(), "written before the start of the output"
        assert (buffer[-GUARD:] == BAND).all(), "written beyond the end of the output"
