"""Tell whether a file is still the one that it was: by size and times, and by its content where those are in doubt.

This is Git's rule. Size and times cost one ``stat``; a hash reads the whole file (BLAKE2b, some 0.7 GB/s on one core:
0.2 ms for a photograph, which takes ten times that to decode). So the hash is made once, when the file is read anyway,
and compared only if a time differs, or is so recent that the file may have changed again within a tick of its clock.
Files above ``HASHED`` are not hashed: another time of modification is another file, as ``make`` has it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["HASHED", "Identity", "describe", "identify", "is_same"]

Identity: TypeAlias = "dict[str, Any]"
"""JSON object: "bytes", "modified" and "changed" (times, of a folder a hash of its files'), and "hash" or None."""

HASHED = 1 << 30  # most bytes to hash: above, it would take seconds per file, and as long again on every doubt
RECENT_NS = 10 * 10**9  # coarser than the clock of any file system
CHUNK = 1 << 20


def identify(path: Path) -> Identity:
    """Return the identity of a file, or of all files in a folder; OSError if there is none."""
    files = _files(path)
    found = _describe(files)
    return {**found, "hash": _hash(path, files) if found["bytes"] <= HASHED else None}


def describe(path: Path) -> Identity:
    """Return the identity of a file or folder without the hash: nothing is read; OSError if there is none."""
    return _describe(_files(path))


def is_same(path: Path, before: Identity, noted: float) -> bool:
    """Return True if a file has the content that it had; OSError if there is none.

    Args:
        path: The file or folder.
        before: What ``identify`` returned for it.
        noted: When that was written down, in seconds since the epoch.
    """
    files = _files(path)
    now = _describe(files)
    if now["bytes"] != before["bytes"]:
        return False
    if before["hash"] is None:
        return bool(now["modified"] == before["modified"])
    times = [status.st_mtime_ns for _, status in files] + [status.st_ctime_ns for _, status in files]
    settled = max(times, default=0) + RECENT_NS < noted * 1e9
    same_times = all(now[name] == before[name] for name in ("modified", "changed"))
    return (settled and same_times) or _hash(path, files) == before["hash"]


def _files(path: Path) -> list[tuple[str, os.stat_result]]:
    """Return the files that ``path`` stands for, each by its name below it ("" for a file) with its status."""
    status = path.stat()
    if stat.S_ISREG(status.st_mode):
        return [("", status)]
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(f"{path} is no regular file")  # a pipe or device may never end
    names = (Path(folder, name) for folder, _, files in os.walk(path, followlinks=True) for name in files)
    return [(file.relative_to(path).as_posix(), file.stat()) for file in sorted(names)]


def _describe(files: list[tuple[str, os.stat_result]]) -> Identity:
    if [name for name, _ in files] == [""]:
        status = files[0][1]
        return {"bytes": status.st_size, "modified": status.st_mtime_ns, "changed": status.st_ctime_ns}
    times = {  # thousands of chunks of a Zarr: one number for all
        "modified": [(name, status.st_size, status.st_mtime_ns) for name, status in files],
        "changed": [(name, status.st_size, status.st_ctime_ns) for name, status in files],
    }
    total = sum(status.st_size for _, status in files)
    return {"bytes": total, **{key: _digest(repr(value).encode()) for key, value in times.items()}}


def _hash(path: Path, files: list[tuple[str, os.stat_result]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, status in files:
        digest.update(f"{name}\0{status.st_size}\0".encode())
        with (path / name if name else path).open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
