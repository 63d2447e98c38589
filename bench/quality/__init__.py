"""``python -m bench quality``: how well seeds, peers, SSA and its options fit true masks or boxes.

The rooms: ``examples`` (images and their truths), ``truths`` (the score of one map), ``networks``, ``sample`` (an image
in a network), ``methods`` (all rows, in one table), ``run``, ``statistics`` (folds and intervals), ``report``,
``command``.
"""

from bench.quality.command import main

__all__ = ["main"]
