"""Hold the project's goals on a GPU as data, and judge figures by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """Bound a figure twice: by what it must reach and by a stretch goal, ``at_most`` or at least."""

    what: str
    must: float
    stretch: float | None = None
    at_most: bool = False
    unit: str = ""

    def verdict(self, value: float | None) -> str:
        """Return ``"stretch"``, ``"must"``, ``"missed"``, or ``"unknown"`` where there is no figure."""
        if value is None or value != value:
            return "unknown"
        sign = 1 if self.at_most else -1
        if self.stretch is not None and sign * value <= sign * self.stretch:
            return "stretch"
        return "must" if sign * value <= sign * self.must else "missed"

    def row(self, value: float | None, **more: Any) -> dict[str, Any]:
        """Return the goal, the figure and the verdict, as a row's ``goals`` hold them."""
        given = {"what": self.what, "value": value, "unit": self.unit, "must": self.must, "stretch": self.stretch}
        return given | {"direction": "<=" if self.at_most else ">=", "verdict": self.verdict(value)} | more


GOALS = {
    "product": Goal("time over cuBLAS's xᵀx alone", 0.80, 0.58, at_most=True, unit="×"),
    "product_256": Goal("time over cuBLAS's xᵀx alone, C=256", 0.90, 0.65, at_most=True, unit="×"),
    "dense_float32": Goal("speedup over dense PyTorch, float32", 12, 20, unit="×"),
    "dense_16": Goal("speedup over dense PyTorch, same dtype", 4, 7, unit="×"),
    "flex_256": Goal("speedup over FlexAttention, C=256", 2, 3, unit="×"),
    "flex_1024": Goal("speedup over FlexAttention, C>=1024", 5, 10, unit="×"),
    "chunked_256": Goal("speedup over chunked PyTorch, C=256", 2.5, 4, unit="×"),
    "chunked_2048": Goal("speedup over chunked PyTorch, C=2048", 1.7, 2.5, unit="×"),
    "bandwidth": Goal("share of the copy's bandwidth at two reads", 0.80, 0.90),
    "prototypes_dense_16k": Goal("prototypes' speedup over dense PyTorch, same dtype, L=16k", 60, 100, unit="×"),
    "prototypes_dense_65k": Goal("prototypes' speedup over dense PyTorch, same dtype, L=65k", 400, 600, unit="×"),
    "algebra_eager": Goal("speedup over the same algebra in eager PyTorch", 2.5, 3, unit="×"),
    "algebra_compiled": Goal("speedup over the same algebra compiled", 1.5, 2, unit="×"),
    "graph": Goal("small stage in a CUDA graph", 12, 6, at_most=True, unit="µs"),
    "eager": Goal("small stage, eager call", 25, 15, at_most=True, unit="µs"),
    "small_dense": Goal("speedup over dense PyTorch, small signed stage", 1.0, unit="×"),
    "small_compiled": Goal("speedup over dense PyTorch compiled, small signed stage", 1.0, unit="×"),
    "backbone": Goal("all stages polished and fused, share of the backbone's forward", 0.05, 0.02, at_most=True),
    "backbone_graph": Goal("the same, both in a CUDA graph", 0.05, 0.02, at_most=True),
    "memory_prototypes": Goal("prototypes' extra memory", 32, None, at_most=True, unit="MiB"),
    "memory_tiled": Goal("tiled's extra memory but for its operands", 256, None, at_most=True, unit="MiB"),
    "error_default": Goal("error against float64", 1e-4, 3e-5, at_most=True),
    "error_high": Goal("error against float64, high precision and prototypes", 1e-6, 5e-8, at_most=True),
}


def error_goal(method: str, precision: str) -> Goal:
    """Return the goal of a method's error."""
    return GOALS["error_high" if precision == "high" or method == "prototypes" else "error_default"]
