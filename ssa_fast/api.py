"""``polish``, ``correlation`` and ``explain``: check, choose, run, fuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
import torch.nn.functional as F

from ssa_fast import inputs, paths, reference
from ssa_fast.affinity import Affinity
from ssa_fast.dispatch import Choice, Problem, plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ssa_fast.inputs import Array, Features

Fuse: TypeAlias = Literal["mean", "max", "sum", "product"]
FUSES = ("mean", "max", "sum", "product")
Affinities: TypeAlias = "Affinity | Sequence[Affinity] | Mapping[str, Affinity]"
Weights: TypeAlias = "Sequence[float] | Mapping[str, float] | None"


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
    path: str = "auto",
    backend: str = "auto",
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
        path: ``"auto"``, ``"dense"``, ``"prototypes"``, ``"second_order"``, ``"tiled"`` or ``"resident"`` (GPU).
        backend: ``"auto"``, ``"torch"``, ``"triton"`` or ``"reference"`` (dense, differentiable).

    Returns:
        The polished CAM, same kind and rank as ``cam``, ``(…, H, W)``, on its device; float64 if any input is, else
        float32, which also accumulates half and bfloat16 inputs. NaN stays NaN, and Inf comes out as Inf or NaN.

    Raises:
        ValueError: a shape, size, device, option value or promise that does not fit; an input that requires grad with
            grad mode on; a ``path`` or ``backend`` that cannot do this exactly.
        TypeError: an integer, complex or otherwise unsuitable argument.
    """
    seed, stages = _read(cam, feats)
    for argument, value in (("rescale", rescale), ("align_corners", align_corners)):
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{argument}: expected True or False, got {value!r}")
    if rescale is None:
        rescale = len(stages) > 1
    _fusion(stages, size, fuse, weights)  # told before any work
    maps = polish_stages(
        seed.tensor,
        stages,
        affinity=affinity,
        align_corners=align_corners,
        nonnegative=nonnegative,
        path=path,
        backend=backend,
    )
    fused = fuse_stages(maps, size=size, fuse=fuse, weights=weights, rescale=rescale, align_corners=align_corners)
    return seed.restore(fused)


def polish_stages(
    cam: Tensor,
    stages: Mapping[str, Tensor],
    *,
    affinity: Affinities = Affinity(),  # noqa: B008 - frozen
    align_corners: bool = True,
    nonnegative: bool | None = None,
    path: str = "auto",
    backend: str = "auto",
) -> dict[str, Tensor]:
    """Each stage's polished CAM at its own size, not rescaled: ``(B, K, h, w)`` in, ``{stage: (B, K, H, W)}`` out."""
    if backend != "reference":
        inputs.check_no_grad({"cam": cam, **{f"feats ({name})": stage for name, stage in stages.items()}})
    works = _works(cam, stages, affinity, nonnegative, path, backend)
    with torch.autocast(cam.device.type, enabled=False):  # it would take the float32 out of the accumulation
        return {name: work.run(cam, align_corners) for name, work in works.items()}


def fuse_stages(
    maps: Mapping[str, Tensor],
    *,
    size: tuple[int, int] | None = None,
    fuse: Fuse = "mean",
    weights: Weights = None,
    rescale: bool = True,
    align_corners: bool = True,
) -> Tensor:
    """Rescale, resize and fuse polished CAMs ``{stage: (B, K, H, W)}`` into one ``(B, K, *size)``; see ``polish``."""
    size, weight = _fusion(maps, size, fuse, weights)
    fused: Tensor | None = None
    for name, polished in maps.items():
        polished = resize(minmax(polished) if rescale else polished, size, align_corners)
        if weight[name] != 1.0:
            polished = polished ** weight[name] if fuse == "product" else polished * weight[name]
        if fused is None:
            fused = polished
        elif fuse == "max":
            fused = torch.maximum(fused, polished)
        else:
            fused = fused * polished if fuse == "product" else fused + polished
    assert fused is not None
    return fused / sum(weight.values()) if fuse == "mean" else fused


