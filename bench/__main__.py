"""``python -m bench``: the benchmarks, each a command."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from bench import calibrate
from bench.measure import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("paths", "the exact paths against dense PCM, with their goals"),
        ("calibrate", calibrate.__doc__),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--save", type=Path, default=None, help="write the figures and the machine to a JSON file")
    given = parser.parse_args()
    if given.command == "calibrate":
        calibrate.main(given.save)
        return 0
    save = ["--save", str(given.save.resolve())] if given.save else []
    suite = [
        "bench/test_paths.py",
        "--benchmark-enable",
        "--benchmark-disable-gc",
        "--benchmark-columns=median,iqr,rounds",
    ]
    return subprocess.run([sys.executable, "-m", "pytest", *suite, *save], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
