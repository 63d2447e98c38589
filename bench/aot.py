"""Compile every kernel ahead of time for a ResNet-50's stages and with every tile, and report what limits it.

Each distinct specialization is compiled once. A spilled register, local memory, too much shared memory and a product
without matrix instructions are problems; the exit code is 1 if a kernel has any.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench import figures, measure
from bench.aot_targets import DEFAULT_TARGETS, TARGETS
from bench.command import parser_of, save

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.aot_compile import Row

GOLDEN = Path(__file__).parent.parent / "tests" / "kernels" / "aot-golden.json"
NUMBERS = ("registers", "spilled", "local", "shared", "matrix", "loops")  # of the golden file
HEADS = ("kernel", "regs", "spill", "local", "shared", "per SM", "loop", "matrix", "tiles; compiled for")


def main(arguments: Sequence[str]) -> int:
    """Run the command; return 0 if every kernel passes, else 1."""
    parser = parser_of("aot", __doc__)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=DEFAULT_TARGETS)
    parser.add_argument("--golden", action="store_true", help="rewrite the numbers that the tests compare with")
    options = parser.parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)  # Triton reads it when imported, and an interpreted kernel cannot compile
    from bench import aot_compile

    version, rows = aot_compile.VERSION, list["Row"]()
    for name in measure.paced(options.target, "aot"):
        if TARGETS[name].since > tuple(map(int, version.split(".")[:2])):
            print(f"{name}: skipped, Triton {version} does not compile for it\n", flush=True)
            continue
        for table in aot_compile.find_tables(name):
            found = aot_compile.compile_table(name, table)
            print(f"{name}, {table.stem}", *figures.table(HEADS, list(map(cells, found)), aligned=True), "", sep="\n")
            rows += found
    failed = [row for row in rows if row.problems]
    print(f"Triton {version}: {len(rows)} kernels, {len(failed)} failed")
    for row in failed:
        print(f"{row.target} {row.label}: {'; '.join(row.problems)}")
    save(options, ["aot", *arguments], [asdict(row) for row in rows])
    if options.golden:
        write_golden(rows, version)
    return 1 if failed else 0


def cells(row: Row) -> list[str]:
    """Return a row's line in the table, with the loop that has the most matrix instructions."""
    numbers = map(str, (row.registers, row.spilled, row.local, row.shared, row.per_sm))
    instructions, products = max(row.loops, key=lambda loop: loop[::-1], default=(0, 0))
    loop = f"{instructions}, {products} matrix" if row.loops else figures.NONE
    matrix = " ".join(f"{name}×{count}" for name, count in row.matrix.items()) or figures.NONE
    return [row.kernel, *numbers, loop, matrix, f"{row.config}; {row.what}"]


def write_golden(rows: Sequence[Row], version: str) -> None:
    """Write the numbers of each row by target and label, one row per line, and Triton's version."""
    targets: dict[str, list[str]] = {}
    for row in rows:
        numbers = json.dumps([getattr(row, name) for name in NUMBERS])
        targets.setdefault(row.target, []).append(f"    {json.dumps(row.label, ensure_ascii=False)}: {numbers}")
    each = (f'  "{name}": {{\n' + ",\n".join(lines) + "\n  }" for name, lines in targets.items())
    text = f'{{\n"triton": "{version}",\n"targets": {{\n' + ",\n".join(each) + "\n}\n}\n"
    GOLDEN.write_text(text, encoding="utf-8")
