"""``polish``, ``correlation`` and ``explain``: check, choose, run, fuse."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ssa_fast import validation
from ssa_fast.affinity import Affinity
from ssa_fast.ops import custom_op, fusion, torch_backend
from ssa_fast.ops.stage import decide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ssa_fast.ops.dispatch import Choice
    from ssa_fast.ops.fusion import Fuse, Weights
    from ssa_fast.ops.stage import StagePlan
    from ssa_fast.validation import Array, Features

Affinities: TypeAlias = "Affinity | Sequence[Affinity] | Mapping[str, Affinity]"


def polish(
    cam: Array,
    feats: Features,
    *,
    affinity: Affinities = Affinity(),  # noqa: B008 - frozen
    fuse: Fuse = "mean",
    weights: Weights = None,
    rescale: bool | None = None,
    size: tuple[int, int] | None = None,
    align_corners: bool = True,
    nonnegative: bool | None = None,
    method: str = "auto",
    backend: str = "auto",
    precision: str = "default",
) -> Any:
    """Complete a class activation map along the semantic structure of backbone features.

    With one stage this is SEAM's pixel correlation module (PCM, CVPR 2020), without its ``(B, L, L)`` affinity wherever
    that is large::

        cam = F.interpolate(cam, (H, W), mode="bilinear", align_corners=True).flatten(2)      # (B, K, L)
        x = feats.flatten(2) / (feats.flatten(2).norm(dim=1, keepdim=True) + 1e-5)            # (B, C, L)
        a = torch.relu(x.mT @ x)                                                              # (B, L, L)
        return (cam @ a / (a.sum(dim=1, keepdim=True) + 1e-5)).unflatten(2, (H, W))

    With several stages it is SSA-style inference (Sun & Li, arXiv 2111.03392): every stage polishes the CAM, the
    results are min–max rescaled per image and class, resized and fused.

    Args:
        cam: ``(h, w)``, ``(K, h, w)`` or ``(B, K, h, w)``; floating; a tensor or a NumPy array.
        feats: one stage ``(B, C, H, W)`` or ``(C, H, W)``, or a list, tuple or dict of stages. Any strides.
        affinity: what makes two pixels alike; one for all stages, or one per stage (sequence or dict like ``feats``).
        fuse: ``"mean"`` (Σ w·p / Σ w), ``"sum"`` (Σ w·p), ``"max"`` (max of w·p) or ``"product"`` (Π p^w) over stages.
        weights: one number ≥ 0 per stage, sequence or dict; default 1 each.
        rescale: min–max each stage's CAM to [0, 1], per image and class; a constant one becomes 0. Default: only where
            there are several stages.
        size: ``(H, W)`` of the result. Default: that of the stage with the most pixels.
        align_corners: of the bilinear resizing of the CAM and of the results.
        nonnegative: promise (True) or deny (False) that all features are ≥ 0; by default it is read from the data. A
            broken promise gives wrong numbers.
        method: ``"auto"``, ``"dense"``, ``"prototypes"``, ``"second_order"``, ``"tiled"`` or ``"resident"`` (GPU).
        backend: ``"auto"``, ``"torch"``, ``"triton"`` or ``"reference"`` (dense, differentiable).
        precision: of the matrix products of ``"tiled"`` and ``"resident"`` on Triton: ``"default"`` has half-precision
            operands (errors near 1e-5 of the largest value), ``"high"`` splits each number in two and is as accurate as
            float32. All else computes in float32 or better anyway. Sums are always float32.

    Returns:
        The polished CAM, same kind and rank as ``cam``, ``(…, H, W)``, on its device; float64 if any input is, else
        float32, which also accumulates half and bfloat16 inputs. NaN stays NaN, and Inf comes out as Inf or NaN.

    Raises:
        ValueError: a shape, size, device, option value or promise that does not fit; an input that requires grad with
            grad mode on; a ``method`` or ``backend`` that cannot do this exactly.
        TypeError: an integer, complex or otherwise unsuitable argument.
    """
    seed, stages = _read(cam, feats)
    for argument, value in (("rescale", rescale), ("align_corners", align_corners)):
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{argument}: expected True or False, got {value!r}")
    if rescale is None:
        rescale = len(stages) > 1
    fusion.options(stages, size, fuse, weights)  # told before any work
    maps = polish_stages(
        seed.tensor,
        stages,
        affinity=affinity,
        align_corners=align_corners,
        nonnegative=nonnegative,
        method=method,
        backend=backend,
        precision=precision,
    )
    fused = fusion.fuse_stages(
        maps,
        size=size,
        fuse=fuse,
        weights=weights,
        rescale=rescale,
        align_corners=align_corners,
        backend=backend,
    )
    return seed.restore(fused)


def polish_stages(
    cam: Tensor,
    stages: Mapping[str, Tensor],
    *,
    affinity: Affinities = Affinity(),  # noqa: B008 - frozen
    align_corners: bool = True,
    nonnegative: bool | None = None,
    method: str = "auto",
    backend: str = "auto",
    precision: str = "default",
) -> dict[str, Tensor]:
    """Each stage's polished CAM at its own size, not rescaled: ``(B, K, h, w)`` in, ``{stage: (B, K, H, W)}`` out."""
    if backend != "reference":
        validation.check_no_grad({"cam": cam, **{f"feats ({name})": stage for name, stage in stages.items()}})
    if torch.compiler.is_compiling() and backend != "reference":
        return {
            name: custom_op.polish_stage(
                cam,
                stages[name],
                each,
                nonnegative=nonnegative,
                method=method,
                backend=backend,
                precision=precision,
                align_corners=align_corners,
            )
            for name, each in _checked(cam, stages, affinity, nonnegative).items()
        }
    works = _works(cam, stages, affinity, nonnegative, method, backend, precision)
    return {name: work.run(cam, align_corners) for name, work in works.items()}


