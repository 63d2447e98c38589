"""Tables of the ahead-of-time report: kernels, stages with predicted times, and the goals they should meet."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from bench import aot_compile as aot
from bench import aot_stages
from bench.aot_ir import Kernel
from bench.aot_predict import Numbers, predict
from bench.aot_targets import TARGETS
from ssa_fast.ops import tile_tables
from ssa_fast.ops.cost_model import H100

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.aot_compile import Launch, Recorded, Row
    from bench.aot_stages import Case

CUBLAS = 619e12  # FLOP/s of cuBLAS's xᵀx at 16,384 × 256 in float16, estimated
LARGE, SMALL = 30e6, 1024  # bytes of features from which bandwidth counts; pixels up to which launches do
SHARE, MOST = 0.75, 12e-6  # goals: of two reads of large features; seconds of a small stage
OTHER = H100.launch + H100.start / H100.clock  # seconds of one of PyTorch's own small kernels


@dataclass
class Report:
    """What one target compiled with one table."""

    target: str
    table: Path
    recorded: dict[Case, Recorded]
    rows: dict[tuple[str, ...], Row]
    _kernels: dict[tuple[str, ...], Kernel] = field(default_factory=dict)

    @cached_property
    def num_sms(self) -> int:
        """Return the multiprocessors of a large GPU of this architecture."""
        return TARGETS[self.target].num_sms

    def occupancy(self, row: Row) -> int:
        """Return how many programs of a row's kernel run on one SM."""
        return TARGETS[self.target].sm.occupancy(row.registers, row.shared, row.warps)

    def numbers(self, launch: Launch) -> Numbers | None:
        """Return what a launch does and its predicted time; None if its kernel did not compile."""
        row = self.rows[launch.key]
        if not row.ttir:
            return None
        if launch.key not in self._kernels:
            self._kernels[launch.key] = Kernel(row.ttir)
        integers = {name: value for name, value in launch.arguments.items() if isinstance(value, int)}
        tensors = {name: each.numel() * each.itemsize for name, each in launch.arguments.items() if _is_tensor(each)}
        return predict(
            self._kernels[launch.key],
            row.outside,
            row.loops,
            self.occupancy(row),
            row.warps,
            launch.arguments.get("num_stages", 3),
            self.num_sms,
            launch.grid,
            integers,
            tensors,
        )

    def fill_predicted(self) -> None:
        """Write the predicted times of each row's launches into it."""
        for case, recorded in self.recorded.items():
            for launch in recorded.launches:
                if numbers := self.numbers(launch):
                    predicted = self.rows[launch.key].predicted
                    predicted[str(case)] = predicted.get(str(case), 0.0) + numbers.seconds

    def seconds(self, case: Case) -> float:
        """Return the predicted time of a case in a CUDA graph."""
        recorded = self.recorded[case]
        times = [numbers.seconds for launch in recorded.launches if (numbers := self.numbers(launch))]
        return sum(times) + recorded.others * OTHER


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def compile_target(name: str, cases: Sequence[Case], path: Path, jobs: int, kernels: Sequence[str] = ()) -> Report:
    """Record what the cases and the fusion launch on a target, and compile it, or of it the ``kernels`` named."""
    aot.activate(TARGETS[name].gpu)
    table = tile_tables.entries(tile_tables.read(path), path)
    cases = [*cases, *aot_stages.entry_cases(table, cases)]
    recorded = {case: aot.record(aot_stages.call(case, table, TARGETS[name].num_sms)) for case in cases}
    launches = [launch for each in recorded.values() for launch in each.launches]
    for _, call in aot_stages.fusion_calls():
        launches += aot.record(call).launches
    if kernels:
        launches = [launch for launch in launches if any(each in launch.key[0] for each in kernels)]
    return Report(name, path, recorded, aot.compile_distinct(name, launches, jobs))


def _format(lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    padded = [[*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]] for line in lines]
    return "\n".join("  ".join(line) for line in padded)


