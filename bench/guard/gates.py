"""What needs no clock and no GPU: the ahead-of-time report and the counted traffic of both trees, compared exactly."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure import ROOT
from bench.orphans import die_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TARGET = "sm_90"
REPORT = ("-m", "bench.guard.launch", "{tree}", "bench.aot", "--target", TARGET, "--json", "{file}")
TRAFFIC = ("-m", "bench.guard.launch", "{tree}", "bench.guard.counted", "{file}")
HOST = ("-m", "bench.guard.launch", "{tree}", "bench.host", "--save", "{file}")
SLOWER = 1.25  # of the host's time: far beyond what two runs of one tree differ by
REPORTED = ("ssa_fast/ops/tile_tables.py", "ssa_fast/ops/gpu_info.py")  # what the report reads beside the kernels


@dataclass
class Gate:
    """What a comparison found: what got worse, and what else is worth telling."""

    name: str
    summary: str
    worse: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def report(base: Path, candidate: Path) -> Gate:
    """The ahead-of-time report of both trees; the minutes of compiling are spared where their kernels are the same."""
    if fingerprint(base, *REPORTED) == fingerprint(candidate, *REPORTED):
        return Gate("report", "kernels unchanged, not compiled again")
    return compare_reports(*(_told(tree, REPORT) for tree in (base, candidate)))


def traffic(base: Path, candidate: Path) -> Gate:
    """The counted traffic of both trees, unless kernels and all that ``polish`` is made of are the same."""
    if fingerprint(base, "ssa_fast/api.py") == fingerprint(candidate, "ssa_fast/api.py"):
        return Gate("traffic", "kernels and all that launches them unchanged, not counted again")
    return compare_traffic(*(_told(tree, TRAFFIC, TRITON_INTERPRET="1") for tree in (base, candidate)))


def host(base: Path, candidate: Path) -> Gate:
    """Compare the launches per call of both trees, and the host's time, of which each is measured twice, in turn."""
    if fingerprint(base, "ssa_fast/api.py") == fingerprint(candidate, "ssa_fast/api.py"):
        return Gate("host", "kernels and all that launches them unchanged, not timed again")
    return compare_hosts(*([_told(tree, HOST) for _ in range(2)] for tree in (base, candidate)))


def fingerprint(tree: Path, *roots: str) -> dict[str, str]:
    """Hashes by path of all files in ``kernels/``, of the ``roots``, and of the package's modules that these import."""
    kernels = (path for path in (tree / "kernels").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    waiting, found = [*kernels, *(tree / root for root in roots)], {}
    while waiting:
        path = waiting.pop()
        name = path.relative_to(tree).as_posix()
        if name in found or not path.is_file():
            continue
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.suffix == ".py":
            waiting += [file for module in _imports(path) for file in _files(tree, module)]
    return found


def _imports(path: Path) -> Iterator[str]:
    """Names of all that a file imports from the package, be they modules or what is in one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(tree: Path, module: str) -> list[Path]:
    """Where a module of the package would be; ``ssa_fast/__init__.py`` alone is no part of what a kernel does."""
    first, *rest = module.split(".")
    if first != "ssa_fast" or not rest or rest[0] == "kernels":
        return []
    at = tree.joinpath(first, *rest)
    return [at.with_suffix(".py"), at / "__init__.py"]


def _told(tree: Path, command: Sequence[str], **environment: str) -> Any:
    """The JSON that a command writes about a tree, or the last line that it said if it wrote none."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "told.json"
        arguments = [part.format(tree=tree, file=file) for part in command]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=partial(die_with, os.getpid()),
        )
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}, and nothing said"])[-1]


