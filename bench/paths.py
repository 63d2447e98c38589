"""``python -m bench paths``: the suites of pytest-benchmark, whose figures are gates.

Exit code 1 where a gate is missed; the file is written all the same, with every figure and its goal.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bench.measure import ROOT


def main(arguments: list[str]) -> int:
    """Become pytest, whose exit code is this command's."""
    parser = argparse.ArgumentParser(prog="python -m bench paths", description=__doc__)
    parser.add_argument("-k", default="", metavar="WORD", help="only the gates whose name contains this, as of pytest")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the figures and the machine to a JSON file")
    options = parser.parse_args(arguments)
    given = ["--benchmark-enable", "--benchmark-disable-gc", "--benchmark-columns=median,iqr,rounds"]
    given += ["--tb=short", "--show-capture=no", "-k", options.k]
    given += ["--save", str(options.save.resolve())] if options.save else []
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", "bench/test_paths.py", *given])