def explain(
    cam: Array,
    feats: Features,
    *,
    affinity: Affinities = Affinity(),  # noqa: B008 - frozen
    nonnegative: bool | None = None,
    path: str = "auto",
    backend: str = "auto",
) -> dict[str, Choice]:
    """Print and return how ``polish`` would do each stage: path, backend, predicted cost and the reason.

    Takes the arguments of ``polish`` that bear on the choice, and raises what it raises for them; computes nothing but
    the features' sign.
    """
    seed, stages = _read(cam, feats)
    works = _works(seed.tensor, stages, affinity, nonnegative, path, backend)
    for name, work in works.items():
        p, choice = work.problem, work.choice
        print(
            f"{name}: C={p.C}, L={p.L:,}, K={p.K}, B={p.B}: {choice.path} on {choice.backend}, "
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
    stages = inputs.read_stages(feats, _device_of(feats))
    inputs.check_no_grad({f"feats ({name})": stage for name, stage in stages.items()})
    y, x = _fraction(point, size)
    affinities_of = inputs.per_stage("affinity", affinity, stages, Affinity)
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


def minmax(maps: Tensor) -> Tensor:
    """``(maps − min) / (max − min)`` over the last two dimensions; a constant map becomes 0, one with NaN all NaN.

    Constant means: but for the rounding of float32 sums, which a rescaling would otherwise blow up to a whole map.
    """
    # Not aminmax, whose derivative PyTorch 2.6 lacks: the reference backend is differentiable to the end.
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    span = high - low
    rounding = 32 * torch.finfo(torch.float32).eps * torch.maximum(low.abs(), high.abs())
    constant = span <= rounding
    # The divisor of a constant map is 1 and not its span, whose reciprocal would make the gradient infinite.
    return torch.where(constant, (maps - low) * 0, (maps - low) / torch.where(constant, 1.0, span))


def resize(maps: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    """Bilinear ``(B, K, h, w)`` → ``(B, K, *size)``; as it is if it has that size."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


@dataclass(frozen=True)
class _Work:
    """One stage with all that was decided about it."""

    stage: Tensor
    affinity: Affinity
    dtype: torch.dtype
    problem: Problem
    choice: Choice

    def run(self, cam: Tensor, align_corners: bool) -> Tensor:
        H, W = self.stage.shape[2:]
        rows = resize(cam.to(self.dtype), (H, W), align_corners).flatten(2)  # [B, K, L]
        if self.choice.backend == "reference":
            polished = reference.polish_stage(rows, self.stage.to(self.dtype).flatten(2), self.affinity)
        else:
            pixels = paths.Pixels(self.stage, self.affinity, self.dtype)
            polished = paths.polish_stage(rows, pixels, self.choice.path)
        return polished.unflatten(2, (H, W))


def _works(
    cam: Tensor,
    stages: Mapping[str, Tensor],
    affinity: Affinities,
    nonnegative: bool | None,
    path: str,
    backend: str,
) -> dict[str, _Work]:
    """Decide every stage before any is computed, so that a refusal costs nothing."""
    inputs.check_together(cam, stages)
    if nonnegative is not None and not isinstance(nonnegative, bool):
        raise TypeError(f"nonnegative: expected True, False or None, got {nonnegative!r}; use bool(...)")
    works = {}
    for name, each in inputs.per_stage("affinity", affinity, stages, Affinity).items():
        stage = stages[name]
        dtype = torch.float64 if torch.float64 in (cam.dtype, stage.dtype) else torch.float32
        B, C, H, W = stage.shape
        sign = nonnegative
        if sign is None and each.degree is not None and path not in ("dense", "tiled") and backend != "reference":
            sign = paths.Pixels(stage, each, stage.dtype).nonnegative()
        problem = Problem(B, cam.shape[1], C, H * W, each, sign, dtype.itemsize, stage.device.type)
        works[name] = _Work(stage, each, dtype, problem, plan(problem, path, backend))
    return works


def _read(cam: Array, feats: Features) -> tuple[inputs.Cam, dict[str, Tensor]]:
    """A CAM and stages in one form; NumPy arrays go where the tensors among the arguments are."""
    seed = inputs.read_cam(cam, _device_of(feats))
    return seed, inputs.read_stages(feats, seed.tensor.device)


def _device_of(feats: Features) -> torch.device | None:
    """The device of the first tensor among the stages, None if all are NumPy."""
    each = feats.values() if isinstance(feats, Mapping) else feats if isinstance(feats, (list, tuple)) else [feats]
    return next((stage.device for stage in each if isinstance(stage, torch.Tensor)), None)


def _fusion(
    maps: Mapping[str, Tensor], size: tuple[int, int] | None, fuse: Fuse, weights: Weights
) -> tuple[tuple[int, int], dict[str, float]]:
    """The options of fusion, checked: size of the result and weight by stage. ``maps`` or stages, for their sizes."""
    if fuse not in FUSES:
        raise ValueError(f"fuse: expected one of {', '.join(FUSES)}, got {fuse!r}")
    if size is None:
        largest = max(maps.values(), key=lambda polished: polished.shape[2] * polished.shape[3])
        size = (largest.shape[2], largest.shape[3])
    return inputs.check_size("size", size), _weights(weights, maps)


def _weights(weights: Weights, maps: Mapping[str, Tensor]) -> dict[str, float]:
    values = inputs.per_stage("weights", [1.0] * len(maps) if weights is None else weights, maps, Real)
    numbers = {name: float(weight) for name, weight in values.items()}
    if not all(weight >= 0 for weight in numbers.values()) or not 0 < sum(numbers.values()) < float("inf"):
        raise ValueError(f"weights: expected finite numbers >= 0, at least one > 0, got {list(numbers.values())}")
    return numbers


def _fraction(point: tuple[float, float], size: tuple[int, int] | None) -> tuple[float, float]:
    """The point as fractions of height and width; a pixel counts by its centre."""
    if not isinstance(point, (tuple, list)) or len(point) != 2 or not all(isinstance(n, Real) for n in point):
        raise TypeError(f"point: expected (y, x), two numbers, got {point!r}")
    if size is None:
        y, x = float(point[0]), float(point[1])
        if not (0 <= y <= 1 and 0 <= x <= 1):
            raise ValueError(f"point: expected fractions in [0, 1], got {point}; give size=(H, W) for pixels")
        return y, x
    H, W = inputs.check_size("size", size)
    if not (0 <= point[0] < H and 0 <= point[1] < W):
        raise ValueError(f"point: expected (y, x) inside the {H}×{W} image, got {point}")
    return (point[0] + 0.5) / H, (point[1] + 0.5) / W


def _correlate(stage: Tensor, y: float, x: float, affinity: Affinity) -> Tensor:
    """``(B, H, W)`` affinities of the pixel that covers the fractions ``(y, x)``."""
    H, W = stage.shape[2:]
    at = min(int(y * H), H - 1) * W + min(int(x * W), W - 1)
    pixels = paths.Pixels(stage, affinity, torch.float64 if stage.dtype == torch.float64 else torch.float32)
    source = pixels.unit(at, at + 1).mT  # [B, 1, C]
    cosines = [source @ pixels.unit(lo, hi) for lo, hi in pixels.tiles()]
    return affinity.apply_(torch.cat(cosines, dim=2)).reshape(-1, H, W)
