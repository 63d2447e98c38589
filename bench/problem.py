"""Goes once bench/gpu has moved to ``bench.problems``."""

from bench.problems import *  # noqa: F403
