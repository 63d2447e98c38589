"""Check and reshape the CAMs that a caller gives, and check their images."""

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
            f"cams: expected shape (B, K, H, W), (K, H, W) or (H, W), got {tuple(cams.shape)}; reshape them, or take a "
            "plane of volumes, such as cams[:, :, z]"
        )
    return cams.detach().float().cpu().reshape((1,) * (4 - cams.ndim) + tuple(cams.shape))


def value_range(maps: Tensor) -> tuple[float, float, bool]:
    """Return the least and the largest value, NaN apart, and whether there is NaN."""
    low, high = maps.aminmax()
    if has_nan := bool(low.isnan()):
        low, high = maps.nan_to_num(0).aminmax()
    return float(low), float(high), has_nan


def check_pixels(images: Tensor, count: int) -> None:
    """Raise TypeError or ValueError unless ``images`` are ``count`` images (B, 3, H, W) or (B, 1, H, W) in [0, 1]."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images: expected a floating-point tensor in [0, 1], got {kind}; divide 8-bit images by 255")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) != count or images.numel() == 0:
        raise ValueError(
            f"images: expected ({count}, 3, H, W), the images of these CAMs, got {tuple(images.shape)}; "
            "pass the batch that the CAMs were made from, before normalisation"
        )
    low, high = images.detach().aminmax()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"images: expected values in [0, 1], got {low:.3g} to {high:.3g}; undo the normalisation")
