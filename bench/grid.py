"""``python -m bench``: named problems × providers, one row each, with times, memory, or how it ended.

Every answer is checked against float64, then timed in interleaved rounds beside ours; memory is that of a fresh
process; shares are of the measured ceilings. What cannot be done, what has ended before at a smaller size, and what is
predicted to take more memory or time than there is are not begun.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import math
import secrets
import signal
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench import measure, problems, providers
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

FAILED, UNFINISHED = 1, 3  # exit codes; argparse's own is 2
SIZES = (0, 4096)  # numbers copied for the ceiling, 0: enough to fill the last cache twice; side of the product
ENDED = ("out of memory", "over budget")  # how a curve ends
COMPILING_S = 240.0  # that a job may take beside its calls
HOPELESS = 1.25  # times the limit that a product takes at its measured ceiling: it is not begun
SLOW_S = 1.0  # of a call that is not repeated when it is checked
SPENT_S = 3.0  # that a provider may spend in rounds, 3 at least
COLD = 5  # rounds with a cold cache
MIB = 1 << 20
EPILOG = """exit codes: 0 all done; 1 ours is wrong or failed; 2 wrong usage; 3 the budget ended before the last problem

other commands, each with --help: python -m bench help"""


def main(
    arguments: list[str],
    providers_of: Callable[[Problem, Device], list[Provider]] = providers.of,
    sizes: tuple[int, int] = SIZES,
) -> int:
    """Return the exit code. ``providers_of`` a problem and the ``sizes`` of the ceilings are what tests replace."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=(__doc__ or "").partition(": ")[2],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--suite", choices=problems.SUITES, help="which problems (small)")
    add("--problem", action="append", default=[], metavar="GLOB", help="problems by name or pattern, any number")
    add("--provider", action="append", default=[], metavar="GLOB", help="only these, and 'auto'; any number")
    add("--list", action="store_true", help="print problems with their sizes and providers, and leave")
    add("--save", type=Path, metavar="FILE", help="write a JSON file, whole after every problem")
    add("--limit", type=float, metavar="S", help="seconds that a call may take (20 for small, else 120)")
    add("--budget", type=float, default=float("inf"), metavar="S", help="seconds after which no problem is begun")
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
    found = measure.machine(device)
    save = functools.partial(measure.save, options.save, command=measure.command_line(arguments), machine=found)
    with Workers(device=kind, fresh=kind == "cpu", threads=None if kind == "cuda" else torch.get_num_threads()) as own:
        print("measuring the ceilings of this machine", file=sys.stderr, flush=True)
        given = {"size": sizes[0], "side": sizes[1], "seed": settings["seed"]}
        ceilings = own.do(job("bench.grid:ceilings", "ceilings", 120, **given))[0]
        if ceilings.pop("status") != "ok":
            print(f"The ceilings could not be measured: {ceilings['why']}.", file=sys.stderr)
            return FAILED
        print(measure.describe(found))
        copy, product = (number(ceilings[name]) or "–" for name in ("copy_gb_s", "product_gflop_s"))
        said = f"limit {settings['limit_s']:g} s, seed {settings['seed']}"
        print(f"ceilings: copy {copy} GB/s, float32 product {product} GFLOP/s; {said}", flush=True)
        grid = Grid(device, own, settings, ceilings)
        rows, left = [], list(wanted)
        begin, pace, costs = time.monotonic(), Pace("run"), {name: problems.named(name).L for name in wanted}
        while left and time.monotonic() - begin < options.budget:
            name = left.pop(0)
            rows += (those := grid.rows(name, wanted[name]))
            if options.save:
                save(rows, settings=settings, ceilings=ceilings)
            print(*table(those), sep="\n", flush=True)
            pace.update(sum(costs.values()) - sum(costs[each] for each in left), sum(costs.values()))
    if left:
        print(f"The budget of {options.budget:g} s ended before: {', '.join(left)}.", file=sys.stderr)
    bad = [row for row in rows if row["ours"] and row["status"] in ("wrong", "failed")]
    for row in bad:
        print(f"{row['problem']}: {row['provider']} is {row['status']}: {row['why']}", file=sys.stderr)
    return FAILED if bad else UNFINISHED if left else 0