def compare_reports(base: Any, candidate: Any) -> Gate:
    """Compare rows of ``python -m bench aot --json``, or what was said in their place.

    Worse are a problem that the base's row lacks or has in a lesser degree, and fewer matrix instructions. A row is
    known by target, kernel, tiles and what it was compiled for; a new one passes if it has no problem.
    """
    gate = Gate("report", "")
    if not _comparable(gate, base, candidate):
        return gate
    before = {_label(row): row for row in base}
    same = 0
    for row in candidate:
        label, old = _label(row), before.get(_label(row))
        known = dict(map(_measured, old["problems"])) if old else {}
        problems = [(problem, *_measured(problem)) for problem in row["problems"]]
        gate.worse += [f"{label}: {problem}" for problem, kind, size in problems if size > known.get(kind, -1)]
        if old is None:
            gate.notes.append(f"{label}: new")
            continue
        was, now = (sum(each["matrix"].values()) for each in (old, row))
        if now < was:
            gate.worse.append(f"{label}: {now} matrix instructions, {was} before")
        changed = [f"{name} {old[name]} → {row[name]}" for name in ("registers", "shared") if old[name] != row[name]]
        gate.notes += [f"{label}: {', '.join(changed)}"] if changed else []
        same += not changed
    if gone := before.keys() - {_label(row) for row in candidate}:
        gate.notes.append(f"{len(gone)} of the base's kernels are gone")
    gate.summary = f"{len(candidate)} kernels for {TARGET} compiled, {same} with the base's registers and shared memory"
    return gate


def _label(row: dict[str, Any]) -> str:
    return f"{row['target']} {row['kernel']} {row['config']} {row['what']}"


def _measured(problem: str) -> tuple[str, int]:
    """A problem without its numbers, and its first number: how bad it is ("spills 8 bytes of registers": 8)."""
    numbers = re.findall(r"\d+", problem)
    return re.sub(r"\d+", "", problem), int(numbers[0]) if numbers else 0


def compare_traffic(base: Any, candidate: Any) -> Gate:
    """Compare what ``bench.guard.counted`` counted: any increase is worse."""
    gate = Gate("traffic", "")
    if not _comparable(gate, base, candidate):
        return gate
    for call, numbers in candidate.items():
        old = base.get(call, "not there")
        if isinstance(numbers, str):
            gate.worse.append(f"{call}: {numbers}")
        elif isinstance(old, str):
            gate.notes.append(f"{call}: new; the base: {old}")
        else:
            for what, now in numbers.items():
                said = f"{call}: {now:,} {what}, {old[what]:,} before ({now / max(old[what], 1) - 1:+.1%})"
                (gate.worse if now > old[what] else gate.notes if now < old[what] else []).append(said)
    gate.summary = f"bytes and products of {len(candidate)} interpreted calls counted"
    return gate


def compare_hosts(base: list[Any], candidate: list[Any]) -> Gate:
    """Compare what ``python -m bench host --save`` wrote in several runs; more launches or ``SLOWER`` is worse."""
    gate = Gate("host", "")
    if not _comparable(
        gate, *(next((run for run in runs if isinstance(run, str)), runs) for runs in (base, candidate))
    ):
        return gate
    before, now = (_least(runs) for runs in (base, candidate))
    for case, (launches, us) in now.items():
        if case not in before:
            gate.notes.append(f"{case}: new")
            continue
        old_launches, old_us = before[case]
        said = f"{case}: {launches} launches, {old_launches} before; {us:.1f} µs, {old_us:.1f} before"
        if launches > old_launches or us > SLOWER * old_us:
            gate.worse.append(said)
        elif launches < old_launches or old_us > SLOWER * us:
            gate.notes.append(said)
    gate.summary = f"launches and CPU time of {len(now)} calls on an empty driver"
    return gate


def _least(runs: list[Any]) -> dict[str, tuple[int, float]]:
    """Launches and least µs per case."""
    cases = {row["case"]: row["launches"] for row in runs[0]["rows"]}
    return {
        case: (launches, min(row["us"] for run in runs for row in run["rows"] if row["case"] == case))
        for case, launches in cases.items()
    }


def _comparable(gate: Gate, base: Any, candidate: Any) -> bool:
    """Whether both trees told numbers: worse if the candidate did not, no judgement if the base did not."""
    if isinstance(candidate, str):
        gate.summary = "the candidate failed"
        gate.worse.append(candidate)
    elif isinstance(base, str):
        gate.summary = f"not judged, the base has none: {base}"
    return not isinstance(candidate, str) and not isinstance(base, str)
