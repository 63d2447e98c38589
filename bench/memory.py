"""The CPU's memory: how much is free, how much a call takes, and how large the last cache is. Linux only."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MARGIN = 512 << 20  # bytes left to everybody else
MOST_OVERWRITTEN = 1 << 30
LEAST_OVERWRITTEN = 64 << 20
_M_MMAP_THRESHOLD = -3  # of glibc's mallopt
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def available() -> int:
    """Bytes that can be taken without the kernel ending a process for it."""
    found = _lines("/proc/meminfo")["MemAvailable"]
    for limit, used in zip(_CGROUPS, ("memory.current", "memory.usage_in_bytes"), strict=True):
        path = Path(limit)
        if path.is_file() and (text := path.read_text().strip()) != "max":
            stat = dict(line.split() for line in path.with_name("memory.stat").read_text().splitlines())
            held = int(path.with_name(used).read_text()) - int(stat.get("inactive_file", 0))
            found = min(found, int(text) - held)
    return max(found - MARGIN, 0)


def limit() -> None:
    """From now on an allocation of this process beyond what is available raises an error."""
    most = _lines("/proc/self/status")["VmData"] + available()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def settle() -> None:
    """Give freed memory back to the system, and from now on at once: what a call takes is then seen to grow."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_MMAP_THRESHOLD, 65536)
        libc.malloc_trim(0)


def watched(call: Callable[[], Any]) -> tuple[Any, int | None]:
    """What ``call`` returns, and by how many bytes the process's resident memory grew at its peak.

    None where the system does not tell. Call ``settle`` first.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    except OSError:
        return call(), None
    before = _lines("/proc/self/status")["VmRSS"]
    result = call()
    return result, max(_lines("/proc/self/status")["VmHWM"] - before, 0)  # threads count pages for themselves first


def beyond_cache() -> int:
    """Bytes of a buffer that fills the last cache twice, within bounds."""
    return min(max(2 * last_cache(), LEAST_OVERWRITTEN), MOST_OVERWRITTEN)


def last_cache() -> int:
    """Bytes of the last-level cache, 0 where the system does not tell."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=0)


def _lines(path: str) -> dict[str, int]:
    """Sizes in bytes that a file of ``/proc`` lists in kB."""
    with open(path, encoding="utf-8") as file:
        pairs = [line.split() for line in file]
    return {pair[0].rstrip(":"): int(pair[1]) * 1024 for pair in pairs if pair[2:] == ["kB"]}
