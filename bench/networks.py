"""Goes once bench/gpu_timing.py has moved to ``bench.problems``."""

from bench.problems import *  # noqa: F403
from bench.problems import Problem


class Network(Problem):
    def __init__(self, B: int, K: int, size: int, net: str = "resnet50") -> None:
        super().__init__(B, K, 3, size, size, size // 32, size // 32, dtype="float32", layout="", net=net)

    @property
    def size(self) -> int:
        return self.H
