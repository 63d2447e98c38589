"""Describe the machine, and measure how fast it copies and multiplies, on random data."""

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


def machine_job() -> Job:
    """Return the job that describes the machine."""
    return job("bench.roofline:machine", "machine: this one", 60)


def jobs(seed: int, dry_run: bool) -> list[Job]:
    """Return the jobs that measure the copy's bandwidth and the products' rates."""
    size = 64 if dry_run else 8192
    found = [job("bench.roofline:copy", "roofline: copy", 60, numel=1 << 10 if dry_run else 1 << 30, seed=seed)]
    for dtype, side in (("float16", size), ("bfloat16", size), ("float32", size // 2)):
        found.append(job("bench.roofline:product", f"roofline: {dtype} product", 60, dtype=dtype, side=side, seed=seed))
    return found


def machine(device: Device) -> list[dict[str, Any]]:
    """Return the row that says on what machine the others were measured."""
    return [{"part": "machine", "what": "machine", "status": "ok", "machine": describe(device)}]


def describe(device: Device) -> dict[str, Any]:
    """Return processor and GPU, driver, versions and commit; what cannot be found out is left out."""
    try:
        found = measure.machine()
    except OSError:  # no git on this machine
        found = {"python": platform.python_version(), "torch": torch.__version__, "commit": ""}
    if importlib.util.find_spec("triton"):
        found |= {"triton": importlib.metadata.version("triton")}
    found |= {"cuda": torch.version.cuda, "hip": torch.version.hip}
    if not device.on_gpu:
        return found
    properties = torch.cuda.get_device_properties(device.device)
    found |= {
        "gpu": properties.name,
        "arch": device.gpu.arch,
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20, 1),
    }
    return found | {"nvidia_smi": _nvidia_smi()}


def _nvidia_smi() -> dict[str, str]:
    """Return what nvidia-smi reports; empty where it is missing or refuses."""
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


def copy(device: Device, *, numel: int, seed: int) -> list[dict[str, Any]]:
    """Measure the bytes read plus the bytes written per second by a large copy within the device."""
    generator = torch.Generator(device.device).manual_seed(seed)
    source = torch.rand(numel, device=device.device, generator=generator).half()
    times = summary(copy_seconds(device, source))
    rate = 2 * source.numel() * source.element_size() / (times["us"] / 1e6)
    what = f"copy of {source.numel() * 2 / 2**20:,.0f} MiB, bytes read and written"
    return [_row(what, times, round(rate / 1e12, 3), "TB/s")]


def copy_seconds(device: Device, source: Tensor) -> list[float]:
    """Return the times of a copy, round by round."""
    target = torch.empty_like(source)
    return device.rounds({"copy": lambda: target.copy_(source)})["copy"]


def product(device: Device, *, dtype: str, side: int, seed: int) -> list[dict[str, Any]]:
    """Measure the FLOP per second of a square matrix product, on random numbers."""
    times = summary(product_seconds(device, getattr(torch, dtype), side, seed))
    rate = 2 * side**3 / (times["us"] / 1e6)
    return [_row(f"{dtype} product of {side}×{side} matrices", times, round(rate / 1e12, 3), "TFLOP/s")]


def product_seconds(device: Device, dtype: torch.dtype, side: int, seed: int) -> list[float]:
    """Return the times of a square product of random matrices, round by round."""
    generator = torch.Generator(device.device).manual_seed(seed)
    make: dict[str, Any] = {"device": device.device, "generator": generator}
    a, b = (torch.randn(side, side, **make).to(dtype) for _ in range(2))
    return device.rounds({"product": lambda: a @ b}, budget=0.5)["product"]


def both(device: Device, *, numel: int, side: int, seed: int) -> list[dict[str, Any]]:
    """Measure the float32 roofline that the grid's shares refer to: the best of several rounds.

    ``numel`` numbers are copied; 0 stands for enough to fill the last cache twice.
    """
    numel = numel or (1 << 28 if device.on_gpu else memory.beyond_cache() // 4)
    copied = giga_per_second(2 * numel * 4, copy_seconds(device, torch.ones(numel, device=device.device)))
    multiplied = giga_per_second(2 * side**3, product_seconds(device, torch.float32, side, seed))
    return [{"status": "ok", "copy_gb_s": copied, "product_gflop_s": multiplied}]


def giga_per_second(amount: float, seconds: Sequence[float]) -> float | None:
    """Return the fastest round's rate in 10⁹ per second, to four digits; None if it took no time."""
    fastest = min(seconds)
    return float(f"{amount / fastest / 1e9:.4g}") if fastest > 0 else None


def _row(what: str, times: dict[str, Any], value: float, unit: str) -> dict[str, Any]:
    return {"part": "roofline", "what": what, "status": "ok", "value": value, "unit": unit} | times
