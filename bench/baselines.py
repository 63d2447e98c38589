"""Run what ssa_fast is measured against: baselines of one or more variants; the fastest counts.

All start from the CAM at its own size and features as a network leaves them, like ours.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from bench.problem import Problem
    from bench.stand import Device

Variants: TypeAlias = "Iterator[tuple[str, Callable[[], Tensor]]]"

CHUNKS = (1024, 2048, 4096)
# FlexAttention's own choice of blocks first; the small ones are for channels that its default has no room for.
FLEX_BLOCKS: tuple[dict[str, int], ...] = (
    {},
    {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2},
    {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1},
    {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 1},
    {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1},
)


def dense_pcm(cam: Tensor, f: Tensor) -> Tensor:
    """Polish ``(B, K, h, w)`` by ``(B, C, H, W)`` with SEAM's pixel correlation module as users run it."""
    B, _, H, W = f.shape
    cam = F.interpolate(cam, (H, W), mode="bilinear", align_corners=True).view(B, -1, H * W)
    f = f.reshape(B, -1, H * W)
    f = f / (torch.norm(f, dim=1, keepdim=True) + 1e-5)
    affinity = F.relu(torch.matmul(f.transpose(1, 2), f), inplace=True)
    affinity = affinity / (torch.sum(affinity, dim=1, keepdim=True) + 1e-5)
    return torch.matmul(cam, affinity).view(B, -1, H, W)


def variants(name: str, device: Device, problem: Problem, cam: Tensor, f: Tensor) -> Variants:
    """Yield the variants of a baseline, each built when asked for, so that a failure leaves the others."""
    return BASELINES[name](device, problem, cam, f)


def product(device: Device, problem: Problem, cam: Tensor, f: Tensor) -> Variants:
    """Compute xᵀx alone with PyTorch, in both layouts, from unit features made beforehand."""
    wide = F.normalize(f[0].flatten(1).float(), dim=0).to(f.dtype)  # [C, L]
    tall = wide.mT.contiguous()  # [L, C]
    square = torch.empty(problem.L, problem.L, dtype=f.dtype, device=f.device)
    yield "rows", lambda: torch.mm(tall, tall.mT, out=square)
    yield "columns", lambda: torch.mm(wide.mT, wide, out=square)


def centred(problem: Problem, f: Tensor) -> Tensor:
    """Return features as the affinity takes them: less their image's mean where it centres."""
    return f - f.mean(dim=(2, 3), keepdim=True) if problem.phi.center else f


def dense(device: Device, problem: Problem, cam: Tensor, f: Tensor) -> Variants:
    """Run PCM as its users do, in the features' dtype."""
    cam = cam.to(f.dtype)
    yield "eager", lambda: dense_pcm(cam, centred(problem, f))


def dense_float32(device: Device, problem: Problem, cam: Tensor, f: Tensor) -> Variants:
    """Run PCM as its users do, in float32 with PyTorch's default precision."""
    wide = f.float()
    yield "eager", lambda: dense_pcm(cam, centred(problem, wide))


def dense_compiled(device: Device, problem: Problem, cam: Tensor, f: Tensor) -> Variants:
    """Run the same under torch.compile."""
    compiled = _compiled(device, lambda cam, f: dense_pcm(cam, centred(problem, f)))
    narrow = cam.to(f.dtype)
    yield "compiled", lambda: compiled(narrow, f)


def chunked(device: Device, problem: Problem, cam: Tensor, f: Tensor) -> Variants:
    """Run PCM a chunk of target pixels at a time."""
    narrow = cam.to(f.dtype)

    def run(chunk: int) -> Tensor:
        return chunked_pcm(narrow, centred(problem, f), chunk)

    for chunk in CHUNKS:
        yield f"chunks of {chunk}", functools.partial(run, chunk)


def chunked_pcm(cam: Tensor, f: Tensor, chunk: int) -> Tensor:
    """Polish as ``dense_pcm`` does, with at most ``L×chunk`` affinities at a time."""
    B, _, H, W = f.shape
    cam = F.interpolate(cam, (H, W), mode="bilinear", align_corners=True).flatten(2)
    f = f.flatten(2)
    f = f / (torch.norm(f, dim=1, keepdim=True) + 1e-5)
    rows = torch.cat([cam, torch.ones_like(cam[:, :1])], dim=1)
    sums = [rows @ F.relu(f.mT @ f[:, :, at : at + chunk], inplace=True) for at in range(0, H * W, chunk)]
    summed = torch.cat(sums, dim=2)
    return (summed[:, :-1] / (summed[:, -1:] + 1e-5)).view(B, -1, H, W)


