"""Images of any size: windows in, the whole image's CAMs out, exactly."""

from ssa_fast.large.large_image import LargeImageResult, bars, large
from ssa_fast.large.pipeline import LargeStep

__all__ = ["LargeImageResult", "LargeStep", "bars", "large"]
