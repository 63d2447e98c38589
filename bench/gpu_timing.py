"""Time the kernels on a GPU beside other implementations, in interleaved rounds, each answer checked first."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench import providers, tiles
from bench.measure import NotHere, first_line, is_out_of_memory, summary, time_interleaved
from bench.problems import (
    SAMPLED,
    WRONG,
    Forward,
    Problem,
    build,
    named,
    relative_error,
    sampled_truth,
    square_error,
)
from ssa_fast import polish

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from bench.measure import Device
    from bench.workers import Row

COPIED = 1 << 29  # numbers of two bytes that the baseline "copy" copies, to which bandwidth is compared
COMPILED = ("dense PCM compiled", "algebra compiled", "FlexAttention")


@dataclass(frozen=True)
class Goal:
    """Bound a figure twice: by what it must reach and by a stretch goal, ``at_most`` or at least."""

    what: str
    must: float
    stretch: float | None = None
    at_most: bool = False
    unit: str = ""

    def row(self, value: float | None, **more: Any) -> Row:
        """Return the goal, the figure and "stretch", "must", "missed", or "unknown" where there is no figure."""
        sign, verdict = 1 if self.at_most else -1, "missed"
        if value is None or value != value:
            verdict = "unknown"
        elif self.stretch is not None and sign * value <= sign * self.stretch:
            verdict = "stretch"
        elif sign * value <= sign * self.must:
            verdict = "must"
        given = {"what": self.what, "value": value, "unit": self.unit, "must": self.must, "stretch": self.stretch}
        return given | {"direction": "<=" if self.at_most else ">=", "verdict": verdict} | more


GOALS = {
    "product": Goal("time over cuBLAS's xᵀx alone", 0.80, 0.58, at_most=True, unit="×"),
    "product_256": Goal("time over cuBLAS's xᵀx alone, C=256", 0.90, 0.65, at_most=True, unit="×"),
    "dense_float32": Goal("speedup over dense PyTorch, float32", 12, 20, unit="×"),
    "dense_16": Goal("speedup over dense PyTorch, same dtype", 4, 7, unit="×"),
    "flex_256": Goal("speedup over FlexAttention, C=256", 2, 3, unit="×"),
    "flex_1024": Goal("speedup over FlexAttention, C>=1024", 5, 10, unit="×"),
    "chunked_256": Goal("speedup over chunked PyTorch, C=256", 2.5, 4, unit="×"),
    "chunked_2048": Goal("speedup over chunked PyTorch, C=2048", 1.7, 2.5, unit="×"),
    "bandwidth": Goal("share of the copy's bandwidth at two reads", 0.80, 0.90),
    "prototypes_dense_16k": Goal("prototypes' speedup over dense PyTorch, same dtype, L=16k", 60, 100, unit="×"),
    "prototypes_dense_65k": Goal("prototypes' speedup over dense PyTorch, same dtype, L=65k", 400, 600, unit="×"),
    "algebra_eager": Goal("speedup over the same algebra in eager PyTorch", 2.5, 3, unit="×"),
    "algebra_compiled": Goal("speedup over the same algebra compiled", 1.5, 2, unit="×"),
    "graph": Goal("small stage in a CUDA graph", 12, 6, at_most=True, unit="µs"),
    "eager": Goal("small stage, eager call", 25, 15, at_most=True, unit="µs"),
    "small_dense": Goal("speedup over dense PyTorch, small signed stage", 1.0, unit="×"),
    "small_compiled": Goal("speedup over dense PyTorch compiled, small signed stage", 1.0, unit="×"),
    "backbone": Goal("all stages polished and fused, share of the backbone's forward", 0.05, 0.02, at_most=True),
    "backbone_graph": Goal("the same, both in a CUDA graph", 0.05, 0.02, at_most=True),
    "error_default": Goal("error against float64", 1e-4, 3e-5, at_most=True),
    "error_high": Goal("error against float64, high precision and prototypes", 1e-6, 5e-8, at_most=True),
}


@dataclass(frozen=True)
class Case:
    """A row: ours and what it is compared with, ``{baseline: goal}``.

    Attributes:
        kind: "kernel", as the package launches it; "small", the public call, by the host's clock and in a CUDA graph as
            well; "backbone", likewise four stages polished and fused, against a ResNet-50's forward.
    """

    kind: str
    problem: Problem
    method: str = "auto"
    versus: Mapping[str, str | None] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        if not self.problem.net:
            return f"timing: {'small, ' * (self.kind == 'small')}{self.method} {self.problem.label()}"
        return f"timing: ResNet-50's four stages, B={self.problem.B} {self.problem.H}² K={self.problem.K}"

    def tiny(self) -> Case:
        """Return the same kind of row for a dry run."""
        tiny = replace(self.problem, B=1, H=64, W=64) if self.problem.net else self.problem.tiny()
        return replace(self, problem=tiny)


SIGNED = Problem(B=1, K=20, C=256, H=128, W=128, h=32, w=32, values="randn")
POSITIVE = replace(SIGNED, values="rand")
SHIFTED = replace(SIGNED, affinity="phi=shifted")
SMALL = Problem(B=1, K=20, C=1024, H=32, W=32, h=7, w=7)
COPY, ALGEBRA = {"copy": "bandwidth"}, {"algebra": "algebra_eager"}
BOTH = ALGEBRA | {"algebra compiled": "algebra_compiled"}
DENSE = {"dense PCM": "small_dense", "dense PCM compiled": "small_compiled"}
ALL = {
    "xᵀx": "product_256",
    "dense PCM": "dense_16",
    "dense PCM float32": "dense_float32",
    "dense PCM compiled": None,
    "chunked PCM": "chunked_256",
    "FlexAttention": "flex_256",
}
CASES = (  # those on which most depends first
    Case("kernel", replace(SIGNED, C=512), "tiled", {"xᵀx": "product"}),
    Case("kernel", SIGNED, "tiled", ALL),
    Case("kernel", POSITIVE, "prototypes", {"dense PCM": "prototypes_dense_16k"} | BOTH),
    Case("kernel", replace(POSITIVE, B=32), "prototypes", COPY | BOTH),
    Case("kernel", replace(POSITIVE, H=256, W=256), "prototypes", {"dense PCM": "prototypes_dense_65k"} | ALGEBRA),
    Case("kernel", replace(SHIFTED, B=32), "prototypes", COPY),
    Case(
        "kernel",
        replace(SIGNED, C=2048),
        "tiled",
        {"xᵀx": "product", "chunked PCM": "chunked_2048", "dense PCM": None},
    ),
    Case("kernel", replace(SIGNED, C=1024, W=64), "tiled", {"xᵀx": "product", "FlexAttention": "flex_1024"}),
    Case("kernel", replace(POSITIVE, H=512, W=512), "prototypes", COPY | ALGEBRA),
    Case("kernel", replace(POSITIVE, B=32, layout="nhwc"), "prototypes", COPY | ALGEBRA),
    # The package's own choice, and for small signed stages the kernel and what a user of PyTorch would run instead.
    Case("small", SMALL),
    Case("small", replace(SMALL, H=14, W=14)),
    Case("small", replace(SMALL, C=2048, H=7, W=7)),
    Case("small", replace(SMALL, C=512, H=28, W=28, values="randn"), "resident", DENSE),
    Case("small", replace(SMALL, H=14, W=14, values="randn"), "resident", DENSE),
    Case("small", replace(SMALL, C=2048, H=7, W=7, values="randn"), "resident", DENSE),
    Case("small", replace(SMALL, H=14, W=14, values="randn"), "auto", DENSE),
    Case("small", replace(SMALL, values="randn"), "auto", DENSE),
    Case("backbone", named("resnet50/224")),
    Case("backbone", named("resnet50/512")),
    Case("backbone", named("resnet50/512/B32")),
    Case("backbone", named("resnet50/512/K1/B32")),
    Case("kernel", replace(POSITIVE, B=2, C=2048), "prototypes", COPY | ALGEBRA),
    Case("kernel", replace(POSITIVE, B=2, C=2048, layout="nhwc"), "prototypes", COPY),
    Case("kernel", replace(POSITIVE, B=32, dtype="float32"), "prototypes", COPY | ALGEBRA),
    Case(
        "kernel",
        replace(SIGNED, H=256, W=256),
        "tiled",
        {"xᵀx": "product_256", "dense PCM": None, "chunked PCM": "chunked_256"},
    ),
    Case("kernel", replace(SIGNED, dtype="bfloat16"), "tiled", {"xᵀx": "product_256", "dense PCM": "dense_16"}),
    Case("kernel", replace(SIGNED, precision="high"), "tiled", {"dense PCM float32": None}),
    Case("kernel", replace(SHIFTED, B=32, affinity="phi=shifted,center"), "prototypes", COPY),
    Case("kernel", replace(SHIFTED, B=32, layout="nhwc"), "prototypes", COPY),
    Case("kernel", replace(SIGNED, H=56, W=56), "tiled", dict.fromkeys(("dense PCM", "dense PCM compiled"))),
    Case("kernel", replace(SIGNED, B=16, C=1024, H=32, W=32), "tiled", {"dense PCM": None}),
    Case("kernel", replace(POSITIVE, H=1024, W=1024), "prototypes", COPY),
    Case("kernel", replace(POSITIVE, B=32, K=200), "prototypes", {"algebra": None}),
)


@dataclass
class Entrant:
    """One implementation: its call once it has been built and found right, or why it has none."""

    name: str
    variant: str = ""
    status: str = "ok"
    why: str = ""
    error: float | None = None
    call: Callable[[], object] | None = None
    best: float = float("inf")  # seconds of a first look
    times: list[float] = field(default_factory=list)
    host: dict[str, float] = field(default_factory=dict)

    def attempt(self, call: Callable[[], Tensor], error_of: Callable[[Tensor], float], device: Device) -> None:
        """Run once, check, and take a first time; record what goes wrong."""
        try:
            self.error = error_of(call())
            device.synchronize()
            if self.error > WRONG:
                self.status, self.why = "wrong", f"relative error {self.error:.3g} against float64"
                return
            self.best = min(device.seconds(call, 1e-3) for _ in range(3))
            self.call = call
        except Exception as error:
            self.failed(error)
        if self.status == "out of memory":  # only here has the error let go of what it held
            device.clean()

    def failed(self, error: Exception) -> None:
        self.status, self.why = "out of memory" if is_out_of_memory(error) else "failed", first_line(error)

    def row(self) -> Row:
        found = {"name": self.name, "status": self.status, "variant": self.variant, "error": self.error}
        return found | ({"why": self.why} if self.why else {}) | self.host | (summary(self.times) if self.times else {})


class Inputs:
    """What a case's calls take, and how far an answer is from float64's."""

    calls: dict[str, Callable[[], Tensor]]

    def __init__(self, device: Device, case: Case, seed: int) -> None:
        self.device, self.case, problem = device, case, case.problem
        if problem.net:
            self.maps, forward = _stages(device, problem, seed)
            self.cam = torch.rand(problem.B, problem.K, *self.maps[-1].shape[2:], device=device.device)
            unknown = partial(polish, self.cam, self.maps)
            self.calls = {"ours": partial(unknown, nonnegative=True), "forward": forward, "sign unknown": unknown}
            return
        self.cam, self.f = problem.draw(device.device, seed)
        launch = partial(tiles.launch, case.method, problem, self.cam, self.f)
        self.calls = {"ours": launch}
        if case.kind == "small":
            options: Any = {"affinity": problem.phi, "method": case.method, "nonnegative": problem.values != "randn"}
            self.calls["ours"] = partial(polish, self.cam, self.f, backend="triton", **options)
            self.calls |= {} if case.method == "auto" else {"launch alone": launch}

    def truth(self) -> Callable[[Tensor], float]:
        """Return what finds an answer's error, at sampled pixels where there is one stage."""
        problem = self.case.problem
        if problem.net:
            wide = [each.double() for each in self.maps]
            fused = polish(self.cam.double(), wide, nonnegative=True, backend="torch")
            return lambda out: relative_error(out, fused)
        generator = torch.Generator(self.device.device).manual_seed(problem.L)
        at = torch.randint(problem.L, (min(SAMPLED, problem.L),), device=self.device.device, generator=generator)
        right = sampled_truth(problem, self.cam, self.f, at)

        def error_of(out: Tensor) -> float:
            if out.dim() == 2:  # xᵀx
                return square_error(self.f, at, out)
            return relative_error(out[-1].flatten(1)[:, at], right)

        return error_of

    def baseline(self, name: str, error_of: Callable[[Tensor], float]) -> Entrant:
        """Return a baseline with its fastest variant that runs and is right."""
        if name == "copy":
            source = torch.rand(1 << 10 if self.device.dry_run else COPIED, device=self.device.device).half()
            target = torch.empty_like(source)
            return Entrant(name, f"{source.nbytes >> 20} MiB", call=lambda: target.copy_(source))
        best = Entrant(name, status="failed", why="no variant was built")
        variants = providers.PROVIDERS[name].built(self.device, self.case.problem, self.cam, self.f)
        while True:
            tried = Entrant(name)
            try:
                tried.variant, call = next(variants)
            except StopIteration:
                return best
            except Exception as error:
                tried.failed(error)
                return best if best.call else tried
            tried.attempt(call, error_of, self.device)
            if tried.best < best.best or (not best.call and not best.variant):
                best = tried


