"""What of ``python -m bench compare`` needs no GPU: compiled kernels, traffic and launches, compared exactly."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.compare_cases import Case, draw
from bench.problems import Problem
from bench.workers import Workers, job

if TYPE_CHECKING:
    from bench.measure import Device

LIMIT_S = 3600.0
SIDES: dict[str, Any] = {"h": 5, "w": 6, "dtype": "float32"}
# Ragged in every size, and large enough for several tiles of each method.
CALLS = (
    Case("prototypes", (Problem(1, 3, 72, 12, 15, **SIDES),), "prototypes"),
    Case("shifted", (Problem(1, 3, 72, 12, 15, **SIDES, values="randn", affinity="phi=shifted"),), "prototypes"),
    Case("tiled", (Problem(1, 3, 72, 12, 15, **SIDES, values="randn"),), "tiled"),
    Case("resident", (Problem(1, 3, 72, 9, 11, **SIDES, values="randn"),), "resident"),
    Case("fusion", (Problem(1, 3, 40, 12, 15, **SIDES), Problem(1, 3, 72, 6, 8, **SIDES)), "prototypes"),
)
# What each gate's numbers depend on: files of the package, and folders with all that is in them.
LAUNCHED = ("kernels", "ops", "api.py", "validation.py", "arrays.py", "layouts.py", "affinity.py", "reference.py")
READ = {
    "report": ("kernels", "ops/tile_tables.py", "ops/gpu_info.py", "affinity.py"),
    "traffic": LAUNCHED,
    "host": LAUNCHED,
}
# How a number may change: by a factor up to this; None: any change is told; what is not here must not grow.
ALLOWED: dict[str, float | None] = {"registers": None, "shared": None, "µs per call": 1.25}
MATRIX, COUNTED = "matrix instructions missing", ("bytes loaded", "bytes stored", "product FLOPs")
FIGURES = {MATRIX, *COUNTED, "launches", "µs per call", "registers", "shared"}  # any other number is a problem's


@dataclass
class Gate:
    """What a comparison found: what got worse, and what else is worth telling."""

    name: str
    summary: str = ""
    worse: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(name: str, base: Path, candidate: Path) -> Gate:
    """Compare two trees by one gate, unless they do not differ in anything that it depends on."""
    if read(base, name) == read(candidate, name):
        return Gate(name, "kernels and all that it depends on unchanged, not measured again")
    found: dict[Path, list[Any]] = {base: [], candidate: []}
    for _ in range(2 if name == "host" else 1):
        for tree, rows in found.items():
            environment = {"TRITON_INTERPRET": "1" if name == "traffic" else None}
            with Workers(tree=tree, environment=environment) as workers:
                rows += workers.do(job(f"bench.compare_gates:{name}", name, LIMIT_S))
    return judged(name, found[base], found[candidate])


def read(tree: Path, name: str) -> dict[str, bytes]:
    """Return the contents by path of all files that a gate's numbers depend on."""
    package = tree / "ssa_fast"
    roots = [package / each for each in READ[name]]
    files = (file for root in roots for file in (root.rglob("*") if root.is_dir() else [root]))
    return {f.relative_to(package).as_posix(): f.read_bytes() for f in files if f.suffix in (".py", ".json")}


def judged(name: str, base: list[Any], candidate: list[Any]) -> Gate:
    """Compare rows ``{"label", "numbers"}``, or those that say why there are none.

    Of a label that comes several times the least numbers count. No number may grow, but for ``ALLOWED``.
    """
    gate, before, now = Gate(name), _least(base), _least(candidate)
    gate.worse = [f"{row.get('label', 'the candidate')}: {row['why']}" for row in candidate if "why" in row]
    if not before and not gate.worse:
        return Gate(name, f"not judged, the base has none: {base[0]['why']}")
    for label, numbers in now.items():
        gate.notes += [f"{label}: new"] * (label not in before)
        for what, value in numbers.items():
            # What is new has no figures to compare with, and may have no problem.
            old = before.get(label, {}).get(what, value if what in FIGURES else 0)
            most = ALLOWED.get(what, 1.0)
            said = f"{label}: {what} {value:,.9g}, {old:,.9g} before"
            if most is not None and value > most * old:
                gate.worse.append(said)
            elif value != old and (most is None or value * most < old):
                gate.notes.append(said)
    gate.summary = f"{len(now)} compared" if now else "the candidate failed"
    return gate


def _least(rows: list[Any]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if "numbers" in row:
            old = found.get(row["label"], {})
            found[row["label"]] = {what: min(value, old.get(what, value)) for what, value in row["numbers"].items()}
    return found


# ---- In a worker that has one tree's package ----


def report(_: Device) -> list[Any]:
    """Compile every kernel ahead of time; a problem is counted by the first number in it."""
    from bench import aot

    rows = []
    for row in _saved(aot.main, "--target", "sm_90", "--save"):
        numbers = {name: row[name] for name in ("registers", "shared")}
        numbers[MATRIX] = -sum(row["matrix"].values())  # the more the better
        for problem in row["problems"]:
            size = re.search(r"\d+", problem)
            numbers[re.sub(r"\d+", "…", problem)] = int(size[0]) if size else 1
        rows.append({"label": f"{row['target']} {row['kernel']} {row['config']} {row['what']}", "numbers": numbers})
    return rows


def host(_: Device) -> list[Any]:
    """Count launches and time the host's part of calls on a driver that does nothing."""
    from bench import host

    rows = _saved(host.main, "--save")
    return [{"label": row["case"], "numbers": {"launches": row["launches"], "µs per call": row["us"]}} for row in rows]


def _saved(main: Any, *arguments: str) -> list[Any]:
    """Return the rows of the file that a command of ``bench`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        main([*arguments, str(file)])
        found = json.loads(file.read_text(encoding="utf-8"))
    return found["rows"] if isinstance(found, dict) else found


def traffic(device: Device) -> list[Any]:
    """Count what a few small interpreted calls load, store and multiply: the same numbers everywhere."""
    from bench import traffic  # needs TRITON_INTERPRET=1 in the environment
    from ssa_fast import polish

    rows: list[Any] = []
    for case in CALLS:
        cam, stages = draw(case, device.device)
        problem, given = case.stages[0], stages if len(stages) > 1 else stages[0]
        known: dict[str, Any] = {"method": case.method, "backend": "triton", "nonnegative": problem.nonnegative}
        try:
            affinity = problem.phi  # an older tree may not know it
            with traffic.count({}) as found:
                polish(cam, given, affinity=affinity, **known)
        except (TypeError, ValueError) as error:
            rows.append({"label": case.name, "why": f"{type(error).__name__}: {error}"})
            continue
        counted = (found.loaded.total(), found.stored.total(), found.dot_flops)
        rows.append({"label": case.name, "numbers": dict(zip(COUNTED, counted, strict=True))})
    return rows
