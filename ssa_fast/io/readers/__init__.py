"""Read windows of images of any size, from files and arrays."""

from ssa_fast.io.readers.base import WindowReader
from ssa_fast.io.readers.open import open_image, size_of

__all__ = ["WindowReader", "open_image", "size_of"]
