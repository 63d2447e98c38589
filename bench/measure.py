"""Measure calls on a CPU or a GPU: time in interleaved rounds, peak memory, and on what machine that was."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import re
import resource
import shlex
import subprocess
import time
import timeit
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ssa_fast.ops.gpu_info import Gpu

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
CYCLES_PER_SECOND = 2e9  # more than any GPU's clock: a pause lasts at least as long as asked
LONGEST_PAUSE = 4e-3
MARGIN = 512 << 20  # bytes of the machine's memory left to everybody else
WARM_S = 3e-3  # the threads of another call's library, a compiled one's say, keep a core busy for up to so long
SLOW_S = 10.0  # a call that takes longer is made in one round
ASKED = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"  # of nvidia-smi
LIMITS = ("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")  # cgroups
_M_MMAP_THRESHOLD = -3  # of glibc's mallopt


class NotHere(Exception):
    """Raised for what this device or machine cannot do; its text is the reason."""


class Device:
    """Time calls and watch their memory on one device; a dry run is on the CPU and its figures mean nothing.

    Times of a GPU are those of the device alone: the device pauses before each call for as long as the host needs to
    enqueue it. ``eager_seconds`` is the host's view.
    """

    def __init__(self, kind: str = "cpu", dry_run: bool = False) -> None:
        self.dry_run = dry_run
        on_cpu = dry_run or kind == "cpu"
        self.device = torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())
        self._flushed: torch.Tensor | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def gpu(self) -> Gpu:
        from ssa_fast.ops import gpu_info  # not above: a worker may take the package from another tree

        found, why = gpu_info.query(self.device)
        if found is None:
            raise NotHere(why)
        return found

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], pause: float = 0.0, cold: bool = True) -> float:
        """Return the time of one call, on a cold cache or on what the call before left there."""
        if cold and not self.dry_run:
            self._flush_cache()
        if not self.on_gpu:
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(int(pause * CYCLES_PER_SECOND) + 1)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def pause(self, call: Callable[[], object]) -> float:
        """Return how long the GPU is to wait so that a call is enqueued when it goes on."""
        if not self.on_gpu:
            return 0.0
        host = min(timeit.repeat(call, self.synchronize, number=1, repeat=3))
        self.synchronize()
        return min(1.5 * host + 2e-5, LONGEST_PAUSE)

    def eager_seconds(self, call: Callable[[], object], calls: int = 300) -> float:
        """Return the wall time of one of many calls made without waiting, caches warm; the best of 5 runs."""
        calls, runs = (2, 2) if self.dry_run else (calls, 5)

        def many() -> None:
            for _ in range(calls):
                call()
            self.synchronize()

        return min(timeit.repeat(many, self.synchronize, number=1, repeat=runs)) / calls

    def graphed(self, call: Callable[[], object]) -> Callable[[], None]:
        """Capture ``call`` in a CUDA graph; return its replay."""
        if not self.on_gpu:
            raise NotHere("a CPU captures no CUDA graph")
        self.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(3):
                call()
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        replay: Callable[[], None] = graph.replay
        return replay

    def peak_bytes(self, call: Callable[[], T]) -> tuple[T, int | None]:
        """Call; return the result, and the bytes held at the peak beyond those before, the result included.

        On a CPU the growth of the process's resident memory counts, the libraries' own buffers too: it should be a
        fresh process, whose allocator has no freed memory to hide the growth in. None where the system does not tell.
        """
        self.clean()
        if self.on_gpu:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            result = call()
            self.synchronize()
            return result, torch.cuda.max_memory_allocated() - before
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc: give freed memory back, now and from now on
            libc.mallopt(_M_MMAP_THRESHOLD, 65536)
            libc.malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        except OSError:
            return call(), None
        before = _sizes("/proc/self/status")["VmRSS"]
        result = call()
        return result, max(_sizes("/proc/self/status")["VmHWM"] - before, 0)  # threads count pages themselves first

    def limit_memory(self) -> None:
        """Make an allocation of this process beyond what is free raise an error; a GPU does so by itself."""
        if self.on_gpu:
            return
        free = _sizes("/proc/meminfo")["MemAvailable"]
        for most, used in LIMITS:
            path = Path("/sys/fs/cgroup", most)
            if path.is_file() and (text := path.read_text().strip()) != "max":
                stat = dict(line.split() for line in path.with_name("memory.stat").read_text().splitlines())
                free = min(free, int(text) - int(Path("/sys/fs/cgroup", used).read_text()) + int(stat["inactive_file"]))
        limit = _sizes("/proc/self/status")["VmData"] + max(free - MARGIN, 0)
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))

    def clean(self) -> None:
        """Free what is not referenced."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def beyond_cache(self) -> int:
        """Return the size in bytes of a buffer that fills the last cache several times."""
        if self.on_gpu:
            return max(4 * getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", 0), 256 << 20)
        caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")  # Linux writes "1024K"
        last = max((int(path.read_text().rstrip("K\n")) << 10 for path in caches), default=0)
        return min(max(2 * last, 64 << 20), 1 << 30)

    def _flush_cache(self) -> None:
        """Read a buffer larger than the cache: a written one's lines would be written back within the timed call."""
        if self._flushed is None:
            # Written once, since pages that never were are all one page of zeros on a CPU.
            self._flushed = torch.arange(self.beyond_cache() // 4, dtype=torch.int32, device=self.device)
        torch.amax(self._flushed)


@dataclass
class Times:
    """Seconds of one call, round by round; ``why`` says how the call failed, if it did."""

    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    status: str = "ok"
    why: str = ""


def time_interleaved(
    device: Device,
    calls: Mapping[str, Callable[[], object]],
    *,
    cold: int = 31,
    warm: int = 0,
    least: int = 5,
    budget: float = 1.5,
    seed: int = 0,
    slow_s: float = SLOW_S,
) -> dict[str, Times]:
    """Time every call once a round, in a shuffled order, so that what changes on the machine changes for all.

    At most ``cold`` rounds are on a flushed cache; ``warm`` ones take the last of several calls. A call takes part in
    ``least`` rounds and until it has spent its share of the ``budget``; one that takes more than ``slow_s`` is made
    once. Rounds of the same index are of the same moment. A call that fails is out.
    """
    cold, warm, least = (min(cold, 2), min(warm, 2), 2) if device.dry_run else (cold, warm, least)
    warming = 0.0 if device.on_gpu or device.dry_run else WARM_S
    found, pauses = {name: Times() for name in calls}, dict[str, float]()
    left = dict.fromkeys(calls, budget / max(len(calls), 1))  # seconds of those that take part
    order = random.Random(seed)
    for turn in range(-1, max(cold, warm)):
        for name in order.sample(list(left), len(left)):
            if left[name] < 0 and turn >= least:
                continue
            call, times, begin = calls[name], found[name], time.perf_counter()
            try:
                if turn < 0:  # whatever comes first: compilation, thread pool, pages
                    seconds = device.seconds(call, cold=cold > 0)
                    if seconds > slow_s:
                        times.cold, times.warm = [seconds][:cold], [seconds][:warm]
                        del left[name]
                    else:
                        pauses[name] = device.pause(call)
                    continue
                if turn < cold:
                    times.cold.append(device.seconds(call, pauses[name]))
                elif warm:
                    _warm_up(call, warming)
                if turn < warm:
                    times.warm.append(device.seconds(call, pauses[name], cold=False))
                left[name] -= time.perf_counter() - begin
            except Exception as error:
                times.status, times.why = "out of memory" if is_out_of_memory(error) else "failed", first_line(error)
                del left[name]
    return found


def _warm_up(call: Callable[[], object], seconds: float) -> None:
    """Call at least once, and for so long."""
    end = time.perf_counter() + seconds
    call()
    while time.perf_counter() < end:
        call()


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill what ``torch.empty`` and its kin return with NaN, so that unwritten elements fail a check."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a GPU or in a CPU's allocator."""
    told = re.search("out of memory|can't allocate memory", str(error), re.IGNORECASE)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and told is not None)


def first_line(error: BaseException) -> str:
    """Return an error in one line of bounded length, with its type."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def percentiles(values: Sequence[float], digits: int = 4) -> dict[str, float] | None:
    """Return p20, p50 and p80; None of nothing."""
    if not len(values):
        return None
    return {f"p{each}": round(float(np.percentile(values, each)), digits) for each in (20, 50, 80)}


def ratios(mine: Sequence[float], base: Sequence[float]) -> dict[str, float] | None:
    """Return the percentiles of ``mine / base`` over the rounds that both took part in."""
    both = min(len(mine), len(base))
    return percentiles(np.array(mine[:both]) / np.array(base[:both]), 5)  # type: ignore[arg-type]


def paced(items: Sequence[T], what: str) -> Iterable[T]:
    """Return ``items``, which show their progress where the tree at hand has the package's ``paced``."""
    try:
        from ssa_fast.io.progress import paced
    except ImportError:
        return items
    return paced(items, what, costs=[1.0] * len(items))


def machine(device: Device | None = None, commit: str = "") -> dict[str, Any]:
    """Return what a figure has to stand beside: processor, memory, GPU, versions, commit.

    ``commit`` is what to say where git cannot tell.
    """
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _output("git", "describe", "--always", "--exclude=*", "--dirty=+changes") or commit,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    if device is None or not device.on_gpu:
        return found
    gpu = torch.cuda.get_device_properties(device.device)
    said = _output("nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader").partition("\n")[0]
    return found | {
        "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "gpu": gpu.name,
        "arch": device.gpu.arch,
        "gpu_memory_gib": round(gpu.total_memory / 2**30, 1),
        "nvidia_smi": dict(zip(ASKED.split(","), said.split(", "), strict=False)),
    }


def describe(found: Mapping[str, Any]) -> str:
    """Return a machine in one line for people."""
    return (
        f"{found['cpu']}, {found['threads']} threads on {found['cores']} cores, {found['memory_gib']} GiB, "
        f"torch {found['torch']}, Python {found['python']}, commit {found['commit']}, {found['date']}"
        + (f", {found['gpu']}" if found.get("gpu") else "")
    )


def command_line(given: Sequence[str]) -> str:
    """Return the command with its arguments, less where its output goes."""
    words = shlex.join(["python", "-m", "bench", *given])
    return re.sub(r" --(save|out)[ =]('[^']*'|\S+)", "", words)


def save(
    path: Path, rows: Sequence[Mapping[str, Any]], *, command: str = "", settings: Any = None, **more: Any
) -> None:
    """Write ``{"command", "machine", "settings", "rows"}`` and what is ``more`` as JSON, whole or not at all."""
    from ssa_fast.io.atomic import atomic_write  # of the tree at hand

    found = {"command": command, "machine": more.pop("machine", None) or machine(), "settings": settings or {}}
    text = json.dumps({**found, **more, "rows": list(rows)}, indent=1, ensure_ascii=False)
    atomic_write(path, text + "\n")


def _cpu_name() -> str:
    """Return the processor's model with what tells generations apart: virtual machines often name only the family."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    found = dict(
        re.findall(r"^(model name|cpu family|model)\s*: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    )
    name = found.get("model name", platform.machine())
    return f"{name} (family {found.get('cpu family')}, model {found.get('model')})"


def _output(*command: str) -> str:
    """Return what a program prints; empty where it is missing or refuses."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _sizes(path: str) -> dict[str, int]:
    """Return the sizes in bytes that a file of ``/proc`` lists in kB."""
    with open(path, encoding="utf-8") as file:
        pairs = [line.split() for line in file]
    return {pair[0].rstrip(":"): int(pair[1]) * 1024 for pair in pairs if pair[2:] == ["kB"]}
