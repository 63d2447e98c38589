"""Compile every kernel ahead of time for what people polish; report what limits it, and predict its time.

Each distinct specialization is compiled once. A time is a prediction of ``bench.aot_predict``'s model, for an H100;
none has been measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from bench.aot_compile import Row
    from bench.aot_stages import Case

GOLDEN = Path(__file__).parent.parent / "tests" / "kernels" / "aot-golden.json"
PREDICTED = "sm_90"  # the architecture whose rates the model has


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    os.environ.pop("TRITON_INTERPRET", None)  # Triton reads it when imported, and an interpreted kernel cannot compile
    from bench import aot_stages, aot_targets

    parser = argparse.ArgumentParser(prog="python -m bench aot", description=__doc__)
    parser.add_argument("--target", nargs="+", metavar="ARCH", help="e.g. sm_90 gfx942; default: all but variants")
    parser.add_argument("--stages", nargs="+", metavar="NET", default=["resnet50"], help="torchvision's networks")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 512], help="sides of the images")
    parser.add_argument("--dtypes", nargs="+", default=["float16"], choices=aot_stages.DTYPES, help="of the features")
    parser.add_argument("--classes", nargs="+", type=int, default=[20], help="CAM classes")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32], help="images per call")
    parser.add_argument("--all", action="store_true", help="every network, size, dtype and number of classes")
    parser.add_argument("--kernel", nargs="+", metavar="NAME", default=[], help="only kernels of these names: no times")
    parser.add_argument("--table", type=Path, metavar="FILE", help="compile this tile table, not the shipped ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--golden", action="store_true", help="rewrite the numbers that the tests compare with")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one per core")
    options = parser.parse_args(arguments)

    options.target = options.target or aot_targets.DEFAULT_TARGETS
    if unknown := [name for name in options.target if name not in aot_targets.TARGETS]:
        parser.error(f"--target: expected some of {', '.join(aot_targets.TARGETS)}, got {unknown[0]!r}")
    networks = aot_stages.networks()
    if unknown := [name for name in options.stages if name not in networks]:
        parser.error(f"--stages: expected some of torchvision's networks, got {unknown[0]!r}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if every kernel passes, else 1."""
    options = parse_arguments(arguments)
    from bench import aot_compile as aot
    from bench import aot_stages, aot_targets
    from bench.measure import paced

    stages = aot_stages.sides(options.stages, options.sizes)
    listed = aot_stages.cases(stages, options.dtypes, options.classes, options.batch)
    cases = list(aot_stages.all_cases() if options.all else listed)
    start = time.monotonic()
    rows: list[Row] = []
    aot.warm_up()
    missing = {name: aot_targets.not_compiled_reason(name) for name in options.target}
    for name, reason in missing.items():
        if reason:
            print(f"{name}: skipped, {reason}\n", flush=True)  # before a process is forked
    chosen = [name for name in options.target if not missing[name]]
    for name in paced(chosen, "aot"):
        # In a process of its own, since what the kernels' modules learn of the active GPU stays cached.
        tables = [options.table] if options.table else aot.find_tables(name)
        for _, found in aot.in_processes([partial(report_target, name, cases, table, options) for table in tables], 1):
            if found is None:
                raise RuntimeError(f"{name}: the process that compiles for it died")
            rows += found
    failed = [row for row in rows if row.problems]
    seconds = time.monotonic() - start
    print(f"Triton {aot_targets.VERSION}: {len(rows)} kernels in {seconds:.0f} s, {len(failed)} failed")
    for row in failed:
        print(f"{row.target} {row.label} ({row.uses} launches): {'; '.join(row.problems)}")
    if options.json:
        kept = [{name: value for name, value in asdict(row).items() if name != "ttir"} for row in rows]
        options.json.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    if options.golden:
        write_golden(rows, aot_targets.VERSION)
    return 1 if failed else 0


def report_target(name: str, cases: list[Case], table: Path, options: argparse.Namespace, result: Connection) -> None:
    """Compile for a target, print its tables and send its rows."""
    from bench import aot_report

    report = aot_report.compile_target(name, cases, table, options.jobs, options.kernel)
    print(f"{name}, {table.stem}\n{aot_report.format_kernels(report)}\n", flush=True)
    if name == PREDICTED and not options.all and not options.kernel:
        print(f"{aot_report.format_stages(report)}\n{aot_report.format_goals(report)}\n", flush=True)
        report.fill_predicted()
    result.send([replace(row, ttir="") for row in report.rows.values()])


def write_golden(rows: list[Row], version: str) -> None:
    """Write the numbers of each row by target and label, one row per line, the predictions and Triton's version."""
    targets: dict[str, dict[str, Any]] = {}
    predicted: dict[str, float] = {}
    for row in rows:
        targets.setdefault(row.target, {})[row.label] = row.numbers
        for case, seconds in row.predicted.items():
            predicted[case] = predicted.get(case, 0.0) + 1e6 * seconds
    tables = {**targets, "predicted microseconds": {case: round(each, 1) for case, each in predicted.items()}}
    parts = {}
    for name, numbers in tables.items():
        lines = ",\n".join(
            f"    {json.dumps(label, ensure_ascii=False)}: {json.dumps(n)}" for label, n in numbers.items()
        )
        parts[name] = f'  "{name}": {{\n{lines}\n  }}'
    last = parts.pop("predicted microseconds").strip()
    text = f'{{\n"triton": "{version}",\n"targets": {{\n' + ",\n".join(parts.values()) + f"\n}},\n{last}\n}}\n"
    GOLDEN.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
