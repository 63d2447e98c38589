"""A demo without downloads: generated scenes, a classifier trained on them, and SSA applied to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssa_fast.demo.comparison import DemoReport, Score, run

__all__ = ["DemoReport", "Score", "run"]


def __getattr__(name: str) -> Any:
    """Import the comparison, and with it SSA, on first use; training does not need it."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("ssa_fast.demo.comparison"), name)
    raise AttributeError(f"module 'ssa_fast.demo' has no attribute {name!r}")
