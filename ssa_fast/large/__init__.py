"""CAMs of images of any size: computed in tiles, exactly, and written to disk."""

from ssa_fast.large.export import OutputPaths
from ssa_fast.large.large_image import LargeImageResult, LargeImageSSA

__all__ = ["LargeImageResult", "LargeImageSSA", "OutputPaths"]
