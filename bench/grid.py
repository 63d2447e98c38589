"""``python -m bench``: named problems × providers, one row each, with times, memory, or how it ended.

Every answer is checked against float64, then timed in interleaved rounds beside ours; memory is that of a fresh
process; shares are of the measured ceilings. What cannot be done, and what has run out of memory or time at a smaller
size, is not begun.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import secrets
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench import measure, problems, providers
from bench.figures import number, scientific, table
from bench.measure import Device, Times, percentiles, ratios, time_interleaved
from bench.problems import WRONG, relative_error
from bench.workers import Workers, job
from ssa_fast import polish
from ssa_fast.io.progress import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from bench.problems import Problem
    from bench.providers import Provider, Workload
    from bench.workers import Row

SIZES = (0, 4096)  # numbers copied for the ceiling, 0: enough to fill the last cache twice; side of the product
ENDED = ("out of memory", "over budget")  # how a curve ends
COMPILING_S = 240.0  # that a job may take beside its calls
SLOW_S = 1.0  # of a call that is not repeated when it is checked
SPENT_S = 3.0  # that a provider may spend in rounds, 3 at least
COLD = 5  # rounds with a cold cache
HEADS = (
    "provider",
    "variant",
    "error",
    "warm ms",
    "p20",
    "p80",
    "cold ms",
    "× auto",
    "MiB",
    "of ceiling",
    "of forward",
)


def main(
    arguments: list[str],
    providers_of: Callable[[Problem, Device], list[Provider]] = providers.of,
    sizes: tuple[int, int] = SIZES,
) -> int:
    """Return 1 if ours is wrong or failed, else 0; tests replace ``providers_of`` and the ceilings' ``sizes``."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=(__doc__ or "").partition(": ")[2],
        epilog="other commands, each with --help: python -m bench help",
    )
    add = parser.add_argument
    add("--suite", choices=problems.SUITES, help="which problems (small)")
    add("--problem", action="append", default=[], metavar="GLOB", help="problems by name or pattern, any number")
    add("--provider", action="append", default=[], metavar="GLOB", help="only these, and 'auto'; any number")
    add("--list", action="store_true", help="print problems with their sizes and providers, and leave")
    add("--save", type=Path, metavar="FILE", help="write a JSON file, whole after every problem")
    add("--limit", type=float, metavar="S", help="seconds that a call may take (20 for small, else 120)")
    add("--rounds", type=int, default=15, metavar="N", help="of each comparison, at most (%(default)s)")
    add("--device", choices=("cpu", "cuda"), help="where (the GPU if there is one)")
    add("--seed", type=int, help="of the random inputs; by default another every time")
    options = parser.parse_args(arguments)
    kind = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected cpu, since PyTorch sees no GPU here, got cuda")
    try:
        names = chosen(options.suite, options.problem)
    except ValueError as error:
        parser.error(str(error))
    device = Device(kind)
    wanted = {name: selected(providers_of(problems.named(name), device), options.provider) for name in names}
    wanted = {name: found for name, found in wanted.items() if found}
    if not wanted:
        parser.error(f"--provider: no provider of these problems is named {', '.join(options.provider)}; see --list")
    if options.list:
        print(*listed(wanted, device), sep="\n")
        return 0
    settings = {
        "suite": options.suite or ("" if options.problem else "small"),
        "rounds": options.rounds,
        "limit_s": options.limit or (20.0 if options.suite in (None, "small") else 120.0),
        "seed": secrets.randbelow(1 << 30) if options.seed is None else options.seed,
        "device": kind,
    }
    machine, rows = measure.machine(device), list[Any]()
    with Workers(device=kind, fresh=kind == "cpu", threads=None if kind == "cuda" else torch.get_num_threads()) as own:
        print(measure.describe(machine))
        given = {"size": sizes[0], "side": sizes[1], "seed": settings["seed"]}
        ceilings = own.do(job("bench.grid:ceilings", "ceilings", 120, **given))[0]
        if ceilings.pop("status") != "ok":
            print(f"The ceilings could not be measured: {ceilings['why']}.", file=sys.stderr)
            return 1
        print(", ".join(f"{name} {value:.4g}" for name, value in ceilings.items()), settings, flush=True)
        grid = Grid(device, own, settings, ceilings)
        pace, costs = Pace("run"), [problems.named(name).L for name in wanted]
        for done, name in enumerate(wanted, 1):
            rows += (those := grid.rows(name, wanted[name]))
            print(*printed(those), sep="\n", flush=True)
            if options.save:
                command = measure.command_line(arguments)
                more = {"settings": settings, "ceilings": ceilings, "machine": machine}
                measure.save(options.save, rows, command=command, **more)
            pace.update(sum(costs[:done]), sum(costs))
    bad = [row for row in rows if row["ours"] and row["status"] in ("wrong", "failed")]
    for row in bad:
        print(f"{row['problem']}: {row['provider']} is {row['status']}: {row['why']}", file=sys.stderr)
    return int(bool(bad))


