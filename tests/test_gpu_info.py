"""Identification of a device's GPU, and the reasons why Triton cannot run there."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from ssa_fast.ops import gpu_info
from ssa_fast.ops.gpu_info import Gpu


@pytest.fixture(autouse=True)
def _fresh():
    gpu_info.query.cache_clear()
    yield
    gpu_info.query.cache_clear()


def pretend(monkeypatch, hip=None, **properties):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**properties))
    return gpu_info.query(torch.device("cuda", 0))


def test_nvidia(monkeypatch):
    found = pretend(monkeypatch, name="NVIDIA H200", major=9, minor=0, multi_processor_count=132)
    assert found == (Gpu("NVIDIA H200", "sm_90", 132), "")


def test_amd(monkeypatch):
    found = pretend(
        monkeypatch, hip="6.2", name="MI300X", gcnArchName="gfx942:sramecc+:xnack-", multi_processor_count=304
    )
    assert found == (Gpu("MI300X", "gfx942", 304), "")


def test_older_than_sm_80_is_refused_with_the_reason(monkeypatch):
    found, why = pretend(monkeypatch, name="Tesla T4", major=7, minor=5, multi_processor_count=40)
    assert found is None
    assert why == "Tesla T4 is sm_75; the kernels need the matrix instructions of sm_80 or newer"


def test_the_cpu_has_the_interpreter_or_a_reason(monkeypatch):
    assert gpu_info.query(torch.device("cpu")) == (gpu_info.INTERPRETER, "")
    gpu_info.query.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    found, why = gpu_info.query(torch.device("cpu"))
    assert found is None
    assert "the tensors are on the CPU" in why
    assert "TRITON_INTERPRET=1" in why


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert gpu_info.query(torch.device("cpu")) == (None, "the package triton is not installed")


def test_other_devices():
    assert gpu_info.query(torch.device("meta"))[1] == "Triton's kernels run on CUDA and ROCm devices, not on 'meta'"