def chosen(suite: str | None, patterns: Sequence[str]) -> list[str]:
    """Return names of problems: a suite's, or those that match, of that suite or of all; a whole name may be of none.

    Raises:
        ValueError: A pattern matches nothing.
    """
    if not patterns:
        return list(dict.fromkeys(problems.SUITES[suite or "small"]))
    every = [name for each in ([suite] if suite else problems.SUITES) for name in problems.SUITES[each]]
    found: list[str] = []
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


class Grid:
    """A run: where, with which settings and ceilings, and at which size each provider's curve has ended."""

    def __init__(self, device: Device, own: Any, settings: Mapping[str, Any], ceilings: Mapping[str, Any]) -> None:
        self.device, self.workers, self.ceilings = device, own, ceilings
        self.seed, self.limit_s, self.rounds = settings["seed"], settings["limit_s"], settings["rounds"]
        self._ends: dict[tuple[str, str], tuple[int, str]] = {}

    def rows(self, name: str, entrants: Sequence[Provider]) -> list[Row]:
        """Return all rows of a problem, in the order of its providers."""
        problem = problems.named(name)
        rows = {each.name: self._blank(name, problem, each) for each in entrants}
        tried = [each for each in entrants if rows[each.name]["status"] == "ok"]
        truth = self._do("truth", name, COMPILING_S, problem=problem) if tried else {}
        alive: list[tuple[Provider, str, float]] = []
        for each in tried:
            print(f"{name}: {each.name}", file=sys.stderr, flush=True)
            if truth["status"] != "ok":
                rows[each.name] |= {"status": truth["status"], "why": f"inputs and truth: {truth['why']}"}
                continue
            followed = rows[each.follows]["variant"] if each.follows in rows else ""
            best = self._check(name, problem, each, (followed,) if followed else (), truth["right"])
            seconds = best.pop("seconds", 0.0)
            rows[each.name] |= best
            if best["status"] == "ok":
                alive.append((each, best["variant"], seconds))
            elif best["status"] in ENDED:
                self._ends[problems.curve(name), each.name] = problem.L, best["status"]
        if alive:
            self._race(rows, name, problem, alive)
        return [*rows.values()]

    def _do(self, function: str, name: str, limit: float, **arguments: Any) -> Row:
        found: Row = self.workers.do(job(f"bench.grid:{function}", name, limit, seed=self.seed, **arguments))[0]
        return found

    def _blank(self, name: str, problem: Problem, provider: Provider) -> Row:
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
        L, status = self._ends.get((problems.curve(name), provider.name), (None, ""))
        if L is not None and problem.L >= L:
            return status, f"already so at L={L:,}"
        work = provider.work(problem, self.device)
        if work and work.held > (free := self.device.free_bytes()):
            return "out of memory", f"predicted: it would hold {in_bytes(work.held)} and {in_bytes(free)} are free"
        seconds = seconds_at(self.ceilings["product_gflop_s"], work.flops) if work else None
        if work and seconds and not self.device.on_gpu and seconds > HOPELESS * self.limit_s:
            why = f"its {work.flops / 1e12:,.3g} TFLOP take {seconds:,.0f} s at the product's measured ceiling"
            return "over budget", f"predicted: {why}"
        return "ok", ""

    def _check(self, name: str, problem: Problem, provider: Provider, variants: Sequence[str], right: Any) -> Row:
        """Return the fastest variant that is right, or how the first one that is not ended."""
        best: Row = {}
        for variant in variants or provider.names(problem, self.device):
            given = {"problem": problem, "provider": provider, "variant": variant, "right": right}
            found = self._do("check", name, COMPILING_S + 4 * self.limit_s, limit_s=self.limit_s, **given)
            found = {key: found.get(key) for key in ("status", "why", "error", "peak_extra_mib", "seconds")}
            if not best or (found["seconds"] or math.inf) < (best["seconds"] or math.inf):
                best = found | {"variant": variant}
            if found["status"] == "over budget":
                break  # the others would take as long
        if best["status"] == "over budget" and "call" in best["why"]:
            best["why"] = f"a call took longer than {self.limit_s:g} s"
        return best

    def _race(
        self, rows: dict[str, Row], name: str, problem: Problem, alive: list[tuple[Provider, str, float]]
    ) -> None:
        """Fill in times, ratios and shares."""
        print(f"{name}: timing {len(alive)} providers in rounds", file=sys.stderr, flush=True)
        limit = 2 * COMPILING_S + sum(4 * SPENT_S + 12 * seconds for _, _, seconds in alive)
        given = {"problem": problem, "entrants": [each[:2] for each in alive], "rounds": self.rounds}
        found = self._do("race", name, limit, **given)
        base = found.get("times", {}).get("polish and fuse" if problem.net else "auto")
        for provider, _, _ in alive:
            row, lost = rows[provider.name], Times(status=found["status"], why=found.get("why", ""))
            times = found.get("times", {}).get(provider.name, lost)
            if times.status != "ok":
                row |= {"status": times.status, "why": f"while being timed: {times.why}"}
                continue
            row |= {"rounds": len(times.warm), "warm_ms": in_ms(times.warm), "cold_ms": in_ms(times.cold)}
            row |= {key: in_ms([seconds]) for key, seconds in found["host"].get(provider.name, {}).items()}
            if base and base.warm and times is not base:
                row["ratio"] = ratios(times.warm, base.warm)
            if provider.follows in found["times"]:
                row["share_of_backbone"] = ratios(times.warm, found["times"][provider.follows].warm)
            row |= share(provider.work(problem, self.device), self.ceilings, row["warm_ms"]["p50"])


