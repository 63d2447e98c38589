"""ssa_fast: complete class activation maps at inference time, exactly, without the HW×HW affinity matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ssa_fast.affinity import Affinity
from ssa_fast.api import correlation, explain, polish

if TYPE_CHECKING:
    from ssa_fast.ssa import SSA, SSAResult

__version__ = "0.1.0"
__all__ = ["SSA", "Affinity", "SSAResult", "__version__", "correlation", "explain", "polish"]


def __getattr__(name: str) -> Any:
    """SSA on whole models is imported when first asked for: ``import ssa_fast`` needs torch and NumPy only."""
    if name in ("SSA", "SSAResult"):
        from ssa_fast import ssa

        return getattr(ssa, name)
    raise AttributeError(f"module 'ssa_fast' has no attribute {name!r}")
