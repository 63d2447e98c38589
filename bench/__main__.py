"""``python -m bench``: the benchmarks, each a command; without one, the grid of problems and providers."""

from __future__ import annotations

import importlib
import signal
import sys

COMMANDS = {
    "run": ("grid", "problems × providers, side by side, on a CPU or a GPU; what runs if no command is named"),
    "paths": ("paths", "the suites whose ratios are gates"),
    "calibrate": ("calibrate", "fit the dispatcher's rates to a file of run; how often is the fastest picked then?"),
    "tune": ("tune", "time the kernels' tiles on the GPU at hand and keep the best in a table"),
    "large": ("large", "large images: time, memory, and what tiles change against the whole image"),
    "throughput": ("throughput", "images per second of a run against the backbone alone on the same files"),
    "plot": ("plot", "draw what the grid has found"),
    "store": ("store", "bytes per image of CAM files in each layout, and what storing them changes"),
    "measures": ("measures", "what the measures of ssa_fast.evaluate cost, against one search per threshold"),
    "quality": (
        "quality.command",
        "how seeds, peers, SSA with its options and controls fit true masks or boxes of images",
    ),
    "seeds": ("seeds", "what CAM, Grad-CAM and LayerCAM cost beside the forward pass of whole networks"),
    "aot": ("aot", "compile every kernel for GPUs that need not be here, and check what the compiler made of it"),
    "host": ("host", "CPU time and launches per call on a driver that does nothing"),
    "compare": ("compare", "the working tree against a base commit, as ratios in one run"),
    "demo": ("demo", "what ssa-fast demo finds on its generated scenes, as a file"),
    "tables": ("tables", "write the figures of README and docs from the files in bench/results"),
}


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code of the command that the arguments, by default the process's, begin with."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["help"]:
        print(*(f"{name:12}{text}" for name, (_, text) in COMMANDS.items()), sep="\n")
        return 0
    if not given or given[0].startswith("-"):
        given = ["run", *given]
    if given[0] not in COMMANDS:
        print(f"bench: expected a command of {', '.join(COMMANDS)}, got {given[0]!r}", file=sys.stderr)
        return 2
    found: int = importlib.import_module(f"bench.{COMMANDS[given[0]][0]}").main(given[1:])
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes and files go, as on Ctrl-C
    sys.exit(main())
