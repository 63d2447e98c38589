"""``python -m bench paths``: the suites of pytest-benchmark, whose figures are gates.

Exit code 1 where a gate is missed; the file is written all the same, with every figure and its goal.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from bench.measure import ROOT
from bench.workers import die_with


def main(arguments: list[str]) -> int:
    """Return the exit code of pytest."""
    parser = argparse.ArgumentParser(prog="python -m bench paths", description=__doc__)
    parser.add_argument("-k", default="", metavar="WORD", help="only the gates whose name contains this, as of pytest")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the figures and the machine to a JSON file")
    options = parser.parse_args(arguments)
    suites = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("bench/test_*.py"))
    given = ["--benchmark-enable", "--benchmark-disable-gc", "--benchmark-columns=median,iqr,rounds"]
    given += ["--tb=short", "--show-capture=no", "-k", options.k]
    given += ["--save", str(options.save.resolve())] if options.save else []
    command = [sys.executable, "-m", "pytest", *suites, *given]
    return subprocess.run(command, cwd=ROOT, check=False, preexec_fn=partial(die_with, os.getpid())).returncode
