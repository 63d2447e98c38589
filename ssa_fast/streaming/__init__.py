"""Polish one image from tiles that are never in memory together: add all of them, then apply to each.

What the source pixels contribute to a target pixel is a sum, so it can be accumulated tile by tile, in any order, by
any number of processes. ``Prototypes`` keeps that sum where it has a closed form, in ``(K + 1)·C`` numbers;
``PixelBank`` stores the source pixels themselves, for features and affinities without one. Both are exact.
``FeatureMean`` sums the mean feature that the former need beforehand if the affinity centres.
"""

from ssa_fast.streaming.feature_mean import FeatureMean
from ssa_fast.streaming.pixel_bank import PixelBank
from ssa_fast.streaming.prototypes import Prototypes

__all__ = ["FeatureMean", "PixelBank", "Prototypes"]
