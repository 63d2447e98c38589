"""Which GPU a device is, and why Triton's kernels cannot run there if they cannot."""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """A GPU as the dispatcher and the tile tables see it.

    ``name`` as the driver gives it, ``arch`` a compiler's target (``"sm_90"``, ``"gfx942"``), ``processors`` the number
    of multiprocessors or compute units.
    """

    name: str
    arch: str
    processors: int


DEFAULT_GPU = Gpu("a GPU of sm_90 with 132 processors", "sm_90", processors=132)  # to plan for where there is none
INTERPRETER = Gpu("Triton's interpreter", "sm_90", processors=2)


@functools.cache
def query(device: torch.device) -> tuple[Gpu | None, str]:
    """The GPU behind ``device``, or None and the reason why no Triton kernel can run there."""
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
    processors = properties.multi_processor_count
    if torch.version.hip is not None:
        return Gpu(properties.name, properties.gcnArchName.split(":")[0], processors), ""
    arch = f"sm_{properties.major}{properties.minor}"
    if properties.major < 8:
        return None, f"{properties.name} is {arch}; the kernels need the matrix instructions of sm_80 or newer"
    return Gpu(properties.name, arch, processors), ""


def interpreting() -> bool:
    """Whether Triton interprets kernels on the CPU; it reads the variable when it is first imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
