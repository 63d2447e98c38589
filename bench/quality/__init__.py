"""How well seeds, peers, SSA and its options fit true masks or boxes."""

from bench.quality.command import main

__all__ = ["main"]