def chosen(suite: str | None, patterns: Sequence[str]) -> list[str]:
    """Return names of problems: a suite's, or those that match, of that suite or of all; a whole name may be of none.

    Raises:
        ValueError: A pattern matches nothing.
    """
    every = [name for each in ([suite] if suite else problems.SUITES) for name in problems.SUITES[each]]
    found = [] if patterns else problems.SUITES[suite or "small"]
    for pattern in patterns:
        if not any(character in pattern for character in "*?["):
            problems.named(pattern)
            found.append(pattern)
        elif matching := fnmatch.filter(every, pattern):
            found += matching
        else:
            raise ValueError(f"--problem: expected a pattern of names that --list prints, got {pattern!r}")
    return list(dict.fromkeys(found))


def selected(every: Sequence[Provider], patterns: Sequence[str]) -> list[Provider]:
    """Return the providers that match, and those that they are compared with; none where none matches."""
    if not patterns:
        return list(every)
    matching = [each for each in every if any(fnmatch.fnmatchcase(each.name, pattern) for pattern in patterns)]
    needed = {"auto", *(each.follows for each in matching), *(each.name for each in matching)}
    return [each for each in every if matching and each.name in needed]


@dataclass
class Grid:
    """A run: where, with which settings and ceilings, and at which size each provider's curve has ended."""

    device: Device
    workers: Any
    settings: Mapping[str, Any]
    ceilings: Mapping[str, float]
    ends: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    def rows(self, name: str, entrants: Sequence[Provider]) -> list[Row]:
        """Return all rows of a problem, in the order of its providers."""
        problem = problems.named(name)
        rows = {each.name: self.blank(name, problem, each) for each in entrants}
        alive: list[tuple[Provider, str, float]] = []
        for each in entrants:
            row = rows[each.name]
            if row["status"] != "ok":
                continue
            variants = (rows[each.follows]["variant"],) if each.follows in rows else each.names(problem, self.device)
            row |= self._check(name, problem, each, variants)
            seconds = row.pop("seconds")
            if row["status"] == "ok":
                alive.append((each, row["variant"], seconds))
            elif row["status"] in ENDED:
                self.ends[problems.curve(name), each.name] = problem.L, row["status"]
        if alive:
            self._race(rows, name, problem, alive)
        return [*rows.values()]

    def _do(self, function: str, name: str, limit: float, **arguments: Any) -> Row:
        given = {"seed": self.settings["seed"], **arguments}
        found: Row = self.workers.do(job(f"bench.grid:{function}", name, limit, **given))[0]
        return found

    def blank(self, name: str, problem: Problem, provider: Provider) -> Row:
        """Return a row without figures, which says already how it ended if that is known without trying."""
        status, why = self._foreseen(name, problem, provider)
        row = {"problem": name} | problem.row() | {"provider": provider.name, "ours": provider.ours, "variant": ""}
        row |= {"status": status, "why": why, "error": None, "warm_ms": None, "cold_ms": None, "rounds": 0}
        row |= {"ratio": None, "peak_extra_mib": None, "share": None, "bound": ""}
        row |= {"graph_ms": None, "eager_ms": None} if self.device.on_gpu else {}
        return row | ({"share_of_backbone": None} if provider.follows else {})

    def _foreseen(self, name: str, problem: Problem, provider: Provider) -> tuple[str, str]:
        if reasons := provider.reasons(problem, self.device):
            return "unsupported", "; ".join(reasons)
        L, status = self.ends.get((problems.curve(name), provider.name), (math.inf, ""))
        if problem.L >= L:
            return status, f"already so at L={L:,}"
        return "ok", ""

    def _check(self, name: str, problem: Problem, provider: Provider, variants: Sequence[str]) -> Row:
        """Return the fastest variant that is right, or how the first one that is not ended."""
        best, limit = dict[str, Any](), self.settings["limit_s"]
        for variant in variants:
            given = {"problem": problem, "provider": provider, "variant": variant, "limit_s": limit}
            found = self._do("check", name, COMPILING_S + 4 * limit, **given)
            found = {key: found.get(key) for key in ("status", "why", "error", "peak_extra_mib", "seconds")}
            if not best or (found["seconds"] or math.inf) < (best["seconds"] or math.inf):
                best = found | {"variant": variant}
            if found["status"] == "over budget":
                break  # the others would take as long
        if best["status"] == "over budget" and "call" in best["why"]:
            best["why"] = f"a call took longer than {limit:g} s"
        return best

    def _race(
        self, rows: dict[str, Row], name: str, problem: Problem, alive: list[tuple[Provider, str, float]]
    ) -> None:
        """Fill in times, ratios and shares."""
        limit = 2 * COMPILING_S + sum(4 * SPENT_S + 12 * seconds for _, _, seconds in alive)
        given = {"problem": problem, "entrants": [each[:2] for each in alive], "rounds": self.settings["rounds"]}
        found = self._do("race", name, limit, **given)
        lost = Times(status=found["status"], why=found.get("why", ""))
        every = found.get("times") or {each.name: lost for each, _, _ in alive}
        base = every.get("polish and fuse" if problem.net else "auto")
        for provider, _, _ in alive:
            row, times = rows[provider.name], every[provider.name]
            if times.status != "ok":
                row |= {"status": times.status, "why": f"while being timed: {times.why}"}
                continue
            row |= {"rounds": len(times.warm), "warm_ms": in_ms(times.warm), "cold_ms": in_ms(times.cold)}
            row |= {key: in_ms([seconds]) for key, seconds in found["host"].get(provider.name, {}).items()}
            if base and base.warm and times is not base:
                row["ratio"] = ratios(times.warm, base.warm)
            if provider.follows in every:
                row["share_of_backbone"] = ratios(times.warm, every[provider.follows].warm)
            row |= share(provider.work(problem, self.device), self.ceilings, row["warm_ms"]["p50"])


