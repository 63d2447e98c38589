"""Compile every kernel ahead of time and report registers, spills and matrix instructions: ``python -m bench aot``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.aot import Row

GOLDEN = Path(__file__).parent.parent / "tests" / "kernels" / "report-golden.json"


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if every kernel passes, else 1."""
    parser = argparse.ArgumentParser(prog="python -m bench aot", description=__doc__)
    parser.add_argument("--target", nargs="+", metavar="ARCH", help="sm_90 gfx942 …; default: one of each generation")
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="compile this tile table instead of the shipped ones"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument("--golden", action="store_true", help="rewrite the numbers that the tests compare with")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one per core")
    options = parser.parse_args(arguments)

    os.environ.pop("TRITON_INTERPRET", None)  # what is interpreted is never compiled; Triton reads it when imported
    from bench import aot

    targets = options.target or aot.DEFAULT
    if unknown := [name for name in targets if name not in aot.TARGETS]:
        parser.error(f"--target: expected some of {', '.join(aot.TARGETS)}, got {unknown[0]!r}")
    began, rows = time.monotonic(), []
    for name in targets:
        if aot.TARGETS[name].since > aot.TRITON:
            since = ".".join(map(str, aot.TARGETS[name].since))
            print(f"{name}: this Triton, {aot.VERSION}, cannot; {since} can\n")
    for of_target in aot.collect(targets, options.jobs, options.table):
        print(f"{of_target[0].target}\n{as_text(of_target)}\n", flush=True)
        rows += of_target
    failing = [row for row in rows if row.problems]
    seconds = time.monotonic() - began
    print(f"Triton {aot.VERSION}: {len(rows)} kernels in {seconds:.0f} s, {len(failing)} do not pass")
    for row in failing:
        print(f"{row.target} {row.label}: {'; '.join(row.problems)}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    if options.golden:
        write_golden(rows, aot.VERSION)
    return 1 if failing else 0


def as_text(rows: list[Row]) -> str:
    """The rows of one target as a table, what is wrong with one under it."""
    lines: list[tuple[str, ...]] = [
        ("kernel", "regs", "spill", "local", "shared", "matrix instructions", "tiles; compiled for")
    ]
    for row in rows:
        matrix = " ".join(f"{name}×{count}" for name, count in row.matrix.items()) or "–"
        sizes = (f"{size}" for size in (row.registers, row.spilled, row.local, row.shared))
        lines.append((row.kernel, *sizes, matrix, f"{row.config}; {row.what}"))
        lines += [("", "", "", "", "", "", f"^ {problem}") for problem in row.problems]
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    padded = [[*(cell.ljust(width) for cell, width in zip(line[:6], widths, strict=True)), line[6]] for line in lines]
    return "\n".join("  ".join(line) for line in padded)


def write_golden(rows: Iterable[Row], version: str) -> None:
    """Each row's numbers, by target and label, one row a line, and the Triton that compiled them."""
    targets: dict[str, dict[str, Any]] = {}
    for row in rows:
        targets.setdefault(row.target, {})[row.label] = row.numbers
    parts = []
    for target, numbers in targets.items():
        lines = ",\n".join(f"    {json.dumps(label)}: {json.dumps(value)}" for label, value in numbers.items())
        parts.append(f'  "{target}": {{\n{lines}\n  }}')
    text = f'{{\n"triton": "{version}",\n"targets": {{\n' + ",\n".join(parts) + "\n}\n}\n"
    GOLDEN.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
