"""Who takes part in the grid: ours by method and backend, and what people use instead.

A provider says why it cannot do a problem, builds its variants (the fastest counts), and counts its own work.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from bench import baselines, networks
from bench.networks import FORMATS, Network
from bench.problems import WHOLE
from ssa_fast import polish
from ssa_fast.ops import cost_model, dispatch, gpu_info

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from bench.baselines import Variants
    from bench.problem import Problem
    from bench.problems import Named
    from bench.stand import Device

Reasons: TypeAlias = "list[str]"
FLOAT = 4  # bytes


class Workload(NamedTuple):
    """Floating-point operations of the products, bytes through memory, and bytes held beyond inputs and result."""

    flops: int
    traffic: int
    held: int


@dataclass(frozen=True)
class Provider:
    """One contestant. ``build``, ``reasons`` and ``work`` are functions of a module, so that it can be sent about.

    ``answer``: what it computes, ``"polished"``, ``"square"`` (xᵀx), ``"logits"`` or ``"fused"``, and with what it is
    hence compared. ``compiles``: its first call takes long. ``holds``: its closure holds more than the inputs.
    ``follows``: another provider, whose variant it takes.
    """

    name: str
    build: Callable[[Device, Any, Tensor, Any], Variants]
    reasons: Callable[[Any, Device], Reasons]
    work: Callable[[Any, Device], Workload | None]
    ours: bool = False
    answer: str = "polished"
    compiles: bool = False
    holds: bool = False
    follows: str = ""


def of(problem: Named, stand: Device) -> list[Provider]:
    """The providers of a kind of problem on a device, ours first."""
    if isinstance(problem, Network):
        return NETWORK
    if not stand.on_gpu:
        return [*AUTO, *(_way(method, "torch") for method in dispatch.TORCH_METHODS), *PEERS]
    kernels = [_way(method, "triton") for method in dispatch.TRITON_METHODS]
    both = [_way(method, "torch", both=method in dispatch.TRITON_METHODS) for method in dispatch.TORCH_METHODS]
    return [*AUTO, *kernels, *both, *PEERS]


def counted(problem: Problem, stand: Device) -> cost_model.Problem:
    """The problem as the dispatcher sees it."""
    gpu, no_gpu = gpu_info.query(stand.device)
    return cost_model.Problem(
        problem.B,
        problem.K,
        problem.C,
        problem.L,
        problem.phi,
        positive(problem),
        device=stand.device.type,
        dtype=problem.dtype,
        precision=problem.precision,
        gpu=gpu,
        no_gpu=no_gpu,
    )


def positive(problem: Problem) -> bool:
    """Whether all features are ≥ 0, before any centring."""
    return problem.values in ("rand", "relu", "zeros")


def none(problem: Named, stand: Device) -> Reasons:
    return []


# Ours.


def build_auto(stand: Device, problem: Problem, cam: Tensor, f: Tensor) -> Variants:
    """The public call with nothing promised: it reads the features' sign and chooses."""
    chosen = dispatch.plan(counted(problem, stand))
    yield f"{chosen.method}, {chosen.backend}", lambda: polish(cam, f, affinity=problem.phi)


def work_auto(problem: Problem, stand: Device) -> Workload:
    chosen = dispatch.plan(counted(problem, stand))
    return work_way(chosen.method, chosen.backend, problem, stand)


def build_way(method: str, backend: str, stand: Device, problem: Problem, cam: Tensor, f: Tensor) -> Variants:
    """One method on one backend, with the features' sign promised."""
    sign = positive(problem)
    yield backend, lambda: polish(cam, f, affinity=problem.phi, method=method, backend=backend, nonnegative=sign)


def reasons_way(method: str, backend: str, problem: Problem, stand: Device) -> Reasons:
    return dispatch.not_supported_reasons(method, backend, counted(problem, stand))


def work_way(method: str, backend: str, problem: Problem, stand: Device) -> Workload:
    """The dispatcher's count; of prototypes the least, which is two reads of the features and the CAM in and out."""
    given = counted(problem, stand)
    cost = cost_model.cost(method, given, backend)
    if method != "prototypes":
        return Workload(cost.flops, cost.bytes_moved, cost.extra_memory)
    flops = 4 * problem.B * problem.L * problem.C * (problem.K + 1)
    maps = 2 * problem.B * problem.K * problem.L * FLOAT
    return Workload(flops, 2 * problem.feature_bytes + maps, cost.extra_memory)


def _way(method: str, backend: str, both: bool = False) -> Provider:
    """A method on a backend; named after the method, or after both where its kernels already have that name."""
    return Provider(
        f"{method} in PyTorch" if both else method,
        functools.partial(build_way, method, backend),
        functools.partial(reasons_way, method, backend),
        functools.partial(work_way, method, backend),
        ours=True,
    )


AUTO = [Provider(name, build_auto, none, work_auto, ours=True) for name in ("auto", "auto again")]


# Theirs.


def no_compiler(problem: Named, stand: Device) -> Reasons:
    """What torch.compile lacks here."""
    if stand.on_gpu:
        return [] if importlib.util.find_spec("triton") else ["torch.compile needs the package triton on a GPU"]
    known = (os.environ.get("CXX"), "g++", "clang++")
    if any(name and shutil.which(name) for name in known):
        return []
    return ["torch.compile needs a C++ compiler on a CPU and there is none: install g++ or clang++, or name one in CXX"]