def explain(
    cam: Array,
    feats: Features,
    *,
    affinity: Affinities = Affinity(),  # noqa: B008 - frozen
    nonnegative: bool | None = None,
    method: str = "auto",
    backend: str = "auto",
    precision: str = "default",
) -> dict[str, Choice]:
    """Print and return how ``polish`` would do each stage: method, backend, predicted cost and the reason.

    Takes the arguments of ``polish`` that bear on the choice, and raises what it raises for them; computes nothing but
    the features' sign.
    """
    seed, stages = _read(cam, feats)
    works = _works(seed.tensor, stages, affinity, nonnegative, method, backend, precision)
    for name, work in works.items():
        p, choice = work.problem, work.choice
        print(
            f"{name}: C={p.C}, L={p.L:,}, K={p.K}, B={p.B}: {choice.method} on {choice.backend}, "
            f"{f'{choice.config}, ' if choice.config else ''}"
            f"{choice.cost.flops / 1e9:,.3g} GFLOP, {choice.cost.traffic / 2**20:,.3g} MiB moved, "
            f"{choice.cost.extra_memory / 2**20:,.3g} MiB extra memory\n    {choice.why}"
        )
    return {name: work.choice for name, work in works.items()}


def correlation(
    feats: Features,
    point: tuple[float, float],
    *,
    size: tuple[int, int] | None = None,
    affinity: Affinities = Affinity(),  # noqa: B008 - frozen
) -> Any:
    """One pixel's affinity ``φ(x_iᵀ x_j)`` to all others, per stage (the SSA paper's Figure 1).

    Args:
        feats: one stage ``(B, C, H, W)`` or ``(C, H, W)``, or a list, tuple or dict of stages.
        point: ``(y, x)``: fractions of height and width in [0, 1], so that it means the same place in every stage, or
            pixels of an image of ``size``, where that is given.
        size: ``(H, W)`` of the image in whose pixels ``point`` is given.
        affinity: φ and centring, one or one per stage; ``steps`` and ``sum_eps`` play no part.

    Returns:
        ``(B, H, W)`` (``(H, W)`` for an unbatched stage), float32 or float64, NumPy for NumPy; for several stages a
        list, or a dict if ``feats`` is one.

    Raises:
        ValueError, TypeError: as in ``polish``; a point outside the image.
    """
    stages = validation.read_stages(feats, _device_of(feats))
    validation.check_no_grad({f"feats ({name})": stage for name, stage in stages.items()})
    y, x = _fraction(point, size)
    affinities_of = validation.per_stage("affinity", affinity, stages, Affinity)
    many = isinstance(feats, (Mapping, list, tuple))
    given: list[Any] = list(feats.values() if isinstance(feats, Mapping) else feats) if many else [feats]
    found: dict[str, Any] = {}
    for (name, stage), original in zip(stages.items(), given, strict=True):
        with torch.autocast(stage.device.type, enabled=False):
            affinities = _correlate(stage, y, x, affinities_of[name])
        affinities = affinities if original.ndim == 4 else affinities[0]
        found[name] = affinities if isinstance(original, torch.Tensor) else affinities.cpu().numpy()
    if not many:
        return next(iter(found.values()))
    return found if isinstance(feats, Mapping) else list(found.values())