# What is done in other processes.


def ceilings(device: Device, *, size: int, side: int, seed: int) -> list[Row]:
    """Return the float32 roofline, the best of several rounds; ``size`` 0 is a copy that fills the last cache twice."""
    torch.manual_seed(seed)
    source = torch.rand(size or device.beyond_cache() // 4, device=device.device)
    a, target = torch.randn(side, side, device=device.device), torch.empty_like(source)
    calls = {"copy": lambda: target.copy_(source), "product": lambda: a @ a}
    best = {name: min(times.cold) for name, times in time_interleaved(device, calls).items()}
    found = {"copy_gb_s": giga_per_second(2 * source.nbytes, best["copy"])}
    return [{"status": "ok", **found, "product_gflop_s": giga_per_second(2 * side**3, best["product"])}]


def giga_per_second(amount: float, seconds: float) -> float | None:
    """Return a rate in 10⁹ per second, to four digits; None if it took no time."""
    return float(f"{amount / seconds / 1e9:.4g}") if seconds > 0 else None


@torch.no_grad()
def truth(device: Device, *, problem: Problem, seed: int) -> list[Row]:
    """Return, in float64, the polished CAM at the sampled pixels, or the network's logits."""
    cam, f = problem.draw(device.device, seed)
    if problem.net:
        right = f.truth()
    else:
        right = problems.sampled_truth(problem, cam, f, problems.sampled(problem, seed).to(device.device))
    return [{"status": "ok", "right": right.cpu().numpy()}]


@torch.no_grad()
def check(
    device: Device, *, problem: Problem, provider: Provider, variant: str, seed: int, right: Any, limit_s: float
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
    row: Row = {"error": _error(provider, problem, cam, f, variant, out, seed, right)}
    row["peak_extra_mib"] = None if peak is None else round(peak / MIB, 2)
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


def _error(
    provider: Provider, problem: Problem, cam: Tensor, f: Any, variant: str, out: Tensor, seed: int, right: Any
) -> float:
    """Return how far an answer is from the one in float64."""
    if provider.answer == "fused":
        stages = [stage.double() for stage in f.stages(variant)[0]]
        return relative_error(out, polish(cam.double(), stages, affinity=f.affinities, backend="torch"))
    known = torch.as_tensor(right, device=out.device)
    if provider.answer == "logits":
        return relative_error(out if problem.H <= problems.CROPPED else f.cropped(f.net, f.images.dtype), known)
    at = problems.sampled(problem, seed).to(out.device)
    if provider.answer == "square":
        return problems.square_error(f, at, out)
    return relative_error(out[-1].flatten(1)[:, at], known)


@torch.no_grad()
def race(
    device: Device, *, problem: Problem, entrants: Sequence[tuple[Provider, str]], seed: int, rounds: int
) -> list[Row]:
    """Time the entrants in interleaved rounds; on a GPU also as the host sees them, and as CUDA graphs."""
    cam, f = problem.draw(device.device, seed)
    # All are built before any is called: a build resets the compiler.
    calls = {each.name: each.build(device, problem, cam, f, variant) for each, variant in entrants}
    given = {"cold": min(COLD, rounds), "warm": rounds, "least": 3, "budget": SPENT_S * len(calls), "seed": seed}
    times = time_interleaved(device, calls, **given)  # type: ignore[arg-type]
    host: dict[str, dict[str, float]] = {}
    for name in calls if device.on_gpu else ():
        host[name] = {"eager_ms": device.eager_seconds(calls[name], 100)}
        with suppress(RuntimeError):  # a call that cannot be captured has no such time
            host[name]["graph_ms"] = device.eager_seconds(device.graphed(calls[name])[0], 100)
    return [{"status": "ok", "times": times, "host": host}]


# Figures, for the file and for people.


def in_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    return percentiles([1e3 * each for each in seconds])


def seconds_at(ceiling: float | None, amount: float) -> float | None:
    """Return how long ``amount`` takes at a ceiling in 10⁹ per second; None if the ceiling could not be measured."""
    return amount / ceiling / 1e9 if ceiling else None


def share(work: Workload | None, ceilings: Mapping[str, float | None], p50_ms: float) -> Row:
    """Return the roofline's time of the work over the measured time, and which ceiling binds; None if unknown."""
    product = seconds_at(ceilings["product_gflop_s"], work.flops) if work else None
    copy = seconds_at(ceilings["copy_gb_s"], work.traffic) if work else None
    if product is None or copy is None or not p50_ms:
        return {"share": None, "bound": ""}
    return {"share": round(max(product, copy) * 1e3 / p50_ms, 4), "bound": "product" if product > copy else "copy"}


def in_bytes(count: float) -> str:
    """Return a size as people say it."""
    power = min(int(math.log2(max(count, 1)) // 10), 4)
    return f"{count / 1024**power:,.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def number(value: float | None) -> str:
    """Return three digits, without an exponent; nothing of None."""
    return "" if value is None else f"{value:,.{min(max(0, 2 - math.floor(math.log10(abs(value) or 1))), 3)}f}"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield one problem's lines, at most 120 columns wide: what was timed, then what was not and why."""
    first, line = rows[0], "{:19} {:19} {:>7} {:>9} {:>8} {:>8} {:>9} {:>8} {:>8} {:>13}".format
    words = (f"B={first['B']} K={first['K']} C={first['C']} L={first['L']:,}", first["dtype"], first["layout"])
    yield from ("", " ".join(filter(None, (first["problem"], " ", *words, first["values"], first["affinity"]))))
    yield line("provider", "variant", "error", "warm ms", "[p20", "p80]", "cold ms", "× auto", "MiB", "of ceiling")
    for row in rows:
        if row["status"] == "ok":
            warm, cold, ratio = row["warm_ms"], row["cold_ms"] or {}, row["ratio"] or {}
            figures = (warm["p50"], warm["p20"], warm["p80"], cold.get("p50"), ratio.get("p50"), row["peak_extra_mib"])
            part = "–" if row["share"] is None else f"{100 * row['share']:.0f} % {row['bound']}"
            yield line(row["provider"], row["variant"][:19], f"{row['error']:.0e}", *map(number, figures), part)
    for row in rows:
        if row["status"] != "ok":
            yield f"{row['provider']:19} {row['status']}: {row['why']}"[:120]
    for row in rows:
        if row.get("share_of_backbone"):
            low, middle, high = (f"{100 * row['share_of_backbone'][key]:.2f}" for key in ("p20", "p50", "p80"))
            yield f"{row['provider']}: {middle} % of the forward's time [{low}, {high}]"


def listed(wanted: Mapping[str, Sequence[Provider]], device: Device) -> Iterator[str]:
    """Yield the problems with their sizes, then the providers, with how many of the problems each cannot do."""
    line = "{:34} {:>3} {:>5} {:>5} {:>10} {:>10}".format
    yield line("problem", "B", "K", "C", "L", "H×W")
    count: dict[str, list[str]] = {}
    for name, found in wanted.items():
        problem = problems.named(name)
        yield line(name, problem.B, problem.K, problem.C, f"{problem.L:,}", f"{problem.H}×{problem.W}")
        for each in found:
            count.setdefault(each.name, []).append("; ".join(each.reasons(problem, device)))
    yield from ("", "provider            problems")
    for provider, reasons in count.items():
        why = next(filter(None, reversed(reasons)), "")
        able = f"{provider:19} {reasons.count('')} of {len(reasons)}"
        yield (f"{able}, else: {why}" if why else able)[:120]
