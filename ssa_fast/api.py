"""The public functions: ``polish``, ``explain`` and ``correlation``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ssa_fast import validation
from ssa_fast.affinity import Affinity
from ssa_fast.arrays import detach, give, unbatch_cam
from ssa_fast.ops import custom_op, launch_plan
from ssa_fast.ops.explanation import Explanation
from ssa_fast.ops.features import UnitFeatures
from ssa_fast.ops.fusion import fuse as fuse_stages
from ssa_fast.ops.polish import polish_and_fuse, polish_own_and_fuse
from ssa_fast.ops.stage import plan_stages
from ssa_fast.validation import validate

if TYPE_CHECKING:
    from torch import Tensor

    from ssa_fast.arrays import CamLike, StagesLike
    from ssa_fast.layouts import Size
    from ssa_fast.validation import Affinities, Fuse, Grids, Layouts, Weights


def polish(
    cam: CamLike,
    feats: StagesLike,
    *,
    affinity: Affinities = Affinity(),  # noqa: B008 - frozen
    fuse: Fuse = "mean",
    weights: Weights = None,
    rescale: bool | None = None,
    size: Size | None = None,
    align_corners: bool = True,
    nonnegative: bool | None = None,
    layout: Layouts = None,
    grid: Grids = None,
    method: str = "auto",
    backend: str = "auto",
    precision: str = "default",
) -> Any:
    """Complete a class activation map along the semantic structure of backbone features.

    With one stage this is SEAM's pixel correlation module (PCM, CVPR 2020), without its ``(B, L, L)`` affinity wherever
    that is large:

        cam = F.interpolate(cam, (H, W), mode="bilinear", align_corners=True).flatten(2)      # (B, K, L)
        x = feats.flatten(2) / (feats.flatten(2).norm(dim=1, keepdim=True) + 1e-5)            # (B, C, L)
        a = torch.relu(x.mT @ x)                                                              # (B, L, L)
        return (cam @ a / (a.sum(dim=1, keepdim=True) + 1e-5)).unflatten(2, (H, W))

    With several stages it is SSA-style inference (Sun & Li, arXiv 2111.03392): every stage polishes the CAM, and the
    results are min–max rescaled per image and class, resized and fused.

    Volumes, such as scans and clips of video, are polished like images: ``(B, C, D, H, W)`` beside ``(B, K, d, h, w)``,
    always with all axes, resized trilinearly.

    Args:
        cam: ``(h, w)``, ``(K, h, w)`` or ``(B, K, h, w)``; floating, of any sign; a tensor or a NumPy array. Beside
            several images ``(B, h, w)`` is one map for each. A list, as torch-cam's, has one CAM or one per stage. Of
            volumes ``(B, K, d, h, w)``.
        feats: One stage ``(B, C, H, W)`` or ``(C, H, W)``, or a list, tuple or dict of stages. Any strides. Of volumes
            ``(B, C, D, H, W)``.
        affinity: How alike two pixels are; one for all stages, or one per stage (sequence or dict like ``feats``).
        fuse: ``"mean"`` (Σ w·p / Σ w), ``"sum"`` (Σ w·p), ``"max"`` (max of w·p) or ``"product"`` (Π p^w) over stages.
        weights: One number ≥ 0 per stage, sequence or dict; default 1 each.
        rescale: Min–max rescale each stage's CAM to [0, 1], per image and class; a constant one becomes 0. Default:
            only if there are several stages.
        size: ``(H, W)`` of the result, of volumes ``(D, H, W)``. Default: that of the stage with the most pixels.
        align_corners: Of the bilinear or trilinear resizing of the CAM and of the results.
        nonnegative: Promise (True) or deny (False) that all features are ≥ 0; by default it is read from the data. A
            broken promise gives wrong numbers.
        layout: Of ``feats``: ``"nchw"``, ``"nhwc"`` or ``"tokens"``, ``(B, N, C)``, of which up to 8 tokens before the
            patches are dropped; one for all stages or one per stage; read as views. Default: ``"nchw"``, but what
            cannot be a stage of the CAM's image is refused. Of volumes ``"nchw"`` and ``"nhwc"`` have the depth before
            the height.
        grid: ``(H, W)`` of the patches of ``"tokens"``, one for all stages or one per stage. Default: the only one with
            the CAM's ratio of sides. Of volumes ``(D, H, W)``, without a default.
        method: ``"auto"``, ``"dense"``, ``"prototypes"``, ``"second_order"``, ``"tiled"`` or ``"resident"`` (GPU).
        backend: ``"auto"``, ``"torch"``, ``"triton"`` or ``"reference"`` (dense, differentiable).
        precision: Of the matrix products of ``"tiled"`` and ``"resident"`` on Triton: ``"default"`` has half-precision
            operands (errors near 1e-5 of the largest value), ``"high"`` splits each number in two and is as accurate as
            float32. Everything else is computed in float32 or better anyway. Sums are always float32.

    Returns:
        The polished CAM, same kind and rank as ``cam``, ``(…, [D,] H, W)``, on its device; float64 if any input is,
        else float32, in which half and bfloat16 inputs are accumulated too. NaN stays NaN; Inf comes out as Inf or NaN.

    Raises:
        ValueError: A shape, size, device, option value or promise that does not fit; a ``method`` or ``backend`` that
            cannot do this exactly.
        TypeError: An integer, complex or otherwise unsuitable argument.

    Warns:
        InputWarning: An input requires grad with grad mode on, which only ``backend="reference"`` keeps; ``feats`` may
            well have another layout.
    """
    options = (affinity, fuse, weights, rescale, size, align_corners, nonnegative, method, backend, precision)
    key = launch_plan.call_key(cam, feats, (*options, layout, grid))
    if plan := launch_plan.find(key):
        assert isinstance(cam, torch.Tensor)
        (polished,) = plan.replay(launch_plan.inputs_of(cam, feats))
        return unbatch_cam(polished, cam.ndim)
    request = validate(
        cam,
        feats,
        affinity=affinity,
        fuse=fuse,
        weights=weights,
        rescale=rescale,
        size=size,
        align_corners=align_corners,
        nonnegative=nonnegative,
        layout=layout,
        grid=grid,
        method=method,
        backend=backend,
        precision=precision,
    )
    give(request.notes, stacklevel=2)
    if torch.compiler.is_compiling() and backend != "reference":
        cams = request.cams * (len(request.stages) // len(request.cams))
        maps = dict(zip(request.stages, map(custom_op.polish_stage, cams, request.stages.values()), strict=True))
        return request.restore(fuse_stages(maps, request.fusion))
    if len(request.cams) > 1:
        return request.restore(polish_own_and_fuse(request.cams, request.stages, request.fusion))
    if request.notes:
        key = None  # a replay gives no note
    (polished,) = polish_and_fuse(
        request.cams[0], request.stages, request.fusion, key, launch_plan.inputs_of(cam, feats)
    )
    return request.restore(polished)


def explain(cam: CamLike, feats: StagesLike, **options: Any) -> Explanation:
    """Print and return how ``polish`` would do each stage and the fusion: method, backend, predicted cost, reason.

    Takes the arguments of ``polish`` and raises what it raises for them; computes nothing but the features' sign.

    Returns:
        A dict of ``Choice`` by stage, whose ``fusion`` is the choice for the fusion (None for a single stage that is
        not rescaled). ``str()`` of it is the table that is printed.
    """
    request = validate(cam, feats, **options)
    give(request.notes, stacklevel=2)
    explanation = Explanation(plan_stages(request.stages, read_signs=True), request.fusion)
    print(explanation)
    return explanation


def correlation(
    feats: StagesLike,
    point: tuple[float, ...],
    *,
    size: Size | None = None,
    affinity: Affinities = Affinity(),  # noqa: B008 - frozen
    layout: Layouts = None,
    grid: Grids = None,
) -> Any:
    """Return one pixel's affinity ``φ(x_iᵀ x_j)`` to all others, per stage (the SSA paper's Figure 1).

    Args:
        feats: One stage ``(B, C, H, W)`` or ``(C, H, W)``, or a list, tuple or dict of stages. Of volumes
            ``(B, C, D, H, W)``.
        point: ``(y, x)``, of volumes ``(z, y, x)``: fractions of the sides in [0, 1], so that it is the same place in
            every stage; or, if ``size`` is given, pixels of an image of that size.
        size: ``(H, W)`` of the image, or ``(D, H, W)`` of the volume, in whose pixels ``point`` is given.
        affinity: φ and centring, one or one per stage; ``steps`` and ``sum_eps`` are not used.
        layout: As in ``polish``.
        grid: As in ``polish``; one that is not given has the ratio of ``size``, else is square.

    Returns:
        ``(B, H, W)`` (``(H, W)`` for an unbatched stage), of volumes ``(B, D, H, W)``, float32 or float64, NumPy for
        NumPy; for several stages a list, or a dict if ``feats`` is one.

    Raises:
        ValueError, TypeError: As in ``polish``; a point outside the image.
    """
    place = validation.check_point(point, size)
    stages = validation.read_stages(feats, layout, grid, size=size and validation.check_size("size", size, len(place)))
    validation.check_same_dims(point, stages)
    maps, lost = detach([f"feats ({name})" for name in stages], [stage.map for stage in stages.values()])
    give([*(stage.note for stage in stages.values() if stage.note), *lost], stacklevel=2)
    affinity_of = validation.per_stage("affinity", affinity, stages, Affinity)
    several = isinstance(feats, (Mapping, list, tuple))
    given: list[Any] = list(feats.values() if isinstance(feats, Mapping) else feats) if several else [feats]
    found: dict[str, Any] = {}
    for (name, stage), each, original in zip(stages.items(), maps, given, strict=True):
        with torch.autocast(each.device.type, enabled=False):
            affinities = _correlate(each, place, affinity_of[name])
        affinities = affinities if stage.batched else affinities[0]
        found[name] = affinities.cpu().numpy() if isinstance(original, np.ndarray) else affinities
    if not several:
        return next(iter(found.values()))
    return found if isinstance(feats, Mapping) else list(found.values())


def _correlate(stage: Tensor, place: tuple[float, ...], affinity: Affinity) -> Tensor:
    """Return ``(B, [D,] H, W)`` affinities of the pixel that covers the fractions ``place`` of the sides."""
    size, index = stage.shape[2:], 0
    for share, side in zip(place, size, strict=True):
        index = index * side + min(int(share * side), side - 1)
    features = UnitFeatures(stage, affinity, torch.float64 if stage.dtype == torch.float64 else torch.float32)
    source = features.unit(index, index + 1).mT  # [B, 1, C]
    cosines = [source @ features.unit(lo, hi) for lo, hi in features.tiles()]
    return affinity.apply_(torch.cat(cosines, dim=2)).reshape(-1, *size)
