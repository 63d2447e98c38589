"""Tile shapes of each kernel; ``configs/`` lists which to use on which GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gather:
    """Tiles of prototypes, pass A: ``block_l`` pixels at a time, ``rows`` × ``block_c`` of G per program."""

    block_l: int
    rows: int
    num_warps: int
    num_stages: int = 1
    block_c: int = 1024


@dataclass(frozen=True)
class Apply:
    """Tiles of prototypes, pass B: ``block_l`` × ``rows`` per program, ``block_c`` channels at a time."""

    block_l: int
    block_c: int
    rows: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Prepare:
    """Tiles of the unit features: ``block_l`` pixels per program, ``block_c`` channels at a time."""

    block_l: int
    block_c: int
    num_warps: int


@dataclass(frozen=True)
class Full:
    """Tiles of the full kernel: ``block_j`` targets per program, ``block_i`` sources at a time."""

    block_i: int
    block_j: int
    block_c: int
    rows: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Symmetric:
    """Tiles of the symmetric kernel: ``bands`` blocks of ``block`` pixels × one at a time, ``chunk`` a group at most.

    ``programs`` is how many run at a time on a GPU of the table's kind.
    """

    block: int
    block_c: int
    bands: int
    chunk: int
    rows: int
    num_warps: int
    num_stages: int
    programs: int = 128

    def __post_init__(self) -> None:
        if self.chunk % self.bands:
            raise ValueError(
                f"chunk: expected a multiple of bands ({self.bands}), got {self.chunk}; change one of them"
            )

    def balanced_chunk(self, L: int, layers: int = 1) -> int:
        """Return the blocks per group of ``L`` pixels with which ``layers`` layers are done soonest.

        The pairs of G groups are G·(G − 1)/2 programs, and G with half the work: G²/2 in all. Time is counted in tiles:
        ``chunk``² products, and 2·``chunk`` sums to store and add, which take about half as long each.
        """
        blocks = -(-L // self.block)

        def time(chunk: int) -> float:
            groups = -(-blocks // chunk)
            return max(1.0, layers * groups**2 / (2 * self.programs)) * (chunk**2 + chunk)

        return min(range(self.bands, self.chunk + 1, self.bands), key=time)


@dataclass(frozen=True)
class Resident:
    """Tiles of the resident kernel: ``block_j`` targets per program, ``block_i`` sources at a time."""

    block_i: int
    block_j: int
    block_c: int
    rows: int
    num_warps: int
    num_stages: int
