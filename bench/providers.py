"""Who takes part: ours by method and backend, and what people use instead. One entry each.

A provider says what it builds, why it cannot do a problem, and how much it computes. All start from the CAM at its own
size and features as a network leaves them; of several variants the fastest that is right counts.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from bench.problems import FORMATS, WHOLE, missing_torchvision
from ssa_fast import polish
from ssa_fast.ops import cost_model, dispatch, gpu_info

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from bench.measure import Device
    from bench.problems import Problem

FLOAT = 4  # bytes
# FlexAttention's own choice of blocks first; the small ones are for channels that its default has no room for.
FLEX_BLOCKS: dict[str, dict[str, int]] = {"default": {}} | {
    f"{m}×{n}": {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages}
    for m, n, warps, stages in ((64, 64, 8, 2), (64, 32, 8, 1), (32, 32, 4, 1), (16, 16, 4, 1))
}


class Workload(NamedTuple):
    """Floating-point operations of the products, and bytes through memory."""

    flops: int
    traffic: int


def not_counted(problem: Problem, device: Device) -> None:
    """Convolutions have short cuts."""


@dataclass(frozen=True)
class Provider:
    """One contestant; its functions are a module's own, so that it can be sent to another process.

    Attributes:
        build: Makes the call of a variant from a device, problem, CAM and features.
        work: Counts a call's work; None of what is not counted.
        limits: Functions that say why it cannot do a problem on a device; empty if it can.
        variants: Names of the variants, or what returns them.
        answer: What it computes: ``"polished"``, ``"square"`` (xᵀx), ``"logits"`` or ``"fused"``.
        follows: Another provider, whose variant it takes and in whose time its own is a share.
    """

    name: str
    build: Callable[[Device, Any, Tensor, Any, str], Callable[[], Tensor]]
    work: Callable[[Problem, Device], Workload | None] = not_counted
    limits: tuple[Callable[[Problem, Device], str], ...] = ()
    variants: tuple[str, ...] | Callable[[Problem, Device], tuple[str, ...]] = ("eager",)
    answer: str = "polished"
    ours: bool = False
    follows: str = ""

    def reasons(self, problem: Problem, device: Device) -> list[str]:
        """Return why it cannot do the problem here."""
        return [reason for limit in self.limits if (reason := limit(problem, device))]

    def names(self, problem: Problem, device: Device) -> tuple[str, ...]:
        """Return the names of its variants for the problem."""
        return self.variants(problem, device) if callable(self.variants) else self.variants


# Ours.


def counted(problem: Problem, device: Device) -> cost_model.Problem:
    """Return the problem as the dispatcher sees it."""
    gpu, no_gpu = gpu_info.query(device.device)
    sizes = problem.B, problem.K, problem.C, problem.L
    given: dict[str, Any] = {"device": device.device.type, "dtype": problem.dtype, "precision": problem.precision}
    return cost_model.Problem(*sizes, problem.phi, problem.nonnegative, gpu=gpu, no_gpu=no_gpu, **given)


def build_ours(
    method: str, backend: str, device: Device, problem: Problem, cam: Tensor, f: Tensor, variant: str
) -> Callable[[], Tensor]:
    """Make the public call: with nothing promised for "auto", else with the features' sign."""
    given: dict[str, Any] = {"method": method, "backend": backend, "precision": problem.precision}
    sign = None if method == "auto" else problem.nonnegative
    return lambda: polish(cam, f, affinity=problem.phi, nonnegative=sign, **given)


def names_ours(method: str, backend: str, problem: Problem, device: Device) -> tuple[str, ...]:
    chosen = dispatch.plan(counted(problem, device), method, backend)
    return (f"{chosen.method}, {chosen.backend}",)


def not_ours(method: str, backend: str, problem: Problem, device: Device) -> str:
    reasons = dispatch.not_supported_reasons(method, backend, counted(problem, device)) if method != "auto" else []
    return "; ".join(reasons)


def work_ours(method: str, backend: str, problem: Problem, device: Device) -> Workload:
    """Return the dispatcher's count; of prototypes the least: two reads of the features, and the CAM in and out."""
    given = counted(problem, device)
    chosen = dispatch.plan(given, method, backend)
    if chosen.method == "prototypes":
        return algebra_work(problem, device, reads=2)
    cost = cost_model.cost(chosen.method, given, chosen.backend)
    return Workload(cost.flops, cost.bytes_moved)


def _ours(name: str, method: str = "auto", backend: str = "auto") -> Provider:
    def of(function: Callable[..., Any]) -> Any:
        return functools.partial(function, method, backend)

    return Provider(name, of(build_ours), of(work_ours), (of(not_ours),), of(names_ours), ours=True)


