"""Identify the GPU behind a device, or the reason why no Triton kernel can run there."""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """A GPU, by what the dispatcher and the tile tables need.

    Attributes:
        name: As the driver gives it.
        arch: A compiler's target, for example ``"sm_90"`` or ``"gfx942"``.
        num_sms: Number of multiprocessors (compute units on AMD).
    """

    name: str
    arch: str
    num_sms: int


DEFAULT_GPU = Gpu("a GPU of sm_90 with 132 multiprocessors", "sm_90", num_sms=132)  # to plan for where there is none
INTERPRETER = Gpu("Triton's interpreter", "sm_90", num_sms=2)


@functools.cache
def query(device: torch.device) -> tuple[Gpu | None, str]:
    """Return the GPU behind ``device``, or None and the reason why no Triton kernel can run there."""
    if importlib.util.find_spec("triton") is None:
        return None, "the package triton is not installed"
    if device.type == "cpu":
        if interpreting():
            return INTERPRETER, ""
        return None, (
            "Triton's kernels run on a GPU and the tensors are on the CPU (to have them interpreted there, set "
            "TRITON_INTERPRET=1 before Triton is first imported)"
        )
    if device.type != "cuda":
        return None, f"Triton's kernels run on CUDA and ROCm devices, not on {device.type!r}"
    properties = torch.cuda.get_device_properties(device)
    num_sms = properties.multi_processor_count
    if torch.version.hip is not None:
        return Gpu(properties.name, properties.gcnArchName.split(":")[0], num_sms), ""
    arch = f"sm_{properties.major}{properties.minor}"
    if properties.major < 8:
        return None, f"{properties.name} is {arch}; the kernels need the matrix instructions of sm_80 or newer"
    return Gpu(properties.name, arch, num_sms), ""


def interpreting() -> bool:
    """Return whether Triton interprets kernels on the CPU; Triton reads the variable at its first import."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
