"""``python -m bench host``: CPU time per call before a GPU has anything to do, and kernels launched per call.

Triton's real JIT, compiler and launcher run on a CUDA driver that does nothing (``empty_driver.c``): kernels are
compiled for an H100, bound and launched, but compute nothing. On one core, with tensors in the CPU's memory, what is
timed is PyTorch's and Triton's host code and ours, and not CUDA's. Each call is also timed without replaying the
launches of the call before it, in turns. Exit code 1 if a goal is missed.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from bench import measure
from bench.command import parser_of, save

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

H100 = ("NVIDIA H100 80GB HBM3", "sm_90", 132)
RESNET50 = ((256, 128), (512, 64), (1024, 32), (2048, 16))  # channels and side of its stages at 512 pixels
CALLS, ROUNDS = 100, 25
ONE, FOUR = 40.0, 150.0  # µs
# Calls of ``polish`` with float16 features, K = 20 and a CAM of 16 × 16: stages, options and the goal.
CASES: dict[str, tuple[tuple[tuple[int, int], ...], dict[str, Any], float]] = {
    "one stage, prototypes": (RESNET50[2:3], {"method": "prototypes", "nonnegative": True}, ONE),
    "one stage, sign unknown": (RESNET50[:1], {}, ONE),
    "one stage, resident": (RESNET50[2:3], {"method": "resident"}, ONE),
    "one stage, tiled": (RESNET50[1:2], {"method": "tiled"}, ONE),
    "four stages fused": (RESNET50, {"nonnegative": True}, FOUR),
    "four stages fused, sign unknown": (RESNET50, {}, FOUR),
}
_library: ctypes.CDLL | None = None


def no_compiler() -> str:
    """Return why the driver cannot be compiled; empty if it can."""
    return "" if shutil.which("gcc") or shutil.which("clang") else "needs a C compiler (gcc or clang), and found none"


def install_empty_driver() -> Any:
    """Make Triton and ssa_fast take this process's CPU tensors for an H100's; return Triton's driver.

    Call it before Triton has launched anything, in a process that does nothing else.
    """
    global _library
    found, compiler = importlib.util.find_spec("triton"), shutil.which("gcc") or shutil.which("clang")
    assert found is not None
    assert found.origin is not None
    assert compiler is not None, no_compiler()
    include = Path(found.origin).parent / "backends" / "nvidia" / "include"
    folder = tempfile.mkdtemp(prefix="empty-driver-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder) / "libcuda.so.1"
    options: list[str | Path] = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", f"-I{include}", "-o", library]
    subprocess.run([compiler, *options, Path(__file__).with_name("empty_driver.c")], check=True)
    (Path(folder) / "libcuda.so").symlink_to(library)  # the name to link with
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_LIBCUDA_PATH"] = folder
    _library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
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
    assert _library is not None, "install the driver first"
    return ctypes.c_ulonglong.in_dll(_library, "empty_driver_launches").value


def measured(name: str) -> dict[str, Any]:
    """Call a case until it is warm, count its launches, and time it; µs are the least CPU time per call."""
    from ssa_fast import polish
    from ssa_fast.ops import launch_plan

    sizes, options, goal = CASES[name]
    cam = torch.rand(1, 20, 16, 16)
    stages = [torch.rand(1, C, side, side).half() for C, side in sizes]
    feats = stages if len(stages) > 1 else stages[0]

    def call() -> None:
        polish(cam, feats, backend="triton", **options)

    call()
    before = launches()
    call()
    count = launches() - before
    replayed, anew = [], []
    for _ in range(ROUNDS):
        replayed.append(cpu_us(call, CALLS))
        # Every call decides and launches anew; a Mock would take time.
        with mock.patch.object(launch_plan, "call_key", lambda *_: None):  # noqa: PT008
            anew.append(cpu_us(call, CALLS // 10))
    return {"case": name, "launches": count, "us": min(replayed), "anew_us": min(anew), "goal_us": goal}


def cpu_us(call: Callable[[], Any], calls: int) -> float:
    """Return the CPU time of one of ``calls`` calls, in µs."""
    begin = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - begin) / calls * 1e6


def keep_freed_memory() -> None:
    """Let this process keep what it frees, as PyTorch's allocator does on a GPU: no call then waits for fresh pages."""
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, HUGE = -1, -3, 1 << 30  # of malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's
        libc.mallopt(M_MMAP_THRESHOLD, HUGE)
        libc.mallopt(M_TRIM_THRESHOLD, HUGE)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return 0 if every goal is met, 1 if not, 2 if nothing can be measured here."""
    parser = parser_of("host", __doc__)
    parser.add_argument("--case", default="", help="only the cases whose name contains this")
    options = parser.parse_args(arguments)
    missing = "" if importlib.util.find_spec("triton") else "needs Triton, which is not installed"
    if missing := missing or no_compiler():
        print(f"python -m bench host {missing}", file=sys.stderr)
        return 2
    install_empty_driver()
    keep_freed_memory()
    import triton

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore", "no tiles were measured")
    print(f"{'case':<34} {'launches':>8} {'µs':>7} {'goal':>6}  not replayed")
    rows = []
    for name in measure.paced([name for name in CASES if options.case in name], "host"):
        row = measured(name)
        rows.append(row)
        figures = f"{row['launches']:>8} {row['us']:>7.1f} {row['goal_us']:>6.0f}  {row['anew_us']:.0f} µs"
        print(f"{name:<34} {figures}", flush=True)
    print(f"Triton {triton.__version__}")
    save(options, ["host", *arguments], rows)
    return int(any(row["us"] > row["goal_us"] for row in rows))
