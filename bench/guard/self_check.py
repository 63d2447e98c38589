"""Check the guard on this machine: it must find a planted slow-down of 20 %, and none in an exact copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.guard import trees
from bench.measure import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CASE = "tiny/49"
SLOWER = """
def _planted(inner):
    import time

    def polish(*arguments, **options):
        begin = time.perf_counter()
        out = inner(*arguments, **options)
        end = begin + 1.2 * (time.perf_counter() - begin)
        while time.perf_counter() < end:
            pass
        return out

    return polish


polish = _planted(polish)
"""
EXPECTED = {"a slow-down of 20 %": 1, "an exact copy": 0}  # exit codes of the comparison


def plant(tree: Path, code: str) -> None:
    """Append ``code`` to the package in ``tree``."""
    with (tree / "ssa_fast" / "__init__.py").open("a", encoding="utf-8") as file:
        file.write(code)


def run(compare: Callable[[list[str]], int], options: Sequence[str] = ()) -> int:
    """Compare this tree with both candidates by the command line ``compare``.

    Returns:
        0 if both comparisons end as expected, else 1.
    """
    with trees.copied(ROOT) as base, trees.copied(ROOT) as slower:
        plant(slower, SLOWER)
        candidates = dict(zip(EXPECTED, (slower, base), strict=True))
        found = {}
        for name, tree in candidates.items():
            print(f"\nself-check: {name}", flush=True)
            found[name] = compare(["--base-tree", str(base), "--tree", str(tree), "--case", CASE, *options])
    wrong = [
        f"{name}: exit code {code}, expected {EXPECTED[name]}" for name, code in found.items() if code != EXPECTED[name]
    ]
    print(f"\nself-check {'failed: ' + '; '.join(wrong) if wrong else 'passed'}")
    return int(bool(wrong))