# What is done in other processes.


def ceilings(device: Device, *, size: int, side: int, seed: int) -> list[Row]:
    """Return the float32 roofline, the best of several rounds; ``size`` 0 is a copy that fills the last cache twice."""
    torch.manual_seed(seed)
    source = torch.rand(size or device.beyond_cache() // 4, device=device.device)
    a, target = torch.randn(side, side, device=device.device), torch.empty_like(source)
    calls = {"copy": lambda: target.copy_(source), "product": lambda: a @ a}
    best = {name: 1e9 * min(times.cold) for name, times in time_interleaved(device, calls).items()}
    found = {"copy_gb_s": 2 * source.nbytes / best["copy"], "product_gflop_s": 2 * side**3 / best["product"]}
    return [{"status": "ok"} | {name: float(f"{value:.4g}") for name, value in found.items()}]


@torch.no_grad()
def check(
    device: Device, *, problem: Problem, provider: Provider, variant: str, seed: int, limit_s: float
) -> list[Row]:
    """Return error, peak memory and about the time of a variant; a call longer than ``limit_s`` ends the process."""
    cam, f = problem.draw(device.device, seed)
    # Thread pool and library code are there before anything is watched.
    torch.relu(torch.rand(512, 512, device=device.device) @ torch.rand(512, 512, device=device.device))
    polish(torch.rand(1, 2, 8, 8, device=device.device), torch.rand(1, 4, 8, 8, device=device.device))
    call = provider.build(device, problem, cam, f, variant)
    if provider.compiles:
        call()
    begin = time.perf_counter()
    with limited(limit_s):
        out, peak = device.peak_bytes(call)
        device.synchronize()
    seconds = time.perf_counter() - begin
    row: Row = {"error": _error(provider, problem, cam, f, variant, out, seed)}
    row["peak_extra_mib"] = None if peak is None else round(peak / 2**20, 2)
    del out
    if row["error"] > WRONG:
        return [row | {"status": "wrong", "why": f"relative error {row['error']:.3g} against float64"}]
    if seconds < SLOW_S:
        seconds = min(device.seconds(call, cold=False) for _ in range(3))
    return [row | {"status": "ok", "why": "", "seconds": seconds}]


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End the process by SIGALRM if the block takes longer; the whole process, since no thread can stop a product."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _error(provider: Provider, problem: Problem, cam: Tensor, f: Any, variant: str, out: Tensor, seed: int) -> float:
    """Return how far an answer is from the one in float64: at sampled pixels, or of a network's cropped images."""
    if provider.answer == "fused":
        stages = [stage.double() for stage in f.stages(variant)[0]]
        return relative_error(out, polish(cam.double(), stages, affinity=f.affinities, backend="torch"))
    if provider.answer == "logits":
        return relative_error(out if problem.H <= problems.CROPPED else f.cropped(f.net, f.images.dtype), f.truth())
    at = problems.sampled(problem, seed).to(out.device)
    if provider.answer == "square":
        return problems.square_error(f, at, out)
    return relative_error(out[-1].flatten(1)[:, at], problems.sampled_truth(problem, cam, f, at))


@torch.no_grad()
def race(
    device: Device, *, problem: Problem, entrants: Sequence[tuple[Provider, str]], seed: int, rounds: int
) -> list[Row]:
    """Time the entrants in interleaved rounds; on a GPU also as the host sees them, and as CUDA graphs."""
    cam, f = problem.draw(device.device, seed)
    # All are built before any is called: a build resets the compiler.
    calls = {each.name: each.build(device, problem, cam, f, variant) for each, variant in entrants}
    budget = SPENT_S * len(calls)
    times = time_interleaved(device, calls, cold=min(COLD, rounds), warm=rounds, least=3, budget=budget, seed=seed)
    host: dict[str, dict[str, float]] = {}
    for name in calls if device.on_gpu else ():
        host[name] = {"eager_ms": device.eager_seconds(calls[name], 100)}
        with suppress(RuntimeError):  # a call that cannot be captured has no such time
            host[name]["graph_ms"] = device.eager_seconds(device.graphed(calls[name])[0], 100)
    return [{"status": "ok", "times": times, "host": host}]


# Figures, for the file and for people.


def in_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    return percentiles([1e3 * each for each in seconds])


def share(work: Workload | None, ceilings: Mapping[str, float], p50_ms: float) -> Row:
    """Return the roofline's time of the work over the measured time, and which ceiling binds; None if not counted."""
    if work is None:
        return {"share": None, "bound": ""}
    product, copy = work.flops / ceilings["product_gflop_s"], work.traffic / ceilings["copy_gb_s"]
    return {"share": round(max(product, copy) / 1e6 / p50_ms, 4), "bound": "product" if product > copy else "copy"}


def printed(rows: Sequence[Row]) -> Iterator[str]:
    """Yield one problem's lines: what was timed, then what was not and why."""
    first, lines = rows[0], []
    words = (f"B={first['B']} K={first['K']} C={first['C']} L={first['L']:,}", first["dtype"], first["layout"])
    yield from ("", " ".join(filter(None, (first["problem"], " ", *words, first["values"], first["affinity"]))))
    for row in rows:
        if row["status"] == "ok":
            warm, cold, ratio = row["warm_ms"], row["cold_ms"] or {}, row["ratio"] or {}
            figures = (*(warm[key] for key in ("p50", "p20", "p80")), cold.get("p50"), ratio.get("p50"))
            part = "–" if row["share"] is None else f"{row['share']:.0%} {row['bound']}"
            whole = row.get("share_of_backbone")
            cells = (*map(number, (*figures, row["peak_extra_mib"])), part, f"{whole['p50']:.2%}" if whole else "–")
            lines.append([row["provider"], row["variant"], scientific(row["error"]), *cells])
    yield from table(HEADS, lines, aligned=True)
    yield from (f"{row['provider']}: {row['status']}: {row['why']}" for row in rows if row["status"] != "ok")


def listed(wanted: Mapping[str, Sequence[Provider]], device: Device) -> Iterator[str]:
    """Yield the problems with their sizes, then the providers, with how many of the problems each cannot do."""
    every = {name: problems.named(name) for name in wanted}
    sizes = [[name, *map(str, (p.B, p.K, p.C)), f"{p.L:,}", f"{p.H}×{p.W}"] for name, p in every.items()]
    yield from table(["problem", "B", "K", "C", "L", "H×W"], sizes, aligned=True)
    reasons: dict[str, list[str]] = {}
    for name, found in wanted.items():
        for each in found:
            reasons.setdefault(each.name, []).append("; ".join(each.reasons(every[name], device)))
    able = [[who, f"{why.count('')} of {len(why)}", next(filter(None, why), "")] for who, why in reasons.items()]
    yield from ("", *table(["provider", "problems", "else"], able, aligned=True))
