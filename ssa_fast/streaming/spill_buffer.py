"""Where ``PixelBank`` keeps its pixels: blocks of numbers, in memory up to a size and beyond it in a file."""

from __future__ import annotations

import tempfile
import weakref
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import Tensor


class Store:
    """1-D float32 and float64 tensors on the CPU, in the order in which they came.

    Args:
        room: bytes to hold in memory. scratch: folder of the file; default the system's temporary one.

    Raises:
        OSError: no file can be made in ``scratch``.
    """

    def __init__(self, room: int, scratch: str | Path | None) -> None:
        self.folder = tempfile.gettempdir() if scratch is None else str(scratch)
        self._room, self._end = room, 0
        self._held: list[Tensor] = []
        self._stored: list[tuple[int, int, torch.dtype]] = []  # where in the file, how many bytes, of what
        # Unbuffered, so that a full disk is noticed in the write that meets it, and no block is copied.
        self._file = tempfile.TemporaryFile(dir=scratch, prefix="ssa-fast-keys-", buffering=0)  # noqa: SIM115
        self._finalizer = weakref.finalize(self, self._file.close)

    @property
    def closed(self) -> bool:
        """Whether the blocks and the file are gone."""
        return not self._finalizer.alive

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(block.numel() * block.element_size() for block in self._held) + self._end

    def extend(self, blocks: Iterable[Tensor], size: int) -> None:
        """Append ``size`` bytes of blocks, all or none: an error from here or from ``blocks`` leaves what was there.

        Raises:
            OSError: no room in the file's folder, with the bytes that were to go there.
        """
        held: list[Tensor] = []
        stored: list[tuple[int, int, torch.dtype]] = []
        room, end = self._room, self._end
        try:
            for block in blocks:
                length = block.numel() * block.element_size()
                if length <= room and not (stored or self._stored):
                    held.append(block)
                    room -= length
                else:
                    self._write(block, end, size - (self._room - room))
                    stored.append((end, length, block.dtype))
                    end += length
        except BaseException:
            self._file.truncate(self._end)
            raise
        self._held += held
        self._stored += stored
        self._room, self._end = room, end

    def _write(self, block: Tensor, at: int, needed: int) -> None:
        rest = block.numpy().data.cast("B")
        try:
            self._file.seek(at)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(
                error.errno,
                f"scratch: expected room in {self.folder} for {needed:,} bytes of pixels beside {self._end:,} there, "
                f"got {error.strerror!r}; none of them was kept: free that much, or pass another scratch, more memory "
                "or a larger stride",
            ) from error

    def __iter__(self) -> Iterator[Tensor]:
        """The blocks; each is valid until the next is asked for, which may be read into the same memory."""
        yield from self._held
        buffer = torch.empty(max((length for _, length, _ in self._stored), default=0), dtype=torch.uint8)
        for at, length, dtype in self._stored:
            rest = buffer.numpy().data[:length]
            self._file.seek(at)
            while rest:
                count = self._file.readinto(rest)
                if not count:
                    raise OSError(
                        f"scratch: expected {self._end:,} bytes in the file in {self.folder}; it was cut short"
                    )
                rest = rest[count:]
            yield buffer[:length].view(dtype)

    def close(self) -> None:
        """Let go of the blocks and the file."""
        self._held.clear()
        self._stored.clear()
        self._finalizer()
