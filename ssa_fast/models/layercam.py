"""LayerCAM (Jiang et al., TIP 2021) over several layers: positive gradients weight the features pixel by pixel.

With the features ``A`` of a layer and the gradient ``G = dy_k / dA`` of a class's logit, the layer's map is
``M = relu(sum_c relu(G_c) A_c)``, scaled to ``tanh(2 M / max M)`` as the paper scales its shallow layers. The layers'
maps are resized to the largest and averaged; the paper takes the maximum, which polished worse (docs/seeds.md).
"""

from __future__ import annotations

import warnings
from math import prod
from typing import TYPE_CHECKING

import torch

from ssa_fast.ops.resize import resize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

GAMMA = 2.0  # the paper's
HALF_SCALE = 1024.0  # of scores: a gradient of a fine layer, about 1 over its pixels, has few digits in half precision
SCORES_PER_PASS = 8  # whose gradients are in memory together


def layercam(features: Sequence[Tensor], gradients: Sequence[Tensor | None], align_corners: bool) -> Tensor:
    """Return the map (B, h, w) of one class from layers (B, C, h_l, w_l) and its gradients, at the largest one's size.

    A layer without gradient, on which the class does not depend, has no map.
    """
    maps = [
        torch.einsum("bc...,bc...->b...", gradient.to(each.dtype).relu(), each).relu()[:, None]
        for each, gradient in zip(features, gradients, strict=True)
        if gradient is not None
    ]
    size = max((each.shape[2:] for each in features), key=prod)
    scaled = []
    for each in maps:
        peak = each.amax(tuple(range(2, each.ndim)), keepdim=True)
        scaled.append(resize(torch.tanh(GAMMA * each / peak.where(peak != 0, 1.0)), size, align_corners))
    return torch.stack(scaled).mean(0)[:, 0]


def iter_gradients(scores: Sequence[Tensor], leaves: Sequence[Tensor]) -> Iterator[list[Tensor | None]]:
    """Yield each scalar score's gradients of the leaves, None where it does not depend on one; the graph is freed."""
    for k, score in enumerate(scores):
        more = k + 1 < len(scores)
        yield list(torch.autograd.grad(score, list(leaves), retain_graph=more, allow_unused=True))


def iter_batched_gradients(scores: Sequence[Tensor], leaves: Sequence[Tensor]) -> Iterator[list[Tensor | None]]:
    """Yield what ``iter_gradients`` does, several scores per backward pass; one by one if the network resists.

    That takes as long on a CPU; a GPU computes small maps of several classes in the time of one. Functions without a
    rule for ``vmap`` and a lack of memory lead to single passes, which give the same.
    """
    for start in range(0, len(scores), SCORES_PER_PASS):
        some = scores[start : start + SCORES_PER_PASS]
        try:
            found = _gradients_at_once(some, leaves)
        except RuntimeError:
            for score in some:
                yield list(torch.autograd.grad(score, list(leaves), retain_graph=True, allow_unused=True))
            continue
        yield from ([None if each is None else each[k] for each in found] for k in range(len(some)))


def _gradients_at_once(scores: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients (K, …) of K scores."""
    used: list[bool] = []

    def backward(weights: Tensor) -> tuple[Tensor, ...]:
        found = torch.autograd.grad(stacked, list(leaves), weights, retain_graph=True, allow_unused=True)
        used[:] = [each is not None for each in found]
        return tuple(each for each in found if each is not None)

    with torch.enable_grad():
        stacked = torch.stack(list(scores))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # of functions that run class by class
        rows = iter(torch.func.vmap(backward)(torch.eye(len(scores), dtype=stacked.dtype, device=stacked.device)))
    return [next(rows) if known else None for known in used]