AUTO = [_ours("auto"), _ours("auto again")]
METHODS = [_ours(name, name, "torch") for name in dispatch.TORCH_METHODS]
KERNELS = [_ours(name, name, "triton") for name in dispatch.TRITON_METHODS]


# Theirs: what each computes.


def dense_pcm(cam: Tensor, f: Tensor) -> Tensor:
    """Polish ``(B, K, h, w)`` by ``(B, C, H, W)`` with SEAM's pixel correlation module as users run it."""
    B, _, H, W = f.shape
    cam = F.interpolate(cam, (H, W), mode="bilinear", align_corners=True).view(B, -1, H * W)
    f = f.reshape(B, -1, H * W)
    f = f / (torch.norm(f, dim=1, keepdim=True) + 1e-5)
    affinity = F.relu(torch.matmul(f.transpose(1, 2), f), inplace=True)
    affinity = affinity / (torch.sum(affinity, dim=1, keepdim=True) + 1e-5)
    return torch.matmul(cam, affinity).view(B, -1, H, W)


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


def compiled(device: Device, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch.compiler.reset()  # a function compiled too often is run uncompiled, without a word
    return torch.compile(function, dynamic=False, backend="eager" if device.dry_run else "inductor")


def pytorch(
    function: Callable[..., Tensor], device: Device, problem: Problem, cam: Tensor, f: Tensor, variant: str
) -> Callable[[], Tensor]:
    """Run a function above in the features' dtype; variants: "eager", "compiled", "float32", or the size of chunks."""
    f = f.float() if variant == "float32" else f
    size, center = [int(variant)] if variant.isdigit() else [], problem.phi.center

    def run(cam: Tensor, f: Tensor) -> Tensor:
        return function(cam, f - f.mean(dim=(2, 3), keepdim=True) if center else f, *size)

    return functools.partial(compiled(device, run) if variant == "compiled" else run, cam.to(f.dtype), f)


def flex(device: Device, problem: Problem, cam: Tensor, f: Tensor, variant: str) -> Callable[[], Tensor]:
    """Run FlexAttention with q = k = x, v = cam, score log relu(x_iᵀx_j): its softmax is PCM's division."""
    from torch.nn.attention.flex_attention import flex_attention

    def log_relu(score: Tensor, *_: Any) -> Tensor:
        return torch.log(torch.relu(score))

    cam, options = cam.to(f.dtype), FLEX_BLOCKS[variant] or None
    attend: Any = flex_attention if device.dry_run else compiled(device, flex_attention)  # type: ignore[arg-type]

    def run() -> Tensor:
        v = F.interpolate(cam, f.shape[2:], mode="bilinear", align_corners=True).flatten(2)
        v = F.pad(v, (0, 0, 0, -problem.K % 16)).mT[:, None].contiguous()  # [B, 1, L, K padded]
        flat = f.flatten(2)
        flat = flat - flat.mean(dim=2, keepdim=True) if problem.phi.center else flat
        x = F.normalize(flat, dim=1).mT[:, None].contiguous()  # [B, 1, L, C]
        return attend(x, x, v, score_mod=log_relu, scale=1.0, kernel_options=options)[:, 0, :, : problem.K].mT

    return run


def flex_blocks(problem: Problem, device: Device) -> tuple[str, ...]:
    return tuple(FLEX_BLOCKS) if device.on_gpu else ("default",)


def product(device: Device, problem: Problem, cam: Tensor, f: Tensor, variant: str) -> Callable[[], Tensor]:
    """Compute xᵀx alone with PyTorch, in either layout, from unit features made beforehand."""
    x = F.normalize(f[0].flatten(1).float(), dim=0).to(f.dtype)  # [C, L]
    tall = x.mT.contiguous() if variant == "rows" else x.mT
    return lambda: torch.mm(tall, tall.mT)


def backbone(device: Device, problem: Problem, cam: Tensor, net: Any, variant: str) -> Callable[[], Tensor]:
    run: Callable[[], Tensor] = net.run(variant)
    return run


def polish_and_fuse(device: Device, problem: Problem, cam: Tensor, net: Any, variant: str) -> Callable[[], Tensor]:
    """Polish the stages as they come of the forward, with the affinities of ``SSA`` and the signs that it proves."""
    maps, nonnegative = net.stages(variant)
    return functools.partial(polish, cam, maps, affinity=net.affinities, nonnegative=nonnegative)


# Theirs: what stands in the way.


def no_compiler(problem: Problem, device: Device) -> str:
    """Return what torch.compile lacks here."""
    if device.dry_run:
        return ""
    if device.on_gpu:
        return "" if importlib.util.find_spec("triton") else "torch.compile needs the package triton on a GPU"
    if any(name and shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++")):
        return ""
    return "torch.compile needs a C++ compiler on a CPU and there is none: install g++ or clang++, or name one in CXX"


def not_pcm(problem: Problem, device: Device) -> str:
    return "" if problem.phi.phi == "relu" else f"it computes PCM's ReLU, and the problem is φ = {problem.phi.phi}"


def not_algebra(problem: Problem, device: Device) -> str:
    fits = problem.nonnegative and not problem.phi.center
    return "" if fits else "the algebra holds where no cosine is negative, and these features are signed"


def not_one_image(problem: Problem, device: Device) -> str:
    return "it is the product of one image" if problem.B > 1 else ""


def no_network(problem: Problem, device: Device) -> str:
    return missing_torchvision()


# Theirs: how much it is.


def pairs_work(squares: int, features: int, problem: Problem, _: Device) -> Workload:
    """Count the product of all pairs and its application, by how often affinities and features pass memory."""
    B, L, size = problem.B, problem.L, problem.torch_dtype.itemsize
    traffic = squares * B * L * L * size + features * problem.feature_bytes + 2 * B * problem.K * L * FLOAT
    return Workload(2 * B * L**2 * (problem.C + problem.K), traffic)


def algebra_work(problem: Problem, device: Device, reads: int = 3) -> Workload:
    """Count two products with the features, read for their norms, for the prototypes and for the result."""
    flops = 4 * problem.B * problem.L * problem.C * (problem.K + 1)
    return Workload(flops, reads * problem.feature_bytes + 2 * problem.B * problem.K * problem.L * FLOAT)


def product_work(problem: Problem, device: Device) -> Workload:
    return Workload(2 * problem.L**2 * problem.C, problem.L**2 * problem.torch_dtype.itemsize + problem.feature_bytes)


def stages_work(problem: Problem, device: Device) -> Workload:
    """Count two reads of the stages' features and the prototypes' products; maps and fusion are smaller."""
    numbers = problem.B * sum(C * (problem.H // step) ** 2 for C, step in WHOLE[problem.net].values())
    return Workload(4 * numbers * (problem.K + 1), 2 * numbers * problem.torch_dtype.itemsize)


DENSE = functools.partial(pairs_work, 7, 4)  # written; read and written by the ReLU; summed; divided; multiplied
FUSED = functools.partial(pairs_work, 4, 2)  # the least a compiler can leave of that
CHUNKED = functools.partial(pairs_work, 4, 4)  # written, read and written by the ReLU, multiplied
STREAMED = functools.partial(pairs_work, 0, 3)  # no affinity in memory; features normalised and read
PCM, CHUNKS, ALGEBRA = (functools.partial(pytorch, each) for each in (dense_pcm, chunked_pcm, prototypes_algebra))
COMPILED = ("compiled",)

PEERS = [
    Provider("dense PCM", PCM, DENSE, (not_pcm,)),
    Provider("dense PCM compiled", PCM, FUSED, (not_pcm, no_compiler), COMPILED),
    Provider("chunked PCM", CHUNKS, CHUNKED, (not_pcm,), ("1024", "2048", "4096")),
    Provider("algebra", ALGEBRA, algebra_work, (not_pcm, not_algebra)),
    Provider("algebra compiled", ALGEBRA, algebra_work, (not_pcm, not_algebra, no_compiler), COMPILED),
    Provider("FlexAttention", flex, STREAMED, (not_pcm, no_compiler), flex_blocks),
    Provider("xᵀx", product, product_work, (not_one_image,), ("rows", "columns"), answer="square"),
]
WIDE = Provider("dense PCM float32", PCM, DENSE, (not_pcm,), ("float32",))  # of features in half precision
FUSING = Provider(
    "polish and fuse", polish_and_fuse, stages_work, (no_network,), (*FORMATS,), "fused", True, "backbone"
)
NETWORK = [Provider("backbone", backbone, not_counted, (no_network,), (*FORMATS,), "logits"), FUSING]
PROVIDERS = {each.name: each for each in [*AUTO, *METHODS, *PEERS, WIDE, *NETWORK]}


def of(problem: Problem, device: Device) -> list[Provider]:
    """Return the providers of a problem; ours twice, whose difference is what the machine's noise is."""
    if problem.net:
        return NETWORK
    ours = METHODS
    if device.on_gpu or device.dry_run:
        names = [each.name for each in KERNELS]
        spelt = [replace(each, name=f"{each.name} in PyTorch") if each.name in names else each for each in METHODS]
        ours = [*KERNELS, *spelt]
    return [*AUTO, *ours, *PEERS, *([WIDE] if problem.dtype != "float32" else [])]
