"""Stage features and seed CAMs of classification networks: any ``nn.Module`` from images to logits."""

from __future__ import annotations

from ssa_fast.models.inspect import ModelDescription, ModelInfo, StageDescription, describe, inspect_model

__all__ = ["ModelDescription", "ModelInfo", "StageDescription", "describe", "inspect_model"]
