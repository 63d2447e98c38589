"""A GPU that is not there: Triton's real JIT, compiler and launcher on a CUDA driver that does nothing.

``install`` compiles the driver (with a C compiler, which Triton needs as well) and makes Triton load it, before Triton
has launched anything, in a process that does nothing else. From then on tensors on the CPU count as those of an H100.
Kernels are compiled, bound and launched as on a GPU, but compute nothing: this shows signatures, grids, launches and
the time that the host needs, and nothing about results.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

H100 = ("NVIDIA H100 80GB HBM3", "sm_90", 132)


_driver: ctypes.CDLL | None = None


def no_compiler() -> str:
    """Return why the driver cannot be compiled; empty if it can."""
    return "" if shutil.which("gcc") or shutil.which("clang") else "needs a C compiler (gcc or clang), and found none"


def _load() -> ctypes.CDLL:
    """Compile the driver into a temporary folder, load it and make Triton link against it."""
    triton = importlib.util.find_spec("triton")
    assert triton is not None
    assert triton.origin is not None
    include = Path(triton.origin).parent / "backends" / "nvidia" / "include"
    folder = tempfile.mkdtemp(prefix="empty-driver-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder) / "libcuda.so.1"
    compiler = shutil.which("gcc") or shutil.which("clang")
    assert compiler is not None, no_compiler()
    source = Path(__file__).with_suffix(".c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", f"-I{include}", "-o", library, source],
        check=True,
    )
    (Path(folder) / "libcuda.so").symlink_to(library)  # the name to link with
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_LIBCUDA_PATH"] = folder
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def install() -> Any:
    """Make Triton and ssa_fast take this process's CPU tensors for an H100's; return Triton's driver."""
    global _driver
    _driver = _load()
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    from ssa_fast.ops import gpu_info

    empty = CudaDriver()
    empty.get_current_device = lambda: 0
    empty.get_current_stream = lambda device=None: 0
    empty.get_device_capability = lambda device=None: (9, 0)
    driver.set_active(empty)
    gpu_info.query = lambda device: (gpu_info.Gpu(*H100), "")  # type: ignore[assignment]
    return empty


def launches() -> int:
    """Return how many kernels were launched so far."""
    assert _driver is not None, "install the driver first"
    return ctypes.c_ulonglong.in_dll(_driver, "empty_driver_launches").value