def _works(
    cam: Tensor,
    stages: Mapping[str, Tensor],
    affinity: Affinities,
    nonnegative: bool | None,
    method: str,
    backend: str,
    precision: str,
) -> dict[str, StagePlan]:
    """Decide every stage before any is computed, so that a refusal costs nothing."""
    affinities = _checked(cam, stages, affinity, nonnegative)
    return {
        name: decide(
            cam, stage, affinities[name], nonnegative=nonnegative, method=method, backend=backend, precision=precision
        )
        for name, stage in stages.items()
    }


def _checked(
    cam: Tensor, stages: Mapping[str, Tensor], affinity: Affinities, nonnegative: bool | None
) -> dict[str, Affinity]:
    """Each stage's affinity, once CAM, stages and options are known to go together."""
    validation.check_together(cam, stages)
    if nonnegative is not None and not isinstance(nonnegative, bool):
        raise TypeError(f"nonnegative: expected True, False or None, got {nonnegative!r}; use bool(...)")
    return validation.per_stage("affinity", affinity, stages, Affinity)


def _read(cam: Array, feats: Features) -> tuple[validation.Cam, dict[str, Tensor]]:
    """A CAM and stages in one form; NumPy arrays go where the tensors among the arguments are."""
    seed = validation.read_cam(cam, _device_of(feats))
    return seed, validation.read_stages(feats, seed.tensor.device)


def _device_of(feats: Features) -> torch.device | None:
    """The device of the first tensor among the stages, None if all are NumPy."""
    each = feats.values() if isinstance(feats, Mapping) else feats if isinstance(feats, (list, tuple)) else [feats]
    for stage in each:  # a loop, since PyTorch 2.6 compiles no next()
        if isinstance(stage, torch.Tensor):
            return stage.device
    return None


def _fraction(point: tuple[float, float], size: tuple[int, int] | None) -> tuple[float, float]:
    """The point as fractions of height and width; a pixel counts by its centre."""
    if not isinstance(point, (tuple, list)) or len(point) != 2 or not all(isinstance(n, Real) for n in point):
        raise TypeError(f"point: expected (y, x), two numbers, got {point!r}")
    if size is None:
        y, x = float(point[0]), float(point[1])
        if not (0 <= y <= 1 and 0 <= x <= 1):
            raise ValueError(f"point: expected fractions in [0, 1], got {point}; give size=(H, W) for pixels")
        return y, x
    H, W = validation.check_size("size", size)
    if not (0 <= point[0] < H and 0 <= point[1] < W):
        raise ValueError(f"point: expected (y, x) inside the {H}×{W} image, got {point}")
    return (point[0] + 0.5) / H, (point[1] + 0.5) / W


def _correlate(stage: Tensor, y: float, x: float, affinity: Affinity) -> Tensor:
    """``(B, H, W)`` affinities of the pixel that covers the fractions ``(y, x)``."""
    H, W = stage.shape[2:]
    at = min(int(y * H), H - 1) * W + min(int(x * W), W - 1)
    pixels = torch_backend.Pixels(stage, affinity, torch.float64 if stage.dtype == torch.float64 else torch.float32)
    source = pixels.unit(at, at + 1).mT  # [B, 1, C]
    cosines = [source @ pixels.unit(lo, hi) for lo, hi in pixels.tiles()]
    return affinity.apply_(torch.cat(cosines, dim=2)).reshape(-1, H, W)
