"""Tile shapes of each kernel, as frozen dataclasses; which to use on which GPU is in ``configs/``, read by tuning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gather:
    """Prototypes, pass A: ``block_l`` pixels at a time; ``rows`` rows and ``block_c`` channels of G per program."""

    block_l: int
    rows: int
    num_warps: int
    num_stages: int = 1
    block_c: int = 1024


@dataclass(frozen=True)
class Apply:
    """Prototypes, pass B: ``block_l`` pixels at a time, ``block_c`` channels at a time, ``rows`` rows per program."""

    block_l: int
    block_c: int
    rows: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Prepare:
    """Unit features: ``block_l`` pixels, ``block_c`` channels at a time."""

    block_l: int
    block_c: int
    num_warps: int


@dataclass(frozen=True)
class Full:
    """Tiled, each affinity computed twice: targets ``block_j`` held, sources streamed by ``block_i``."""

    block_i: int
    block_j: int
    block_c: int
    rows: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Symmetric:
    """Tiled, upper triangle only: ``bands`` blocks of ``block`` sources against chunks of ``chunk`` target blocks."""

    block: int
    block_c: int
    bands: int
    chunk: int
    rows: int
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        if self.chunk % self.bands:
            raise ValueError(f"chunk: expected a multiple of bands ({self.bands}), got {self.chunk}")


@dataclass(frozen=True)
class Resident:
    """One launch for small stages: targets ``block_j`` held, sources streamed by ``block_i``."""

    block_i: int
    block_j: int
    block_c: int
    rows: int
    num_warps: int
    num_stages: int
