"""Boxes, pseudo-masks and panels from class activation maps."""

from __future__ import annotations

from ssa_fast.localize.boxes import box_scores, boxes
from ssa_fast.localize.masks import background_of, masks, save_mask
from ssa_fast.localize.options import PostprocessOptions
from ssa_fast.localize.overlay import PanelRow, overlay, panel
from ssa_fast.localize.refinement import refine
from ssa_fast.localize.threshold import estimate_background

__all__ = [
    "PanelRow",
    "PostprocessOptions",
    "background_of",
    "box_scores",
    "boxes",
    "estimate_background",
    "masks",
    "overlay",
    "panel",
    "refine",
    "save_mask",
]
