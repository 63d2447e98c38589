"""A demo without downloads: generated scenes, a classifier trained on them, and SSA applied to it."""

from ssa_fast.demo.comparison import DemoReport, Score, run

__all__ = ["DemoReport", "Score", "run"]