def format_kernels(report: Report) -> str:
    """Return the rows of a target as a table, with the problems of each row below it."""
    head = ("kernel", "uses", "regs", "spill", "local", "shared", "per SM", "loop", "matrix", "tiles; compiled for")
    lines: list[tuple[str, ...]] = [head]
    for row in report.rows.values():
        matrix = " ".join(f"{name}×{count}" for name, count in row.matrix.items()) or "–"
        loop = max(row.loops, key=lambda loop: (loop.matrix, loop.instructions), default=None)
        inner = f"{loop.instructions}, {loop.matrix} matrix" if loop else "–"
        sizes = (str(size) for size in (row.uses, row.registers, row.spilled, row.local, row.shared))
        lines.append((row.kernel, *sizes, str(report.occupancy(row)), inner, matrix, f"{row.config}; {row.what}"))
        lines += [("",) * (len(head) - 1) + (f"^ {problem}",) for problem in row.problems]
    return _format(lines)


def limit(case: Case) -> float:
    """Return the least time that an H100 could take: features read twice, or each pair's products once."""
    memory = H100.bytes_per_clock * H100.num_sms * H100.clock
    if case.method == "prototypes":
        return case.form.affinity.steps * (2 + case.form.affinity.center) * case.features_bytes / memory
    flops = case.B * (case.H * case.W) ** 2 * (case.C + 2 * (case.K + 1))
    return flops / (H100.flops_per_clock * H100.num_sms * H100.clock) + case.features_bytes / memory


def format_stages(report: Report) -> str:
    """Return each case's launches with what they do, and their predicted time."""
    head = (
        "predicted, not measured",
        "programs",
        "per SM",
        "waves",
        "loop",
        "loaded MB",
        "stored MB",
        "bound by",
        "µs",
    )
    lines: list[tuple[str, ...]] = [head]
    for case, recorded in report.recorded.items():
        seconds = report.seconds(case)
        asked = f"{case.features_bytes / 1e6:.2f}"
        share = f"{seconds * 1e6:.1f}, {limit(case) / seconds:.0%} of the limit"
        lines.append((str(case), "", "", "", "", asked, "", "", share))
        for launch in recorded.launches:
            if numbers := report.numbers(launch):
                lines.append(
                    (
                        f"  {launch.key[0]}",
                        str(numbers.programs),
                        str(numbers.per_sm),
                        f"{numbers.waves:.2f}",
                        f"{numbers.instructions}, {numbers.matrix} matrix",
                        f"{numbers.loaded / 1e6:.2f}",
                        f"{numbers.stored / 1e6:.2f}",
                        numbers.bound,
                        f"{numbers.seconds * 1e6:.1f}",
                    )
                )
        if recorded.others:
            lines.append((f"  {recorded.others} of PyTorch's", *[""] * 7, f"{recorded.others * OTHER * 1e6:.1f}"))
    return _format(lines)


def format_goals(report: Report) -> str:
    """Return how the predictions compare with the goals, for float16, 20 classes and φ = relu of a known sign."""
    lines: list[tuple[str, ...]] = [("goal, predicted", "", "")]
    for case in report.recorded:
        if (case.form, case.dtype, case.K) != (aot_stages.RELU, "float16", 20):
            continue
        seconds = report.seconds(case)
        if case.method == "prototypes" and case.features_bytes >= LARGE:
            share = limit(case) / seconds
            lines.append((str(case), f"{share:.0%} of two reads", _verdict(share >= SHARE, f">= {SHARE:.0%}")))
        elif case.method == "prototypes" and case.H * case.W <= SMALL and case.B == 1:
            lines.append((str(case), f"{seconds * 1e6:.1f} µs", _verdict(seconds <= MOST, f"<= {MOST * 1e6:.0f} µs")))
        elif case.method == "tiled" and (case.C, case.H, case.W) == (256, 128, 128):
            ratio = seconds * CUBLAS / (2 * (case.H * case.W) ** 2 * case.C)
            lines.append((str(case), f"{ratio:.2f}× cuBLAS's xᵀx", _verdict(ratio <= 1, "<= 1, stretch 0.65")))
    return _format(lines)


def _verdict(met: bool, goal: str) -> str:
    return f"{'met' if met else 'MISSED'}: {goal}"
