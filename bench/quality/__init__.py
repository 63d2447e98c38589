"""``python -m bench quality``: how well seeds, peers, SSA and its options fit true masks or boxes.

``examples``: images with their truths, and the score of a map; ``networks``: the networks, and one image in one;
``methods``: all rows, in one table; ``report``: scores, halves, intervals and what is printed; ``command``.
"""

from bench.quality.command import main

__all__ = ["main"]
