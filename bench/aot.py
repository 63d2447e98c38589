"""Compile every kernel ahead of time; report registers, spills and matrix instructions."""

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

    from bench.aot_compile import Row

GOLDEN = Path(__file__).parent.parent / "tests" / "kernels" / "aot-golden.json"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m bench aot", description=__doc__)
    parser.add_argument(
        "--target", nargs="+", metavar="ARCH", help="e.g. sm_90 gfx942; default: one architecture per generation"
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="compile this tile table, not the shipped ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--golden", action="store_true", help="rewrite the numbers that the tests compare with")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one per core")
    options = parser.parse_args(arguments)

    os.environ.pop("TRITON_INTERPRET", None)  # Triton reads it when imported, and an interpreted kernel cannot compile
    from bench import aot_compile

    options.target = options.target or aot_compile.DEFAULT_TARGETS
    if unknown := [name for name in options.target if name not in aot_compile.TARGETS]:
        parser.error(f"--target: expected some of {', '.join(aot_compile.TARGETS)}, got {unknown[0]!r}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if every kernel passes, else 1."""
    options = parse_arguments(arguments)
    from bench import aot_compile as aot

    start, rows = time.monotonic(), []
    for name in options.target:
        if (since := aot.TARGETS[name].since) > aot.TRITON:
            print(f"{name}: skipped, needs Triton {'.'.join(map(str, since))} or later, found {aot.VERSION}\n")
    for target_rows in aot.compile_targets(options.target, options.jobs, options.table):
        print(f"{target_rows[0].target}\n{format_table(target_rows)}\n", flush=True)
        rows += target_rows
    failed = [row for row in rows if row.problems]
    seconds = time.monotonic() - start
    print(f"Triton {aot.VERSION}: {len(rows)} kernels in {seconds:.0f} s, {len(failed)} failed")
    for row in failed:
        print(f"{row.target} {row.label}: {'; '.join(row.problems)}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    if options.golden:
        write_golden(rows, aot.VERSION)
    return 1 if failed else 0


def format_table(rows: list[Row]) -> str:
    """Return the rows of one target as a table, with the problems of each row below it."""
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
    """Write the numbers of each row by target and label, one row per line, with the Triton version."""
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
