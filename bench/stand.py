"""Measure calls on a GPU with CUDA events, or on a CPU with a host timer; a dry run measures nothing."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any

import torch

from bench import memory
from bench.measure import NotHere, is_out_of_memory, poisoned, summary
from ssa_fast.ops import gpu_info

__all__ = ["Device", "NotHere", "is_out_of_memory", "poisoned", "summary"]

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CYCLES_PER_SECOND = 2e9  # more than any GPU's clock: a pause lasts at least as long as asked
LONGEST_PAUSE = 4e-3


class Device:
    """Time calls and watch their memory on one device. In a dry run, on the CPU, no figure means anything.

    Times of a GPU are those of the device alone: before each call the L2 cache is flushed by reading and the device
    made to pause for as long as the host needs to enqueue the call. ``eager_seconds`` is the host's view.
    """

    def __init__(self, dry_run: bool = False, device: str = "cuda") -> None:
        self.dry_run = dry_run
        on_cpu = dry_run or device == "cpu"
        self.device = torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())
        self._flush: torch.Tensor | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def gpu(self) -> gpu_info.Gpu:
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

    def host_seconds(self, call: Callable[[], object]) -> float:
        """Return how long the host needs to enqueue one call, once it is warm."""
        times = []
        for _ in range(3):
            self.synchronize()
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        self.synchronize()
        return min(times)

    def pause(self, call: Callable[[], object]) -> float:
        """Return for how long the GPU is to wait so that a warm call is enqueued when it goes on."""
        return min(1.5 * self.host_seconds(call) + 2e-5, LONGEST_PAUSE) if self.on_gpu else 0.0

    def rounds(
        self, calls: Mapping[str, Callable[[], object]], budget: float = 1.5, most: int = 31
    ) -> dict[str, list[float]]:
        """Return the seconds of each call in interleaved rounds, at least 5, for about ``budget`` seconds."""
        least, most = (2, 2) if self.dry_run else (5, most)
        pauses = {}
        for name, call in calls.items():
            call()
            pauses[name] = self.pause(call)
        begin = time.perf_counter()
        found: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(most):
            if turn >= least and time.perf_counter() - begin > budget:
                break
            for name, call in calls.items():
                found[name].append(self.seconds(call, pauses[name]))
        return found

    def eager_seconds(self, call: Callable[[], object], calls: int = 300) -> float:
        """Return the wall time of one of many calls made without waiting, caches warm; the best of 5 runs."""
        calls = 2 if self.dry_run else calls
        times = []
        for _ in range(2 if self.dry_run else 5):
            self.synchronize()
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            self.synchronize()
            times.append((time.perf_counter() - begin) / calls)
        return min(times)

    def graphed(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Capture ``call`` in a CUDA graph; return its replay, and the result that a replay writes anew."""
        if not self.on_gpu:
            raise NotHere("a CPU captures no CUDA graph")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
        return graph.replay, result

    def peak_extra_bytes(self, call: Callable[[], torch.Tensor]) -> int:
        """Return the GPU memory that ``call`` takes at its peak, beyond its inputs and its result."""
        if not self.on_gpu:
            raise NotHere("the CPU's memory is counted by the process, not by the call")
        call()
        self.clean()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        self.synchronize()
        return torch.cuda.max_memory_allocated() - before - result.numel() * result.element_size()

    def watched(self, call: Callable[[], Any]) -> tuple[Any, int | None]:
        """Call; return the result, and the bytes held at the peak beyond those before, the result included.

        On a CPU the whole process counts, the libraries' own buffers too: it should be a fresh one.
        """
        self.clean()
        if not self.on_gpu:
            return memory.watched(call)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        self.synchronize()
        return result, torch.cuda.max_memory_allocated() - before

    def free_bytes(self) -> int:
        """Return how many bytes can still be allocated."""
        return torch.cuda.mem_get_info(self.device)[0] if self.on_gpu else memory.available()

    def clean(self) -> None:
        """Free what is not referenced."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def _flush_cache(self) -> None:
        """Read a buffer larger than the cache.

        A buffer that is written would leave dirty lines, which are then written back within the timed call.
        """
        if self._flush is None:
            if self.on_gpu:
                cache = getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", 0)
                size = max(4 * cache, 256 << 20)
            else:
                size = memory.beyond_cache()
            # Written once, since pages that never were are all one page of zeros on a CPU.
            self._flush = torch.arange(size // 4, dtype=torch.int32, device=self.device)
        torch.amax(self._flush)
