"""Stage features and seed CAMs of classification networks: any ``nn.Module`` from images to logits."""

from __future__ import annotations

from ssa_fast.models.anatomy import Anatomy, examine
from ssa_fast.models.description import ModelDescription, StageDescription, SweepRow, describe, light_half, sweep

__all__ = ["Anatomy", "ModelDescription", "StageDescription", "SweepRow", "describe", "examine", "light_half", "sweep"]
