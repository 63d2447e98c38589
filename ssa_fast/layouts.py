"""Read features as stages ``(B, C, H, W)``: announced layouts as views, and doubts about what was not announced.

A shape alone does not say which axis holds the channels. The CAM does, for the stage of its image has its aspect ratio:
over every map of torchvision's classifiers, at 15 image sizes, the two differ by 1.6 pixels at most (``misfit``), by
less than 1 wherever another layout would fit, too (``tests/inputs/test_layouts.py``).

Features of rank 5 are volumes, ``(B, C, D, H, W)``. Of their aspect ratio only height and width count, as networks of
videos shrink time by other factors.
"""

from __future__ import annotations

import math
from math import prod
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor

RANKS = {"nchw": 4, "nhwc": 4, "tokens": 3}  # of a batch of images, by layout
AXES = {
    "nchw": "(B, C, H, W) or (C, H, W), or (B, C, D, H, W) of volumes",
    "nhwc": "(B, H, W, C) or (H, W, C), or (B, D, H, W, C) of volumes",
    "tokens": "(B, N, C) or (N, C)",
}
MAX_PREFIX_TOKENS = 8  # class, distillation and register tokens before the patches
USUAL_PREFIXES = (0, 1, 2, 4, 5)  # none; class; with distillation; 4 registers; both

# In pixels, see ``misfit``.
CONTRADICTS = 1.65  # more than rounding gives, even after convolutions without padding
FITS = 0.5  # what rounding gives
DOUBTFUL = 0.4

Size: TypeAlias = "tuple[int, ...]"  # (H, W), of a volume (D, H, W)


class Doubt(NamedTuple):
    """What features look like that were not announced, with what to pass; ``refuse`` if they cannot be a stage."""

    looks: str
    advice: str
    refuse: bool


def view_as_stage(argument: str, features: Tensor, layout: str, grid: Size | None, aspect: Size | None) -> Tensor:
    """Return the view ``([B,] C, H, W)`` or ``(B, C, D, H, W)`` of features whose layout was announced.

    Args:
        argument: What the caller calls them.
        features: Of the layout's rank, or of one less for a single image; of one more for volumes, which are batched.
        layout: A key of ``RANKS``.
        grid: ``(H, W)`` or ``(D, H, W)`` of the patches, for tokens.
        aspect: A size in whose ratio a grid that was not given is looked for; default square.

    Raises:
        ValueError: Another rank, or tokens that do not fit the grid or have several.
    """
    volumes = layout != "tokens" and features.ndim == 5
    if features.ndim not in (RANKS[layout], RANKS[layout] - 1) and not volumes:
        other = "" if layout != "nchw" else "; for tokens (N, C) pass layout='tokens'" if features.ndim == 2 else ""
        raise ValueError(f"{argument}: expected shape {AXES[layout]}, got {tuple(features.shape)}{other}")
    if features.numel() == 0:
        raise ValueError(f"{argument}: expected at least one channel and one pixel, got shape {tuple(features.shape)}")
    if layout == "nhwc":
        return features.movedim(-1, 1 if volumes else -3)
    if layout == "tokens":
        tokens = features.shape[-2]
        sides = _check_grid(argument, tokens, grid) if grid else _find_grid(argument, tokens, aspect)
        return features[..., tokens - prod(sides) :, :].mT.unflatten(-1, sides)
    return features


def _check_grid(argument: str, tokens: int, grid: Size) -> Size:
    prefix = tokens - prod(grid)
    if not 0 <= prefix <= MAX_PREFIX_TOKENS:
        raise ValueError(
            f"grid: expected the patches of {argument}, {tokens} tokens with at most {MAX_PREFIX_TOKENS} before the "
            f"patches, got {' × '.join(map(str, grid))} = {prod(grid)}; drop what else is no patch"
        )
    return grid


def _find_grid(argument: str, tokens: int, aspect: Size | None) -> Size:
    if aspect is not None and len(aspect) == 3:
        raise ValueError(
            f"grid: expected the grid (D, H, W) of the patches of {argument} beside volumes, got none; pass "
            "grid=(D, H, W)"
        )
    any_prefix = range(MAX_PREFIX_TOKENS + 1)
    found = find_grids(tokens, aspect, USUAL_PREFIXES) or find_grids(tokens, aspect, any_prefix)
    if aspect in found:
        return aspect
    if len(found) == 1:
        return found[0]
    ratio = "square" if aspect is None else f"of the ratio {aspect[0]} : {aspect[1]}"
    got = "one of " + ", ".join(f"{h} × {w}" for h, w in found) if found else "none"
    raise ValueError(
        f"grid: expected the grid (H, W) of the patches of {argument}, as {tokens} tokens with at most "
        f"{MAX_PREFIX_TOKENS} before the patches may have {got} that is {ratio}; pass grid=(H, W)"
    )


