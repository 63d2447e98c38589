"""``python -m bench``: the grid's command: what to run, in what order, what is printed, saved and returned."""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench import problems, providers, roofline, table, workers
from bench.forks import ForkServer
from bench.grid import Grid
from bench.stand import Device
from bench.trial import MANY
from ssa_fast.io.progress import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.grid import Executor
    from bench.problems import Named
    from bench.providers import Provider
    from bench.workers import Row

WRONG, USAGE, UNFINISHED = 1, 2, 3  # exit codes
CEILINGS = (0, 4096)  # numbers copied, 0: enough to fill the last cache twice; side of the square product
ALWAYS = "auto"  # takes part whatever is selected: ratios are to it
EPILOG = """exit codes: 0 all done; 1 ours is wrong or failed; 2 wrong usage; 3 the budget ended before the last problem

other commands, each with --help: python -m bench paths | calibrate | gpu | tune | store | large | throughput |
quality | host | plot | compare"""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Named problems × providers: every answer checked against float64, then timed in interleaved "
        "rounds; memory, and the share of the measured ceilings.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--suite", choices=problems.SUITES, help="which problems (small)")
    add("--problem", action="append", default=[], metavar="GLOB", help="problems by name or pattern, any number")
    add("--provider", action="append", default=[], metavar="GLOB", help=f"only these, and {ALWAYS!r}; any number")
    add("--list", action="store_true", help="print problems with their sizes and providers, and leave")
    add("--save", type=Path, metavar="FILE", help="write a JSON file, whole after every problem")
    add("--limit", type=float, metavar="S", help="seconds that a call may take (20 for small, else 120)")
    add("--budget", type=float, default=float("inf"), metavar="S", help="seconds after which no problem is begun")
    add("--rounds", type=int, default=MANY, metavar="N", help="of each comparison, at most (%(default)s)")
    add("--device", choices=("cpu", "cuda"), help="where (the GPU if there is one)")
    add("--seed", type=int, help="of the random inputs; by default another every time")
    return parser


def main(
    given: Sequence[str],
    providers_of: Callable[[Named, Device], list[Provider]] = providers.of,
    sizes: tuple[int, int] = CEILINGS,
) -> int:
    """The exit code. ``providers_of`` a problem and the ``sizes`` of the ceilings are what tests replace."""
    parser = arguments()
    options = parser.parse_args(given)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected cpu, since PyTorch sees no GPU here, got cuda")
    try:
        names = chosen(options.suite, options.problem)
    except ValueError as error:
        parser.error(str(error))
    stand = Device(device=device)
    wanted = {name: selected(providers_of(problems.problem(name), stand), options.provider) for name in names}
    wanted = {name: found for name, found in wanted.items() if found}
    if not wanted:
        parser.error(f"--provider: no provider of these problems is named {', '.join(options.provider)}; see --list")
    if options.list:
        print(*table.listed(wanted, stand), sep="\n")
        return 0
    small = (options.suite or "small") == "small"
    settings = {
        "suite": options.suite or ("" if options.problem else "small"),
        "rounds": options.rounds,
        "limit_s": options.limit or problems.LIMITS["small" if small else options.suite],
        "seed": secrets.randbelow(1 << 30) if options.seed is None else options.seed,
        "device": device,
    }
    asked = [word for word in given if word != str(options.save) and not word.startswith("--save")]
    command = " ".join(["python -m bench", *asked])
    return run(Run(command, settings, options.save), stand, wanted, options.budget, sizes)


def chosen(suite: str | None, patterns: Sequence[str]) -> list[str]:
    """Names of problems: a suite's, or those that match, of that suite or of all; a whole name need be in none.

    Raises:
        ValueError: a pattern that matches nothing.
    """
    if not patterns:
        return problems.suite(suite or "small")
    every = [name for each in ([suite] if suite else problems.SUITES) for name in problems.suite(each)]
    found: list[str] = []
    for pattern in patterns:
        whole = not any(character in pattern for character in "*?[")
        matching = [str(problems.parse(pattern))] if whole else fnmatch.filter(every, pattern)
        if not matching:
            raise ValueError(f"--problem: expected a pattern of names that --list prints, got {pattern!r}")
        found += matching
    return list(dict.fromkeys(found))


def selected(every: Sequence[Provider], patterns: Sequence[str]) -> list[Provider]:
    """The providers that match, and those that they are compared with; none where none matches."""
    if not patterns:
        return list(every)
    matching = [each for each in every if any(fnmatch.fnmatchcase(each.name, pattern) for pattern in patterns)]
    needed = {ALWAYS, *(each.follows for each in matching), *(each.name for each in matching)}
    return [each for each in every if matching and each.name in needed]


class Run:
    """What is saved: the JSON file is whole after every problem, whatever ends the run."""

    def __init__(self, command: str, settings: dict[str, Any], path: Path | None) -> None:
        self.command, self.settings, self.path = command, settings, path
        self.machine: dict[str, Any] = {}
        self.ceilings: dict[str, float | None] = {}
        self.rows: list[Row] = []

    def save(self) -> None:
        if self.path is None:
            return
        found = {"command": self.command, "machine": self.machine, "ceilings": self.ceilings, "settings": self.settings}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(found | {"rows": self.rows}, indent=1, ensure_ascii=False) + "\n", "utf-8")
        unfinished.replace(self.path)


def run(kept: Run, stand: Device, wanted: dict[str, list[Provider]], budget: float, sizes: tuple[int, int]) -> int:
    """Measure the ceilings, then problem after problem; the exit code."""
    begin = time.monotonic()
    settings = kept.settings
    kept.machine = roofline.describe(stand)
    tell = functools.partial(print, file=sys.stderr, flush=True)
    place: Executor = workers.WorkerProcess() if stand.on_gpu else ForkServer()
    try:
        tell("measuring the ceilings of this machine")
        numel, side = sizes
        task = workers.job("bench.roofline:both", "ceilings", 120, numel=numel, side=side, seed=settings["seed"])
        found = place.do(task)[0]
        if found["status"] != "ok":
            tell(f"The ceilings could not be measured: {found['why']}.")
            return WRONG
        kept.ceilings = {key: found[key] for key in ("copy_gb_s", "product_gflop_s")}
        print(*table.head(kept.machine, kept.ceilings, settings), sep="\n", flush=True)
        grid = Grid(stand, place, settings["seed"], settings["limit_s"], settings["rounds"], kept.ceilings, tell)
        pace = Pace("run")
        costs = {name: problems.parse(name).size ** 2 for name in wanted}  # pixels
        left = list(wanted)
        while left and time.monotonic() - begin < budget:
            name = left.pop(0)
            rows = grid.rows(name, wanted[name])
            kept.rows += rows
            kept.save()
            print(*table.lines(rows), sep="\n", flush=True)
            pace.update(sum(costs.values()) - sum(costs[each] for each in left), sum(costs.values()))
    finally:
        place.end()
    tell(f"{len(kept.rows)} rows in {time.monotonic() - begin:.0f} s")
    if left:
        tell(f"The budget of {budget:g} s ended before: {', '.join(left)}.")
    bad = [row for row in kept.rows if row["ours"] and row["status"] in ("wrong", "failed")]
    for row in bad:
        tell(f"{row['problem']}: {row['provider']} is {row['status']}: {row['why']}")
    return WRONG if bad else UNFINISHED if left else 0
