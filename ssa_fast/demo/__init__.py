"""A demo that needs no network and no data: generated scenes, a classifier trained on their labels, and SSA on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssa_fast.demo.comparison import DemoReport, Score, run

__all__ = ["DemoReport", "Score", "run"]


def __getattr__(name: str) -> Any:
    """Imported when first asked for: ``python -m ssa_fast.demo.train`` has no need of SSA."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("ssa_fast.demo.comparison"), name)
    raise AttributeError(f"module 'ssa_fast.demo' has no attribute {name!r}")
