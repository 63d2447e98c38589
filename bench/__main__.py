"""``python -m bench``: the benchmarks, each a command; without one, the grid of problems and providers."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

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
    "demo": "what ssa-fast demo finds on its generated scenes, as a file",
    "tables": "write the figures of README.md and docs/ from the files of bench/results, or check them",
    "compare": "the working tree against a base commit, as ratios in one run",
}
OWN = ("run", "aot", "plot", "compare", "large", "throughput", "quality", "host")  # read their own arguments


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    made = {name: commands.add_parser(name, help=text, description=text) for name, text in COMMANDS.items()}
    for name in ("paths", "calibrate", "gpu", "store"):
        made[name].add_argument("--save", type=Path, help="write the figures and the machine to a JSON file")
    for name, default in (("gpu", None), ("tune", 400.0)):
        text = f"seconds to be done in ({default or 'check, time: 540; counters: 105; all: 1080'})"
        made[name].add_argument("--budget", type=float, default=default, help=text)
        made[name].add_argument(
            "--dry-run", action="store_true", help="every step on the CPU; no figure means anything"
        )
        made[name].add_argument("--only", default="", help="only jobs whose name contains this")
        made[name].add_argument("--seed", type=int, help="of the random inputs; by default another every time")
        made[name].add_argument("--commit", default="", help="what to name as the commit where git cannot tell")
    made["gpu"].add_argument(
        "suite",
        nargs="?",
        choices=("all", "check", "counters", "time"),
        default="all",
        help="check: correctness, invariants and compute-sanitizer; counters: Nsight Compute; time: everything timed; "
        "all (the default): check, then time",
    )
    made["gpu"].add_argument("--out", type=Path, help="a folder for gpu-<suite>.json, which is whole at any time")
    made["tune"].add_argument(
        "--out",
        type=Path,
        help="a folder for the table, whole at any time, and for tune.json with all that was tried (default: the table "
        "alone, where the package looks for it)",
    )
    return parser


def main(given: list[str] | None = None) -> int:
    """The exit code of the command that ``given``, by default the process's arguments, names."""
    given = sys.argv[1:] if given is None else given
    if not given or given[0].startswith("-"):
        given = ["run", *given]
    if given[0] in ("demo", "measures", "seeds", "tables"):
        module: Any = importlib.import_module(f"bench.{given[0]}")
        return int(module.main(given[1:]))
    if given[0] in OWN:
        return _own(given[0], given[1:])
    options = vars(arguments().parse_args(given))
    command = options.pop("command")
    if options.get("dry_run"):
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    if command == "gpu":
        from bench.gpu import command as gpu

        return gpu.main(**options)
    if command == "tune":
        from bench import tune

        return tune.main(**options)
    if command == "calibrate":
        from bench import calibrate

        calibrate.main(options["save"])
        return 0
    if command == "store":
        from bench import store

        return store.main(options["save"])
    return _paths(options["save"])


def _own(command: str, rest: list[str]) -> int:
    """A command that reads its own arguments, ``rest``."""
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
