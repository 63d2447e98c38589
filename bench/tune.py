"""Time the kernels' tiles on the GPU at hand and write the best as a table for the package.

Kernel by kernel, in two rounds: the present tiles, known good ones and their neighbours, then the neighbours of the
best. In each round all candidates are first called once, many at a time, which compiles them: one that does not
compile, crashes or is wrong against float64 is dropped. The others are timed alone, in interleaved rounds, through the
kernel's host function, beside the present tiles of the other kernels. The table, and a file of all that was tried, are
written after every problem.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations, islice, product, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench import measure
from bench.measure import Device, NotHere, poisoned, time_interleaved
from bench.problems import WRONG, Problem, relative_error, sampled_truth
from bench.tiles import SPARE, polish, tiles
from bench.workers import Workers, job
from ssa_fast.ops import gpu_info, tile_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from bench.workers import Job, Row
    from ssa_fast.ops.tile_tables import Config

BUDGET_S = 540.0  # less than the 9.5 minutes in docs/kernels.md by the process's start and the end of a last job
# Candidates for a problem, round by round, and the shares of the kernel's time after which none is called or timed.
ROUNDS = ((12, 0.45, 0.65), (6, 0.85, 1.0))
SIDE_BY_SIDE = 12  # processes, while nothing is timed: most of that time is compilation on the host
SAMPLED = 256  # pixels at which a candidate is compared with float64
EXACT, ROUNDED = 1e-6, 1e-4  # relative errors that pass: of prototypes and high precision, and of rounded operands
DRY_RUN = "dry run: no figure means anything"

# The host function through which each kernel's tiles are tried; kernels on which most depends come first.
MODULES = {"gather": "prototypes", "apply": "prototypes", "tiled": "tiled", "resident": "resident", "prepare": "tiled"}
# Kernels, what is not as in float16 with 20 classes and signed features, and the sides of the maps of C channels.
PROBLEMS: tuple[tuple[str, dict[str, Any], dict[int, tuple[int, ...]]], ...] = (
    ("gather apply", {"values": "rand"}, {256: (128, 56), 512: (64, 28), 1024: (32, 14), 2048: (16, 7, 128)}),
    ("gather apply", {"values": "rand", "dtype": "float32"}, {256: (128,), 2048: (128,)}),
    ("gather apply", {"values": "rand", "K": 80}, {256: (128,)}),
    ("tiled", {}, {256: (128, 56, 256), 512: (128,), 1024: (32,), 2048: (64,)}),
    ("tiled", {"precision": "high"}, {256: (128,), 1024: (32,)}),
    ("resident", {}, {512: (28,), 1024: (14, 32), 2048: (7,)}),
    ("resident", {"dtype": "float32"}, {1024: (14,), 2048: (7,)}),
    ("prepare", {}, {256: (128,), 2048: (64,)}),
)
# Least and greatest value of a field that is proposed.
LIMITS = {"block": (32, 128), "block_i": (16, 128), "block_j": (16, 256), "block_l": (8, 256), "block_c": (16, 2048)}
LIMITS |= {"rows": (16, 64), "bands": (1, 4), "chunk": (1, 16), "num_warps": (4, 16), "num_stages": (1, 4)}
# Tiles that the compiled code of sm_90 speaks for: no spill, and more programs per multiprocessor or a fuller pipeline.
LEADS: tuple[tuple[str, dict[str, int]], ...] = (
    ("gather", {"block_l": 32, "num_warps": 4}),
    ("gather", {"block_l": 16, "block_c": 256, "num_stages": 1}),
    ("gather", {"block_c": 256, "num_stages": 1}),
    ("apply", {"block_l": 16, "block_c": 256, "num_warps": 4, "num_stages": 2}),
    ("symmetric", {"block": 128, "block_c": 64, "bands": 2, "chunk": 4, "num_warps": 8, "num_stages": 3}),
    ("symmetric", {"block": 64, "block_c": 64, "bands": 1, "chunk": 1, "num_warps": 4, "num_stages": 3}),
    ("full", {"block_i": 64, "block_j": 64, "block_c": 64, "num_warps": 4, "num_stages": 3}),
)


def problems() -> list[tuple[str, Problem]]:
    """Return each kernel with each of its problems."""
    signed = Problem(B=1, K=20, C=256, H=128, W=128, values="randn")
    return [
        (kernel, replace(signed, C=C, H=side, W=side, h=min(32, side), w=min(32, side), **more))
        for kernels, more, sizes in PROBLEMS
        for kernel in kernels.split()
        for C, sides in sizes.items()
        for side in sides
    ]


class Search:
    """One kernel on one problem, and what came of each candidate: its status, error and µs, or why there are none.

    ``given`` are the tiles of the host function, of which the kernel's are replaced.
    """

    def __init__(self, kernel: str, problem: Problem, given: dict[str, Any]) -> None:
        self.kernel, self.problem, self.given = kernel, problem, given
        self.name = f"{kernel}, {problem.label()}"
        self.argument = kernel if kernel in given else "config"
        self.start = given[self.argument]  # the kernel's tiles at present
        self.tried: dict[Config, Row] = {}

    @property
    def best(self) -> Config | None:
        times = {config: row["us"] for config, row in self.tried.items() if row.get("us")}
        return min(times, key=times.__getitem__, default=None)

    def propose(self, most: int) -> list[Config]:
        """Return candidates: the best or, at first, present and known good tiles, then what is a step or two away.

        Known good ones are of both forms of "tiled". The neighbours of all take turns.
        """
        starts = [self.best or self.start]
        if not self.tried:
            bases = {self.kernel: self.start}
            if self.kernel == "tiled":
                bases = SPARE | {as_tiles(self.start)["form"]: self.start}
            starts += [replace(bases[name], **lead) for name, lead in LEADS if name in bases]
        near = [turn for fields in range(3) for turn in zip_longest(*(steps(start, fields) for start in starts))]
        found = dict.fromkeys(each for turn in near for each in turn if each and each not in self.tried)
        return list(islice(found, most))

    def right(self) -> list[Config]:
        """Return the candidates whose error is as small as it has to be, or at most twice that of the present tiles."""
        own = self.tried.get(self.start, {}).get("error", WRONG)
        exact = MODULES[self.kernel] == "prototypes" or self.problem.precision == "high"
        allowed = max(EXACT if exact else ROUNDED, 2 * own if own < WRONG else 0.0)
        for row in self.tried.values():
            if row.get("error", 0.0) > allowed:
                row["status"] = "wrong"
        return [config for config, row in self.tried.items() if row["status"] == "ok"]

    def make_call(self, device: Device) -> tuple[Callable[[Config], None], Tensor, Tensor, Tensor]:
        """Return a call of the host function that takes the kernel's tiles, its CAM, its features and its result."""
        cam, f = self.problem.draw(device.device, 0)
        out = torch.empty(self.problem.B, self.problem.K, self.problem.L, device=device.device)
        call = partial(polish, MODULES[self.kernel], device.gpu, self.problem, cam, f, out)
        return lambda config: call(self.given | {self.argument: config}), cam, f, out

    def job(self, function: str, **given: Any) -> Job:
        return job(f"bench.tune:{function}", f"tune: {self.name}", 60, search=self, **given)

    def entry(self) -> dict[str, Any]:
        """Return the table's entry for the fastest candidate."""
        kernel, problem, best = self.kernel, self.problem, self.best
        assert best
        found = {"kernel": kernel, "C": problem.C, "L": problem.L, "K": problem.K} | as_tiles(best)
        if kernel in ("tiled", "resident"):
            found |= {"precision": problem.precision, "phi": problem.phi.phi}
        if kernel in ("gather", "apply", "resident"):
            found |= {"dtype": problem.dtype}
        us, before = self.tried[best]["us"], self.tried[self.start].get("us")
        return found | {"why": f"{us} µs for the whole call, B={problem.B}; with the tiles before {before or '?'}"}

    def row(self) -> Row:
        return {"what": self.name, "tried": [as_tiles(config) | row for config, row in self.tried.items()]}


