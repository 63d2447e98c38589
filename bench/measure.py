"""Measuring on a CPU: interleaved rounds, peak memory of a fresh process, and what machine it was."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.orphans import die_with

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def median_seconds(function: Callable[[], object], *, budget: float = 0.4, most: int = 15) -> float:
    """Median of as many calls as ``budget`` seconds allow, at least 3 and at most ``most``, after one to warm up."""
    function()
    first = seconds(function)
    return float(np.median([first, *(seconds(function) for _ in range(int(min(max(budget / first, 2), most))))]))


def peak_extra_memory(setup: str, call: str) -> int:
    """Bytes of resident memory that ``call`` takes at its peak beyond what ``setup`` left, result included.

    Both are Python source, run in a fresh process: there the allocator has no freed memory to hide the growth in.
    Reads Linux's ``VmHWM``, so the library's own buffers count too.
    """
    code = (
        "import torch, ssa_fast\n"
        "def status(key):\n"
        "    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key)) * 1024\n"
        "polish, Affinity = ssa_fast.polish, ssa_fast.Affinity\n"
        # The thread pool and the library's code are there before the first call, whatever it is.
        "torch.relu(torch.rand(512, 512) @ torch.rand(512, 512))\n"
        "polish(torch.rand(1, 2, 8, 8), torch.rand(1, 4, 8, 8))\n"
        f"{setup}\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "before = status('VmRSS')\n"
        f"result = {call}\n"
        "print(status('VmHWM') - before)\n"
    )
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
        preexec_fn=partial(die_with, os.getpid()),
    )
    if done.returncode:
        raise RuntimeError(f"the process measured failed:\n{done.stderr}")
    return int(done.stdout)


def machine() -> dict[str, Any]:
    """What a figure has to stand beside: processor, cores, memory, versions, commit."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else ""),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def describe(found: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"{found['cpu']}, {found['threads']} threads on {found['cores']} cores, {found['memory_gib']} GiB, "
        f"torch {found['torch']}, Python {found['python']}, commit {found['commit']}, {found['date']}"
    )


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows and machine as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _cpu_name() -> str:
    """The processor's model with what tells generations apart: vendors' virtual machines often name only the family."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in first.splitlines())
    found = {key.strip(): value.strip() for key, _, value in pairs}
    name = found.get("model name", platform.machine())
    return f"{name} (family {found.get('cpu family')}, model {found.get('model')})"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip()
