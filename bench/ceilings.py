"""What machine this is, and how fast it copies and multiplies, measured on random data."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import torch

from bench import measure, memory
from bench.stand import summary
from bench.workers import Job, job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bench.stand import Device

ASKED = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"


def jobs(seed: int, rehearse: bool) -> list[Job]:
    size = 64 if rehearse else 8192
    found = [
        job("bench.ceilings:machine", "machine: this one", 60),
        job("bench.ceilings:copy", "ceiling: copy", 60, numel=1 << 10 if rehearse else 1 << 30, seed=seed),
    ]
    for dtype, side in (("float16", size), ("bfloat16", size), ("float32", size // 2)):
        found.append(job("bench.ceilings:product", f"ceiling: {dtype} product", 60, dtype=dtype, side=side, seed=seed))
    return found


def machine(stand: Device) -> list[dict[str, Any]]:
    """What a figure has to stand beside."""
    return [{"part": "machine", "what": "machine", "status": "ok", "machine": describe(stand)}]


def describe(stand: Device) -> dict[str, Any]:
    """Processor and GPU, driver, versions, commit; what cannot be found out is left out."""
    try:
        found = measure.machine()
    except OSError:  # no git on this machine
        found = {"python": platform.python_version(), "torch": torch.__version__, "commit": ""}
    if importlib.util.find_spec("triton"):
        found |= {"triton": importlib.metadata.version("triton")}
    found |= {"cuda": torch.version.cuda, "hip": torch.version.hip}
    if not stand.on_gpu:
        return found
    properties = torch.cuda.get_device_properties(stand.device)
    found |= {
        "gpu": properties.name,
        "arch": stand.gpu.arch,
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20, 1),
    }
    return found | {"nvidia_smi": _nvidia_smi()}


def _nvidia_smi() -> dict[str, str]:
    """Read only; empty where the program is missing or refuses."""
    if not (program := shutil.which("nvidia-smi")):
        return {}
    done = subprocess.run(
        [program, f"--query-gpu={ASKED}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    first = done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""
    return dict(zip(ASKED.split(","), (part.strip() for part in first.split(",")), strict=False)) if first else {}


def copy(stand: Device, *, numel: int, seed: int) -> list[dict[str, Any]]:
    """Bytes read plus bytes written per second by a large copy within the device."""
    generator = torch.Generator(stand.device).manual_seed(seed)
    source = torch.rand(numel, device=stand.device, generator=generator).half()
    times = summary(copy_seconds(stand, source))
    rate = 2 * source.numel() * source.element_size() / (times["us"] / 1e6)
    what = f"copy of {source.numel() * 2 / 2**20:,.0f} MiB, bytes read and written"
    return [_ceiling(what, times, round(rate / 1e12, 3), "TB/s")]


def copy_seconds(stand: Device, source: Tensor) -> list[float]:
    """Times of a copy, round by round."""
    target = torch.empty_like(source)
    return stand.rounds({"copy": lambda: target.copy_(source)})["copy"]


def product(stand: Device, *, dtype: str, side: int, seed: int) -> list[dict[str, Any]]:
    """FLOP per second of a square matrix product, on random numbers."""
    times = summary(product_seconds(stand, getattr(torch, dtype), side, seed))
    rate = 2 * side**3 / (times["us"] / 1e6)
    return [_ceiling(f"{dtype} product of {side}×{side} matrices", times, round(rate / 1e12, 3), "TFLOP/s")]


def product_seconds(stand: Device, dtype: torch.dtype, side: int, seed: int) -> list[float]:
    """Times of a square product of random matrices, round by round."""
    generator = torch.Generator(stand.device).manual_seed(seed)
    make: dict[str, Any] = {"device": stand.device, "generator": generator}
    a, b = (torch.randn(side, side, **make).to(dtype) for _ in range(2))
    return stand.rounds({"product": lambda: a @ b}, budget=0.5)["product"]


def both(stand: Device, *, numel: int, side: int, seed: int) -> list[dict[str, Any]]:
    """Measure the float32 ceilings that the grid's shares refer to: the best of several rounds.

    ``numel`` numbers are copied; 0 stands for enough to fill the last cache twice.
    """
    numel = numel or (1 << 28 if stand.on_gpu else memory.beyond_cache() // 4)
    copied = giga_per_second(2 * numel * 4, copy_seconds(stand, torch.ones(numel, device=stand.device)))
    multiplied = giga_per_second(2 * side**3, product_seconds(stand, torch.float32, side, seed))
    return [{"status": "ok", "copy_gb_s": copied, "product_gflop_s": multiplied}]


def giga_per_second(amount: float, seconds: Sequence[float]) -> float | None:
    """Return the rate of the fastest round to four digits, in 10⁹ per second; None if the clock measured no time."""
    fastest = min(seconds)
    return float(f"{amount / fastest / 1e9:.4g}") if fastest > 0 else None


def _ceiling(what: str, times: dict[str, Any], value: float, unit: str) -> dict[str, Any]:
    return {"part": "ceiling", "what": what, "status": "ok", "value": value, "unit": unit} | times
