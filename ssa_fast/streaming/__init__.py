"""One image, polished from tiles that are never in memory together: gather all of them, then apply to each.

What a target pixel needs of all the source pixels is a sum over them, so it can be gathered tile by tile, in any order,
by any number of processes. ``Prototypes`` keeps that sum where it has a closed form, in ``(K + 1)·C`` numbers; ``Keys``
keeps the source pixels themselves, for features and affinities without one. Both give the whole image's answer.
"""

from ssa_fast.streaming.keys import Keys
from ssa_fast.streaming.prototypes import Prototypes
from ssa_fast.streaming.tiles import parse_bytes

__all__ = ["Keys", "Prototypes", "parse_bytes"]