def _stages(device: Device, problem: Problem, seed: int) -> tuple[list[Tensor], Callable[[], Tensor]]:
    """Return a ResNet-50's four stages in float16, channels last, and its forward."""
    dtype = torch.float32 if device.dry_run else torch.float16
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True  # the forward at its best
    images = torch.rand(problem.B, 3, problem.H, problem.W, device=device.device).to(dtype)
    net = Forward(build("resnet18" if device.dry_run else problem.net).to(device.device, dtype), images)
    return net.stages("channels_last")[0], net.run("channels_last")


def warm(device: Device, *, case: Case, name: str, seed: int) -> list[Row]:
    """Call one implementation once in each of its variants; what is wrong with it is reported where it is timed."""
    inputs = Inputs(device, case, seed)
    if name == "ours":
        for call in inputs.calls.values():
            call()
    else:
        inputs.baseline(name, lambda _: 0.0)
    device.synchronize()
    return []


@torch.no_grad()
def compare(device: Device, *, case: Case, seed: int) -> list[Row]:
    """Check ours and every baseline, time them in turn, and judge the medians of the rounds' ratios."""
    inputs = Inputs(device, case, seed)
    error_of = inputs.truth()
    found = {name: Entrant(name) for name in inputs.calls}
    for name, call in inputs.calls.items():
        found[name].attempt(call, error_of if name != "forward" else lambda _: 0.0, device)
    mine = found["ours"]
    if case.method != "auto":
        mine.variant = ", ".join(map(str, tiles.tiles(case.method, device.gpu, case.problem).values()))
    found |= {name: inputs.baseline(name, error_of) for name in case.versus if mine.call}
    calls = {name: each.call for name, each in found.items() if each.call}
    why = take_host_times(device, found, calls, 300 if case.kind != "backbone" else 20) if case.kind != "kernel" else ""
    times = time_interleaved(device, calls, budget=2.0)
    for name, entrant in found.items():
        entrant.times = times[name].cold if name in times else []
        if entrant.times and times[name].status != "ok":
            entrant.status, entrant.why = times[name].status, times[name].why
    goals = judged(case, found, {name: each.cold for name, each in times.items()})
    row: Row = {"part": "timing", "what": case.name.partition(": ")[2], "status": mine.status, "error": mine.error}
    row |= {"goals": goals, "providers": [each.row() for each in found.values()]}
    return [row | ({"why": mine.why or why} if mine.why or why else {})]


