"""What ssa_fast is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


def dense_pcm(cam: Tensor, f: Tensor) -> Tensor:
    """SEAM's pixel correlation module as its users run it, from ``(B, K, h, w)`` and ``(B, C, H, W)``."""
    B, _, H, W = f.shape
    cam = F.interpolate(cam, (H, W), mode="bilinear", align_corners=True).view(B, -1, H * W)
    f = f.reshape(B, -1, H * W)
    f = f / (torch.norm(f, dim=1, keepdim=True) + 1e-5)
    affinity = F.relu(torch.matmul(f.transpose(1, 2), f), inplace=True)
    affinity = affinity / (torch.sum(affinity, dim=1, keepdim=True) + 1e-5)
    return torch.matmul(cam, affinity).view(B, -1, H, W)
