"""Compile every kernel ahead of time for a ResNet-50's stages; report what limits it, and predict its time.

Each distinct specialization is compiled once. A time is a prediction of ``bench.aot_model``, for an H100; none has been
measured. PyTorch's own kernels between launches count as a launch and their start.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import measure
from bench.aot_targets import DEFAULT_TARGETS, TARGETS
from bench.command import parser_of, save
from ssa_fast.ops import tile_tables
from ssa_fast.ops.cost_model import H100, LAUNCH, MEMORY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.aot_cases import Case
    from bench.aot_compile import Recorded
    from bench.aot_model import Launch, Prediction, Row

GOLDEN = Path(__file__).parent.parent / "tests" / "kernels" / "aot-golden.json"
PREDICTED = "sm_90"  # the architecture whose rates the model has
CUBLAS = 619e12  # FLOP/s of cuBLAS's xᵀx at 16,384 × 256 in float16, estimated
LARGE, SMALL = 30e6, 1024  # bytes of features from which bandwidth counts; pixels up to which launches do
SHARE, MOST = 0.75, 12e-6  # goals: of two reads of large features; seconds of a small stage


def main(arguments: Sequence[str]) -> int:
    """Run the command; return 0 if every kernel passes, else 1."""
    parser = parser_of("aot", __doc__)
    parser.add_argument("--target", nargs="+", metavar="ARCH", default=DEFAULT_TARGETS, help="e.g. sm_90 gfx942")
    parser.add_argument("--golden", action="store_true", help="rewrite the numbers that the tests compare with")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one per core")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.target if name not in TARGETS]:
        parser.error(f"--target: expected some of {', '.join(TARGETS)}, got {unknown[0]!r}")
    os.environ.pop("TRITON_INTERPRET", None)  # Triton reads it when imported, and an interpreted kernel cannot compile
    from bench import aot_compile

    start, rows = time.monotonic(), list["Row"]()
    aot_compile.warm_up()
    missing = {name: TARGETS[name].not_compiled_reason(aot_compile.VERSION) for name in options.target}
    for name, reason in missing.items():
        if reason:
            print(f"{name}: skipped, {reason}\n", flush=True)  # before a process is forked
    for name in measure.paced([name for name in options.target if not missing[name]], "aot"):
        for table in aot_compile.find_tables(name):
            # In a process of its own, since what the kernels' modules learn of the active GPU stays cached.
            with aot_compile.forked(1) as process:
                rows += process.submit(report_target, name, table, options.jobs).result()
    failed = [row for row in rows if row.problems]
    seconds = time.monotonic() - start
    print(f"Triton {aot_compile.VERSION}: {len(rows)} kernels in {seconds:.0f} s, {len(failed)} failed")
    for row in failed:
        print(f"{row.target} {row.label} ({row.uses} launches): {'; '.join(row.problems)}")
    save(options, ["aot", *arguments], [asdict(row) for row in rows])
    if options.golden:
        write_golden(rows, aot_compile.VERSION)
    return 1 if failed else 0


def report_target(name: str, table: Path, jobs: int) -> list[Row]:
    """Compile for a target, print its tables and return its rows."""
    report = compile_target(name, table, jobs)
    print(f"{name}, {table.stem}\n{format_kernels(report)}\n", flush=True)
    if name == PREDICTED:
        print(f"{format_stages(report)}\n{format_goals(report)}\n", flush=True)
        for case, recorded in report.recorded.items():
            for launch, prediction in zip(recorded.launches, report.predictions[case], strict=True):
                if prediction:
                    predicted = report.rows[launch.key].predicted
                    predicted[str(case)] = predicted.get(str(case), 0.0) + prediction.seconds
    return [replace(row, ttir="") for row in report.rows.values()]


def write_golden(rows: Sequence[Row], version: str) -> None:
    """Write the numbers of each row by target and label, one row per line, the predictions and Triton's version."""
    targets: dict[str, dict[str, Any]] = {}
    predicted: dict[str, float] = {}
    for row in rows:
        targets.setdefault(row.target, {})[row.label] = row.numbers
        for case, seconds in row.predicted.items():
            predicted[case] = predicted.get(case, 0.0) + 1e6 * seconds

    def lines(name: str, numbers: dict[str, Any]) -> str:
        pairs = (f"    {json.dumps(label, ensure_ascii=False)}: {json.dumps(n)}" for label, n in numbers.items())
        return f'"{name}": {{\n' + ",\n".join(pairs) + "\n  }"

    each = ",\n".join(f"  {lines(name, numbers)}" for name, numbers in targets.items())
    last = lines("predicted microseconds", {case: round(each, 1) for case, each in predicted.items()})
    GOLDEN.write_text(f'{{\n"triton": "{version}",\n"targets": {{\n{each}\n}},\n{last}\n}}\n', encoding="utf-8")


