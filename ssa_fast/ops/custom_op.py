"""The custom operator ``torch.ops.ssa_fast.polish_stage``: one stage as ``torch.compile`` and ``torch.export`` see it.

A call is one node, whatever is chosen and launched inside. Eager calls do not use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssa_fast.affinity import Affinity
from ssa_fast.ops.polish import polish_one
from ssa_fast.validation import StageRequest, result_dtype

if TYPE_CHECKING:
    from torch import Tensor

torch.library.define(
    "ssa_fast::polish_stage",
    "(Tensor cam, Tensor features, str phi, float power, float threshold, float shift, float? temperature, "
    "bool center, int steps, float norm_eps, float sum_eps, bool? nonnegative, str method, str backend, "
    "str precision, bool align_corners) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def polish_stage(cam: Tensor, request: StageRequest) -> Tensor:
    """Plan and run one stage as a single operator, ``(B, K, h, w)`` → ``(B, K, H, W)``; of volumes with a depth."""
    affinity = request.affinity
    return torch.ops.ssa_fast.polish_stage(
        cam,
        request.features,
        affinity.phi,
        float(affinity.power),
        float(affinity.threshold),
        float(affinity.shift),
        affinity.temperature,
        affinity.center,
        int(affinity.steps),
        float(affinity.norm_eps),
        float(affinity.sum_eps),
        request.nonnegative,
        request.method,
        request.backend,
        request.precision,
        request.align_corners,
    )


@torch.library.impl("ssa_fast::polish_stage", "CompositeExplicitAutograd")
def _polish_stage(
    cam: Tensor,
    features: Tensor,
    phi: str,
    power: float,
    threshold: float,
    shift: float,
    temperature: float | None,
    center: bool,
    steps: int,
    norm_eps: float,
    sum_eps: float,
    nonnegative: bool | None,
    method: str,
    backend: str,
    precision: str,
    align_corners: bool,
) -> Tensor:
    affinity = Affinity(
        phi,  # type: ignore[arg-type]
        power,
        threshold,
        shift,
        temperature,
        center,
        steps,
        norm_eps,
        sum_eps,
    )
    request = StageRequest(
        features,
        affinity,
        K=cam.shape[1],
        dtype=result_dtype(cam.dtype, features.dtype),
        nonnegative=nonnegative,
        method=method,
        backend=backend,
        precision=precision,
        align_corners=align_corners,
    )
    return polish_one(cam, request).contiguous()


@torch.library.register_fake("ssa_fast::polish_stage")  # type: ignore[untyped-decorator]
def _polish_stage_fake(cam: Tensor, features: Tensor, *options: object) -> Tensor:
    return cam.new_empty((*cam.shape[:2], *features.shape[2:]), dtype=result_dtype(cam.dtype, features.dtype))
