"""Architectures to compile for: Triton's targets, what fits on a multiprocessor, and which Triton knows them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

VERSION = triton.__version__.split("+")[0]
TRITON = tuple(int(part) for part in VERSION.split(".")[:2])
OWN_LINKER = (3, 3)  # the first Triton that brings a linker for AMD GPUs


@dataclass(frozen=True)
class Sm:
    """What programs share on one multiprocessor.

    NVIDIA: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": 64 K registers, given to
    warps in units of 256; 1 KiB of shared memory of every program is the system's. AMD: CDNA 3 ISA, 512 registers per
    lane and SIMD, given in units of 8, four SIMDs.
    """

    warps: int
    programs: int
    shared: int  # KiB
    amd: bool = False

    def occupancy(self, registers: int, shared: int, warps: int) -> int:
        """Return how many programs of ``warps`` warps run at a time; at least 1."""
        if self.amd:
            per_simd = min(self.warps // 4, 512 // max(8, -(-registers // 8) * 8))
            limits = [per_simd * 4 // warps, (self.shared << 10) // shared if shared else self.programs]
        else:
            per_warp = max(1, -(-registers * 32 // 256) * 256)
            limits = [65536 // per_warp // warps, self.warps // warps, (self.shared << 10) // (shared + 1024)]
        return max(1, min(self.programs, *limits))


@dataclass(frozen=True)
class Target:
    """A GPU architecture: Triton's target, KiB of shared memory per program, SMs of a large GPU, the first Triton."""

    gpu: GPUTarget
    shared: int
    num_sms: int
    sm: Sm
    since: tuple[int, int] = (3, 2)


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163, 108, Sm(64, 32, 164)),
    "sm_86": Target(GPUTarget("cuda", 86, 32), 99, 84, Sm(48, 16, 100)),
    "sm_89": Target(GPUTarget("cuda", 89, 32), 99, 128, Sm(48, 24, 100)),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227, 132, Sm(64, 32, 228)),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227, 148, Sm(64, 32, 228), (3, 3)),
    "sm_103": Target(GPUTarget("cuda", 103, 32), 227, 148, Sm(64, 32, 228), (3, 5)),
    "sm_120": Target(GPUTarget("cuda", 120, 32), 99, 170, Sm(48, 24, 100), (3, 3)),
    "sm_121": Target(GPUTarget("cuda", 121, 32), 99, 48, Sm(48, 24, 100), (3, 5)),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64, 304, Sm(32, 16, 64, amd=True)),
    "gfx950": Target(GPUTarget("hip", "gfx950", 64), 160, 256, Sm(32, 16, 160, amd=True), (3, 3)),
}
DEFAULT_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")


def not_compiled_reason(name: str) -> str:
    """Return why the installed Triton cannot compile for a target, "" if it can."""
    if (since := TARGETS[name].since) > TRITON:
        return f"needs Triton {'.'.join(map(str, since))} or later, found {VERSION}"
    linker = Path(os.environ.get("TRITON_HIP_LLD_PATH", "/opt/rocm/llvm/bin/ld.lld"))
    if TARGETS[name].gpu.backend == "hip" and TRITON < OWN_LINKER and not linker.exists():
        return f"Triton {VERSION} links with ROCm's ld.lld, which is not installed"
    return ""
