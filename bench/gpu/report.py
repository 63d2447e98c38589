"""Keep the rows of a run as JSON that is always whole, and print at most 60 lines at its end."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from ssa_fast.io.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from bench.workers import Row

LINES, WIDTH = 60, 240
BAD = ("failed", "wrong", "timed out")
LOST = (*BAD, "out of memory")
DRY_RUN = "dry run: no figure means anything"
NOT_SHOWN = (
    "not shown: compiled kernels, bfloat16 products, times, memory, the cache flush, host synchronisation, "
    "CUDA graphs, worker processes, compute-sanitizer, hardware counters; PyTorch polishes four stages in one call"
)


class Report:
    """Collect rows and keep them as JSON at ``path``, whole from the start and after every job."""

    def __init__(self, head: dict[str, Any], path: Path | None) -> None:
        self.head = head
        self.path = path
        self.rows: list[Row] = []
        if path:
            self.save(path)

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.rows.append(row)
            print(progress(row)[: 2 * WIDTH], flush=True)
        if self.path:
            self.save(self.path)

    def save(self, path: Path) -> None:
        """Write everything as JSON, whole or not at all."""
        text = json.dumps(self.head | {"rows": self.rows}, indent=1, ensure_ascii=False, default=str)
        atomic_write(path, text + "\n")

    def exit_code(self) -> int:
        """Return 1 if anything was wrong; a missed goal of speed or memory is a finding, not a fault."""
        return int(any(row["status"] in BAD for row in self.rows))

    def table(self) -> list[str]:
        """Return the run in at most LINES lines, what is wrong first."""
        bad = [f"WRONG {progress(row)}" for row in self.rows if row["status"] in BAD]
        lines = [*bad[:15], *([f"… and {len(bad) - 15} more that are wrong"] if len(bad) > 15 else [])]
        lines += [*self._correctness(), *self._invariants(), *self._roofline()]
        lines += [
            progress(row) for row in self.rows if row["part"] in ("kernels", "counters") and row["status"] == "ok"
        ]
        lines += [line(row, full=False) for row in self.rows if row.get("providers") and row["status"] not in BAD]
        lost = Counter(row["part"] for row in self.rows if row["status"] == "not reached")
        lines += [f"not reached: {', '.join(f'{count} of {part}' for part, count in lost.items())}"] if lost else []
        if len(lines) > LINES - 2:
            lines = [*lines[: LINES - 3], f"… and {len(lines) - LINES + 3} more lines in the JSON"]
        lines.append(self._end())
        if self.head["dry_run"]:
            lines.append(DRY_RUN)
        return [line[:WIDTH] for line in lines]

    def _correctness(self) -> Iterator[str]:
        rows = [row for row in self.rows if row["part"] == "correctness" and "error" in row]
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == method]
            right = sum(row["status"] == "ok" for row in mine)
            verdicts = Counter(goal["verdict"] for row in mine for goal in row["goals"])
            worst = max(mine, key=lambda row: row["error"] / row["goals"][0]["must"])
            yield (
                f"correctness {method}: {right} of {len(mine)} right, "
                f"within the goal {len(mine) - verdicts['missed']}, "
                f"within the stretch {verdicts['stretch']}; furthest {worst['error']:.2g} "
                f"(goal {worst['goals'][0]['must']:g}, rule {worst['rule']:.2g}) {worst['what']}"
            )

    def _invariants(self) -> Iterator[str]:
        rows = [row for row in self.rows if row["part"] in ("invariant", "sanitizer")]
        kept = [str(row["what"]) for row in rows if row["status"] == "ok" and not row.get("goals")]
        if kept:
            yield f"kept: {len(kept)}: {'; '.join(what.split(' B=')[0] for what in kept)}"
        yield from (line(row, full=False) for row in rows if row.get("goals"))
        skipped = Counter(row["why"] for row in self.rows if row["status"] == "skipped")
        yield from (f"skipped: {count}: {why}" for why, count in skipped.items())

    def _roofline(self) -> Iterator[str]:
        found = [
            f"{row['what']} {row['value']:g} {row['unit']}"
            for row in self.rows
            if row["part"] == "roofline" and "value" in row
        ]
        if found:
            yield f"measured: {'; '.join(found)}"

    def _end(self) -> str:
        machine: dict[str, Any] = next((row["machine"] for row in self.rows if "machine" in row), {})
        words = [str(machine.get("gpu", machine.get("cpu", "")))]
        words += [f"{name} {machine[name]}" for name in ("torch", "triton") if machine.get(name)]
        words += [f"commit {commit}"] if (commit := machine.get("commit") or self.head.get("commit")) else []
        words += [f"seed {self.head['seed']}"]
        return f"{len(self.rows)} rows in {self.head['seconds']:.0f} s; {', '.join(filter(None, words))}"


def progress(row: Row) -> str:
    """Return a row in one line, as it comes."""
    if row.get("providers") and row["status"] not in BAD:
        return line(row)
    words = [row["status"], f"{row['part']}:", str(row["what"]).removeprefix(f"{row['part']}: ")]
    words += [f"error {row['error']:.2g}"] if "error" in row else []
    words += [f"{row['value']:g} {row['unit']}"] if "value" in row else []
    words += [f"({row['why']})"] if row.get("why") else []
    return " ".join(words)


def line(row: Row, full: bool = True) -> str:
    """Return a row's figures and verdicts in one line; ``full``: every provider's time, else only ours."""
    goals = [
        f"{goal.get('baseline') or ('error' if goal['what'].startswith('error') else goal['what'])} "
        f"{number(goal['value'])}{goal['unit']} {goal['verdict']}"
        for goal in row.get("goals", ())
    ]
    times = [
        f"{each['name']} {_microseconds(each)}" if "us" in each else f"{each['name']} {each['status']}"
        for each in row.get("providers", ())
        if full or each["name"] == "ours" or each["status" if "status" in each else "name"] in LOST
    ]
    words = f"{row['what']}: {', '.join(times)}{' | ' if times else ''}{'; '.join(goals)}"
    return words + (f" ({row['why']})" if full and row.get("why") else "")


def _microseconds(provider: dict[str, Any]) -> str:
    """Return a provider's times: on the device, back to back, and in a CUDA graph, as far as taken."""
    others = [f"{name} {number(provider[f'{name}_us'])}" for name in ("eager", "graph") if f"{name}_us" in provider]
    return f"{number(provider['us'])} µs" + (f" ({', '.join(others)})" if others else "")


def number(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"
