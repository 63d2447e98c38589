"""One image, polished from tiles that are never in memory together: gather all of them, then apply to each.

What a target pixel needs of all the source pixels is a sum over them, so it can be gathered tile by tile, in any order,
by any number of processes. ``Prototypes`` keeps that sum where it has a closed form, in ``(K + 1)·C`` numbers;
``PixelBank`` keeps the source pixels themselves, for features and affinities without one. Both are exact.
"""

from ssa_fast.streaming.pixel_bank import PixelBank
from ssa_fast.streaming.prototypes import Prototypes

__all__ = ["PixelBank", "Prototypes"]
