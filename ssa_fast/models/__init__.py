"""Stage features and seed CAMs of classification networks: any ``nn.Module`` from images to logits."""

from __future__ import annotations

from ssa_fast.models.description import ModelDescription, StageDescription, SweepRow, describe, light_half, sweep
from ssa_fast.models.inspect import ModelInfo, inspect_model

__all__ = [
    "ModelDescription",
    "ModelInfo",
    "StageDescription",
    "SweepRow",
    "describe",
    "inspect_model",
    "light_half",
    "sweep",
]
