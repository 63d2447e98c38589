"""What the grid has done about a problem in other processes: the truth, a check, and the interleaved timing.

Inputs are drawn once in a process: where it is forked for each job, they are there already.
"""

from __future__ import annotations

import copy
import functools
import itertools
import random
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bench import memory
from bench.networks import CROPPED, Network
from bench.problem import SAMPLED, WRONG, relative_error, sampled_truth, square_error
from bench.stand import is_out_of_memory
from bench.workers import first_line
from ssa_fast import polish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from bench.problems import Named
    from bench.providers import Provider
    from bench.stand import Device
    from bench.workers import Row

SLOW = 1.0  # seconds of a call beyond which it takes part in few rounds
SPENT = 3.0  # seconds that a provider may spend in warm rounds
FEW, MANY = 3, 15
LONG = 5.0  # seconds of a call beside which it takes nothing to fill the caches: it is made once a round
ONCE = 10.0  # seconds of a call beyond which there is one round
COLD = 5  # rounds with a cold cache: overwriting it takes its time, too


@dataclass(frozen=True)
class Variant:
    """A provider that was found right: which of its variants is the fastest, and about how many seconds it takes."""

    provider: Provider
    at: int
    seconds: float

    def rounds(self, most: int) -> int:
        """In how many rounds it takes part."""
        if self.seconds > ONCE:
            return 1
        return min(most, max(FEW, int(SPENT / (2 * self.seconds)))) if self.seconds else most


@functools.lru_cache(maxsize=1)
def inputs(problem: Named, seed: int, device: torch.device) -> tuple[Tensor, Any]:
    """CAM and features, or CAM and network."""
    return problem.draw(device, seed)


def hold(stand: Device, *, problem: Named, seed: int) -> list[Row]:
    """Draw the inputs, so that they are there for the jobs to come."""
    inputs(problem, seed, stand.device)
    return [{"status": "ok"}]


def sampled(problem: Any, seed: int) -> Tensor:
    """Indices of the target pixels that an answer is checked at."""
    return torch.randint(problem.L, (min(SAMPLED, problem.L),), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def truth(stand: Device, *, problem: Named, seed: int) -> list[Row]:
    """In float64: the polished CAM at the sampled pixels, or the network's logits."""
    cam, f = inputs(problem, seed, stand.device)
    if isinstance(problem, Network):
        images = f.images[:, :, :CROPPED, :CROPPED].double()
        right = copy.deepcopy(f.net).double()(images)
    else:
        right = sampled_truth(problem, cam, f, sampled(problem, seed).to(stand.device))
    return [{"status": "ok", "right": right.cpu().numpy()}]


@torch.no_grad()
def check(
    stand: Device, *, problem: Named, provider: Provider, at: int, seed: int, right: Any, limit_s: float
) -> list[Row]:
    """A provider's variant number ``at``: its error, its memory, about its time; ``"no more"`` where it has none.

    A call that takes longer than ``limit_s`` ends the process.
    """
    cam, f = inputs(problem, seed, stand.device)
    warm_up(stand)
    try:
        call, row = _built(stand, problem, provider, at, seed)
    except StopIteration:
        return [{"status": "no more"}]
    if provider.compiles:
        call()
        stand.clean()
    watched = (lambda: _built(stand, problem, provider, at, seed)[0]()) if provider.holds else call
    begin = time.perf_counter()
    with limited(limit_s):
        out, peak = stand.watched(watched)
        stand.synchronize()
    seconds = time.perf_counter() - begin
    row |= {"peak": peak, "error": _error(provider, problem, cam, f, row["variant"], out, seed, right)}
    del out
    if row["error"] > WRONG:
        why = f"relative error {row['error']:.3g} against float64"
        return [row | {"status": "wrong", "why": why}]
    if seconds < SLOW:
        seconds = min(stand.seconds(call, cold=False) for _ in range(FEW))
    return [row | {"status": "ok", "seconds": seconds}]


def warm_up(stand: Device) -> None:
    """Have thread pool and library code there before anything is watched, and freed memory given back."""
    if not stand.on_gpu:
        memory.settle()
    torch.relu(torch.rand(512, 512, device=stand.device) @ torch.rand(512, 512, device=stand.device))
    polish(torch.rand(1, 2, 8, 8, device=stand.device), torch.rand(1, 4, 8, 8, device=stand.device))


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End the process by SIGALRM if the block takes longer; the whole process, since no thread can stop a product."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _built(
    stand: Device, problem: Named, provider: Provider, at: int, seed: int
) -> tuple[Callable[[], Tensor], dict[str, Any]]:
    """A variant's call and its name; StopIteration where there are fewer."""
    variants = provider.build(stand, problem, *inputs(problem, seed, stand.device))
    variant, call = next(itertools.islice(variants, at, None))
    return call, {"variant": variant}


