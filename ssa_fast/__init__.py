"""ssa_fast: complete class activation maps at inference time, exactly, without the HW×HW affinity matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ssa_fast.affinity import Affinity
from ssa_fast.api import correlation, explain, polish

if TYPE_CHECKING:
    from ssa_fast.ssa import SSA, SSAResult
    from ssa_fast.streaming import PixelBank, Prototypes

__version__ = "0.1.0"
__all__ = ["SSA", "Affinity", "PixelBank", "Prototypes", "SSAResult", "__version__", "correlation", "explain", "polish"]


def __getattr__(name: str) -> Any:
    """SSA on whole models is imported when first asked for: ``import ssa_fast`` needs torch and NumPy only."""
    if name in ("SSA", "SSAResult"):
        from ssa_fast import ssa

        return getattr(ssa, name)
    if name in ("PixelBank", "Prototypes"):
        from ssa_fast import streaming

        return getattr(streaming, name)
    raise AttributeError(f"module 'ssa_fast' has no attribute {name!r}")
