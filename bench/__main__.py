"""``python -m bench``: the benchmarks, each a command."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from bench.measure import ROOT

COMMANDS = {
    "paths": "the exact paths against dense PCM, with their goals",
    "calibrate": "fit the dispatcher's rates to this CPU, and say how often it then picks the fastest path",
    "gpu": "the kernels on the GPU at hand: correctness, promises, and times against their peers",
    "tune": "time the kernels' tiles on the GPU at hand and keep the best in a table",
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    made = {name: commands.add_parser(name, help=text, description=text) for name, text in COMMANDS.items()}
    for name in ("paths", "calibrate", "gpu"):
        made[name].add_argument("--save", type=Path, help="write the figures and the machine to a JSON file")
    for name, default in (("gpu", 540.0), ("tune", 540.0)):
        made[name].add_argument("--budget", type=float, default=default, help="seconds to be done in (%(default)g)")
        made[name].add_argument(
            "--rehearse", action="store_true", help="every step on the CPU; no figure means anything"
        )
        made[name].add_argument("--only", default="", help="only jobs whose name contains this")
        made[name].add_argument("--seed", type=int, help="of the random inputs; by default another every time")
    made["gpu"].add_argument(
        "--out", type=Path, help="a folder whose gpu.json is whole at any time, if the run is cut off"
    )
    made["gpu"].add_argument("--commit", default="", help="what to name as the commit where git cannot tell")
    made["tune"].add_argument("--out", type=Path, help="the table's file (default: where the package looks for it)")
    return parser


def main() -> int:
    given = vars(arguments().parse_args())
    command = given.pop("command")
    if given.get("rehearse"):
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    if command == "gpu":
        from bench.gpu import command as gpu

        return gpu.main(**given)
    if command == "tune":
        from bench import tune

        return tune.main(**given)
    if command == "calibrate":
        from bench import calibrate

        calibrate.main(given["save"])
        return 0
    save = ["--save", str(given["save"].resolve())] if given["save"] else []
    suite = [
        "bench/test_paths.py",
        "--benchmark-enable",
        "--benchmark-disable-gc",
        "--benchmark-columns=median,iqr,rounds",
    ]
    return subprocess.run([sys.executable, "-m", "pytest", *suite, *save], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
