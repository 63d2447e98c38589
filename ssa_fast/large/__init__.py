"""Images of any size: windows in, the whole image's CAMs out, exactly."""

from ssa_fast.large.passes import LargeStep
from ssa_fast.large.polish import LargeResult, bars, large

__all__ = ["LargeResult", "LargeStep", "bars", "large"]
