"""``python -m bench paths``: the suites of pytest-benchmark, whose figures are gates.

Exit code 1 where a gate is missed; the file is written all the same, with every figure and its goal.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench.measure import ROOT


def main(arguments: list[str]) -> int:
    """Run pytest, whose exit code is this command's; it names each test as it begins, and says how far it is."""
    parser = argparse.ArgumentParser(prog="python -m bench paths", description=__doc__)
    parser.add_argument("-k", default="", metavar="WORD", help="only the gates whose name contains this, as of pytest")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the figures and the machine to a JSON file")
    options = parser.parse_args(arguments)
    given = ["-vv", "--benchmark-enable", "--benchmark-disable-gc", "--benchmark-columns=median,iqr,rounds"]
    given += ["--tb=short", "--show-capture=no", "--disable-warnings", "-k", options.k]
    given += ["--save", str(options.save.resolve())] if options.save else []
    print("paths: about 3 minutes on two cores for all", flush=True)
    return int(pytest.main([str(ROOT / "bench/test_paths.py"), *given]))