def not_pcm(problem: Problem, stand: Device) -> Reasons:
    """Why PCM's arithmetic is not the problem's."""
    return [] if problem.phi.phi == "relu" else [f"it computes PCM's ReLU, and the problem is φ = {problem.phi.phi}"]


def no_compiled_pcm(problem: Problem, stand: Device) -> Reasons:
    return not_pcm(problem, stand) + no_compiler(problem, stand)


def no_algebra(problem: Problem, stand: Device) -> Reasons:
    if not_pcm(problem, stand):
        return not_pcm(problem, stand)
    if problem.phi.center or not positive(problem):
        return ["the algebra holds where no cosine is negative, and these features are signed"]
    return []


def no_compiled_algebra(problem: Problem, stand: Device) -> Reasons:
    return no_algebra(problem, stand) + no_compiler(problem, stand)


def no_keops(problem: Problem, stand: Device) -> Reasons:
    found = importlib.util.find_spec("pykeops")
    return not_pcm(problem, stand) + ([] if found else ["pykeops is not installed: pip install pykeops"])


def no_product(problem: Problem, stand: Device) -> Reasons:
    return ["it is the product of one image"] if problem.B > 1 else []


def _sizes(problem: Problem) -> tuple[int, int, int]:
    """Bytes of the affinities of all pairs, of the features, and of the CAM in and out."""
    B, L = problem.B, problem.L
    return B * L * L * FLOAT, problem.feature_bytes, 2 * B * problem.K * L * FLOAT


def work_dense(problem: Problem, stand: Device) -> Workload:
    """Seven passes over the affinities: written; read and written by the ReLU; summed; divided; multiplied."""
    square, features, maps = _sizes(problem)
    return Workload(_pairs(problem), 7 * square + 4 * features + maps, 2 * square)


def work_fused(problem: Problem, stand: Device) -> Workload:
    """The least a compiler can leave of that: the affinities written, read twice and written once."""
    square, features, maps = _sizes(problem)
    return Workload(_pairs(problem), 4 * square + 2 * features + maps, square)


def work_chunked(problem: Problem, stand: Device) -> Workload:
    """Four passes over the affinities: written, read and written by the ReLU, multiplied."""
    square, features, maps = _sizes(problem)
    return Workload(_pairs(problem), 4 * square + 4 * features + maps, 2 * features)


def work_streamed(problem: Problem, stand: Device) -> Workload:
    """No affinity in memory; the features normalised and read."""
    _, features, maps = _sizes(problem)
    return Workload(_pairs(problem), 3 * features + maps, features)


def work_algebra(problem: Problem, stand: Device) -> Workload:
    """The features read for their norms, for the prototypes and for the result."""
    _, features, maps = _sizes(problem)
    return Workload(4 * problem.B * problem.L * problem.C * (problem.K + 1), 3 * features + maps, maps)


def work_product(problem: Problem, stand: Device) -> Workload:
    square, features, _ = _sizes(problem)
    return Workload(2 * problem.B * problem.L**2 * problem.C, square + features, square)


def _pairs(problem: Problem) -> int:
    """Operations of the product of all pairs and of its application to the CAM."""
    return 2 * problem.B * problem.L**2 * (problem.C + problem.K)


PEERS = [
    Provider("dense PCM", baselines.dense, not_pcm, work_dense),
    Provider("dense PCM compiled", baselines.dense_compiled, no_compiled_pcm, work_fused, compiles=True),
    Provider("chunked PCM", baselines.chunked, not_pcm, work_chunked),
    Provider("algebra", baselines.algebra, no_algebra, work_algebra),
    Provider("algebra compiled", baselines.algebra_compiled, no_compiled_algebra, work_algebra, compiles=True),
    Provider("FlexAttention", baselines.flex, no_compiled_pcm, work_streamed, compiles=True),
    Provider("KeOps", baselines.keops, no_keops, work_streamed, compiles=True),
    Provider("xᵀx", baselines.product, no_product, work_product, answer="square", holds=True),
]


# Whole networks.


def build_backbone(stand: Device, problem: Network, cam: Tensor, net: networks.Forward) -> Variants:
    for layout in FORMATS:
        yield layout, net.run(layout)


def build_polished(stand: Device, problem: Network, cam: Tensor, net: networks.Forward) -> Variants:
    """The four stages as they come of the forward, with the affinities of ``SSA``, at default options."""

    def run(stages: list[Tensor]) -> Tensor:
        found: Tensor = polish(cam, stages, affinity=net.affinities)
        return found

    for layout in FORMATS:
        yield layout, functools.partial(run, net.stages(layout))


def no_network(problem: Network, stand: Device) -> Reasons:
    return networks.missing()


def work_backbone(problem: Network, stand: Device) -> Workload | None:
    """Convolutions have short cuts; their operations are not counted."""
    return None


def work_polished(problem: Network, stand: Device) -> Workload:
    """Two reads of the stages' features and prototypes' products; maps and fusion are left out, as smaller."""
    numbers = problem.B * sum(C * (problem.size // step) ** 2 for C, step in WHOLE[problem.net].values())
    return Workload(4 * numbers * (problem.K + 1), 2 * numbers * FLOAT, 0)


NETWORK = [
    Provider("backbone", build_backbone, no_network, work_backbone, answer="logits"),
    Provider(
        "polish and fuse",
        build_polished,
        no_network,
        work_polished,
        ours=True,
        answer="fused",
        follows="backbone",
    ),
]
