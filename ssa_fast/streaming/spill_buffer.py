"""``SpillBuffer``: blocks of numbers, in memory up to a budget and beyond it in a temporary file."""

from __future__ import annotations

import tempfile
import weakref
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import Tensor


class SpillBuffer:
    """1-D float32 and float64 tensors: ``memory_budget`` bytes in memory, the rest in a file in ``scratch``."""

    def __init__(self, memory_budget: int, scratch: str | Path | None) -> None:
        self.folder = str(scratch or tempfile.gettempdir())
        self._memory_left, self._end = memory_budget, 0
        self._in_memory: list[Tensor] = []
        self._on_disk: list[tuple[int, int, torch.dtype]] = []  # offset in the file, bytes, dtype
        # Unbuffered: a full disk fails the very write that meets it, and no block is copied.
        self._file = tempfile.TemporaryFile(dir=scratch, prefix="ssa-fast-bank-", buffering=0)  # noqa: SIM115
        self._finalizer = weakref.finalize(self, self._file.close)

    @property
    def closed(self) -> bool:
        """True if the buffer has been closed."""
        return self._file.closed

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(block.nbytes for block in self._in_memory) + self._end

    def extend(self, blocks: Iterable[Tensor], size: int) -> None:
        """Append blocks of ``size`` bytes in all, or none: an error here or in ``blocks`` changes nothing."""
        in_memory: list[Tensor] = []
        on_disk: list[tuple[int, int, torch.dtype]] = []
        memory_left, end = self._memory_left, self._end
        try:
            for block in blocks:
                if block.nbytes <= memory_left and not (on_disk or self._on_disk):
                    in_memory.append(block)
                    memory_left -= block.nbytes
                else:
                    self._write(block, end, size - (self._memory_left - memory_left))
                    on_disk.append((end, block.nbytes, block.dtype))
                    end += block.nbytes
        except BaseException:
            self._file.truncate(self._end)
            raise
        self._in_memory += in_memory
        self._on_disk += on_disk
        self._memory_left, self._end = memory_left, end

    def _write(self, block: Tensor, offset: int, needed: int) -> None:
        rest = block.numpy().data.cast("B")
        try:
            self._file.seek(offset)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(
                error.errno,
                f"scratch: expected room in {self.folder} for {needed:,} bytes of pixels beside {self._end:,} there, "
                f"got {error.strerror!r}; none of them was stored: free that much, or pass another scratch, more "
                "memory or a larger stride",
            ) from error

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the blocks; each is valid until the next one, which may be read into the same memory."""
        yield from self._in_memory
        buffer = torch.empty(max((size for _, size, _ in self._on_disk), default=0), dtype=torch.uint8)
        for offset, size, dtype in self._on_disk:
            rest = buffer.numpy().data[:size]
            self._file.seek(offset)
            while rest:
                count = self._file.readinto(rest)
                if not count:
                    raise OSError(
                        f"scratch: expected {self._end:,} bytes in the file in {self.folder}; it was cut short"
                    )
                rest = rest[count:]
            yield buffer[:size].view(dtype)

    def close(self) -> None:
        """Discard the blocks and the file."""
        self._in_memory.clear()
        self._on_disk.clear()
        self._finalizer()