def _error(
    provider: Provider, problem: Any, cam: Tensor, f: Any, variant: str, out: Tensor, seed: int, right: Any
) -> float:
    """How far an answer is from the one in float64."""
    if provider.answer == "fused":
        stages = [stage.double() for stage in f.stages(variant)]
        return relative_error(out, polish(cam.double(), stages, affinity=f.affinities, backend="torch"))
    known = torch.as_tensor(right, device=out.device)
    if provider.answer == "logits":
        corner = f.images[:, :, :CROPPED, :CROPPED]
        return relative_error(out if problem.size <= CROPPED else f.net(corner), known)
    at = sampled(problem, seed).to(out.device)
    return square_error(f, at, out) if provider.answer == "square" else relative_error(out[-1].flatten(1)[:, at], known)


@torch.no_grad()
def time_interleaved(stand: Device, *, problem: Named, entrants: Sequence[Variant], seed: int, most: int) -> list[Row]:
    """Seconds of every entrant in interleaved rounds, each in a shuffled order; one row per entrant.

    In a round each is called with a cold cache and then again, or, after ``COLD`` rounds, twice: the second call is the
    warm one. A call of more than ``LONG`` seconds is made once and counts as warm.
    """
    runners = [_Runner(stand, problem, entrant, seed) for entrant in entrants]
    for step in (_Runner.build, _Runner.warm_up):  # all are built before any is called: a build resets the compiler
        for runner in runners:
            runner.attempt(step)
    order = random.Random(seed)
    for turn in range(max((each.rounds(most) for each in entrants), default=0)):
        for runner in order.sample(runners, len(runners)):
            if turn < runner.entrant.rounds(most):
                runner.attempt(functools.partial(_Runner.run, cold=turn < COLD))
    for runner in runners if stand.on_gpu else ():
        runner.attempt(_Runner.host_and_graph)
    return [runner.row for runner in runners]


class _Runner:
    """One variant of an interleaved timing; what holds more than its inputs is built anew for every round."""

    def __init__(self, stand: Device, problem: Named, entrant: Variant, seed: int) -> None:
        self.stand, self.entrant = stand, entrant
        self.row: Row = {"provider": entrant.provider.name, "status": "ok", "why": "", "warm": [], "cold": []}
        self._build = functools.partial(_built, stand, problem, entrant.provider, entrant.at, seed)
        self._call: Callable[[], Tensor] | None = None
        self._pause = 0.0

    def attempt(self, step: Callable[[_Runner], None]) -> None:
        """Take a step if all went well so far; what goes wrong is written down."""
        if self.row["status"] != "ok":
            return
        try:
            step(self)
        except Exception as error:
            status = "out of memory" if is_out_of_memory(error) else "failed"
            self.row |= {"status": status, "why": first_line(error)}

    def build(self) -> None:
        if not self.entrant.provider.holds:
            self._call, _ = self._build()

    def call(self) -> Callable[[], Tensor]:
        return self._call or self._build()[0]

    def warm_up(self) -> None:
        """Compile, and call once what is quick."""
        if self.entrant.seconds < SLOW or self.entrant.provider.compiles:
            call = self.call()
            call()
            self._pause = self.stand.pause(call)

    def run(self, *, cold: bool) -> None:
        call = self.call()
        if self.entrant.seconds <= LONG:
            if cold:
                self.row["cold"].append(self.stand.seconds(call, self._pause))
            else:
                call()
        self.row["warm"].append(self.stand.seconds(call, self._pause, cold=False))

    def host_and_graph(self) -> None:
        """Seconds of a call as the host sees it, and of a replay of its CUDA graph where it can be captured."""
        call = self.call()
        calls = max(1, min(300, int(0.1 / max(self.entrant.seconds, 1e-6))))
        self.row["eager"] = self.stand.eager_seconds(call, calls)
        with suppress(RuntimeError):  # a call that cannot be captured has no such time
            replay, _ = self.stand.graphed(call)
            self.row["graph"] = self.stand.eager_seconds(replay, calls)
