"""A demo without downloads: photographs and generated scenes, classifiers trained on them, and SSA applied to both."""

from ssa_fast.demo import photographs
from ssa_fast.demo.comparison import DemoReport, Score, check, run

__all__ = ["DemoReport", "Score", "check", "photographs", "run"]
