"""``python -m bench``: the benchmarks, each a command; without one, the grid of problems and providers."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from bench.measure import ROOT
from bench.orphans import die_with

COMMANDS = {
    "run": "problems × providers, side by side; what runs if no command is named",
    "paths": "the suites whose ratios are gates",
    "calibrate": "fit the dispatcher's rates to this CPU, and say how often it then picks the fastest path",
    "gpu": "the kernels on the GPU at hand: correctness, invariants, counters, and times against other implementations",
    "tune": "time the kernels' tiles on the GPU at hand and keep the best in a table",
    "large": "large images: time, memory, and what tiles change against the whole image",
    "throughput": "images per second of a run against the backbone alone on the same files",
    "plot": "draw what the grid has found",
    "store": "bytes per image of CAM files in each layout, and what storing them changes",
    "measures": "what the measures of ssa_fast.evaluate cost, against one search per threshold",
    "quality": "how seeds, peers, SSA with its options and controls fit true masks or boxes of images",
    "seeds": "what CAM, Grad-CAM and LayerCAM cost beside the forward pass of whole networks",
    "aot": "compile every kernel for GPUs that need not be here, and check what the compiler made of it",
    "host": "CPU time and launches per call on a driver that does nothing",
    "compare": "the working tree against a base commit, as ratios in one run",
}
OWN = (
    "run",
    "aot",
    "plot",
    "compare",
    "large",
    "throughput",
    "quality",
    "host",
    "gpu",
    "tune",
)  # read their own arguments


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    made = {name: commands.add_parser(name, help=text, description=text) for name, text in COMMANDS.items()}
    for name in ("paths", "calibrate", "store", "measures", "seeds"):
        made[name].add_argument("--save", type=Path, help="write the figures and the machine to a JSON file")
    return parser


def main(given: list[str] | None = None) -> int:
    """The exit code of the command that ``given``, by default the process's arguments, names."""
    given = sys.argv[1:] if given is None else given
    if not given or given[0].startswith("-"):
        given = ["run", *given]
    if given[0] in OWN:
        return _own(given[0], given[1:])
    options = vars(arguments().parse_args(given))
    command = options.pop("command")
    if command == "calibrate":
        from bench import calibrate

        calibrate.main(options["save"])
        return 0
    if command == "store":
        from bench import store

        return store.main(options["save"])
    if command == "measures":
        from bench import measures

        return measures.main(options["save"])
    if command == "seeds":
        from bench import seeds

        return seeds.main(options["save"])
    return _paths(options["save"])


def _own(command: str, rest: list[str]) -> int:
    """A command that reads its own arguments, ``rest``."""
    if command in ("gpu", "tune"):
        import importlib

        return int(importlib.import_module(f"bench.{command}").main(rest))
    if command == "plot":
        from bench import plot

        return plot.main(rest)
    if command == "aot":
        from bench import aot

        return aot.main(rest)
    if command == "compare":
        from bench import compare

        return compare.main(rest)
    if command == "large":
        from bench import large

        return large.main(rest)
    if command == "throughput":
        from bench import throughput

        return throughput.main(rest)
    if command == "host":
        from bench import host

        return host.main(rest)
    if command == "quality":
        from bench import quality

        return quality.main(rest)
    from bench import command as grid

    return grid.main(rest)


def _paths(save: Path | None) -> int:
    """The suites of pytest-benchmark."""
    suites = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("bench/test_*.py"))
    options = ["--benchmark-enable", "--benchmark-disable-gc", "--benchmark-columns=median,iqr,rounds"]
    saved = ["--save", str(save.resolve())] if save else []
    command = [sys.executable, "-m", "pytest", *suites, *options, *saved]
    return subprocess.run(command, cwd=ROOT, check=False, preexec_fn=partial(die_with, os.getpid())).returncode


if __name__ == "__main__":
    sys.exit(main())
