"""Stage features and seed CAMs of classification networks: any ``nn.Module`` from images to logits."""

from __future__ import annotations

from ssa_fast.models.anatomy import Anatomy, examine

__all__ = ["Anatomy", "examine"]