@dataclass
class Report:
    """What one target compiled with one table."""

    target: str
    recorded: dict[Case, Recorded]
    rows: dict[tuple[str, ...], Row]

    @cached_property
    def predictions(self) -> dict[Case, list[Prediction | None]]:
        """The predicted time of each case's launches; None of a kernel that did not compile."""
        from bench.aot_model import Kernel, predict

        kernels = {key: Kernel(row.ttir) for key, row in self.rows.items() if row.ttir}

        def prediction(launch: Launch) -> Prediction | None:
            key = launch.key
            return predict(kernels[key], self.rows[key], launch, TARGETS[self.target]) if key in kernels else None

        return {case: [prediction(each) for each in found.launches] for case, found in self.recorded.items()}

    def seconds(self, case: Case) -> float:
        """Return the predicted time of a case in a CUDA graph."""
        return sum(each.seconds for each in self.predictions[case] if each) + self.recorded[case].others * LAUNCH


def compile_target(name: str, path: Path, jobs: int) -> Report:
    """Record what the cases and the fusion launch on a target, and compile it."""
    from bench import aot_cases, aot_compile

    aot_compile.activate(TARGETS[name])
    table = tile_tables.entries(tile_tables.read(path), path)
    cases = aot_cases.cases()
    cases += aot_cases.entry_cases(table, cases)
    recorded = {case: aot_compile.record(aot_cases.call(case, table, TARGETS[name].num_sms)) for case in cases}
    fused = [aot_compile.record(call) for call in aot_cases.fusion_calls()]
    launches = [launch for each in (*recorded.values(), *fused) for launch in each.launches]
    return Report(name, recorded, aot_compile.compile_distinct(name, launches, jobs))


def _format(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    padded = [[*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]] for line in lines]
    return "\n".join("  ".join(line) for line in padded)


def format_kernels(report: Report) -> str:
    """Return the rows of a target as a table, with the problems of each row below it."""
    head = ["kernel", "uses", "regs", "spill", "local", "shared", "per SM", "loop", "matrix", "tiles; compiled for"]
    lines = [head]
    for row in report.rows.values():
        matrix = " ".join(f"{name}×{count}" for name, count in row.matrix.items()) or "–"
        loop = max(row.loops, key=lambda loop: (loop.matrix, loop.instructions), default=None)
        inner = f"{loop.instructions}, {loop.matrix} matrix" if loop else "–"
        per_sm = TARGETS[report.target].occupancy(row.registers, row.shared, row.warps)
        sizes = map(str, (row.uses, row.registers, row.spilled, row.local, row.shared, per_sm))
        lines.append([row.kernel, *sizes, inner, matrix, f"{row.config}; {row.what}"])
        lines += [[""] * (len(head) - 1) + [f"^ {problem}"] for problem in row.problems]
    return _format(lines)


def limit(case: Case) -> float:
    """Return the least time that an H100 could take: features read twice, or each pair's products once."""
    problem = case.problem
    if case.method == "prototypes":
        return problem.phi.steps * (2 + problem.phi.center) * problem.feature_bytes / MEMORY
    flops = problem.B * problem.L**2 * (problem.C + 2 * (problem.K + 1))
    return flops / (H100.flops_per_clock * H100.num_sms * H100.clock) + problem.feature_bytes / MEMORY


def format_stages(report: Report) -> str:
    """Return each case's predicted time, and its launches' with what bounds each."""
    lines = [["predicted, not measured", "µs", "bound by"]]
    for case, recorded in report.recorded.items():
        seconds = report.seconds(case)
        lines.append([str(case), f"{seconds * 1e6:.1f}", f"{limit(case) / seconds:.0%} of the limit"])
        for launch, prediction in zip(recorded.launches, report.predictions[case], strict=True):
            if prediction:
                lines.append([f"  {launch.key[0]}", f"{prediction.seconds * 1e6:.1f}", prediction.bound])
        if recorded.others:
            lines.append([f"  {recorded.others} of PyTorch's", f"{recorded.others * LAUNCH * 1e6:.1f}", "launches"])
    return _format(lines)


def format_goals(report: Report) -> str:
    """Return how the predictions compare with the goals, for float16, 20 classes and φ = relu of a known sign."""

    def verdict(met: bool, goal: str) -> str:
        return f"{'met' if met else 'MISSED'}: {goal}"

    lines = [["goal, predicted", "", ""]]
    for case in report.recorded:
        problem, seconds = case.problem, report.seconds(case)
        form = problem.affinity, problem.values, problem.precision, problem.dtype, problem.K
        if form != ("", "rand", "default", "float16", 20):
            continue
        if case.method == "prototypes" and problem.feature_bytes >= LARGE:
            share = limit(case) / seconds
            lines.append([str(case), f"{share:.0%} of two reads", verdict(share >= SHARE, f">= {SHARE:.0%}")])
        elif case.method == "prototypes" and problem.L <= SMALL and problem.B == 1:
            lines.append([str(case), f"{seconds * 1e6:.1f} µs", verdict(seconds <= MOST, f"<= {MOST * 1e6:.0f} µs")])
        elif case.method == "tiled" and (problem.C, problem.L) == (256, 128 * 128):
            ratio = seconds * CUBLAS / (2 * problem.L**2 * problem.C)
            lines.append([str(case), f"{ratio:.2f}× cuBLAS's xᵀx", verdict(ratio <= 1, "<= 1, stretch 0.65")])
    return _format(lines)
