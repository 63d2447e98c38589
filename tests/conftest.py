"""Choose the device, fix the seed of every test and the threads.

``pytest --device cuda tests/kernels`` runs the kernels compiled, on the GPU at hand; by default Triton interprets them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# Threads wait for each other: beside one busy process the suite took three times as long with two of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that chooses the device."""
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where the kernel tests run")


def pytest_configure(config: pytest.Config) -> None:
    """Decide on Triton's interpreter, which Triton asks about when it is imported."""
    config.addinivalue_line("markers", "cuda: needs a GPU, and --device cuda")
    if config.getoption("--device") == "cuda":
        if not torch.cuda.is_available():
            raise pytest.UsageError("--device cuda: expected a GPU, but PyTorch sees none; leave the option out")
        os.environ.pop("TRITON_INTERPRET", None)
    else:
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs another device."""
    on_gpu = config.getoption("--device") == "cuda"
    for item in items:
        if item.get_closest_marker("cuda") and not on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: run it with --device cuda"))
        if item.get_closest_marker("interpreter") and on_gpu:
            item.add_marker(pytest.mark.skip(reason="looks into Triton's interpreter: run it without --device cuda"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of ``--device``."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_interpreter() -> Iterator[None]:
    """Hold each test to what it found: without the variable, every later test of the kernels would fail."""
    found = os.environ.get("TRITON_INTERPRET")
    yield
    left = os.environ.pop("TRITON_INTERPRET", None)
    if found is not None:
        os.environ["TRITON_INTERPRET"] = found
    assert left == found, f"the test left TRITON_INTERPRET={left}, and found {found}: use monkeypatch"
