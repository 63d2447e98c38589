"""``python -m bench``: named problems × providers, one row each, with times, memory, or how it ended.

Every answer is checked against float64, then timed in interleaved rounds beside ours; memory is that of a fresh
process; shares are of the measured ceilings. What cannot be done, and what has run out of memory or time at a smaller
size, is not begun. On a GPU all answers are checked first, side by side, since most of that time is compilation.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import os
import secrets
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench import goals, measure, problems, providers
from bench.figures import number, scientific, table
from bench.measure import Device, NotHere, Times, percentiles, ratios, time_interleaved
from bench.problems import WRONG, relative_error
from bench.workers import Workers, job
from ssa_fast import polish
from ssa_fast.io.progress import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from bench.problems import Problem
    from bench.providers import Provider, Workload
    from bench.workers import Job, Row

    Entry = tuple[Problem, Sequence[Provider]]

# For the ceilings: numbers copied, 0: enough to fill the last cache twice; side of the product.
SIZES = {"cpu": (0, 4096), "cuda": (1 << 28, 8192), "dry run": (1 << 10, 64)}
ENDED = ("out of memory", "over budget")  # how a curve ends
COMPILING_S = 240.0  # that a job may take beside its calls
SPENT_S = 3.0  # that a provider may spend in rounds, 3 at least
HOST_S = 0.02  # of calls in a row, for the host's view
COLD = 5  # rounds with a cold cache on a CPU; on a GPU as many as warm ones
SIDE_BY_SIDE = 12  # processes that check, and compile, on a GPU
CHECKING = 0.5  # of the budget, at most, for what is checked side by side
HALF_LOGITS = 0.25  # relative error of a network's logits in half precision beyond which they are none
DRY_RUN = "dry run: no figure means anything"


def main(arguments: list[str]) -> int:
    """Return 1 if ours is wrong or failed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=(__doc__ or "").partition(": ")[2],
        epilog="other commands, each with --help: python -m bench help",
    )
    add = parser.add_argument
    add("--suite", choices=problems.SUITES, help="which problems (small)")
    add("--problem", action="append", default=[], metavar="GLOB", help="problems by name or pattern, any number")
    add("--provider", action="append", default=[], metavar="GLOB", help="only these, and 'auto'; any number")
    add("--list", action="store_true", help="print problems with the providers that can do them, and leave")
    add("--save", type=Path, metavar="FILE", help="write a JSON file, whole after every problem")
    add("--limit", type=float, metavar="S", help="seconds that a call may take (20 for small and gpu, else 120)")
    add("--budget", type=float, default=math.inf, metavar="S", help="seconds to be done in; the rest is not reached")
    add("--rounds", type=int, default=15, metavar="N", help="of each comparison, at most (%(default)s)")
    add("--device", choices=("cpu", "cuda"), help="where (the GPU if there is one)")
    add("--dry-run", action="store_true", help="every step of a GPU's run on the CPU, tiny; no figure means anything")
    add("--seed", type=int, help="of the random inputs; by default another every time")
    add("--commit", default="", help="what to name as the commit where git cannot tell")
    options = parser.parse_args(arguments)
    on_gpu = options.dry_run or torch.cuda.is_available()
    kind = options.device or ("cuda" if on_gpu else "cpu")
    if kind == "cuda" and not on_gpu:
        parser.error("--device: expected cpu, since PyTorch sees no GPU here, got cuda")
    if options.suite == "gpu" and kind == "cpu" and not options.list:
        parser.error("--suite gpu: expected a GPU, and PyTorch sees none here; --dry-run tries every step on the CPU")
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    device = Device(kind, options.dry_run)
    try:
        wanted = chosen(options, device)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for name, (problem, entrants) in wanted.items():
            able = [each.name for each in entrants if not each.reasons(problem, device)]
            print(f"{name}: {problem.label()}: {', '.join(able)}")
        return 0
    return run(options, kind, device, wanted, measure.command_line(arguments))


