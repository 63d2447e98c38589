"""ssa_fast: complete class activation maps at inference time, exactly, without the HW×HW affinity matrix."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ssa_fast._version import __version__
from ssa_fast.affinity import Affinity
from ssa_fast.api import correlation, explain, polish
from ssa_fast.validation import InputWarning

if TYPE_CHECKING:
    from ssa_fast.large import LargeImageResult, LargeImageSSA
    from ssa_fast.localize.overlay import overlay
    from ssa_fast.result import SSAResult
    from ssa_fast.ssa import SSA
    from ssa_fast.streaming import FeatureMean, PixelBank, Prototypes

__all__ = [
    "SSA",
    "Affinity",
    "FeatureMean",
    "InputWarning",
    "LargeImageResult",
    "LargeImageSSA",
    "PixelBank",
    "Prototypes",
    "SSAResult",
    "__version__",
    "correlation",
    "explain",
    "overlay",
    "polish",
]

# Imported on first use, so that `import ssa_fast` needs torch and NumPy only.
_LAZY = {
    "SSA": "ssa",
    "SSAResult": "result",
    "LargeImageSSA": "large",
    "LargeImageResult": "large",
    "overlay": "localize",
    "FeatureMean": "streaming",
    "PixelBank": "streaming",
    "Prototypes": "streaming",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _LAZY:
        return getattr(import_module(f"ssa_fast.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'ssa_fast' has no attribute {name!r}")
