"""``python -m bench host``: CPU time per call before a GPU has anything to do, and kernels launched per call.

Triton's real JIT, compiler and launcher run on a CUDA driver that does nothing (``empty_driver.c``): kernels are
compiled for sm_90, bound and launched, but compute nothing. On one core, with tensors in the CPU's memory, what is
timed is PyTorch's and Triton's host code and ours, and not CUDA's. Each call is also timed without replaying the
launches of the call before it, in turns. Exit code 1 if a goal is missed.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import timeit
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from bench import figures, measure
from bench.command import parser_of, save

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMPILER = shutil.which("gcc") or shutil.which("clang")
RESNET50 = ((256, 128), (512, 64), (1024, 32), (2048, 16))  # channels and side of its stages at 512 pixels
CALLS, ROUNDS = 100, 25
# Calls of ``polish`` with float16 features, K = 20 and a CAM of 16 × 16: stages, options and the goal in µs.
CASES: dict[str, tuple[tuple[tuple[int, int], ...], dict[str, Any], float]] = {
    "one stage, prototypes": (RESNET50[2:3], {"method": "prototypes", "nonnegative": True}, 40.0),
    "one stage, sign unknown": (RESNET50[:1], {}, 40.0),
    "one stage, resident": (RESNET50[2:3], {"method": "resident"}, 40.0),
    "one stage, tiled": (RESNET50[1:2], {"method": "tiled"}, 40.0),
    "four stages fused": (RESNET50, {"nonnegative": True}, 150.0),
    "four stages fused, sign unknown": (RESNET50, {}, 150.0),
}


def main(arguments: Sequence[str]) -> int:
    """Run the command; return 0 if every goal is met, 1 if not, 2 if nothing can be measured here."""
    options = parser_of("host", __doc__).parse_args(arguments)
    if missing := not_here():
        print(f"python -m bench host {missing}", file=sys.stderr)
        return 2
    driver = install_empty_driver()
    # The process keeps what it frees, as PyTorch's allocator does on a GPU: no call then waits for fresh pages.
    for threshold in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
        ctypes.CDLL(None).mallopt(threshold, 1 << 30)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows = [measured(name, driver) for name in measure.paced([*CASES], "host")]
    cells = [[row["case"], *(f"{row[name]:.0f}" for name in ("launches", "us", "goal_us", "anew_us"))] for row in rows]
    print(*figures.table(["case", "launches", "µs", "goal", "not replayed"], cells, aligned=True), sep="\n")
    save(options, ["host", *arguments], rows)
    return int(any(row["us"] > row["goal_us"] for row in rows))


def not_here() -> str:
    """Return what is missing to launch kernels on the empty driver; empty if nothing is."""
    if not importlib.util.find_spec("triton"):
        return "needs Triton, which is not installed"
    return "" if COMPILER else "needs a C compiler (gcc or clang), and found none"


def install_empty_driver() -> Any:
    """Make Triton and ssa_fast take this process's CPU tensors for those of a large sm_90 GPU; return Triton's driver.

    Call it before Triton has launched anything, in a process that does nothing else. The driver's ``launches.value`` is
    how many kernels were launched so far.
    """
    os.environ.pop("TRITON_INTERPRET", None)
    import triton

    folder = tempfile.TemporaryDirectory(prefix="empty-driver-")  # removed when the driver is, at the latest at exit
    library, source = Path(folder.name) / "libcuda.so.1", Path(__file__).with_name("empty_driver.c")
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    options = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", f"-I{include}"]
    subprocess.run([str(COMPILER), *options, "-o", library, source], check=True)
    library.with_suffix("").symlink_to(library)  # the name to link with
    os.environ["TRITON_LIBCUDA_PATH"] = folder.name
    loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    from ssa_fast.ops import gpu_info

    empty = CudaDriver()
    empty.folder, empty.launches = folder, ctypes.c_ulonglong.in_dll(loaded, "empty_driver_launches")
    empty.get_current_device = lambda: 0
    empty.get_current_stream = lambda device=None: 0
    empty.get_device_capability = lambda device=None: (9, 0)
    driver.set_active(empty)
    gpu_info.query = lambda device: (gpu_info.DEFAULT_GPU, "")  # type: ignore[assignment]
    return empty


def measured(name: str, driver: Any) -> dict[str, Any]:
    """Call a case until it is warm, count its launches, and time it; µs are the least CPU time per call."""
    from ssa_fast import polish
    from ssa_fast.ops import launch_plan

    sizes, options, goal = CASES[name]
    cam = torch.rand(1, 20, 16, 16)
    stages = [torch.rand(1, C, side, side).half() for C, side in sizes]
    call = partial(polish, cam, stages if len(stages) > 1 else stages[0], backend="triton", **options)
    call()
    driver.launches.value = 0
    call()
    count = driver.launches.value
    replayed, anew = [], []
    for _ in range(ROUNDS):
        replayed.append(cpu_us(call, CALLS))
        # Every call decides and launches anew; a Mock would take time.
        with mock.patch.object(launch_plan, "call_key", lambda *_: None):  # noqa: PT008
            anew.append(cpu_us(call, CALLS // 10))
    return {"case": name, "launches": count, "us": min(replayed), "anew_us": min(anew), "goal_us": goal}


def cpu_us(call: Callable[[], Any], calls: int) -> float:
    """Return the CPU time of one of ``calls`` calls, in µs; collecting garbage is a part of it."""
    return timeit.timeit(call, gc.enable, time.process_time, calls) / calls * 1e6