def take_host_times(device: Device, found: Mapping[str, Entrant], calls: dict[str, Any], count: int) -> str:
    """Time calls back to back and in CUDA graphs, and add the replays to ``calls``; return why there is no graph."""
    why = ""
    for name, call in list(calls.items()):
        found[name].host["eager_us"] = round(device.eager_seconds(call, count) * 1e6, 2)
        try:
            replay, _ = device.graphed(call)
        except (NotHere, RuntimeError) as error:
            why = why or (str(error) if isinstance(error, NotHere) else f"{name}: {first_line(error)}")
            continue
        found[name].host["graph_us"] = round(device.eager_seconds(replay, count) * 1e6, 2)
        calls[f"{name}, graph"] = replay
    return why


def judged(case: Case, found: Mapping[str, Entrant], times: Mapping[str, list[float]]) -> list[Row]:
    """Return the goals of a row with their figures: an error, times of the host's, and medians of rounds' ratios."""
    mine, problem = found["ours"], case.problem

    def median(name: str, base: str) -> float | None:
        pair = [np.array(times.get(each, [])) for each in (name, base)]
        both = min(map(len, pair))
        return round(float(np.median(pair[0][:both] / pair[1][:both])), 5) if both else None

    if problem.net:  # no goal for the error: rescaling magnifies it by as much as a map is flat
        graphed = [GOALS["backbone_graph"].row(median("ours, graph", "forward, graph"))] * ("ours, graph" in times)
        return [GOALS["backbone"].row(median("ours", "forward")), *graphed]
    exact = problem.precision == "high" or case.method == "prototypes"
    exact |= case.method == "auto" and problem.values != "randn"
    goals = [GOALS["error_high" if exact else "error_default"].row(mine.error)]
    if case.kind == "small":
        goals += [GOALS[key].row(mine.host[f"{key}_us"]) for key in ("graph", "eager") if f"{key}_us" in mine.host]
    for name, key in case.versus.items():
        if key is None or name not in found:
            continue
        figure = median("ours", name) if GOALS[key].at_most else median(name, "ours")
        if figure is not None and name == "copy":
            figure *= problem.feature_bytes / (2 * COPIED)
        goals.append(GOALS[key].row(figure, baseline=name, **({"why": found[name].status} if figure is None else {})))
    return goals