def find_grids(tokens: int, aspect: Size | None, prefixes: Collection[int]) -> list[Size]:
    """Return the grids of exactly this aspect ratio (None: square) that ``tokens`` less one of ``prefixes`` fill."""
    h, w = aspect or (1, 1)
    grids: list[Size] = []
    for prefix in prefixes:
        patches = tokens - prefix
        height = int(math.sqrt(max(0, patches) * h / w) + 0.5)  # what torch.compile can follow
        if height and patches % height == 0 and height * height * w == patches * h:
            grids.append((height, patches // height))
    return grids


def misfit(grid: Size, aspect: Size | None) -> float:
    """Return by how many pixels height and width of two maps must have been rounded if they show the same image.

    With ``t`` the answer, both ratios of sides can be ``(H ± t) / (W ∓ t)`` of one ratio. Of an unknown aspect is only
    known that few images are longer than four times their shorter side.
    """
    H, W = grid[-2:]
    short, long = min(H, W), max(H, W)
    if aspect is None:
        return 0.0 if short == long else 0.6 if long <= 4 * short else math.inf
    h, w = aspect[-2:]
    return abs(H * w - W * h) / (H + W + h + w)


def find_doubt(shape: Sequence[int], aspect: Size | None, batches: Collection[int]) -> Doubt | None:
    """Return what makes a stage ``([B,] C, [D,] H, W)`` that was not announced look like another layout, or None.

    Two signs are needed for a refusal: as NCHW it does not fit the CAM, and as another layout with a usual number of
    channels it does; or it has one channel, which no network's stage has, and the tokens of a grid.

    Args:
        shape: Of the features, of rank 3 to 5.
        aspect: The CAM's ``([d,] h, w)``; None if there is no CAM.
        batches: Numbers of images that the CAM may have.
    """
    a, b, c = shape[-3:]
    if aspect is not None and (b, c) == aspect[-2:]:
        return None
    as_nchw, as_nhwc = misfit((b, c), aspect), misfit((a, b), aspect)
    if as_nchw > CONTRADICTS and as_nhwc <= FITS and c % 8 == 0:
        looks = {3: "(H, W, C)", 4: "(B, H, W, C)", 5: "(B, D, H, W, C)"}[len(shape)]
        return Doubt(looks, 'layout="nhwc"', refuse=True)
    if len(shape) == 3 and (doubt := _find_tokens((a, b, c), as_nchw, aspect, batches)):
        return doubt
    if len(shape) == 4 and as_nchw > CONTRADICTS and 1 in (a, b, c):
        axis = 1 + (a, b, c).index(1)
        if doubt := _find_tokens((*shape[:axis], *shape[axis + 1 :]), as_nchw, aspect, {shape[0]}):
            return doubt._replace(advice=f"squeeze({axis}) with {doubt.advice}")
    if as_nchw > DOUBTFUL and as_nhwc <= as_nchw / 3 and c % 32 == 0:
        return Doubt("channels last", 'layout="nhwc"', refuse=False)
    return None


def is_nchw(shape: Sequence[int], aspect: Size | None) -> bool:
    """Return whether features ``([B,] C, [D,] H, W)`` were announced as ``"nhwc"``: a memory format is no layout."""
    a, b, c = shape[-3:]
    return aspect is not None and misfit((a, b), aspect) > CONTRADICTS and misfit((b, c), aspect) <= FITS


def _find_tokens(shape: tuple[int, ...], as_nchw: float, aspect: Size | None, batches: Collection[int]) -> Doubt | None:
    """Return what makes ``(C, H, W)`` look like a sequence of tokens; ``as_nchw`` is its misfit as what it is."""
    a, b, c = shape
    tokens_as = 'layout="tokens", grid=(H, W)'
    for images, tokens, channels, prefixes, enough, looks, advice in (
        (a, b, c, USUAL_PREFIXES, DOUBTFUL, "tokens (B, N, C)", tokens_as),
        (a, c, b, (0,), DOUBTFUL, "flattened maps (B, C, N)", "unflatten(2, (H, W))"),
        (b, a, c, USUAL_PREFIXES, CONTRADICTS, "tokens (N, B, C)", f"transpose(0, 1) with {tokens_as}"),
    ):
        if images not in batches or channels % 16:
            continue
        grids = [grid for grid in find_grids(tokens, aspect, prefixes) if max(grid) > 1]
        refuse = as_nchw > enough or (as_nchw > 0 and channels % 32 == 0 and enough == DOUBTFUL)
        if grids and (refuse or a == 1):
            return Doubt(looks, advice.replace("(H, W)", str(grids[0])), refuse)
    if a == 1 and as_nchw > CONTRADICTS and (b % 16 == 0 or c % 16 == 0):
        return Doubt("tokens (B, N, C)", tokens_as, refuse=True)
    return None
