"""Fix the seed of every test and the threads, and ask for Triton's interpreter before Triton is first imported."""

from __future__ import annotations

import os

# Threads wait for each other: beside one busy process the suite took three times as long with two of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