def flex(device: Device, problem: Problem, cam: Tensor, f: Tensor) -> Variants:
    """Run FlexAttention with q = k = x, v = cam, score log relu(x_iᵀx_j): its softmax is PCM's division."""
    from torch.nn.attention.flex_attention import flex_attention

    def log_relu(score: Tensor, *_: Any) -> Tensor:
        return torch.log(torch.relu(score))

    size = (problem.H, problem.W)
    narrow = cam.to(f.dtype)
    torch.compiler.reset()  # a function compiled too often is run uncompiled, without a word
    attend = flex_attention if device.dry_run else torch.compile(flex_attention, dynamic=False)

    def run(options: dict[str, int]) -> Tensor:
        v = F.interpolate(narrow, size, mode="bilinear", align_corners=True).flatten(2)
        v = F.pad(v, (0, 0, 0, -problem.K % 16)).mT[:, None].contiguous()  # [B, 1, L, K padded]
        x = F.normalize(centred(problem, f).flatten(2), dim=1).mT[:, None].contiguous()  # [B, 1, L, C]
        found = attend(x, x, v, score_mod=log_relu, scale=1.0, kernel_options=options or None)  # type: ignore[arg-type]
        return found[:, 0, :, : problem.K].mT

    for options in FLEX_BLOCKS if device.on_gpu else FLEX_BLOCKS[:1]:
        yield " ".join(f"{key}={value}" for key, value in options.items()) or "default", functools.partial(run, options)


def keops(device: Device, problem: Problem, cam: Tensor, f: Tensor) -> Variants:
    """Run PCM as a symbolic L×L matrix of KeOps, reduced as its entries are computed."""
    LazyTensor = importlib.import_module("pykeops.torch").LazyTensor
    size = (problem.H, problem.W)

    def run() -> Tensor:
        x = F.normalize(centred(problem, f).flatten(2), dim=1).mT.contiguous()  # [B, L, C]
        rows = F.interpolate(cam, size, mode="bilinear", align_corners=True).flatten(2)
        v = F.pad(rows, (0, 0, 0, 1), value=1.0).mT.contiguous().to(f.dtype)  # [B, L, K + 1]
        x_j, x_i, v_i = LazyTensor(x[:, :, None]), LazyTensor(x[:, None]), LazyTensor(v[:, None])
        summed = ((x_j | x_i).relu() * v_i).sum(dim=2)
        return (summed[..., :-1] / (summed[..., -1:] + 1e-5)).mT.unflatten(2, size)

    yield "LazyTensor", run


def algebra(device: Device, problem: Problem, cam: Tensor, f: Tensor) -> Variants:
    """Run the prototypes' own algebra in eager PyTorch."""
    yield "eager", lambda: prototypes_algebra(cam, f)


def algebra_compiled(device: Device, problem: Problem, cam: Tensor, f: Tensor) -> Variants:
    """Run the same under torch.compile."""
    compiled = _compiled(device, prototypes_algebra)
    yield "compiled", lambda: compiled(cam, f)


def prototypes_algebra(cam: Tensor, f: Tensor) -> Tensor:
    """Polish by prototypes as one would write them: two products with the features in their own dtype.

    v is divided by √L, which keeps the sums of float16 features finite.
    """
    B, _, H, W = f.shape
    cam = F.interpolate(cam, (H, W), mode="bilinear", align_corners=True).flatten(2)
    flat = f.flatten(2)
    norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True, dtype=torch.float32) + 1e-5  # [B, 1, L]
    shrink = (H * W) ** -0.5
    v = torch.cat([cam, torch.ones_like(cam[:, :1])], dim=1) / norm * shrink
    means = v.to(f.dtype) @ flat.mT  # [B, K + 1, C]
    summed = (means @ flat).float() / norm
    return (summed[:, :-1] / (summed[:, -1:] + 1e-5 * shrink)).view(B, -1, H, W)


def _compiled(device: Device, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, backend="eager" if device.dry_run else "inductor")


BASELINES: dict[str, Callable[[Any, Any, Any, Any], Variants]] = {
    "xᵀx": product,
    "dense PCM": dense,
    "dense PCM float32": dense_float32,
    "dense PCM compiled": dense_compiled,
    "chunked PCM": chunked,
    "FlexAttention": flex,
    "KeOps": keops,
    "algebra": algebra,
    "algebra compiled": algebra_compiled,
}
