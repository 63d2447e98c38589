"""Boxes, prompts, pseudo-masks and pictures from class activation maps."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ssa_fast.localize.boxes import box_scores, boxes
from ssa_fast.localize.masks import background_of, masks, save_mask
from ssa_fast.localize.options import PostprocessOptions
from ssa_fast.localize.overlay import overlay
from ssa_fast.localize.prompts import Prompts, prompts
from ssa_fast.localize.refinement import refine
from ssa_fast.localize.threshold import estimate_background

if TYPE_CHECKING:
    from ssa_fast.localize.panel_images import PanelRow, panel, panels

__all__ = [
    "PanelRow",
    "PostprocessOptions",
    "Prompts",
    "background_of",
    "box_scores",
    "boxes",
    "estimate_background",
    "masks",
    "overlay",
    "panel",
    "panels",
    "prompts",
    "refine",
    "save_mask",
]


def __getattr__(name: str) -> Any:
    """Import what needs Pillow on first use, so that the rest needs torch and NumPy only."""
    if name in ("PanelRow", "panel", "panels"):
        return getattr(import_module("ssa_fast.localize.panel_images"), name)
    raise AttributeError(f"module 'ssa_fast.localize' has no attribute {name!r}")