def run(options: argparse.Namespace, kind: str, device: Device, wanted: Mapping[str, Entry], command: str) -> int:
    """Measure, print and save problem after problem; return 1 if ours is wrong or failed, else 0."""
    begin, note = time.monotonic(), [DRY_RUN] * options.dry_run
    settings = {
        "suite": options.suite or ("" if options.problem else "small"),
        "rounds": options.rounds,
        "limit_s": options.limit or (20.0 if options.suite in (None, "small", "gpu") else 120.0),
        "seed": secrets.randbelow(1 << 30) if options.seed is None else options.seed,
        "device": device.device.type,
    } | ({"note": DRY_RUN} if note else {})
    machine, rows = measure.machine(device, options.commit), list[Any]()
    print(*note, measure.describe(machine), sep="\n")
    like: dict[str, Any] = {"device": kind, "dry_run": options.dry_run, "threads": torch.get_num_threads()}
    if kind == "cuda":
        like |= {"threads": 1, "environment": {"TRITON_INTERPRET": "1" if note else None}}
    with Workers(**like, fresh=kind == "cpu") as own:
        size, side = SIZES["dry run" if note else kind]
        given = {"size": size, "side": side, "dtypes": sorted({each.dtype for each, _ in wanted.values()})}
        ceilings = own.do(job("bench.grid:ceilings", "ceilings", 120, seed=settings["seed"], **given))[0]
        if ceilings.pop("status") != "ok":
            print(f"The ceilings could not be measured: {ceilings['why']}.", file=sys.stderr)
            return 1
        print(", ".join(f"{name} {value:.4g}" for name, value in ceilings.items()), settings, flush=True)
        grid = Grid(device, own, settings, ceilings, begin + options.budget)
        if kind == "cuda":
            with Workers(**like) as many:
                grid.check_side_by_side(many, wanted, begin + CHECKING * options.budget)
        pace, costs = Pace("run"), [problem.L for problem, _ in wanted.values()]
        for done, (name, (problem, entrants)) in enumerate(wanted.items(), 1):
            rows += (those := grid.rows(name, problem, entrants))
            print(f"\n{name}: {problem.label()}", *printed(those), sep="\n", flush=True)
            if options.save:
                more = {"settings": settings, "ceilings": ceilings, "machine": machine}
                measure.save(options.save, rows, command=command, **more)
            pace.update(sum(costs[:done]), sum(costs))
    if verdicts := Counter(goal["verdict"] for row in rows for goal in row.get("goals", ())):
        print("\ngoals:", ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
    print(*note, sep="\n", end="\n" if note else "")
    bad = [row for row in rows if row["ours"] and row["status"] in ("wrong", "failed")]
    for row in bad:
        print(f"{row['problem']}: {row['provider']} is {row['status']}: {row['why']}", file=sys.stderr)
    return int(bool(bad))


def chosen(options: argparse.Namespace, device: Device) -> dict[str, Entry]:
    """Return a suite's problems, or those that match, of that suite or of all, by name, each with its providers.

    Those of the suite for GPUs are timed with the providers that its goals are about.

    Raises:
        ValueError: Something matches nothing.
    """
    suites = [options.suite] if options.suite else problems.SUITES
    every = [name for suite in suites for name in problems.SUITES[suite]]
    names = [name for pattern in options.problem for name in fnmatch.filter(every, pattern) or [pattern]]
    wanted: dict[str, Entry] = {}
    for name in names or problems.SUITES[options.suite or "small"]:
        problem = problems.named(name)
        problem = problem.tiny() if options.dry_run else problem
        patterns = options.provider or (goals.needed(name) if options.suite == "gpu" else ["*"])
        there = providers.of(problem, device)
        matching = [each for each in there if any(fnmatch.fnmatchcase(each.name, pattern) for pattern in patterns)]
        needed = {"auto", *(each.follows for each in matching), *(each.name for each in matching)}
        if matching:
            wanted[name] = problem, [each for each in there if each.name in needed]
    if not wanted:
        raise ValueError(
            f"--provider: no provider of these problems is named {', '.join(options.provider)}; see --list"
        )
    return wanted


@dataclass
class Grid:
    """A run: where, with which settings and ceilings, until when, and what is known already.

    Attributes:
        until: A time of ``time.monotonic``; what is not begun then is not reached.
        checked: Rows of answers that were right, by the names of their jobs.
        ends: At which size each provider's curve has ended, and how.
    """

    device: Device
    workers: Workers
    settings: Mapping[str, Any]
    ceilings: Mapping[str, float]
    until: float = math.inf
    checked: dict[str, Row] = field(default_factory=dict)
    ends: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    def check_side_by_side(self, workers: Workers, wanted: Mapping[str, Entry], until: float) -> None:
        """Check many at a time, and keep what is right; what failed may have lacked the memory that others took."""
        checks = [
            check
            for name, (problem, entrants) in wanted.items()
            for each in entrants
            if not each.reasons(problem, self.device)
            for check in self._checks(name, problem, each).values()
        ]
        count = max(1, min(SIDE_BY_SIDE, (os.cpu_count() or 1) - 2))
        for check, (row, *_) in workers.run(checks, count=count, until=until):
            if row["status"] == "ok":
                self.checked[check.name] = row

    def rows(self, name: str, problem: Problem, entrants: Sequence[Provider]) -> list[Row]:
        """Return all rows of a problem, in the order of its providers."""
        rows = {each.name: self._blank(name, problem, each) for each in entrants}
        right: list[tuple[Provider, dict[str, Row]]] = []  # by variant
        for each in entrants:
            row = rows[each.name]
            if row["status"] != "ok":
                continue
            tried = self._checked(name, problem, each)
            if fine := {variant: found for variant, found in tried.items() if found["status"] == "ok"}:
                right.append((each, fine))
                continue
            variant, found = next(iter(tried.items()))
            row |= {"variant": variant, **{key: found[key] for key in row.keys() & found.keys()}}
            if row["status"] in ENDED:
                self.ends[problems.curve(name), each.name] = problem.L, row["status"]
        if right:
            self._race(rows, name, problem, right)
        return [*rows.values()]

    def _blank(self, name: str, problem: Problem, provider: Provider) -> Row:
        """Return a row without figures, which says already how it ended if that is known without trying."""
        status, why = "ok", ""
        L, ended = self.ends.get((problems.curve(name), provider.name), (math.inf, ""))
        if reasons := provider.reasons(problem, self.device):
            status, why = "unsupported", "; ".join(reasons)
        elif problem.L >= L:
            status, why = ended, f"already so at L={L:,}"
        elif time.monotonic() > self.until:
            status, why = "not reached", "the time was up"
        row = {"problem": name} | problem.row() | {"provider": provider.name, "ours": provider.ours, "variant": ""}
        row |= {"status": status, "why": why, "error": None, "warm_ms": None, "cold_ms": None, "rounds": 0}
        return row | {"ratio": None, "peak_extra_mib": None, "share": None, "bound": ""}

    def _job(self, function: str, name: str, limit: float, **arguments: Any) -> Job:
        return job(f"bench.grid:{function}", name, limit, seed=self.settings["seed"], **arguments)

    def _do(self, task: Job) -> Row:
        return next(rows[0] for _, rows in self.workers.run([task], until=self.until))

    def _checks(self, name: str, problem: Problem, provider: Provider) -> dict[str, Job]:
        """Return by variant the jobs that check it."""
        limit, found = self.settings["limit_s"], {}
        for variant in provider.names(problem, self.device):
            given = {"problem": problem, "provider": provider, "variant": variant, "limit_s": limit}
            label = f"check: {name}: {provider.name}: {variant}"
            found[variant] = self._job("check", label, COMPILING_S + 4 * limit, **given)
        return found

    def _checked(self, name: str, problem: Problem, provider: Provider) -> dict[str, Row]:
        """Return by variant how it ended, or its error, peak memory and about its time."""
        found = {}
        for variant, check in self._checks(name, problem, provider).items():
            row = found[variant] = self.checked.get(check.name) or self._do(check)
            if row["status"] == "over budget":
                break  # the others would take as long
        return found

    def _race(
        self, rows: dict[str, Row], name: str, problem: Problem, right: Sequence[tuple[Provider, dict[str, Row]]]
    ) -> None:
        """Fill in times, ratios and shares."""
        slow = sum(row["seconds"] for _, variants in right for row in variants.values())
        given = {"problem": problem, "entrants": [(each, [*variants]) for each, variants in right]}
        limit = 2 * COMPILING_S + 4 * SPENT_S * len(right) + 20 * slow
        found = self._do(self._job("race", f"race: {name}", limit, rounds=self.settings["rounds"], **given))
        lost, host = Times(status=found["status"], why=found.get("why", "")), found.get("host", {})
        times = found.get("times") or {each.name: lost for each, _ in right}
        base = times.get("polish and fuse" if problem.net else "auto")
        for each, variants in right:
            row, mine = rows[each.name], times[each.name]
            variant = found.get("variants", {}).get(each.name) or next(iter(variants))
            row |= {"variant": variant} | {key: variants[variant][key] for key in ("error", "peak_extra_mib")}
            if mine.status != "ok":
                row |= {"status": mine.status, "why": f"while being timed: {mine.why}"}
                continue
            row |= {"rounds": len(mine.warm), "warm_ms": in_ms(mine.warm), "cold_ms": in_ms(mine.cold)}
            row |= {key: in_ms([seconds]) for key, seconds in host.get(each.name, {}).items()}
            row |= share(each.work(problem, self.device), problem, self.ceilings, row["cold_ms"]["p50"])
            if base and mine is not base:
                row["ratio"] = ratios(mine.warm, base.warm)
            if leader := times.get(each.follows):
                row["share_of_backbone"] = ratios(mine.warm, leader.warm)
                graphs: list[Any] = [rows[who].get("graph_ms") for who in (each.name, each.follows)]
                row |= {"graph_share_of_backbone": graphs[0]["p50"] / graphs[1]["p50"]} if all(graphs) else {}
        if host:
            goals.judge(name, rows, times)


# What is done in other processes.


def ceilings(device: Device, *, size: int, side: int, dtypes: Sequence[str], seed: int) -> list[Row]:
    """Return the roofline, the best of several rounds; ``size`` 0 is a copy that fills the last cache twice."""
    torch.manual_seed(seed)
    source = torch.rand(size or device.beyond_cache() // 4, device=device.device)
    target, row = torch.empty_like(source), dict[str, Any](status="ok")
    calls: dict[str, Any] = {"copy_gb_s": lambda: target.copy_(source)}
    for dtype in dtypes:
        a = torch.randn(side, side, device=device.device).to(getattr(torch, dtype))
        calls[f"{dtype}_gflop_s"] = lambda a=a: a @ a
    for name, times in time_interleaved(device, calls).items():
        amount = 2 * source.nbytes if name == "copy_gb_s" else 2 * side**3
        row[name] = float(f"{amount / 1e9 / min(times.cold):.4g}")
    return [row]


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
    compile_all(device, provider, [call])
    begin = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, limit_s)  # SIGALRM ends the process, since no thread can stop a product
    try:
        out, peak = device.peak_bytes(call)
        device.synchronize()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    row: Row = {"status": "ok", "why": "", "seconds": time.perf_counter() - begin}
    row["peak_extra_mib"] = None if peak is None else round(peak / 2**20, 2)
    row["error"] = _error(provider, problem, cam, f, variant, out, seed)
    if row["error"] > (HALF_LOGITS if provider.answer == "logits" and problem.dtype != "float32" else WRONG):
        row |= {"status": "wrong", "why": f"relative error {row['error']:.3g} against float64"}
    return [row]


def _error(provider: Provider, problem: Problem, cam: Tensor, f: Any, variant: str, out: Tensor, seed: int) -> float:
    """Return how far an answer is from the one in float64: at sampled pixels, or of a network's cropped images."""
    if provider.answer == "fused":
        stages = [stage.double() for stage in f.stages(variant)[0]]
        return relative_error(out, polish(cam.double(), stages, affinity=f.affinities, backend="torch"))
    if provider.answer == "logits":
        out = out if problem.H <= problems.CROPPED else f.cropped(f.images.dtype)
        return relative_error(out, f.cropped(torch.float64))
    at = problems.sampled(problem, seed).to(out.device)
    if provider.answer == "square":
        return problems.square_error(f, at, out)
    return relative_error(out[-1].flatten(1)[:, at], problems.sampled_truth(problem, cam, f, at))


def compile_all(device: Device, provider: Provider, calls: Iterable[Callable[[], object]]) -> None:
    """Call what is compiled at its first call, which would count as slow; what goes wrong is told where it is timed."""
    if device.on_gpu or providers.no_compiler in provider.limits:
        for call in calls:
            with suppress(Exception):
                call()


@torch.no_grad()
def race(
    device: Device, *, problem: Problem, entrants: Sequence[tuple[Provider, Sequence[str]]], seed: int, rounds: int
) -> list[Row]:
    """Time each one's fastest variant in interleaved rounds; on a GPU also as the host sees it, and as a CUDA graph."""
    cam, f = problem.draw(device.device, seed)
    calls, chosen, host = dict[str, Any](), dict[str, str](), dict[str, dict[str, float]]()
    for provider, variants in entrants:
        name, leader = provider.name, chosen.get(provider.follows, "")
        variants = [leader] if leader in variants else variants
        found = {each: provider.build(device, problem, cam, f, each) for each in variants}
        chosen[name] = next(iter(found))
        if len(found) > 1:
            compile_all(device, provider, found.values())
            looks = time_interleaved(device, found, cold=0, warm=3, least=1, budget=SPENT_S)
            chosen[name] = min(found, key=lambda each: min(looks[each].warm, default=math.inf))
        calls[name] = found[chosen[name]]
    for provider, _ in entrants:  # again, since whatever is compiled was dropped where another was built
        compile_all(device, provider, [calls[provider.name]])
    on_gpu, budget = device.on_gpu or device.dry_run, SPENT_S * len(calls)
    cold = rounds if on_gpu else min(COLD, rounds)
    times = time_interleaved(device, calls, cold=cold, warm=rounds, least=3, budget=budget, seed=seed)
    for name in calls if on_gpu else ():
        if times[name].status == "ok":
            count = max(1, min(300, int(HOST_S / min(times[name].warm))))
            host[name] = {"eager_ms": device.eager_seconds(calls[name], count)}
            with suppress(NotHere, RuntimeError):  # a call that cannot be captured has no such time
                host[name]["graph_ms"] = device.eager_seconds(device.graphed(calls[name]), count)
    return [{"status": "ok", "times": times, "variants": chosen, "host": host}]


# Figures, for the file and for people.


def in_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    return percentiles([1e3 * each for each in seconds])


def share(work: Workload | None, problem: Problem, ceilings: Mapping[str, float], p50_ms: float) -> Row:
    """Return the roofline's time of the work over the measured time, and which ceiling binds; None if not counted."""
    if work is None:
        return {"share": None, "bound": ""}
    product, copy = work.flops / ceilings[f"{problem.dtype}_gflop_s"], work.traffic / ceilings["copy_gb_s"]
    return {"share": round(max(product, copy) / 1e6 / p50_ms, 4), "bound": "product" if product > copy else "copy"}


def printed(rows: Sequence[Row]) -> Iterator[str]:
    """Yield one problem's lines: what was timed, its goals, then what was not timed and why."""
    lines = []
    for row in (row for row in rows if row["status"] == "ok"):
        line = {"provider": row["provider"], "variant": row["variant"], "error": scientific(row["error"])}
        line |= {head: number(row["warm_ms"][head[-3:]]) for head in ("warm ms p50", "p20", "p80")}
        medians = {"cold ms": "cold_ms", "eager ms": "eager_ms", "graph ms": "graph_ms", "× auto": "ratio"}
        line |= {head: number((row.get(key) or {}).get("p50")) for head, key in medians.items()}
        line |= {"MiB": number(row["peak_extra_mib"])}
        line |= {"of ceiling": "–" if row["share"] is None else f"{row['share']:.0%} {row['bound']}"}
        whole = row.get("share_of_backbone")
        lines.append(line | {"of forward": f"{whole['p50']:.2%}" if whole else "–"})
    yield from table([*lines[0]], [[*line.values()] for line in lines], aligned=True) if lines else ()
    yield from (f"{row['provider']}: {goals.words(goal)}" for row in rows for goal in row.get("goals", ()))
    yield from (f"{row['provider']}: {row['status']}: {row['why']}" for row in rows if row["status"] != "ok")
