"""Architectures to compile for: what fits on a multiprocessor (SM), and which Triton knows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A GPU architecture.

    NVIDIA: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": 64 K registers, given to
    warps in units of 256; 1 KiB of shared memory of every program is the system's. AMD: CDNA 3 ISA, 512 registers per
    lane and SIMD, given in units of 8, four SIMDs.

    Attributes:
        arch: Triton's: 90, or "gfx942".
        shared: KiB of shared memory that a program can have.
        num_sms: Multiprocessors of a large GPU.
        sm_warps, sm_programs, sm_shared: What fits on one of them, in KiB for shared memory.
        since: The first Triton that compiles for it with what it brings.
    """

    arch: int | str
    shared: int
    num_sms: int
    sm_warps: int
    sm_programs: int
    sm_shared: int
    since: tuple[int, int] = (3, 2)

    @property
    def backend(self) -> str:
        return "cuda" if isinstance(self.arch, int) else "hip"

    def occupancy(self, registers: int, shared: int, warps: int) -> int:
        """Return how many programs of ``warps`` warps run at a time on an SM; at least 1."""
        if self.backend == "hip":
            per_simd = min(self.sm_warps // 4, 512 // max(8, -(-registers // 8) * 8))
            limits = [per_simd * 4 // warps, (self.sm_shared << 10) // shared if shared else self.sm_programs]
        else:
            per_warp = max(1, -(-registers * 32 // 256) * 256)
            limits = [65536 // per_warp // warps, self.sm_warps // warps, (self.sm_shared << 10) // (shared + 1024)]
        return max(1, min(self.sm_programs, *limits))


TARGETS = {
    "sm_80": Target(80, 163, 108, 64, 32, 164),
    "sm_86": Target(86, 99, 84, 48, 16, 100),
    "sm_89": Target(89, 99, 128, 48, 24, 100),
    "sm_90": Target(90, 227, 132, 64, 32, 228),
    "sm_100": Target(100, 227, 148, 64, 32, 228, (3, 3)),
    "sm_103": Target(103, 227, 148, 64, 32, 228, (3, 5)),
    "sm_120": Target(120, 99, 170, 48, 24, 100, (3, 3)),
    "sm_121": Target(121, 99, 48, 48, 24, 100, (3, 5)),
    "gfx942": Target("gfx942", 64, 304, 32, 16, 64, (3, 3)),  # Triton 3.2 brings no linker for AMD GPUs
    "gfx950": Target("gfx950", 160, 256, 32, 16, 160, (3, 3)),
}
DEFAULT_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")