def steps(start: Any, fields: int) -> Iterator[Config]:
    """Yield the tiles a step from ``start`` in so many fields: one stage more or less, else the double or the half."""
    for names in combinations(asdict(start), fields):
        near = []
        for name in names:
            value, (least, most) = getattr(start, name), LIMITS.get(name, (1, 1 << 16))
            both = (value + 1, value - 1) if name == "num_stages" else (2 * value, value // 2)
            near.append([(name, each) for each in both if least <= each <= most])
        for changes in product(*near):
            with suppress(ValueError):  # the dataclass refuses the combination
                yield replace(start, **dict(changes))


def as_tiles(config: Config) -> dict[str, Any]:
    """Return a config as a table has it."""
    forms = [form for form, kind in tile_tables.FORMS.items() if isinstance(config, kind)]
    return ({"form": forms[0]} if forms else {}) | {"config": asdict(config)}


def main(arguments: list[str]) -> int:
    """Tune kernel after kernel; return 1 if nothing was timed."""
    parser = argparse.ArgumentParser(prog="python -m bench tune", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, metavar="FOLDER", help="where table and tune.json go (where the package finds the table)")
    add("--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="to be done in (%(default)g)")
    add("--dry-run", action="store_true", help="every step on the CPU, on tiny problems; no figure means anything")
    add("--only", choices=MODULES, help="the kernel to tune (all of them)")
    add("--commit", default="", help="what to name as the commit where git cannot tell")
    options = parser.parse_args(arguments)
    every = [(kernel, each.tiny() if options.dry_run else each) for kernel, each in problems()]
    every = [each for each in dict.fromkeys(every) if options.only in (None, each[0])]
    if options.dry_run and not options.out:
        parser.error("--dry-run: expected --out with it, since its table must not serve the package")
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    elif not torch.cuda.is_available():
        parser.error("there is no GPU here: run this where PyTorch sees one, or try it on the CPU with --dry-run")
    elif gpu_info.interpreting():
        parser.error("TRITON_INTERPRET is set, so Triton would interpret the kernels: unset it to measure a GPU")
    folder = options.out or tile_tables.user_directory()
    os.environ["SSA_FAST_CONFIGS"] = str(folder)  # what was tuned serves the kernels tuned after it
    device, begin = Device("cuda", options.dry_run), time.monotonic()
    try:
        tiles("prototypes", device.gpu, every[0][1])
    except (NotHere, ValueError) as error:  # of the GPU, or of a table in the folder
        parser.error(str(error))
    machine = measure.machine(device, options.commit)
    about: dict[str, Any] = {"command": measure.command_line(["tune", *arguments]), "machine": machine}
    about |= {"settings": {"budget_s": options.budget, "dry_run": options.dry_run}}
    path = folder / f"{tile_tables.slug(device.gpu.name)}.json"
    searches: list[Search] = []
    with Workers(device="cuda", dry_run=options.dry_run) as pool:
        for kernel, module in MODULES.items():
            own = [Search(kernel, each, tiles(module, device.gpu, each)) for name, each in every if name == kernel]
            searches += own
            for each in tuned(own, pool, device, begin + options.budget * len(searches) / len(every)):
                said = "nothing was timed"
                if each.best:
                    add_entry(path, device, machine, entry := each.entry())
                    said = entry["why"]
                measure.save(folder / "tune.json", [search.row() for search in searches], **about)
                counts = Counter(row["status"] for row in each.tried.values())
                print(f"{each.name}: {said} {dict(counts)}", flush=True)
    timed = sum(each.best is not None for each in searches)
    print(f"{timed} of {len(searches)} problems timed", *[DRY_RUN] * options.dry_run, path, sep="; ")
    return int(not timed)


def tuned(searches: Sequence[Search], pool: Workers, device: Device, end: float) -> Iterator[Search]:
    """Search until a time of ``time.monotonic``; yield each search at the end of each of its rounds."""
    begin = time.monotonic()
    many = 0 if device.dry_run else max(1, min(SIDE_BY_SIDE, (os.cpu_count() or 2) - 2))
    for most, called, timed in ROUNDS:
        proposed = [each.propose(2 if device.dry_run else most) for each in searches]
        turns = zip_longest(*proposed)  # every problem's first candidate comes before any second one
        pairs = [(each, config) for turn in turns for each, config in zip(searches, turn, strict=True) if config]
        jobs = [each.job("check", config=config) for each, config in pairs]
        for task, (row, *_) in pool.run(jobs, count=many, until=begin + called * (end - begin)):
            found = {name: row[name] for name in ("status", "error", "why") if name in row}
            task.arguments["search"].tried[task.arguments["config"]] = found
        jobs = [each.job("compare", configs=each.right()) for each in searches]
        for task, (row, *_) in pool.run(jobs, count=min(many, 1), until=begin + timed * (end - begin)):
            search = task.arguments["search"]
            for config, us in zip(task.arguments["configs"], row.get("us", ()), strict=False):
                search.tried[config]["us"] = us
            yield search


def check(device: Device, *, search: Search, config: Config) -> list[Row]:
    """Call one candidate once, into poisoned memory, and compare it with float64."""
    at = torch.arange(0, search.problem.L, max(1, search.problem.L // SAMPLED), device=device.device)
    with poisoned():
        call, cam, f, out = search.make_call(device)
        call(config)
    return [{"status": "ok", "error": relative_error(out[-1][:, at], sampled_truth(search.problem, cam, f, at))}]


def compare(device: Device, *, search: Search, configs: Sequence[Config]) -> list[Row]:
    """Time whole calls with each candidate, in turns; return the µs of each, None of one that failed."""
    call, *_ = search.make_call(device)
    calls = {str(at): partial(call, config) for at, config in enumerate(configs)}
    found = time_interleaved(device, calls, budget=1.0).values()
    medians = [round(1e6 * statistics.median(each.cold), 3) if each.status == "ok" else None for each in found]
    return [{"status": "ok", "us": medians}]


def add_entry(path: Path, device: Device, machine: dict[str, Any], entry: dict[str, Any]) -> None:
    """Write the table with an entry, in the place of an older one for the same problem, and all its others."""

    def key(each: dict[str, Any]) -> list[Any]:
        return [each.get(name) for name in ("kernel", "C", "L", "K", "dtype", "precision", "phi")]

    old = tile_tables.read(path)["entries"] if path.is_file() else []
    source = f"measured by python -m bench tune, commit {machine['commit'] or 'unknown'}"
    table = {
        "gpu": device.gpu.name,
        "arch": device.gpu.arch,
        "source": f"{source} ({DRY_RUN})" if device.dry_run else source,
        "versions": {name: str(machine.get(name)) for name in ("python", "torch", "triton", "cuda", "hip")},
        "entries": [entry, *(each for each in old if key(each) != key(entry))],
    }
    tile_tables.write(table, path)
