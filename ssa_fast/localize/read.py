"""Check and reshape the CAMs that a caller gives."""

from __future__ import annotations

from torch import Tensor


def read_cams(cams: Tensor) -> Tensor:
    """Return CAMs as a float32 CPU tensor (B, K, H, W); raise TypeError or ValueError for anything else."""
    if not isinstance(cams, Tensor) or not cams.is_floating_point():
        kind = cams.dtype if isinstance(cams, Tensor) else type(cams).__name__
        raise TypeError(
            f"cams: expected a floating-point tensor, got {kind}; convert with torch.as_tensor(...).float()"
        )
    if not 2 <= cams.ndim <= 4 or cams.numel() == 0:
        raise ValueError(
            f"cams: expected shape (B, K, H, W), (K, H, W) or (H, W), got {tuple(cams.shape)}; reshape them"
        )
    return cams.detach().float().cpu().reshape((1,) * (4 - cams.ndim) + tuple(cams.shape))
